"""A table filled: its cells' numbers, tests, and what has to be said about them; from the store and the archive alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..schema import read
from ..train.store import Run
from .declare import Cell, Table, Words
from .fill import Filled, Filling, fill
from .lookup import Request, Setting, Shelf, configuration
from .recipe import recipe
from .values import Comparison, Line, Shown, comparisons, shown


@dataclass(frozen=True)
class Sheet:
    """All that is rendered of a table."""

    table: Table
    request: Request
    cells: list[Shown]
    filled: list[Filled]  # empty for a recipe
    tests: list[Comparison]
    notes: list[str]

    @property
    def lines(self) -> list[Line]:
        """Of the CSV."""
        return [line for cell in self.cells for line in cell.lines]

    @property
    def runs(self) -> dict[str, Run]:
        """All that is shown, references included, by id."""
        every = [runs for cell in self.filled for runs in (cell.runs, cell.diverged, *cell.references.values())]
        return {run.id: run for runs in every for run in runs.values()}

    def at(self, row: str, column: str) -> Shown:
        """The cell of a row and a column."""
        return next(cell for cell in self.cells if (cell.cell.row, cell.cell.column) == (row, column))


def sheet(table: Table, request: Request, shelf: Shelf) -> Sheet:
    """Look up everything that a table shows."""
    if table.kind == "recipe":
        return Sheet(table, request, recipe(table, request), [], [], [])
    filling = fill(table, request, shelf)
    cells = [shown(table, filled, request) for filled in filling.cells]
    tests = [test for filled in filling.cells for test in comparisons(filled)]
    return Sheet(table, request, cells, filling.cells, tests, _notes(table, filling, request))


def _notes(table: Table, filling: Filling, request: Request) -> list[str]:
    notes = []
    for group, setting in filling.chosen.items():
        if not any(one.runs for one in filling.cells if _in(one.cell, group)):
            continue
        runs = list({run.id: run for one in filling.cells if _in(one.cell, group) for run in one.runs.values()}.values())
        cells = [one.cell for one in filling.cells if _in(one.cell, group)]
        seeds = sorted({seed for one in filling.cells if _in(one.cell, group) for seed in one.runs})
        tried = sorted({*seeds, *(seed for one in filling.cells if _in(one.cell, group) for seed in one.diverged)})
        made = f"{len(runs)} run{'s' * (len(runs) != 1)}, seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"
        notes.append(
            f"`{' '.join(group)}`: {describe(setting, cells, request)}, {_from(runs)}; {made}, last training loss {_losses(runs)}; "
            f"{_timed(table, runs)}filled by `{_filled_by(table, group, setting, tried, request)}`."
        )
        notes += [f"At scale {setting.scale}: {note}." for note in _substitutions(table, group, setting)]
    if diverged := {run.id: (one.cell, seed, run) for one in filling.cells for seed, run in one.diverged.items()}:
        named = [f"{cell.row}, seed {seed}, in epoch {run.status.get('epoch')} (`{run.id}`)" for cell, seed, run in diverged.values()]
        notes.append(f"Diverged, so that they have no number and are in no mean: {'; '.join(named)}.")
    if request.changes:
        notes.append(f"Asked for with `{' '.join(request.changes)}` in place of what the cells declare.")
    for group, settings in filling.others.items():
        counted = ", ".join(f"{count} of scale {setting.scale} on {setting.where}" for setting, count in settings.items())
        notes.append(f"Also finished for `{' '.join(group)}`, not shown: {counted}.")
    return notes


def describe(setting: Setting, cells: Iterable[Cell], request: Request) -> str:
    """``scale small (epochs x 0.2, data x 0.1), cpu bf16``: the epochs as they are, which a substitute may set."""
    if setting.scale == "paper":
        return f"scale paper, {setting.where}"
    declared = replace(request, overrides=())
    shares = {configuration(c, setting.scale, request)["epochs"] / configuration(c, "paper", declared)["epochs"] for c in cells}
    epochs = " to ".join(f"{share:.2g}" for share in sorted({min(shares), max(shares)}))
    return f"scale {setting.scale} (epochs x {epochs}, data x {read(f'scale/{setting.scale}')['data']:g}), {setting.where}"


def _from(runs: list[Run]) -> str:
    """Hardware, dates and commits of runs."""
    hardware = sorted({run.summary["hardware"] for run in runs})
    dates = sorted({str(run.status.get("ended", ""))[:10] for run in runs})
    commits = sorted({str(run.status.get("commit") or "unknown") for run in runs})
    return f"{' and '.join(hardware)}, {dates[0]}{f' to {dates[-1]}' if len(dates) > 1 else ''}, commit {', '.join(commits)}"


def _timed(table: Table, runs: list[Run]) -> str:
    """When and by which code steps were timed in turns, for the ratios of speeds."""
    shown = any(cell.metric == "images_per_second" for cell in table.cells)
    costs = [cost for run in runs if shown and (cost := run.measurement("cost"))]
    if not costs:
        return ""
    dates, commits = sorted({cost["date"][:10] for cost in costs}), sorted({cost["commit"] or "unknown" for cost in costs})
    return f"steps timed in turns {' and '.join(dict.fromkeys((dates[0], dates[-1])))}, commit {', '.join(commits)}; "


def _losses(runs: list[Run]) -> str:
    """``0.83 to 1.88``: how far the runs are from converged."""
    losses = sorted(run.summary["train_loss"] for run in runs)
    return " to ".join(dict.fromkeys(f"{loss:.2g}" for loss in (losses[0], losses[-1])))


def _substitutions(table: Table, group: Words, setting: Setting) -> list[str]:
    found = [cell.substitutes[setting.scale].note for cell in table.cells if _in(cell, group) and setting.scale in cell.substitutes]
    return list(dict.fromkeys(found))


def _in(cell: Cell, group: Words) -> bool:
    return bool(cell.words) and cell.base == group


def _filled_by(table: Table, group: Words, setting: Setting, seeds: list[int], request: Request) -> str:
    part = [word for word in group if word.startswith("experiment=") and len(table.experiments) > 1]
    fewer = [f"seeds={','.join(map(str, seeds))}"] if seeds != list(range(table.seeds)) else []
    return " ".join(["python -m sam_repro.tables run", table.name, *part, *setting.words, *fewer, *request.changes, *request.declared])
