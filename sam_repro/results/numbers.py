"""The numbers of a table: mean and deviation over seeds, what compares with a reference, paired tests; a line of the CSV for each."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pandas as pd

from .declare import Cell, Printed, Table
from .frames import Frames
from .metrics import metric_of
from .select import OWN, Request, Setting, configuration

# The lines of a table are a frame of these columns, and of ``cell`` and ``best``, the mean of the best epochs. ``mean`` is a word where a
# recipe sets one; ``n`` counts the finished runs; ``run_ids`` ends with those that diverged.
COLUMNS = (
    "row", "column", "metric", "dataset", "model", "optimizer", "paper", "paper_std", "mean", "std", "n", "scale", "device", "run_ids",
)  # fmt: skip
DIGITS = 6  # of the CSV: what is rendered from it and what is rendered beside it round alike
TESTED = 3  # pairs that a paired test needs


class Numbers:
    """The selected runs of a table, and the numbers of its cells."""

    def __init__(self, table: Table, request: Request, selected: pd.DataFrame, frames: Frames) -> None:
        self.table, self.request, self.runs = table, request, frames.runs
        self.ids = {key: group.set_index("seed").run for key, group in selected[selected.state == "done"].groupby(["cell", "of"])}
        self.diverged = {key: group.run for key, group in selected[(selected.state == "diverged") & (selected.of == OWN)].groupby("cell")}
        self.setting: dict[int, Setting] = selected.groupby("cell").setting.first().to_dict()

    def lines(self) -> pd.DataFrame:
        """A row a number: of each cell, and of what is derived from it."""
        rows = [line for number, cell in enumerate(self.table.cells) for line in self._lines(number, cell)]
        return pd.DataFrame(rows, columns=[*COLUMNS, "cell", "best"])

    def values(self, number: int, of: str, metric: str) -> pd.Series:
        """The metric by seed, of a cell's finished runs that have it."""
        ids = self.ids.get((number, of), pd.Series(dtype=object))
        what = metric_of(metric).of
        column = (self.runs[what] if isinstance(what, str) else what(self.runs)) if len(ids) else pd.Series(dtype=float)
        return ids.map(column).astype(float).dropna().sort_index()

    def tests(self) -> pd.DataFrame:
        """Paired t-tests of each cell with the references, over seeds; none of too few pairs, nor of the reference itself."""
        from scipy.stats import ttest_rel

        rows = []
        for number, cell in enumerate(self.table.cells):
            for label in self.table.references if not metric_of(cell.metric).relative else ():
                pairs = pd.DataFrame({of: self.values(number, of, cell.metric) for of in (OWN, label)}).dropna()
                differences = pairs[OWN] - pairs[label]
                ids, others = (set(self.ids.get((number, of), ())) for of in (OWN, label))
                if len(pairs) >= TESTED and ids != others and differences.nunique() > 1:
                    test = ttest_rel(pairs[OWN], pairs[label])
                    rows.append((cell.row, cell.column, label, len(pairs), differences.mean(), test.statistic, test.pvalue))
        return pd.DataFrame(rows, columns=["row", "column", "against", "n", "difference", "t", "p"])

    def _lines(self, number: int, cell: Cell) -> list[dict[str, Any]]:
        metric, values = metric_of(cell.metric), self.values(number, OWN, cell.metric)
        best = self.ids[number, OWN][values.index].map(self.runs.score_best).mean() if metric.best and len(values) else None
        lost = self.diverged.get(number, pd.Series(dtype=object))
        found = [self._line(number, cell, cell.metric, cell.paper, values, lost) | {"best": None if best is None else round(best, DIGITS)}]
        if cell.metric == "sampling_number":
            rates = 100 * values / self.ids[number, OWN].map(self.runs.steps) if len(values) else values
            found.append(self._line(number, cell, metric.derived, Printed(_percent(cell.paper.value, cell.total)), rates))
        elif metric.derived and self.table.ratio_to:
            found += self._compared(number, cell)
        return found

    def _compared(self, number: int, cell: Cell) -> list[dict[str, Any]]:
        """The percent of the reference's speed or time; the share of the extra time of another, where the table declares that."""
        table, metric = self.table, metric_of(cell.metric)
        times = self._times(number, cell.metric, OWN, table.ratio_to)
        ratios = 100 * (times[OWN] / times[table.ratio_to]) ** metric.clock
        found = [self._line(number, cell, metric.derived, Printed(_paper_ratio(table, cell)), ratios)]
        if table.extra_of:
            times = self._times(number, cell.metric, OWN, table.ratio_to, table.extra_of)
            shares = pd.Series([extra_share(*three) for three in times.to_numpy()], times.index, dtype=float)
            found.append(self._line(number, cell, f"{cell.metric}_extra", Printed(_paper_share(table, cell)), shares.dropna()))
        return found

    def _times(self, number: int, metric: str, *methods: str) -> pd.DataFrame:
        """The time of each method by seed: of steps timed in turns in one process where that was done, else of runs on like hardware.

        The two never mix: whole runs tell more of a shared machine's other users than of the method.
        """
        ids = pd.DataFrame({of: self.ids.get((number, of), pd.Series(dtype=object)) for of in methods}).dropna().sort_index()
        if metric == "images_per_second" and len(ids):
            in_turns = ids.apply(lambda one: one.map(self.runs.step_cost)).astype(float).dropna()
            if len(in_turns):
                return in_turns
        alike = ids[ids.apply(lambda one: one.map(self.runs.hardware)).nunique(axis=1) == 1] if len(ids) else ids
        values = {of: self.values(number, of, metric).reindex(alike.index) for of in methods}
        return pd.DataFrame(values).dropna() ** metric_of(metric).clock

    def _line(
        self, number: int, cell: Cell, metric: str, paper: Printed, values: pd.Series, lost: pd.Series | tuple[()] = ()
    ) -> dict[str, Any]:
        ids = [*(self.ids[number, OWN][values.index] if len(values) else ()), *lost]
        what = self.runs.loc[ids[0]] if len(values) else _declared(cell, self.request)
        setting = self.setting.get(number)
        shown = bool(ids) and setting is not None
        return {
            "row": cell.row, "column": cell.column, "metric": metric, **{key: what[key] for key in ("dataset", "model", "optimizer")},
            "paper": paper.value, "paper_std": paper.std,
            "mean": round(values.mean(), DIGITS) if len(values) else None, "std": round(values.std(), DIGITS) if len(values) > 1 else None,
            "n": len(values),
            "scale": " ".join([setting.scale, *self.request.changes]) if shown and setting else "",  # epochs=3: not the paper's
            "device": replace(setting, precision=what.get("precision", setting.precision)).where if shown and setting else "",
            "run_ids": ";".join(ids), "cell": number, "best": None,
        }  # fmt: skip


