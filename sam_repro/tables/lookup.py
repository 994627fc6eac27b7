"""From a cell's overrides to its runs: their identities, in the store and in the committed archive."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from ..config import OUTSIDE, Config, compose, identity, keys_of
from ..schema import UserError, read
from ..tracking.console import console
from ..train.store import DamagedError, Run, all_runs
from .declare import Cell, Words, distinct

SCALES = ("paper", "small")  # shown where the user names none: the first that has runs. A smoke test's numbers mean nothing.
DEVICES = ("cuda", "cpu")


@dataclass(frozen=True)
class Request:
    """What the user asked for on the command line."""

    overrides: Words = ()  # for every run, but those below
    scale: str = ""
    device: str = ""
    precision: str = ""
    seeds: tuple[int, ...] = ()  # as many as the paper's where empty
    experiment: str = ""  # the runs of this one only, of all that fill a table
    runs_dir: str = "runs"
    results_dir: str = "results"
    experiments: str = ""  # the folder of the declarations; empty: the project's own

    @property
    def changes(self) -> Words:
        """The overrides that make the runs others than the declared ones: no paths."""
        return tuple(word for word in self.overrides if next(keys_of([word])) not in OUTSIDE)

    @property
    def words(self) -> Words:
        """As overrides again, to be shown."""
        named = (("scale", self.scale), ("device", self.device), ("precision", self.precision))
        seeds = (f"seeds={','.join(map(str, self.seeds))}",) if self.seeds else ()
        return (*(f"{key}={value}" for key, value in named if value), *seeds, *self.changes)

    @property
    def declared(self) -> Words:
        """Where the tables are declared, as an override again; nothing for the project's own."""
        return (f"experiments={self.experiments}",) if self.experiments else ()

    @property
    def paths(self) -> Words:
        """As overrides again, where they are not the usual ones."""
        given = (("runs_dir", self.runs_dir, "runs"), ("results_dir", self.results_dir, "results"))
        return (*(f"{key}={value}" for key, value, usual in given if value != usual), *self.declared)


@dataclass(frozen=True)
class Setting:
    """What the cells of one benchmark must share to stand beside each other."""

    scale: str
    device: str
    precision: str

    @property
    def where(self) -> str:
        """Device and, where it is not the full one, precision: ``cpu bf16``."""
        return self.device if self.precision == "fp32" else f"{self.device} {self.precision}"

    @property
    def words(self) -> Words:
        """As overrides; what is usual is left out."""
        return tuple(f"{key}={value}" for key, value in self.__dict__.items() if value not in ("paper", "fp32"))


class Shelf:
    """The store of runs, and behind it the archive of those that were reported."""

    def __init__(self, runs_dir: str | Path, results_dir: str | Path) -> None:
        self.store, self.archive = Path(runs_dir), Path(results_dir) / "runs"

    def ended(self, run_id: str) -> Run | None:
        """The run of this id that is done or diverged, if there is one; UserError where it is damaged, and the archive has no whole one."""
        damaged: DamagedError | None = None
        for place in (self.store, self.archive):
            run = Run(place, run_id)
            try:
                if diverged(run) and (place == self.store or Run(self.store, run_id).state == "new"):  # else it is being made anew
                    return run
                if (place / run_id / "summary.json").exists() and run.state == "done":
                    run.check()
                    if damaged:
                        warn(f"{damaged} Until then {run.path} stands for it.")
                    return run
            except DamagedError as error:
                advice = f"damaged: restore it, or remove {run.path}, and 'tables run' makes the run anew."
                damaged = damaged or (DamagedError(error.path, advice) if place == self.archive else error)
        if damaged:
            raise damaged
        return None

    @cached_property
    def scales(self) -> set[str]:
        """Of all runs that are done or diverged: others need not be looked for."""
        found = {run.config["scale"] for place in (self.store, self.archive) for run in all_runs(place) if diverged(run)}
        for path in (path for place in (self.store, self.archive) for path in place.glob("*/summary.json")):
            try:
                found.add(json.loads(path.read_text())["scale"])
            except (ValueError, KeyError, TypeError):  # damaged: it may be of any
                found.update(SCALES)
        return found


def diverged(run: Run) -> bool:
    """Whether a run diverged; one whose status cannot be read did not."""
    try:
        return run.state == "diverged"
    except DamagedError:
        return False


def configuration(cell: Cell, scale: str, request: Request) -> Config:
    """The configuration of a cell's runs; UserError, which names the row, where its overrides do not fit."""
    words = words_of(cell, scale, request)
    try:
        return _composed(words)
    except UserError as error:
        raise UserError(f"{error} (Row {cell.row!r} runs {' '.join(words)}.)") from error


def words_of(cell: Cell, scale: str, request: Request) -> Words:
    """The overrides of a run: the cell's, its substitute's at this scale, and the user's; the substitute's precision stands."""
    substitute = cell.substitutes.get(scale)
    named = (f"precision={request.precision}",) if request.precision else ()
    return distinct((*cell.words, f"scale={scale}", *named, *(substitute.words if substitute else ()), *request.overrides))


def has_precision(cell: Cell, scale: str) -> bool:
    """Whether the cell's runs at this scale have a precision of their own, whatever that of the others."""
    return scale in cell.substitutes and any(word.startswith("precision=") for word in cell.substitutes[scale].words)


def run_id(config: Config, seed: int, device: str, precision: str = "") -> str:
    """The identity of a run of this configuration; ``device`` is a resolved one."""
    return identity({**config, "seed": seed, "device": device, "precision": precision or config["precision"]})


def precisions() -> list[str]:
    """All there are, the full one first."""
    return list(read("config")["choices"]["precision"])


@cache
def warn(text: str) -> None:
    """Say it, once."""
    console.print(text)


@cache
def _composed(words: Words) -> Config:
    return compose(words)
