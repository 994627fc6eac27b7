"""What a bench came to: speeds beside their limits, as a page that is printed and written."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..provenance import commit, now, versions
from .contestants import mean_of_kinds
from .rivals import version

COLUMNS = ["speed", "limit", "of limit", "ms", "forward", "backward", "peak MiB", "launches"]
WORDS = ("method", "others", "same work as")  # columns that hold any

LEGEND = """Speed is relative to SGD; the limit is 3 / (f + 2b) for the f forward and b backward passes that the steps made; peak is the
memory of model, method, base optimizer and step; launches are the operations dispatched in a step (the base optimizer's own are fewer
on a GPU). Knobs are those of `conf/optimizer` where none are said. The first line is SGD beside itself: its distance from 1 is noise."""


class Taken(NamedTuple):
    """A timed step."""

    seconds: float
    beside: float  # of SGD's step
    forward: float
    backward: float


class Result(NamedTuple):
    """What a method came to, a step on average."""

    label: str
    speed: float  # SGD is 1
    limit: float  # the speed that its passes allow
    milliseconds: float
    forward: float
    backward: float
    peak: int = 0  # bytes, of model and base optimizer too
    launches: float = 0.0
    same_work: str = ""  # of a rival: the label of the contestant that does the same work

    @property
    def of_limit(self) -> float:
        """Measured over limit."""
        return self.speed / self.limit


def result(label: str, taken: Sequence[Taken]) -> Result:
    """Speed and limit over the timed steps."""
    kinds = [(round(step.forward, 6), round(step.backward, 6)) for step in taken]
    weights = [1 / len(taken)] * len(taken)
    forward, backward = (statistics.fmean(column) for column in zip(*kinds, strict=True))
    cost = mean_of_kinds(kinds, [step.seconds / step.beside for step in taken], weights)
    seconds = mean_of_kinds(kinds, [step.seconds for step in taken], weights)
    return Result(label, 1 / cost, 3 / (forward + 2 * backward), seconds * 1000, forward, backward)


def page(settings: dict[str, str], said: str, device: torch.device, results: Sequence[Result], shares: tuple[float, float]) -> str:
    """The page of the settings, ``said`` being the words of the command; ``shares``: records' and checkpoint's in an epoch."""
    from ..train.loop import hardware

    theirs = version()
    known = {**versions(), **({"pytorch-optimizer": theirs} if theirs else {})}
    ours = [row for row in results if not row.same_work]
    others = [row for row in results if row.same_work]
    speeds = {row.label: row.speed for row in ours}
    beside = [[*_cells(row), row.same_work, f"{speeds[row.same_work] / row.speed - 1:+.1%}"] for row in others]
    parts = [
        f"# A step of every method beside SGD's: {settings['model']} on {device.type}",
        f"`{f'python -m sam_repro.measure.bench {said}'.strip()}`, commit {commit()}, {now()}; {hardware(device)};\n"
        f"{', '.join(f'{name} {number}' for name, number in known.items())}.\n"
        f"Batch {settings['batch_size']} of random 32 x 32 images, fp32, {settings['steps']} rounds of a step each, in one process.",
        _aligned(["method", *COLUMNS], [_cells(row) for row in ours]),
        LEGEND,
        _aligned(["others", *COLUMNS, "same work as", "ours is faster by"], beside) if others else "",
        "" if theirs else "pytorch-optimizer is not installed and has no line here: pip install pytorch-optimizer.",
        f"Records take {shares[0]:.2%} of an epoch of SGD on 50,000 images, a checkpoint {shares[1]:.2%}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cells(row: Result) -> list[str]:
    ratios = (f"{number:.3f}" for number in (row.speed, row.limit, row.of_limit))
    passes = (f"{number:.2f}" for number in (row.forward, row.backward))
    return [row.label, *ratios, f"{row.milliseconds:.1f}", *passes, f"{row.peak / 2**20:.1f}", f"{row.launches:,.0f}"]


def _aligned(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown that can be read as it stands: words to the left, numbers to the right."""
    columns = [[name, *cells] for name, cells in zip(head, zip(*rows, strict=True), strict=True)]
    shown = []
    for name, *cells in columns:
        width = max(map(len, (name, *cells)))
        rule, place = ("-" * width, str.ljust) if name in WORDS else ("-" * (width - 1) + ":", str.rjust)
        shown.append([place(name, width), rule, *(place(cell, width) for cell in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*shown, strict=True))
