"""The numbers of a table: mean and deviation over seeds, what compares with a reference, paired tests; a line of the CSV for each."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..train.store import Run
from .declare import Cell, Printed, Table
from .fill import Filled, Runs
from .lookup import Request, Setting, configuration
from .metrics import metric_of

COLUMNS = (
    "row", "column", "metric", "dataset", "model", "optimizer", "paper", "paper_std", "mean", "std", "n", "scale", "device", "run_ids",
)  # fmt: skip
TESTED = 3  # pairs that a paired test needs
NO_ASCENT = 1e-6  # forward passes of a step beyond the first: a mean of ones is not quite one
STRETCHED = 3  # how many times the passes timed, or their inverse, training may have: beyond that noise is scaled up
DIGITS = 6  # of the CSV: what is rendered from it and what is rendered beside it round alike


@dataclass(frozen=True)
class Line:
    """A line of the CSV: one number of one cell, the paper's and ours. ``mean`` is a word where a recipe sets one.

    ``n`` counts the finished runs; ``run_ids`` ends with those that diverged.
    """

    row: str
    column: str
    metric: str
    dataset: str
    model: str
    optimizer: str
    paper: str
    paper_std: str
    mean: float | str | None
    std: float | None
    n: int
    scale: str
    device: str
    run_ids: tuple[str, ...]

    @property
    def diverged(self) -> str:
        """``diverged (1 of 3)``; empty where none did."""
        count = len(self.run_ids) - self.n
        return f"diverged ({count} of {len(self.run_ids)})" if count else ""


@dataclass(frozen=True)
class Shown:
    """A cell ready to be rendered."""

    cell: Cell
    line: Line
    derived: tuple[Line, ...] = ()  # the ratio to the reference and the share of another's extra time, or the share of steps
    best: float | None = None  # mean of the best epochs, where the metric has one

    @property
    def lines(self) -> tuple[Line, ...]:
        """Of the CSV."""
        return self.line, *self.derived


@dataclass(frozen=True)
class Comparison:
    """A paired t-test of a cell with a reference: the same seeds."""

    row: str
    column: str
    against: str
    n: int
    difference: float
    t: float
    p: float


def shown(table: Table, filled: Filled, request: Request) -> Shown:
    """The numbers of a cell."""
    cell, metric = filled.cell, metric_of(filled.cell.metric)
    values = measured(filled.runs, cell.metric)
    line = _line(filled, cell.metric, cell.paper, values, request, tuple(run.id for run in filled.diverged.values()))
    bests = [filled.runs[seed].summary["score_best"] for seed in values] if metric.best else []
    best = round(statistics.fmean(bests), DIGITS) if bests else None
    derived: tuple[Line, ...] = ()
    if cell.metric == "sampling_number":
        rates = {seed: 100 * value / filled.runs[seed].summary["steps"] for seed, value in values.items()}
        derived = (_line(filled, metric.derived, Printed(_percent(cell.paper.value, cell.total)), rates, request),)
    elif metric.derived and table.ratio_to:
        derived = _compared(table, filled, request)
    return Shown(cell, line, derived, best)


def _compared(table: Table, filled: Filled, request: Request) -> tuple[Line, ...]:
    """The percent of the reference's speed or time; the share of the extra time of another, where the table declares that."""
    cell, metric = filled.cell, metric_of(filled.cell.metric)
    plain, other = (filled.references.get(label, {}) for label in (table.ratio_to, table.extra_of))
    ratios = {seed: 100 * (own / base) ** metric.clock for seed, (own, base) in _times(cell.metric, filled.runs, plain).items()}
    found = [_line(filled, metric.derived, Printed(_paper_ratio(table, cell)), ratios, request)]
    if table.extra_of:
        times = _times(cell.metric, filled.runs, plain, other)
        shares = {seed: share for seed, three in times.items() if (share := extra_share(*three)) is not None}
        found.append(_line(filled, f"{cell.metric}_extra", Printed(_paper_share(table, cell)), shares, request))
    return tuple(found)


def extra_share(own: float, plain: float, other: float) -> float | None:
    """Of the time that ``other`` takes beyond ``plain``, what ``own`` takes beyond it: 0 is as fast as plain, 1 as slow as the other.

    What a step of each of the three takes alike is not in it, but is in their ratios. None where the other takes no longer than plain.
    """
    return (own - plain) / (other - plain) if other > plain else None


