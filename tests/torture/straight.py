"""What nothing happened to: the small trainings of the hunt, and what a run that went through a fault is compared with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random

import torch

from sam_repro.config import compose, identity
from sam_repro.store import Row, Run

from .process import Ended, Moments, command

Kind = Callable[[Random, int, Path], Iterator[str]]  # the tries of a fault, in an empty folder: of each, what was lost, or nothing
STEPS, AN_EPOCH = 24, 4
SMALL = ["device=cpu", "max_samples=64", "batch_size=16", "epochs=6"]
METHODS = {
    "layerwise": ["optimizer=layerwise", "k=2", "norms_every=2"],
    "looksam": ["optimizer=looksam"],
    "vsam": ["optimizer=vsam", "start=4", "N=4", "M=2"],
    "averaged sgd": ["optimizer=sgd", "ema=0.9", "mixup=0.4"],
    "msam": ["optimizer=msam", "m=2"],
    "saf": ["optimizer=saf", "start=1"],
}
CLOCK = ("seconds", "images_per_second")
PLACE: list[Path] = []  # where the straight runs lie


def words_of(method: str, runs_dir: Path) -> list[str]:
    """The command of a method's training."""
    return [*SMALL, *METHODS[method], f"runs_dir={runs_dir}"]


def run_of(method: str, runs_dir: Path) -> Run:
    """Where it lies."""
    return Run(runs_dir, identity(compose(words_of(method, runs_dir))))


def train(method: str, runs_dir: Path, before: Moments | None = None) -> Ended:
    """The command, to its end."""
    return command("sam_repro.__main__", *words_of(method, runs_dir), before=before)


@cache
def straight(method: str) -> tuple[Run, int]:
    """The training that nothing happened to, and the number of its moments."""
    moments = Moments(PLACE[0])
    ended = train(method, PLACE[0], moments)
    assert ended.status == 0, ended.said
    return run_of(method, PLACE[0]), moments.count


def other_than(run: Run, expected: Run) -> str:
    """In what a finished run is another than what was expected of it: weights and states bit by bit, rows but for the clock."""
    if run.state != "done":
        return f"the run is {run.state}"
    run.check()
    if [_timeless(row) for row in run.metrics()] != [_timeless(row) for row in expected.metrics()]:
        return "other metrics"
    if _timeless(run.summary) != _timeless(expected.summary):
        return "another summary"
    if (run.layers(), run.steps()) != (expected.layers(), expected.steps()):
        return "other layers or steps"
    one, other = (torch.load(each.checkpoint, weights_only=True) for each in (run, expected))
    return "" if _equal(one, other) else "another checkpoint"


def _timeless(row: Row) -> str:
    return json.dumps({key: value for key, value in row.items() if key not in CLOCK})


def _equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other or (one != one and other != other))
