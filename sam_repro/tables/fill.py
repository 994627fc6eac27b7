"""Filling a declared table: which finished runs stand in each cell.

Methods are compared within a benchmark (an experiment). All its cells, in one table, show runs of one scale, one device type and one
precision, so that two of them never mix in a cell nor between cells that are compared. Of the scales, the paper's comes first;
then the setting with the most runs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ..train.store import Run
from .declare import Cell, Table, Words
from .lookup import DEVICES, SCALES, Request, Setting, Shelf, configuration, has_precision, precisions, run_id

Runs = Mapping[int, Run]  # by seed


@dataclass(frozen=True)
class Filled:
    """A cell with its finished runs, those that diverged, and the finished ones of the references it is compared with."""

    cell: Cell
    setting: Setting | None = None
    runs: Runs = field(default_factory=dict)
    references: Mapping[str, Runs] = field(default_factory=dict)
    diverged: Runs = field(default_factory=dict)


@dataclass(frozen=True)
class Filling:
    """All cells of a table, and what is finished but not shown."""

    cells: list[Filled]
    chosen: dict[Words, Setting]  # by benchmark
    others: dict[Words, Counter[Setting]]


def fill(table: Table, request: Request, shelf: Shelf) -> Filling:
    """Look up the finished runs of every cell."""
    found: dict[tuple[Words, Words], dict[Setting, Runs]] = {}
    counts: dict[Words, Counter[Setting]] = defaultdict(Counter)
    seeds = request.seeds or tuple(range(table.seeds))

    def look(cell: Cell) -> dict[Setting, Runs]:
        key = (cell.words, tuple(word for substitute in cell.substitutes.values() for word in substitute.words))
        if key not in found:
            found[key] = _find(cell, seeds, request, shelf)
            counts[cell.base].update({setting: len(_with(runs, "done")) for setting, runs in found[key].items()})
        return found[key]

    for cell in table.cells:
        if cell.words:
            look(cell)
    chosen = {group: _best(settings) for group, settings in counts.items() if settings}
    others = {group: Counter({s: n for s, n in settings.items() if n and s != chosen.get(group)}) for group, settings in counts.items()}
    cells = []
    for cell in table.cells:
        setting = chosen.get(cell.base)
        if not cell.words or setting is None:
            cells.append(Filled(cell))
            continue
        references = {
            label: _with(look(table.reference(cell, label)).get(setting, {}), "done") for label in table.references
        }  # fmt: skip
        runs = look(cell).get(setting, {})
        cells.append(Filled(cell, setting if runs else None, _with(runs, "done"), references, _with(runs, "diverged")))
    return Filling(cells, chosen, {group: settings for group, settings in others.items() if settings})


def _with(runs: Runs, state: str) -> Runs:
    return {seed: run for seed, run in runs.items() if run.state == state}


def _find(cell: Cell, seeds: tuple[int, ...], request: Request, shelf: Shelf) -> dict[Setting, Runs]:
    """The runs of a cell that are done or diverged, by setting."""
    found: dict[Setting, Runs] = {}
    for scale in [request.scale] if request.scale else [scale for scale in SCALES if scale in shelf.scales]:
        config = configuration(cell, scale, request)
        for device in [request.device.partition(":")[0]] if request.device not in ("", "auto") else DEVICES:
            for precision in [request.precision] if request.precision else precisions():
                own = "" if has_precision(cell, scale) else precision
                ids = {seed: run_id(config, seed, device, own) for seed in seeds}
                runs = {seed: run for seed, one in ids.items() if (run := shelf.ended(one))}
                if runs:
                    found[Setting(scale, device, precision)] = runs
    return found


def at_other_settings(tables: Iterable[Table], request: Request, asked: Setting, shelf: Shelf) -> Counter[Setting]:
    """How many finished runs of the tables' cells stand at which settings but the one ``asked`` for."""
    ids: dict[Setting, set[str]] = defaultdict(set)
    anywhere = replace(request, scale="", device="", precision="")
    for table in tables:
        for cell in {cell.words: cell for cell in table.of(request.experiment)}.values():
            found = _find(cell, request.seeds or tuple(range(table.seeds)), anywhere, shelf)
            for setting, runs in found.items():
                ids[setting] |= {run.id for run in _with(runs, "done").values()}
    return Counter({setting: len(those) for setting, those in ids.items() if those and setting != asked})


def _best(counts: Counter[Setting]) -> Setting:
    """One with finished runs; then the first scale, the setting with the most runs, a GPU, full precision."""

    def rank(setting: Setting) -> tuple[bool, int, int, int, int]:
        scale = SCALES.index(setting.scale) if setting.scale in SCALES else len(SCALES)
        return not counts[setting], scale, -counts[setting], DEVICES.index(setting.device), precisions().index(setting.precision)

    return min(counts, key=rank)
