"""What was not recorded while it trained, for W&B: runs that are over, and what is claimed of them. Offline; ``sync`` sends it."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from ..config import compose
from ..schema import UserError
from ..store import OVER, Run
from .follow import follow

Row = dict[str, Any]


def is_archived(run: Run) -> bool:
    """Whether a run lies in an archive, which has nothing of how it was watched."""
    return "wandb" not in run.config


def record(run: Run, folder: Path) -> Path:
    """Show a run that is over to W&B, offline; its record lies in the run's directory or, of an archived one, in ``folder``.

    Returns the directory that holds it. UserError where the run is not over.
    """
    if run.state not in OVER:
        raise UserError(f"Run {run.id} is {run.state}: only what is over is recorded afterwards.")
    place = (folder / run.id if is_archived(run) else run.path).absolute()
    config = {**compose([]), **run.config, "logger": ["wandb"], "rerun": False}
    config["wandb"] = {**config["wandb"], "mode": "offline"}
    with follow(config, run, run.state, place):
        pass
    return place


def record_claims(table: Path, project: str, folder: Path) -> Path:
    """Record ``results/claims.csv`` as a table of W&B, in a run named ``claims``; UserError where it is not there.

    Returns the directory that holds the record.
    """
    import wandb

    try:
        with table.open(newline="") as file:
            columns, *rows = list(csv.reader(file))
    except (OSError, ValueError) as error:
        raise UserError(f"{table} is not there: 'python -m sam_repro.claims report' writes it.") from error
    folder.mkdir(parents=True, exist_ok=True)
    quiet = wandb.Settings(silent=True, console="off")
    with wandb.init(
        mode="offline",
        project=project,
        name=os.environ.get("WANDB_NAME") or "claims",
        job_type="claims",
        dir=str(folder.absolute()),
        settings=quiet,
    ) as run:
        run.log({"claims": wandb.Table(columns=[*columns], data=rows)})
    return folder
