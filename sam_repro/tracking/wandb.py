"""Weights & Biases: offline without an account by default; ``python -m sam_repro.tracking sync`` sends what was recorded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from numpy.typing import NDArray

from ..console import console

Row = dict[str, Any]
EXIT = {"done": 0, "diverged": 1, "failed": 1, "stopped": 255}  # W&B's own code for Ctrl-C: it shows such a run as killed
PATIENCE = 30  # seconds for the server to answer at the start
UPLOAD = 300  # seconds for what is left at the end; the rest stays on disk


class Wandb:
    """A run of W&B: its id is our run id, so that a resumed run goes on in the same place."""

    def __init__(self, folder: Path, settings: Row, run_id: str, described: Row, *, anew: bool) -> None:
        known = {key: settings[key] or None for key in ("project", "entity")}
        self.trial = "WANDB_SWEEP_ID" in os.environ
        if self.trial:  # an agent of W&B has chosen the run's id and place; ours stands in the config
            known = {}
        else:
            known |= {"id": run_id, "resume": None if anew else "allow"}  # None: W&B begins the run anew, "allow": goes on
        quiet = wandb.Settings(silent=True, console="off", init_timeout=PATIENCE, finish_timeout=UPLOAD)
        self.run = _start(settings["mode"], {**known, **described, "job_type": "train", "dir": str(folder.parent), "settings": quiet})
        self.step: int | None = None
        self.run.define_metric("epoch", hidden=True)
        self.run.define_metric("*", step_metric="epoch")
        if self.run.offline:
            console.print(f"W&B: recorded in {folder}; 'python -m sam_repro.tracking sync' sends it.")
        elif not self.run.disabled:
            console.print(f"W&B: {self.run.url}")

    def config(self, values: Row) -> None:
        """Nested as it is; what a sweep of W&B has set stays as the sweep wrote it."""
        theirs = self.run.config.keys() if self.trial else ()
        self.run.config.update({key: value for key, value in values.items() if key not in theirs}, allow_val_change=True)

    def log(self, epoch: int, values: dict[str, float]) -> None:
        """W&B's step is the epoch."""
        self.step = epoch
        self.run.log({"epoch": epoch, **values}, step=epoch)

    def table(self, name: str, rows: list[Row]) -> None:
        """A table of W&B, to filter and to plot."""
        table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        self.run.log({name: table}, step=self.step)

    def image(self, name: str, pixels: NDArray[np.uint8]) -> None:
        """Beside the curves."""
        self.run.log({name: wandb.Image(pixels)}, step=self.step)

    def close(self, state: str, final: Row) -> None:
        """With the summary, and an exit code from which W&B shows a failed run as failed."""
        try:
            self.run.summary.update({**final, "state": state})
        finally:
            self.run.finish(exit_code=EXIT[state])


def refusal() -> str:
    """Why W&B's server cannot be used; empty where it can. Asks no questions, and waits some ten seconds at most."""
    try:
        return "" if wandb.login(prompt=False) else "no account is known here; set WANDB_API_KEY, or run 'wandb login'"
    except Exception as error:
        return str(error).splitlines()[0].rstrip(".")


def _start(mode: Any, known: Row) -> wandb.Run:
    """A run of W&B; one that was to be online is recorded offline where there is no account or no network."""
    if mode == "online" and (reason := refusal()):
        console.print(f"W&B: {reason}. So the run is recorded offline.")
        mode = "offline"
    try:
        return wandb.init(mode=mode, **known)
    except wandb.Error as error:
        if mode != "online":
            raise
        console.print(f"W&B: {str(error).splitlines()[0]}. So the run is recorded offline.")
        return wandb.init(mode="offline", **known)
