"""The seam between a run and its trackers: they are shown what the store holds, and cannot harm the run.

What a tracker has got stands in ``<run>/<tracker>/sent.json``. So a resumed run goes on where it left off, and one that was trained
without a tracker is shown to it afterwards, by the same command with ``logger=[...]``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..console import console
from ..files import write
from ..schema import Diverged
from ..store import OVER, Run
from . import Tracker, keys
from .describe import group_of, identity_of, tags, title

Row = dict[str, Any]


@contextlib.contextmanager
def follow(config: Row, run: Run, end: str = "done", place: Path | None = None) -> Iterator[Callable[[], None]]:
    """Open the trackers of ``logger=``; yields what shows them the epochs recorded since. They are closed however the run ends.

    ``end`` is its state where nothing is raised; ``place`` the folder that the trackers write to, where it is not the run's own.
    """
    followers: list[Follower] = []
    state = "failed"

    def show() -> None:
        for follower in followers:
            follower.attempt(follower.epochs)

    try:
        for name in config["logger"]:
            followers.append(Follower(name, config, run, place))
            followers[-1].attempt(followers[-1].open)
        show()
        yield show
        state = end
    except KeyboardInterrupt:
        state = "stopped"
        raise
    except Diverged:
        state = "diverged"
        raise
    finally:
        for follower in followers:
            follower.close(state)


def show_finished(config: Row, run: Run) -> None:
    """Show a run that is over to those of its trackers that have not seen its end."""
    names = [name for name in config["logger"] if not Follower(name, config, run).complete]
    with follow({**config, "logger": names}, run, run.state):
        pass


class Follower:
    """One tracker of a run. If it raises, that is said once, and it is left alone from then on, but closed."""

    def __init__(self, name: str, config: Row, run: Run, place: Path | None = None) -> None:
        self.name, self.settings, self.run = name, config, run
        self.folder = (place or run.path) / name
        self.tracker: Tracker | None = None
        self.failed = False
        anew = config["rerun"] or (name == "wandb" and "WANDB_SWEEP_ID" in os.environ)  # each trial of W&B is a run of its own there
        self.sent = {} if anew else _read(self.folder / "sent.json")

    @property
    def complete(self) -> bool:
        """Whether the tracker has seen the run to its end."""
        return self.sent.get("state") in OVER

    def attempt(self, work: Callable[[], None], *, always: bool = False) -> None:
        """Do it, unless the tracker has failed before."""
        if self.failed and not always:
            return
        try:
            work()
        except Exception as error:
            if not self.failed:
                console.print(f"{self.name} failed, and the run goes on without it: {type(error).__name__}: {error}")
            self.failed = True

    def open(self) -> None:
        """Create the tracker and say what the run is; a rerun leaves nothing of the run before."""
        if self.settings["rerun"]:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tracker = _create(self.name, self.folder, self.settings, self.run)
        self.tracker.config(identity_of(self.settings, self.run))

    def epochs(self) -> None:
        """Show the epochs that the tracker has not got."""
        assert self.tracker is not None
        seconds = 0.0
        for row in self.run.metrics():
            seconds += row["seconds"]
            if row["epoch"] > self.sent.get("epoch", 0):
                self.tracker.log(row["epoch"], {**keys.of_epoch(row), keys.TIME: seconds})
                self._remember(epoch=row["epoch"])

    def layers(self) -> None:
        """Show what happened to each layer: the rows, and the pictures."""
        assert self.tracker is not None
        from .heatmap import heatmap

        if rows := self.run.layers():
            self.tracker.table(keys.LAYERS, rows)
            for column, name in keys.HEATMAPS.items():
                self.tracker.image(name, heatmap(rows, column, title(self.settings, self.run)))

    def close(self, state: str) -> None:
        """Show how the run ended, and close the tracker, also one that has failed."""
        if (tracker := self.tracker) is None:
            return
        self.attempt(self.layers)
        self.attempt(lambda: tracker.close(state, keys.of_summary(self.run.summary) if state == "done" else {}), always=True)
        self.attempt(lambda: self._remember(state=state))

    def _remember(self, **news: Any) -> None:
        self.sent |= news
        write(self.folder / "sent.json", json.dumps(self.sent) + "\n")


def _create(name: str, folder: Path, config: Row, run: Run) -> Tracker:
    if name == "tensorboard":
        from .tensorboard import TensorBoard

        return TensorBoard(_of_one_name(folder, title(config, run)))
    from .wandb import Wandb

    described = {"name": os.environ.get("WANDB_NAME") or title(config, run), "group": group_of(config, run), "tags": tags(config, run)}
    return Wandb(folder, config["wandb"], run.id, described, anew=config["rerun"])


def _of_one_name(folder: Path, name: str) -> Path:
    """Where a run's events go: TensorBoard shows a run by the name of the folder they are in; one that was begun goes on there."""
    known = [path.parent for path in folder.rglob("events.out.*")]
    return known[0] if known else folder / "".join(sign if sign.isalnum() or sign in " ._=,+-[]" else "-" for sign in name)[:120]


def _read(path: Path) -> Row:
    try:
        content: Row = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content
