"""``python -m sam_repro.tracking sync | dashboard``: send what was recorded offline to W&B; create the dashboard there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ..command import command
from ..loggers import check
from ..schema import UserError, suggest
from ..store import all_runs, find

USAGE = (
    "python -m sam_repro.tracking sync [ID ...] [runs_dir=runs]   send what was recorded offline to W&B\n"
    "       python -m sam_repro.tracking dashboard [project=sam-repro] [entity=]   create the dashboard in W&B"
)
KEYS = {"sync": {"runs_dir"}, "dashboard": {"project", "entity"}}


def main() -> None:
    """The command line."""
    words = [word for word in sys.argv[1:] if "=" not in word]
    settings = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    with command("sam_repro.tracking", usage=USAGE):
        if not words or words[0] not in KEYS or (words[0] == "dashboard" and words[1:]):
            raise UserError(f"usage: {USAGE}")
        for key in settings.keys() - KEYS[words[0]]:
            raise UserError(f"There is no key {key!r}.{suggest(key, KEYS[words[0]])}")
        if words[0] == "sync":
            sync(words[1:], **settings)
        else:
            dashboard(**settings)


def sync(prefixes: list[str], runs_dir: str = "runs") -> None:
    """Send the offline records of the runs named, or of all, by ``wandb sync``; UserError where that cannot be."""
    runs = [find(runs_dir, prefix) for prefix in prefixes] if prefixes else all_runs(runs_dir)
    folders = [folder for run in runs for folder in recorded(run.path)]
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
