"""The numbers of a table: mean and deviation over seeds, ratios to a reference, paired tests; a line of the CSV for each."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from ..train.store import Run
from .declare import Cell, Printed, Table
from .fill import Filled, Runs
from .lookup import Request, configuration
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
    derived: Line | None = None  # the ratio to the reference, or the share of steps
    best: float | None = None  # mean of the best epochs, where the metric has one


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
    derived = None
    if cell.metric == "sampling_number":
        rates = {seed: 100 * value / filled.runs[seed].summary["steps"] for seed, value in values.items()}
        derived = _line(filled, metric.derived, Printed(_percent(cell.paper.value, cell.total)), rates, request)
    elif metric.derived and table.ratio_to:
        others = filled.references.get(table.ratio_to, {})
        reference = measured(others, cell.metric)
        pairs = {seed: (filled.runs[seed], others[seed]) for seed in values.keys() & reference.keys()}
        in_turns = {seed: _ratio_in_turns(*pair) for seed, pair in sorted(pairs.items())} if cell.metric == "images_per_second" else {}
        ratios = {seed: ratio for seed, ratio in in_turns.items() if ratio is not None}  # never mixed with those of whole runs
        if not ratios:
            alike = sorted(seed for seed, (run, other) in pairs.items() if run.summary["hardware"] == other.summary["hardware"])
            ratios = {seed: 100 * values[seed] / reference[seed] for seed in alike}
        derived = _line(filled, metric.derived, Printed(_paper_ratio(table, cell)), ratios, request)
    return Shown(cell, line, derived, best)


def _ratio_in_turns(run: Run, reference: Run) -> float | None:
    """The speed in percent of the reference's by steps timed in turns in one process; None where that was not measured."""
    costs = [_step_cost(one) for one in (run, reference)]
    return None if costs[0] is None or costs[1] is None else 100 * costs[1] / costs[0]


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
        device=filled.setting.where if shown and filled.setting else "",
        run_ids=shown,
    )  # fmt: skip


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
    if cell.paper.ratio or not cell.words:
        return cell.paper.ratio
    reference = set(table.reference(cell, table.ratio_to).words)
    same = [other for other in table.cells if set(other.words) == reference and other.metric == cell.metric and other.paper.value]
    return _percent(cell.paper.value, same[0].paper.value) if same else ""


def number(value: float | str | None) -> str:
    """As the CSV has it."""
    return value if isinstance(value, str) else "" if value is None else f"{value:.12g}"