def _times(metric: str, *methods: Runs) -> dict[int, tuple[float, ...]]:
    """The time of each of the methods by seed: of steps timed in turns in one process where that was done, else of runs on like hardware.

    The two never mix: whole runs tell more of a shared machine's other users than of the method.
    """
    values = [measured(runs, metric) for runs in methods]
    seeds = sorted(set.intersection(*map(set, values)))
    if metric == "images_per_second":
        costs = {seed: [cost for runs in methods if (cost := _step_cost(runs[seed])) is not None] for seed in seeds}
        if in_turns := {seed: tuple(of) for seed, of in costs.items() if len(of) == len(methods)}:
            return in_turns
    alike = [seed for seed in seeds if len({runs[seed].summary["hardware"] for runs in methods}) == 1]
    return {seed: tuple(value[seed] ** metric_of(metric).clock for value in values) for seed in alike}


def _step_cost(run: Run) -> float | None:
    """A step of the run's method in SGD's, as ``python -m sam_repro.measure cost run=ID`` measured it after training.

    What is beyond a plain step is scaled to the passes of all training, in which the ascents were as many, or through as many layers,
    as ``forward_units`` says. None where those timed are too few or too small to stand for those of training, or the other way round.
    """
    if run.summary["optimizer"] == "sgd":
        return 1.0
    rows = [row for row in run.measurement("cost").get("methods", []) if row["method"] == run.summary["optimizer"]]
    if not rows or "forward_units" not in rows[0]:
        return None
    row = rows[0]
    timed, trained = (passes - 1 for passes in (row["forward_units"], run.summary["forward_units"] / run.summary["steps"]))
    if max(timed, trained) < NO_ASCENT:
        return float(row["measured"])
    if not 1 / STRETCHED <= timed / max(trained, NO_ASCENT) <= STRETCHED:
        return None
    return 1 + (row["measured"] - 1) * trained / timed


def comparisons(filled: Filled) -> list[Comparison]:
    """The paired tests of a cell with its references; none of too few pairs, nor of the reference itself, nor without deviation."""
    if metric_of(filled.cell.metric).relative:
        return []
    ours, found = measured(filled.runs, filled.cell.metric), []
    for label, runs in filled.references.items():
        theirs = measured(runs, filled.cell.metric)
        pairs = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
        same = {run.id for run in runs.values()} == {run.id for run in filled.runs.values()}
        if len(pairs) >= TESTED and not same and len({a - b for a, b in pairs}) > 1:
            found.append(Comparison(filled.cell.row, filled.cell.column, label, len(pairs), *_paired(pairs)))
    return found


def _paired(pairs: list[tuple[float, float]]) -> tuple[float, float, float]:
    from scipy.stats import ttest_rel

    result = ttest_rel(*zip(*pairs, strict=True))
    return statistics.fmean(a - b for a, b in pairs), float(result.statistic), float(result.pvalue)


def measured(runs: Runs, metric: str) -> dict[int, float]:
    """The metric by seed, of the runs that have it."""
    values = {seed: metric_of(metric).of(run, run.summary) for seed, run in runs.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _line(
    filled: Filled, metric: str, paper: Printed, values: Mapping[int, float], request: Request, diverged: tuple[str, ...] = ()
) -> Line:
    cell, runs = filled.cell, [filled.runs[seed] for seed in values]
    shown = (*(run.id for run in runs), *diverged)
    what = runs[0].summary if runs else _declared(cell, request)
    return Line(
        cell.row, cell.column, metric, what["dataset"], what["model"], what["optimizer"], paper.value, paper.std,
        mean=round(statistics.fmean(values.values()), DIGITS) if values else None,
        std=round(statistics.stdev(values.values()), DIGITS) if len(values) > 1 else None,
        n=len(values),
        scale=" ".join([filled.setting.scale, *request.changes]) if shown and filled.setting else "",  # epochs=3: not the paper's
        device=_where(filled.setting, what) if shown and filled.setting else "",
        run_ids=shown,
    )  # fmt: skip


def _where(setting: Setting, summary: dict[str, Any]) -> str:
    """Device and precision of the runs, which may have a precision of their own."""
    return replace(setting, precision=summary.get("precision", setting.precision)).where


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
    return "" if share is None else f"{share:.2f}"


def _paper_value(table: Table, cell: Cell, label: str) -> str:
    """What the paper prints, in this table, of a reference in the place of the cell."""
    words = set(table.reference(cell, label).words)
    same = (other.paper.value for other in table.cells if set(other.words) == words and other.metric == cell.metric)
    return next(filter(None, same), "")


def number(value: float | str | None) -> str:
    """As the CSV has it."""
    return value if isinstance(value, str) else "" if value is None else f"{value:.12g}"
