"""From a cell's overrides to its runs: their identities, and which of the finished ones a table shows.

Methods are compared within a benchmark (an experiment). All its cells, in one table, show runs of one scale, one device type and one
precision, so that two of them never mix in a cell nor between cells that are compared. Of the scales, the paper's comes first;
then the setting with the most runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from ..config import OUTSIDE, Config, compose, identity
from ..schema import UserError, keys_of, read
from .declare import Cell, Table, Words, distinct

if TYPE_CHECKING:
    import pandas as pd

    from .frames import Frames

SCALES = ("paper", "small")  # shown where the user names none: the first that has runs. A smoke test's numbers mean nothing.
DEVICES = ("cuda", "cpu", "mps")
OWN = ""  # a selection's ``of``: the cell's own runs, not those of a reference


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
        """The overrides that make the runs others than the declared ones: no paths, nor the code that a declaration cannot name."""
        return tuple(word for word in self.overrides if next(keys_of([word])) not in (*OUTSIDE, "plugins"))

    @property
    def plugins(self) -> Words:
        """The user's code, as an override again."""
        return tuple(word for word in self.overrides if next(keys_of([word])) == "plugins")

    @property
    def words(self) -> Words:
        """As overrides again, to be shown."""
        named = (("scale", self.scale), ("device", self.device), ("precision", self.precision))
        seeds = (f"seeds={','.join(map(str, self.seeds))}",) if self.seeds else ()
        return (*(f"{key}={value}" for key, value in named if value), *seeds, *self.changes, *self.plugins)

    @property
    def declared(self) -> Words:
        """Where the tables are declared, as an override again; nothing for the project's own."""
        return (f"experiments={self.experiments}",) if self.experiments else ()

    @property
    def paths(self) -> Words:
        """As overrides again, where they are not the usual ones."""
        given = (("runs_dir", self.runs_dir, "runs"), ("results_dir", self.results_dir, "results"))
        return (*(f"{key}={value}" for key, value, usual in given if value != usual), *self.declared)

    @property
    def frames(self) -> Frames:
        """The store, and behind it the archive of those that were reported."""
        from .frames import Frames  # imports pandas: not before the words on the command line are known to be right

        return Frames(self.runs_dir, f"{self.results_dir}/runs")


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

    def rank(self, done: int) -> tuple[int, ...]:
        """Low is shown first: one with finished runs; then the first scale, the most runs, a GPU, full precision."""
        scale = SCALES.index(self.scale) if self.scale in SCALES else len(SCALES)
        return not done, scale, -done, DEVICES.index(self.device), precisions().index(self.precision)


def selection(table: Table, request: Request, frames: Frames) -> pd.DataFrame:
    """Every run of the table that is over: a row a cell, setting and seed, and the same for the references in the cell's place.

    Columns: cell (its number in the table), base (of the benchmark), of (``OWN``, or the reference), seed, run, state, setting.
    """
    import pandas as pd

    rows = []
    for number, cell in enumerate(table.cells):
        if cell.words:
            own = {OWN: cell} | {label: table.reference(cell, label) for label in table.references}
            for label, one in own.items():
                rows += [(number, cell.base, label, *found) for found in _find(one, table, request, frames)]
    return pd.DataFrame(rows, columns=["cell", "base", "of", "seed", "run", "state", "setting"])


def chosen(selected: pd.DataFrame) -> dict[Words, Setting]:
    """The setting that each benchmark shows."""
    counts = finished(selected)
    settings = {base: set(group.setting) for base, group in selected[selected.of == OWN].groupby("base", sort=False)}
    return {base: min(found, key=lambda one, base=base: one.rank(counts[base, one])) for base, found in settings.items()}  # type: ignore[misc]


def finished(selected: pd.DataFrame) -> Counter[tuple[Words, Setting]]:
    """How many runs of a benchmark's cells are done at each setting, each run once."""
    done = selected[(selected.of == OWN) & (selected.state == "done")].drop_duplicates(["base", "setting", "run"])
    return Counter(zip(done.base, done.setting, strict=True))


def _find(cell: Cell, table: Table, request: Request, frames: Frames) -> Iterable[tuple[int, str, str, Setting]]:
    """Seed, run, state and setting of the runs of a cell that are over."""
    there = frames.settings
    for scale in [request.scale] if request.scale else [scale for scale in SCALES if scale in {one[0] for one in there}]:
        config = configuration(cell, scale, request)
        for device in [request.device.partition(":")[0]] if request.device not in ("", "auto") else DEVICES:
            for precision in [request.precision] if request.precision else precisions():
                own = config["precision"] if has_precision(cell, scale) else precision
                if (scale, device, own) in there:
                    for seed in request.seeds or range(table.seeds):
                        found = frames.ended(run_id(config, seed, device, own))
                        if found:
                            yield seed, found.id, found.state, Setting(scale, device, precision)


def at_other_settings(tables: Iterable[Table], request: Request, asked: Setting, frames: Frames) -> Counter[Setting]:
    """How many finished runs of the tables' cells stand at which settings but the one ``asked`` for."""
    anywhere = replace(request, scale="", device="", precision="")
    found = {
        (setting, run)
        for table in tables
        for cell in {cell.words: cell for cell in table.of(request.experiment)}.values()
        for _, run, state, setting in _find(cell, table, anywhere, frames)
        if state == "done" and setting != asked
    }
    return Counter(setting for setting, _ in sorted(found, key=str))


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
def _composed(words: Words) -> Config:
    return compose(words)
