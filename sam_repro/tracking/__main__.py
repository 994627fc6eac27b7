"""``python -m sam_repro.tracking sync | record | claims | dashboard``: W&B after the training: record, send, look."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ..command import command, misused
from ..loggers import check
from ..schema import UserError, suggest
from ..store import OVER, all_runs, find

USAGE = """python -m sam_repro.tracking COMMAND
  sync [ID ...]     send what was recorded offline to W&B   [runs_dir=runs; runs/.recorded: what the next two recorded]
  record [ID ...]   record runs that are over, offline, as logger=[wandb] would have   [runs_dir=runs; results/runs: the archive]
  claims            record results/claims.csv as a table, offline   [results_dir=results project=sam-repro]
  dashboard         create the dashboard in W&B   [project=sam-repro entity=]"""
RECORDED = Path("runs/.recorded")
KEYS = {"sync": {"runs_dir"}, "record": {"runs_dir"}, "claims": {"results_dir", "project"}, "dashboard": {"project", "entity"}}


def main() -> None:
    """The command line."""
    words = [word for word in sys.argv[1:] if "=" not in word]
    settings = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    with command("sam_repro.tracking", usage=USAGE):
        if not words or words[0] not in KEYS or (words[0] in ("dashboard", "claims") and words[1:]):
            raise misused(words, KEYS, USAGE)
        for key in settings.keys() - KEYS[words[0]]:
            raise UserError(f"There is no key {key!r}.{suggest(key, KEYS[words[0]])}")
        if words[0] == "sync":
            sync(words[1:], **settings)
        elif words[0] == "record":
            record(words[1:], **settings)
        elif words[0] == "claims":
            claims(**settings)
        else:
            dashboard(**settings)


def record(prefixes: list[str], runs_dir: str = "runs") -> None:
    """Record the runs named, or all that are over, as if they had been trained with ``logger=[wandb]``."""
    check(["wandb"], {"mode": "offline"})
    from .archived import record as recorded_now

    for run in [find(runs_dir, prefix) for prefix in prefixes] or [run for run in all_runs(runs_dir) if run.state in OVER]:
        recorded_now(run, RECORDED)


def claims(results_dir: str = "results", project: str = os.environ.get("WANDB_PROJECT", "sam-repro")) -> None:
    """Record the table of claims."""
    check(["wandb"], {"mode": "offline"})
    from .archived import record_claims

    print(f"W&B: recorded in {record_claims(Path(results_dir) / 'claims.csv', project, RECORDED / 'claims')}")


def sync(prefixes: list[str], runs_dir: str = "runs") -> None:
    """Send the offline records of the runs named, or of all, by ``wandb sync``; UserError where that cannot be."""
    places = [find(runs_dir, prefix).path for prefix in prefixes] or [path.parent for path in sorted(Path(runs_dir).glob("*/wandb"))]
    folders = [folder for place in places for folder in recorded(place)]
    if not folders:
        print(f"There is nothing to send in {runs_dir}: what logger=[wandb] recorded offline, and was not sent yet, would be.")
        return
    sign_in()
    if subprocess.run([sys.executable, "-m", "wandb", "sync", *map(str, folders)]).returncode or any(map(unsent, folders)):
        raise UserError("W&B did not take all of it; the same command sends the rest.")


def recorded(path: Path) -> list[Path]:
    """The offline records of a run that were not sent yet, oldest first: a run that was resumed has several."""
    return [folder for folder in sorted((path / "wandb").glob("offline-run-*")) if unsent(folder)]


def unsent(folder: Path) -> bool:
    """``wandb sync`` leaves a mark beside what it has sent."""
    return not any(folder.glob("*.wandb.synced"))


def dashboard(project: str = os.environ.get("WANDB_PROJECT", "sam-repro"), entity: str = os.environ.get("WANDB_ENTITY", "")) -> None:
    """Create the dashboard of ``dashboard.py``; UserError without its package, an account or a network."""
    try:
        from .dashboard import workspace
    except ModuleNotFoundError as error:
        raise UserError(f"The dashboard needs {error.name}: pip install 'sam-repro[dashboard]'.") from error
    sign_in()
    import wandb

    view = workspace(entity or str(wandb.Api().default_entity), project).save()
    print(f"The dashboard is at {view.url}")


def sign_in() -> None:
    """UserError where W&B is not installed, knows no account, or its server does not answer."""
    check(["wandb"], {"mode": "online"})
    from .wandb import refusal

    if reason := refusal():
        raise UserError(f"W&B cannot be used: {reason}.")


if __name__ == "__main__":
    main()
