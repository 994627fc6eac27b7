"""Figures from the same runs. Lines differ in style and marker, bars in hatching, so that grey prints can be read."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ..schema import UserError, suggest
from ..train.store import Row, Run
from .fill import Filled, Runs
from .render import caption
from .report import shortened, thinned
from .sheet import Sheet
from .values import Shown

LINES: list[dict[str, Any]] = [
    {"color": "black", "linestyle": "-", "marker": "o"},
    {"color": "#d55e00", "linestyle": "--", "marker": "s"},
    {"color": "#0072b2", "linestyle": "-.", "marker": "^"},
    {"color": "#7a9c00", "linestyle": ":", "marker": "D"},
    {"color": "#7f3c8d", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
    {"color": "#777777", "linestyle": (0, (1, 2)), "marker": "P"},
]
BARS: list[dict[str, Any]] = [
    {"facecolor": "white", "edgecolor": "black"},
    {"facecolor": "0.75", "edgecolor": "black", "hatch": "////"},
    {"facecolor": "0.2", "edgecolor": "black"},
]
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "lines.markersize": 5,
}
SURFACES = 6  # in one picture


def draw(sheet: Sheet) -> Figure | None:
    """The figure of a table with ``plot``, as matplotlib has it; None where there is nothing to draw yet."""
    if sheet.table.plot not in PLOTS:
        raise UserError(f"{sheet.table.name}: there is no plot {sheet.table.plot!r}.{suggest(sheet.table.plot, PLOTS)}")
    with matplotlib.rc_context(STYLE):
        figure = PLOTS[sheet.table.plot](sheet)
        if figure is not None:
            width = round(figure.get_figwidth() * 16)
            figure.supxlabel(textwrap.fill(caption(sheet), width), fontsize=7.5, x=0.01, ha="left")
    return figure


def curves(sheet: Sheet, key: str, label: str) -> Figure | None:
    """A panel for each column, in it a line for each row: the mean over seeds at each epoch, with the deviation shaded."""
    figure, panels = _panels(_with_runs(sheet))
    for axes, column in panels:
        for style, one in zip(LINES, _of(sheet, column), strict=False):
            if one.runs:
                _line(axes, [run.metrics() for run in one.runs.values()], key, {**style, "label": f"{one.cell.row} (n={len(one.runs)})"})
        axes.set(title=_title(sheet, column), xlabel="epoch", ylabel=label)
        axes.legend(fontsize=9)
    return figure


def _line(axes: Any, runs: list[list[Row]], key: str, style: dict[str, Any]) -> None:
    places = [index for index, row in enumerate(runs[0]) if all(rows[index][key] is not None for rows in runs)]  # not every epoch is scored
    epochs = [runs[0][index]["epoch"] for index in places]
    values = [[rows[index][key] for rows in runs] for index in places]
    mean = [statistics.fmean(one) for one in values]
    axes.plot(epochs, mean, markevery=max(1, len(epochs) // 8), linewidth=1.5, **style)
    if len(runs) > 1:
        std = [statistics.stdev(one) for one in values]
        low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)


def layer_norms(sheet: Sheet) -> Figure | None:
    """A panel for each column: layers from the input (top) to the output, epochs to the right, darker is larger."""
    figure, panels = _panels(_with_runs(sheet), height=5.2)
    for axes, column in panels:
        runs = _of(sheet, column)[0].runs
        names = list(dict.fromkeys(row["layer"] for row in next(iter(runs.values())).layers()))
        norms = _norms(runs, names)
        low, high = np.percentile(norms, (1, 99))  # a few first epochs would take up most of the shades
        extent = (0.5, _epochs(runs) + 0.5, len(names), 0)
        image = axes.imshow(norms, aspect="auto", cmap="Greys", norm=LogNorm(low, high), interpolation="nearest", extent=extent)
        step = max(1, len(names) // 24)
        axes.set_yticks([index + 0.5 for index in range(0, len(names), step)], names[::step], fontsize=8)
        axes.set(title=f"{_title(sheet, column)}, {_of(sheet, column)[0].cell.row}, n={len(runs)}", xlabel="epoch")
        axes.grid(visible=False)
        bar = axes.figure.colorbar(image, ax=axes, extend="both", label="gradient norm of the layer (epoch mean)")
        bar.set_ticks(ticks := np.geomspace(low, high, 6), labels=[f"{tick:.2g}" for tick in ticks])
        bar.minorticks_off()
    return figure


def _norms(runs: Runs, names: list[str]) -> list[list[float]]:
    """Mean over the runs: a row for each layer, a column for each epoch."""
    tables = [{(row["layer"], row["epoch"]): float(shortened(row["grad_norm"])) for row in run.layers()} for run in runs.values()]
    return [[statistics.fmean(one[name, epoch + 1] for one in tables) for epoch in range(_epochs(runs))] for name in names]


def _epochs(runs: Runs) -> int:
    return min(run.summary["epochs"] for run in runs.values())


def perturbations(sheet: Sheet) -> Figure | None:
    """A panel for each column: for each layer a bar of each method, the mean over seeds of its perturbations."""
    figure, panels = _panels(_with_runs(sheet), height=3.6, stacked=True)
    for axes, column in panels:
        there = [one for one in _of(sheet, column) if one.runs]
        names = list(next(iter(there[0].runs.values())).summary["perturbations"])
        width = 0.8 / len(there)
        for index, one in enumerate(there):
            style = BARS[sheet.table.rows.index(one.cell.row) % len(BARS)]
            counts = [statistics.fmean(run.summary["perturbations"][name] for run in one.runs.values()) for name in names]
            places = [place + (index - (len(there) - 1) / 2) * width for place in range(len(names))]
            axes.bar(places, counts, width, label=f"{one.cell.row} (n={len(one.runs)})", linewidth=0.6, **style)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set(title=_title(sheet, column), ylabel="perturbations")
        axes.grid(visible=False, axis="x")
        axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def landscape(sheet: Sheet) -> Figure | None:
    """Layers' loss surfaces that ``python -m sam_repro.measure landscape`` left in the first run's directory; z from 0 to 4.5."""
    found = [one for filled in sheet.filled for run in list(filled.runs.values())[:1] for one in _surfaces(run)][:SURFACES]
    if not found:
        return None
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.4 * rows), layout="constrained")
    for index, one in enumerate(found):
        axes: Any = figure.add_subplot(rows, columns, index + 1, projection="3d")
        x, y = np.meshgrid(one["x"], one["y"])
        z = np.array(one["loss"], dtype=float)
        axes.plot_surface(x, y, z, cmap="Greys_r", vmin=0, vmax=4.5, edgecolor="0.3", linewidth=0.15, axlim_clip=True)
        axes.set(title=one["layer"], zlim=(0, 4.5), xlabel="α", ylabel="β", zlabel="loss")
        axes.tick_params(labelsize=8)
        axes.set_box_aspect(None, zoom=0.85)
    return figure


def _surfaces(run: Run) -> list[dict[str, Any]]:
    """In forward order of the layers."""
    order = list(run.summary["perturbations"])
    found = [json.loads(path.read_text()) for path in sorted(run.path.glob("landscape/*.json"))]
    return sorted((one for one in found if len(one["y"]) > 1), key=lambda one: order.index(one["layer"]) if one["layer"] in order else -1)


def speed(sheet: Sheet) -> Figure | None:
    """Accuracy against speed relative to the reference, a line through the models for each method; ours in a panel of its own."""
    models = list(dict.fromkeys(column.partition(" / ")[0] for column in sheet.table.columns))
    figure, panels = _panels(["the paper", *(["ours"] if any(one.runs for one in sheet.filled) else [])], height=4.6)
    for axes, whose in panels:
        for style, row in zip(LINES, sheet.table.rows, strict=False):
            cells = [cell for cell in sheet.cells if cell.cell.row == row]
            places = [_place(score, fast, whose == "ours") for score, fast in zip(cells[::2], cells[1::2], strict=True)]
            there = [(model, place) for model, place in zip(models, places, strict=True) if place is not None]
            axes.plot([place[0] for _, place in there], [place[1] for _, place in there], label=row, linewidth=1.0, **style)
            for model, place in there:
                axes.annotate(model[0], place, xytext=(6, 3), textcoords="offset points", fontsize=8)
        axes.set(title=whose, xlabel=f"speed, % of {sheet.table.ratio_to}'s", ylabel="accuracy (%)")
    key = "\n".join(f"{model[0]}: {model}" for model in models)
    axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0), title=key, title_fontsize=9)
    return figure


def _place(score: Shown, fast: Shown, ours: bool) -> tuple[float, float] | None:
    """Speed and accuracy of a model under a method, where both are known."""
    if not fast.derived:
        return None
    ratio = fast.derived[0]
    x, y = (ratio.mean, score.line.mean) if ours else (ratio.paper, score.line.paper)
    return (float(x), float(y)) if x and y else None


def psf(sheet: Sheet) -> Figure | None:
    """The norms of SGD's gradient and of the PSF at the steps that a run recorded (``norms_every``) in ``steps.csv``."""
    recorded = {one.cell.column: run for one in sheet.filled for run in one.runs.values() if run.steps()}
    figure, panels = _panels(list(recorded))
    for axes, column in panels:
        rows = thinned(recorded[column])
        for style, (key, label) in zip(LINES, (("plain_norm", "SGD's gradient"), ("psf_norm", "PSF")), strict=False):
            axes.plot(
                [row["step"] for row in rows], [row[key] for row in rows], label=label, linewidth=0.8, **{**style, "marker": ""}
            )  # fmt: skip
        axes.set(title=_title(sheet, column), xlabel="iteration", ylabel="L2-norm")
        axes.legend(fontsize=9)
    return figure


