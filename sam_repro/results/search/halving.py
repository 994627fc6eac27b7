"""Successive halving, from the store alone: which runs a rung has follows from the scores of the rung before, and so nothing else is kept.

Jamieson and Talwalkar 2016: all combinations a short training, the best of them a longer one. What ranks is the score on the held-out
part of the training set; the test set is scored by the final runs alone, which nothing is chosen by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...device import device_type
from ...schema import UserError, only, parse
from ...store import OVER, Run
from ..declare import Words, distinct, measures_of
from ..select import Request, run_id
from ..work import Task
from .grid import Combination, Grid, composed
from .grid import read as read_grid

if TYPE_CHECKING:
    from ..frames import Frames

KEYS = ("with", "seed", "grid", "excluded", "rungs", "final")


@dataclass(frozen=True)
class Search:
    """A declared search."""

    common: Words  # overrides of all runs
    seed: int  # of the rungs
    grid: Grid
    rungs: tuple[tuple[int, int], ...]  # how many combinations, how many epochs
    seeds: tuple[int, ...]  # of the final runs
    last: Words  # overrides of the final runs beside
    beside: tuple[Words, ...]  # what the front is compared with: overrides of methods
    measures: tuple[Words, ...]  # of the final runs


@dataclass(frozen=True)
class Entry:
    """A combination at a rung, or one of the final methods: a run, or one of each seed."""

    label: str
    combination: Combination | None  # none of what the front is compared with
    tasks: tuple[Task, ...]

    @property
    def done(self) -> list[Run]:
        """Its runs that have a score."""
        return [task.run for task in self.tasks if task.run.state == "done"]


@dataclass(frozen=True)
class Stage:
    """A rung, or the final runs."""

    title: str
    epochs: int
    entries: tuple[Entry, ...]
    final: bool = False

    @property
    def tasks(self) -> list[Task]:
        """All runs; the first seed of all of them before the second."""
        return sorted((task for entry in self.entries for task in entry.tasks), key=lambda task: task.seed)

    @property
    def over(self) -> bool:
        """Whether every run is done or has diverged."""
        return all(task.run.state in OVER for task in self.tasks)


def load(path: Path, request: Request) -> Search:
    """The search that a file declares; UserError where it does not fit."""
    content = parse(path.read_text())
    only(content, KEYS)
    only(content["final"], ("seeds", "with", "beside", "measure"))
    common, final = (*content["with"].split(), *request.overrides), content["final"]
    if not composed(common)["val_fraction"]:
        raise UserError("with: a search ranks by a held-out part of the training set: add val_fraction=0.1.")
    rungs = tuple(_rung(one) for one in content["rungs"])
    if not rungs or any(a[0] < b[0] or a[1] >= b[1] for a, b in pairwise(rungs)):
        raise UserError("rungs: each has no more combinations than the one before, and more epochs.")
    if content["seed"] in final["seeds"] or not final["seeds"]:
        raise UserError(f"final: seeds are one or more that the search has not seen, and so not {content['seed']}.")
    grid = read_grid(content["grid"], content.get("excluded", []), common)
    beside = tuple(tuple(words.split()) for words in final.get("beside", []))
    last = tuple(final.get("with", "").split())
    return Search(common, content["seed"], grid, rungs, tuple(final["seeds"]), last, beside, measures_of([final]))


def _rung(node: Any) -> tuple[int, int]:
    only(node, ("combinations", "epochs"))
    found = node["combinations"], node["epochs"]
    if not all(isinstance(number, int) and number > 0 for number in found):
        raise UserError(f"rungs: {node} is a number of combinations and one of epochs.")
    return found


def stages(search: Search, request: Request) -> list[Stage]:
    """The rungs that are known, in order, and the final runs once all rungs are over: all but the last one are over."""
    frames, found = request.frames, []
    chosen: Sequence[Combination] = search.grid.combinations
    for number, (count, epochs) in enumerate(search.rungs, 1):
        entries = [_entry(search, request, frames, one, one.words, [search.seed], epochs) for one in chosen[:count]]
        found.append(stage := Stage(f"rung {number}", epochs, tuple(entries)))
        if not stage.over:
            return found
        if not (chosen := [entry.combination for entry in ranked(stage) if entry.combination]):
            raise UserError(f"Every run of {stage.title} diverged: no combination is left.")
    methods: list[tuple[Combination | None, Words]] = [
        *((entry.combination, entry.combination.words) for entry in front(found[-1]) if entry.combination),
        *((None, words) for words in search.beside),
    ]
    every = [_entry(search, request, frames, one, words, search.seeds, epochs, final=True) for one, words in methods]
    return [*found, Stage("final", epochs, tuple(every), final=True)]


def _entry(
    search: Search, request: Request, frames: Frames, one: Combination | None, words: Words, seeds: Sequence[int], epochs: int,
    *, final: bool = False,
) -> Entry:  # fmt: skip
    """A combination, or another method, with its runs; ``words`` may have epochs of their own, as those of more of a cheaper method."""
    label = str(one or " ".join(words))
    own = distinct((*search.common, f"epochs={epochs}", *words, *((*search.last, "val_fraction=0") if final else ())))
    config, measures = composed(own), search.measures if final else ()
    ids = {seed: run_id(config, seed, device_type(config["device"])) for seed in seeds}
    runs = {seed: frames.ended(found) or Run(request.runs_dir, found) for seed, found in ids.items()}
    return Entry(label, one, tuple(Task(run, config, own, search.common, seed, label, measures) for seed, run in runs.items()))


def ranked(stage: Stage) -> list[Entry]:
    """The entries of a rung that have a score, the best one first; of two alike the one that costs less."""
    return sorted((entry for entry in stage.entries if entry.done), key=lambda one: (-score(one), cost(one.done[0].summary), one.label))


def score(entry: Entry) -> float:
    """What a rung is ranked by: the last epoch's score on the held-out part; UserError where the run was scored on anything else."""
    summary = entry.done[0].summary
    if summary["split"] != "val":
        raise UserError(f"Run {entry.done[0].id} has no score on a held-out part, and none other may rank.")
    return float(summary["score_last"])


def cost(summary: Mapping[str, Any]) -> float:
    """What a step costs in SGD's steps, by its passes: (forward + 2 backward)/3. No clock has a part in it."""
    return float(summary["forward_units"] + 2 * summary["backward_units"]) / (3 * summary["steps"])


def front(stage: Stage) -> list[Entry]:
    """The entries of a rung than which none has a better score for the same cost or the same score for less, the cheapest first."""
    entries = ranked(stage)
    kept = pareto([(score(entry), cost(entry.done[0].summary)) for entry in entries])
    return sorted((entries[place] for place in kept), key=lambda one: cost(one.done[0].summary))


def pareto(points: Sequence[tuple[float, float]]) -> Iterator[int]:
    """The places of the (score, cost) that no other one dominates."""
    best = float("-inf")
    for place in sorted(range(len(points)), key=lambda one: (points[one][1], -points[one][0])):
        if points[place][0] > best:  # of two alike the first stands for both
            best = points[place][0]
            yield place