def extra_share(own: float, plain: float, other: float) -> float:
    """Of the time that ``other`` takes beyond ``plain``, what ``own`` takes beyond it: 0 is as fast as plain, 1 as slow as the other.

    What a step of each of the three takes alike is not in it, but is in their ratios. NaN where the other takes no longer than plain.
    """
    return (own - plain) / (other - plain) if other > plain else math.nan


def _declared(cell: Cell, request: Request) -> dict[str, str]:
    """What a cell without runs is about."""
    if cell.quoted:
        return {"dataset": "", "model": "", "optimizer": "quoted"}
    config = configuration(cell, "paper", request)
    model = config["model"]
    return {"dataset": config["dataset"]["name"], "model": model.get("arch", model["name"]), "optimizer": config["optimizer"]["name"]}


def _percent(value: str, total: str) -> str:
    return f"{100 * float(value) / float(total):.1f}" if value and total else ""


def _paper_ratio(table: Table, cell: Cell) -> str:
    """Printed by the paper, or from the printed numbers of the cell and of the table's reference for its benchmark."""
    return cell.paper.ratio if cell.paper.ratio or not cell.words else _percent(cell.paper.value, _paper_value(table, cell, table.ratio_to))


def _paper_share(table: Table, cell: Cell) -> str:
    """From the printed numbers of the cell and of the table's references for its benchmark; the paper prints none."""
    labels = (table.ratio_to, table.extra_of) if cell.words else ()
    printed = [cell.paper.value, *(_paper_value(table, cell, label) for label in labels)]
    if len(printed) < 3 or not all(printed):
        return ""
    share = extra_share(*(float(value) ** metric_of(cell.metric).clock for value in printed))
    return "" if math.isnan(share) else f"{share:.2f}"


def _paper_value(table: Table, cell: Cell, label: str) -> str:
    """What the paper prints, in this table, of a reference in the place of the cell."""
    words = set(table.reference(cell, label).words)
    same = (other.paper.value for other in table.cells if set(other.words) == words and other.metric == cell.metric)
    return next(filter(None, same), "")
