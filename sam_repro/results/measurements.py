"""What a table shows of finished runs and training leaves out: landscapes, eigenvalues, the cost of a step."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..console import console
from ..measure.__main__ import parsed
from .declare import Words
from .select import Request
from .work import Task


@dataclass(frozen=True)
class Measurement:
    """One command of ``python -m sam_repro.measure`` on one run."""

    task: Task
    words: Words

    @property
    def settings(self) -> dict[str, Any]:
        """The command's, its defaults where the words are silent."""
        return parsed(self.words[0], list(self.words[1:]))

    @property
    def file(self) -> Path:
        """Where its result lies, or will."""
        return self.task.run.measured(self.words[0], self.settings.get("layer", ""), self.settings.get("dimensions", 2))

    @property
    def done(self) -> bool:
        """Whether there is a result, of as many steps or samples as the table wants."""
        if not self.file.exists():
            return False
        kept = json.loads(self.file.read_text())  # whole: a run is looked up only if what it left is
        wanted = {key: value for key, value in self.settings.items() if key in ("steps", "samples")}
        if "samples" in wanted:
            wanted["samples"] = kept["of"] if wanted["samples"] == "all" else min(wanted["samples"], kept["of"])
        return all(kept.get(key) == value for key, value in wanted.items())

    @property
    def needless(self) -> bool:
        """A step's cost is in SGD's steps: SGD's own is 1."""
        return self.words[0] == "cost" and self.task.config["optimizer"]["name"] == "sgd"

    def command(self, request: Request) -> list[str]:
        """The ordinary command."""
        device = [f"device={request.device}"] if request.device else []
        where = [word for word in request.overrides if word.startswith(("data_dir=", "plugins="))]
        named = [f"run={self.task.run.id}", f"runs_dir={request.runs_dir}"]
        return [sys.executable, "-m", "sam_repro.measure", *self.words, *named, *device, *where]


def missing(tasks: Iterable[Task]) -> list[Measurement]:
    """What is to be measured on these runs, and is not, or of fewer steps or samples; each file once."""
    wanted = [Measurement(task, words) for task in tasks for words in task.measures]
    return list({one.file: one for one in reversed(wanted) if not one.needless and not one.done}.values())[::-1]


def measure(wanted: list[Measurement], request: Request) -> list[Measurement]:
    """Measure one after the other, so that steps are timed alone; returns what failed. A run without weights is named and left out."""
    failed = []
    for index, one in enumerate(wanted, 1):
        if not one.task.run.checkpoint.exists():
            again = " ".join(["python", *one.task.command(request)[1:], "rerun=true"])
            console.print(f"Not measured, for {one.task.run.path} has no weights, which this makes anew: {again}")
            continue
        console.print(f"[{index}/{len(wanted)}] {one.task.run.id} {' '.join(one.words)}  ({one.task.label}, seed {one.task.seed})")
        if subprocess.run(one.command(request), check=False).returncode:
            failed.append(one)
    return failed
