"""A table filled: its numbers, tests, and what has to be said about them; from the frames of runs alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pandas as pd

from ..schema import read
from .declare import Cell, Table, Words
from .frames import Frames
from .numbers import COLUMNS, Numbers
from .recipe import recipe
from .select import OWN, Request, Setting, chosen, configuration, finished, selection


@dataclass(frozen=True)
class Sheet:
    """All that is rendered of a table."""

    table: Table
    request: Request
    lines: pd.DataFrame
    selected: pd.DataFrame  # the runs shown: select.selection's rows of the chosen settings; none of a recipe
    tests: pd.DataFrame
    notes: list[str]
    frames: Frames

    def of(self, cell: int) -> pd.DataFrame:
        """The lines of a cell: its own, then what is derived from it."""
        return self.lines[self.lines.cell == cell]

    @property
    def runs(self) -> list[str]:
        """All that is shown, references included, by id."""
        return list(self.selected.run.unique())


def sheet(table: Table, request: Request, frames: Frames) -> Sheet:
    """Look up everything that a table shows."""
    if table.kind == "recipe":
        lines = pd.DataFrame(recipe(table, request), columns=[*COLUMNS, "cell", "best"])
        return Sheet(table, request, lines, selection(replace(table, cells=()), request, frames), pd.DataFrame(), [], frames)
    everything = selection(table, request, frames)
    settings = chosen(everything)
    shown = [setting == settings.get(base) for base, setting in zip(everything.base, everything.setting, strict=True)]
    selected = everything[pd.Series(shown, everything.index, dtype=bool)]
    numbers = Numbers(table, request, selected, frames)
    notes = _notes(table, selected, finished(everything), request, frames)
    kept = selected[(selected.of == OWN) | (selected.state == "done")]
    return Sheet(table, request, numbers.lines(), kept, numbers.tests(), notes, frames)


def _notes(table: Table, selected: pd.DataFrame, counts: dict[tuple[Words, Setting], int], request: Request, frames: Frames) -> list[str]:
    own = selected[selected.of == OWN]
    notes, settings = [], {base: group.setting.iloc[0] for base, group in own.groupby("base", sort=False)}
    for base, setting in settings.items():
        group = own[own.base == base]
        done = group[group.state == "done"]
        if done.empty:
            continue
        runs, cells = frames.runs.loc[done.run.unique()], [cell for cell in table.cells if cell.words and cell.base == base]
        seeds, tried = sorted(done.seed.unique()), sorted(group.seed.unique())
        made = f"{len(runs)} run{'s' * (len(runs) != 1)}, seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"
        notes.append(
            f"`{' '.join(base)}`: {describe(setting, cells, request)}, {_from(runs)}; {made}, last training loss "
            f"{_span(f'{loss:.2g}' for loss in sorted(runs.train_loss))}; {_timed(table, runs, frames)}"
            f"filled by `{_filled_by(table, base, setting, tried, request)}`."
        )
        instead = dict.fromkeys(cell.substitutes[setting.scale].note for cell in cells if setting.scale in cell.substitutes)
        notes += [f"At scale {setting.scale}: {note}." for note in instead]
    if len(lost := own[own.state == "diverged"].drop_duplicates("run", keep="last")):
        named = [
            f"{table.cells[one.cell].row}, seed {one.seed}, in epoch {frames.found[one.run].status.get('epoch')} (`{one.run}`)"
            for one in lost.itertuples()
        ]
        notes.append(f"Diverged, so that they have no number and are in no mean: {'; '.join(named)}.")
    if request.changes:
        notes.append(f"Asked for with `{' '.join(request.changes)}` in place of what the cells declare.")
    others: dict[Words, list[str]] = {}
    for (base, setting), count in counts.items():
        if setting != settings.get(base):
            others.setdefault(base, []).append(f"{count} of scale {setting.scale} on {setting.where}")
    notes += [f"Also finished for `{' '.join(base)}`, not shown: {', '.join(counted)}." for base, counted in others.items()]
    return notes


def describe(setting: Setting, cells: Iterable[Cell], request: Request) -> str:
    """``scale small (epochs x 0.2, data x 0.1), cpu bf16``: the epochs as they are, which a substitute may set."""
    if setting.scale == "paper":
        return f"scale paper, {setting.where}"
    declared = replace(request, overrides=())
    shares = {configuration(c, setting.scale, request)["epochs"] / configuration(c, "paper", declared)["epochs"] for c in cells}
    epochs = _span((f"{share:.2g}" for share in sorted(shares)), " to ")
    return f"scale {setting.scale} (epochs x {epochs}, data x {read(f'scale/{setting.scale}')['data']:g}), {setting.where}"


def _from(runs: pd.DataFrame) -> str:
    """Hardware, dates and commits of runs."""
    commits = sorted({commit or "unknown" for commit in runs.commit.fillna("")})
    dates = _span(sorted({str(ended)[:10] for ended in runs.ended.fillna("")}))
    return f"{' and '.join(sorted(runs.hardware.unique()))}, {dates}, commit {', '.join(commits)}"


def _timed(table: Table, runs: pd.DataFrame, frames: Frames) -> str:
    """When and by which code steps were timed in turns, for the ratios of speeds."""
    shown = any(cell.metric == "images_per_second" for cell in table.cells)
    costs = [cost for run in runs.index if shown and (cost := frames.found[run].measurement("cost"))]
    if not costs:
        return ""
    dates, commits = sorted({cost["date"][:10] for cost in costs}), sorted({cost["commit"] or "unknown" for cost in costs})
    return f"steps timed in turns {_span(dates, ' and ')}, commit {', '.join(commits)}; "


def _span(words: Iterable[str], between: str = " to ") -> str:
    """The first and the last of sorted words; one where they are the same."""
    known = list(words)
    return between.join(dict.fromkeys((known[0], known[-1])))


def _filled_by(table: Table, base: Words, setting: Setting, seeds: list[int], request: Request) -> str:
    part = [word for word in base if word.startswith("experiment=") and len(table.experiments) > 1]
    fewer = [f"seeds={','.join(map(str, seeds))}"] if seeds != list(range(table.seeds)) else []
    return " ".join(
        ["python -m sam_repro.tables run", table.name, *part, *setting.words, *fewer, *request.changes, *request.plugins, *request.declared]
    )