def against(sheet: Sheet, label: str, scale: str = "linear") -> Figure | None:
    """A panel for each column: the metric over the number in the rows' names, a line for each block of rows."""
    figure, panels = _panels(_with_runs(sheet))
    for axes, column in panels:
        series: dict[str, list[tuple[float, float, float]]] = {}
        for row in sheet.table.rows:
            block, _, last = row.rpartition(" / ")
            line = sheet.at(row, column).line
            if line.n and not isinstance(line.mean, str):
                series.setdefault(block, []).append((float(last.rpartition("=")[2]), line.mean or 0.0, line.std or 0.0))
        for style, (block, points) in zip(LINES, series.items(), strict=False):
            x, mean, std = zip(*points, strict=True)
            axes.errorbar(x, mean, std, capsize=3, label=block or None, **style)
        ticks = sorted({x for points in series.values() for x, _, _ in points})
        axes.set(title=column, xlabel=label, ylabel="accuracy (%)", xscale=scale)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        if any(series):
            axes.legend(fontsize=9)
    return figure


def _with_runs(sheet: Sheet) -> list[str]:
    return [column for column in sheet.table.columns if any(one.runs for one in _of(sheet, column))]


def _title(sheet: Sheet, column: str) -> str:
    """The column, and the model that stands in for the paper's where one does."""
    instead = {
        run.summary["model"] for one in _of(sheet, column) for run in one.runs.values()
        if one.setting and one.setting.scale in one.cell.substitutes
    }  # fmt: skip
    return f"{column} (here {' and '.join(sorted(instead))})" if instead else column


def _of(sheet: Sheet, column: str) -> list[Filled]:
    return [one for one in sheet.filled if one.cell.column == column]


def _panels(titles: list[str], height: float = 4.0, stacked: bool = False) -> tuple[Figure | None, Iterable[tuple[Any, str]]]:
    """A figure with axes for each title; none without titles. Without pyplot, so that nothing stays open."""
    if not titles:
        return None, []
    count = len(titles)
    size = (9.0, height * count) if stacked else (9.0 if count < 3 else 12.0, height + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(count, 1, squeeze=False) if stacked else figure.subplots(1, count, squeeze=False)
    return figure, list(zip(grid.flat, titles, strict=True))


PLOTS: dict[str, Callable[[Sheet], Figure | None]] = {
    "learning_curves": lambda sheet: curves(sheet, "score", "accuracy (%)"),
    "grad_norm": lambda sheet: curves(sheet, "grad_norm", "gradient norm of the model (epoch mean)"),
    "layer_norms": layer_norms,
    "perturbations": perturbations,
    "landscape": landscape,
    "speed": speed,
    "psf": psf,
    "micro_batches": lambda sheet: against(sheet, "micro-batches m", "log"),
    "switch": lambda sheet: against(sheet, "switch percent"),
}
