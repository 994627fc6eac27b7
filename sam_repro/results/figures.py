"""Figures as Vega-Lite specifications: of a declared figure's runs, and of any runs for the HTML report. One is drawn for both.

A method has one colour in all of them, safe for the colour-blind; what differs within a method differs in dashes and markers.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from ..schema import UserError, options, suggest
from .archive import thinned
from .declare import Cell
from .render import caption
from .select import OWN
from .sheet import Sheet

# After Okabe and Ito, and Tol: dark enough to stand 3 to 1 from white.
COLOURS = {
    "sgd": "#000000", "sam": "#004c8c", "generalized_sam": "#c46a9b", "layerwise": "#d55e00", "looksam": "#009e73", "vsam": "#b36b00",
    "msam": "#1e8fd2", "sam_n": "#882255", "asam": "#332288", "esam": "#84842b", "aesam": "#aa4499",
    "layersam": "#777777", "looklayersam": "#2f9485", "mesa": "#117733", "saf": "#5b4bc4", "vsam_a": "#661100",
}  # fmt: skip
OTHERS = (
    "#981616", "#476bc2", "#67a117", "#822b77", "#17a18a", "#bf8540", "#361698", "#3aa136", "#e02966", "#2b6282", "#8d9816", "#a847c2",
    "#169856", "#c26147", "#2938e0", "#4c822b", "#e029a4", "#369ca1", "#987716", "#7f47c2", "#17a12e", "#822b36", "#2976e0", "#7c9933",
)  # fmt: skip
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [1, 4])
MARKERS = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
SURFACES = 6  # of one run in a picture
PIXELS = 1.5  # of a PNG to one of the specification

Chart = Any  # of altair: LayerChart, FacetChart, ...
alt.data_transformers.disable_max_rows()  # a run has an epoch's norm of every layer


def colour(method: str) -> str:
    """The colour of a method, in every figure."""
    others = [name for name in options("optimizer") if name not in COLOURS]
    return COLOURS.get(method) or OTHERS[others.index(method) % len(OTHERS) if method in others else 0]


def draw(sheet: Sheet) -> Chart | None:
    """The figure of a table with ``plot``; None where there is nothing to draw yet."""
    if sheet.table.plot not in PLOTS:
        raise UserError(f"{sheet.table.name}: there is no plot {sheet.table.plot!r}.{suggest(sheet.table.plot, PLOTS)}")
    chart = PLOTS[sheet.table.plot](sheet)
    if chart is None:
        return None
    below = alt.TitleParams(textwrap.wrap(caption(sheet), 110), orient="bottom", anchor="start", fontSize=9, fontWeight="normal", offset=12)
    return finish(chart.properties(title=below, description=f"{sheet.table.title}. {caption(sheet)}"))


def finish(chart: Chart) -> Chart:
    """The look that all figures share."""
    return chart.configure_axis(gridColor="#e6e6e6").configure_view(stroke=None).configure_legend(labelLimit=400).configure_point(size=40)


def picture(chart: Chart, kind: str) -> bytes:
    """The same specification as PNG or SVG, without a browser; the same one gives the same bytes."""
    import vl_convert

    specification = chart.to_dict()
    if kind == "png":
        return bytes(vl_convert.vegalite_to_png(specification, scale=PIXELS))
    text = str(vl_convert.vegalite_to_svg(specification))
    ids = {name: f"id{place}" for place, name in enumerate(dict.fromkeys(re.findall(r'id="((?:gradient|clip)_?\d+)"', text)))}
    return re.sub(r"\b(?:gradient|clip)_?\d+\b", lambda name: ids.get(name[0], name[0]), text).encode()  # they count what was drawn before


def few(column: pd.Series) -> pd.Series:
    """Five digits: they are drawn."""
    return column.map(lambda value: None if pd.isna(value) else float(f"{value:.5g}")).astype(float)


def styled(frame: pd.DataFrame, methods: Mapping[str, str], title: str | None = None) -> dict[str, Any]:
    """Colour, dashes and marker of the labels in ``frame.label``: ``methods`` says of which method each is, in their order."""
    labels = [label for label in methods if (frame.label == label).any()]
    own = [[one for one in labels if methods[one] == methods[label]].index(label) for label in labels]
    legend = alt.Legend(title=title, symbolStrokeWidth=2)

    def scale(values: Sequence[Any]) -> alt.Scale:
        return alt.Scale(domain=labels, range=[values[place % len(values)] for place in own])

    colours = alt.Scale(domain=labels, range=[colour(methods[label]) for label in labels])
    return {
        "color": alt.Color("label:N", scale=colours, legend=legend),
        "strokeDash": alt.StrokeDash("label:N", scale=scale(DASHES), legend=legend),
        "shape": alt.Shape("label:N", scale=scale(MARKERS), legend=legend),
    }


def lines(
    frame: pd.DataFrame, methods: Mapping[str, str], x: str, y: str, *, panels: Sequence[str], log: bool = False, width: int = 300
) -> Chart:
    """A panel each, in it a line through the points of every label: columns panel, label, x, mean, low, high."""
    look, pick = styled(frame, methods), alt.selection_point(fields=["label"], bind="legend")
    kept = {key: encoding for key, encoding in look.items() if key != "shape"}
    across = alt.X("x:Q", title=x, scale=alt.Scale(type="log", base=2, nice=False) if log else alt.Scale(nice=False))
    up, faint = alt.Scale(zero=False), alt.condition(pick, alt.value(1), alt.value(0.08))
    base = alt.Chart(frame).encode(x=across, opacity=faint)
    tips = [alt.Tooltip("label:N", title=" "), alt.Tooltip("x:Q", title=x), alt.Tooltip("mean:Q", title=y)]
    band = base.mark_area(fillOpacity=0.15).encode(
        y=alt.Y("low:Q", scale=up, title=y), y2="high:Q", color=look["color"]
    )  # fmt: skip
    line = base.mark_line(strokeWidth=1.8).encode(y=alt.Y("mean:Q", scale=up, title=y), tooltip=tips, **kept)
    marks = base.transform_filter("datum.marked").mark_point(filled=True).encode(
        y=alt.Y("mean:Q", scale=up, title=y), tooltip=tips, color=look["color"], shape=look["shape"]
    )  # fmt: skip
    layers = alt.layer(band, line, marks).add_params(pick).properties(width=width, height=240)
    return layers.facet(alt.Facet("panel:N", title=None, sort=list(panels)), columns=3).resolve_scale(y="independent", x="independent")


def spread(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean and sample deviation of ``value`` in each group, as lines() takes them; about eight of a line's points are marked."""
    groups = frame.groupby(keys, sort=False, observed=True).value
    mean, std = groups.mean(), groups.std().fillna(0.0)
    found = pd.DataFrame({"mean": few(mean), "low": few(mean - std), "high": few(mean + std)}).reset_index()
    places = found.groupby([key for key in keys if key != "x"], observed=True).x
    return found.assign(marked=places.cumcount() % (places.transform("size") // 8).clip(lower=1) == 0)


def curves(sheet: Sheet, key: str, y: str) -> Chart | None:
    """A panel for each column, in it a line for each row: the mean over seeds at each epoch, with the deviation shaded."""
    runs = _own(sheet)
    if runs.empty:
        return None
    rows = runs.merge(sheet.frames.epochs[["run", "epoch", key]].astype({"run": str}), on="run").rename(
        columns={"epoch": "x", key: "value"}
    )
    every = rows.groupby(["panel", "label", "x"], observed=True).value.transform("count") == rows.n  # not every epoch is scored
    return lines(spread(rows[every], ["panel", "label", "x"]), _methods(runs), "epoch", y, panels=_panels(runs))


def layer_norms(sheet: Sheet) -> Chart | None:
    """For each column, of its first row: a curve for each layer, and beside it the same as shades, layers from the input to the output."""
    runs = _own(sheet)
    if runs.empty:
        return None
    runs = runs[runs.row == runs.groupby("panel").row.transform("first")]
    norms = sheet.frames.layers.astype({"run": str, "layer": str}).merge(runs, on="run")
    norms = norms.assign(grad_norm=few(norms.grad_norm))  # as they are archived
    ends = norms.groupby("run").epoch.max().min()
    mean = norms[norms.epoch <= ends].groupby(["panel", "label", "layer", "depth", "epoch"], as_index=False, sort=False).grad_norm.mean()
    panels = [
        alt.hconcat(layer_curves(group, f"{panel}, {group.label.iloc[0]}"), heatmap(group, "the same, layer by layer"))
        for panel, group in mean.groupby("panel", sort=False)
    ]
    return alt.vconcat(*panels).resolve_scale(color="independent")


def layer_curves(norms: pd.DataFrame, title: str) -> Chart:
    """A line for each layer, dark at the input and bright at the output: columns layer, depth, epoch, grad_norm."""
    names = list(norms.sort_values("depth").layer.unique())
    shades, pick = alt.Scale(domain=names, scheme="viridis"), alt.selection_point(fields=["layer"], bind="legend")
    return (
        alt.Chart(norms.assign(grad_norm=few(norms.grad_norm))[["layer", "epoch", "grad_norm"]]).mark_line(strokeWidth=1.4)
        .encode(
            x=alt.X("epoch:Q", scale=alt.Scale(nice=False)), y=alt.Y("grad_norm:Q", title="gradient norm of the layer (epoch mean)"),
            color=alt.Color("layer:N", scale=shades, sort=names, legend=alt.Legend(title=None, columns=1, symbolStrokeWidth=2)),
            opacity=alt.condition(pick, alt.value(1), alt.value(0.08)), tooltip=["layer", "epoch", "grad_norm"],
        ).add_params(pick).properties(width=420, height=max(240, 13 * len(names)), title=title)
    )  # fmt: skip


def heatmap(norms: pd.DataFrame, title: str, value: str = "grad_norm", width: int = 420) -> Chart:
    """Layers by epochs: columns layer, depth, epoch, grad_norm. The ends are cut off: a few first epochs would take up most shades."""
    low, high = np.percentile(norms[value], (1, 99))
    shades = alt.Scale(type="log", scheme="viridis", domain=[float(f"{low or high / 1e6:.5g}"), float(f"{high:.5g}")], clamp=True)
    names = list(norms.sort_values("depth").layer.unique())
    return (
        alt.Chart(norms.assign(**{value: few(norms[value])})[["layer", "epoch", value]]).mark_rect()
        .encode(
            x=alt.X("epoch:O", axis=alt.Axis(labelOverlap=True, labelAngle=0, ticks=False)),
            y=alt.Y("layer:N", sort=names, title=None, axis=alt.Axis(labelOverlap=True, ticks=False)),
            color=alt.Color(f"{value}:Q", scale=shades, title=["gradient norm of the layer", "(epoch mean)"]),
            tooltip=["layer", "epoch", value],
        ).properties(width=width, height=max(120, 13 * len(names)), title=title)
    )  # fmt: skip


def perturbations(sheet: Sheet) -> Chart | None:
    """A panel for each column: for each layer a bar of each method, the mean over seeds of its perturbations."""
    runs = _own(sheet)
    if runs.empty:
        return None
    counted = sheet.frames.layers.groupby(["run", "layer", "depth"], observed=True, as_index=False).perturbations.sum()
    rows = counted.astype({"run": str, "layer": str}).merge(runs, on="run")
    mean = rows.groupby(["panel", "label", "layer", "depth"], as_index=False, sort=False).perturbations.mean()
    look, parts = styled(mean, _methods(runs))["color"], []
    for panel, group in mean.groupby("panel", sort=False):
        names = list(group.sort_values("depth").layer.unique())
        bars = alt.Chart(group.assign(perturbations=few(group.perturbations))).mark_bar().encode(
            x=alt.X("layer:N", sort=names, title=None), xOffset=alt.XOffset("label:N", sort=list(_methods(runs))),
            y="perturbations:Q", color=look, tooltip=["label", "layer", "perturbations"],
        )  # fmt: skip
        parts.append(bars.properties(width=max(400, 24 * len(names)), height=180, title=panel))
    return alt.vconcat(*parts)


def landscape(sheet: Sheet) -> Chart | None:
    """Layers' loss surfaces that ``python -m sam_repro.measure landscape`` left in each row's first run: a line of them for each row.

    Shades from 0 to 4.5 in all of them, so that methods can be compared.
    """
    rows = []
    for cell, group in sheet.selected[(sheet.selected.of == OWN) & (sheet.selected.state == "done")].groupby("cell"):
        run = sheet.frames.found[group.run.iloc[0]]
        order = list(run.summary["perturbations"])
        surfaces = [json.loads(path.read_text()) for path in run.path.glob("landscape/*.json")]
        surfaces = [one for one in surfaces if len(one["y"]) > 1]
        surfaces.sort(key=lambda one: (order.index(one["layer"]) if one["layer"] in order else -1, one["layer"]))
        if surfaces:
            rows.append(alt.hconcat(*(_surface(one, f"{sheet.table.cells[cell].row}, {one['layer']}") for one in surfaces[:SURFACES])))
    return alt.vconcat(*rows) if rows else None


def _surface(found: dict[str, Any], title: str) -> Chart:
    x, y = np.meshgrid(found["x"], found["y"])
    frame = pd.DataFrame({"α": x.ravel(), "β": y.ravel(), "loss": np.array(found["loss"], dtype=float).ravel()}).round(4)
    axes: Any = {"axis": alt.Axis(labelOverlap=True, labelAngle=0, ticks=False)}
    shades = alt.Color("loss:Q", scale=alt.Scale(domain=[0, 4.5], scheme="viridis", reverse=True, clamp=True))
    drawn = alt.Chart(frame).mark_rect().encode(
        x=alt.X("α:O", **axes), y=alt.Y("β:O", sort="descending", **axes), color=shades, tooltip=["α", "β", "loss"]
    )  # fmt: skip
    return drawn.properties(title=title, width=200, height=200)


def speed(sheet: Sheet) -> Chart | None:
    """Accuracy against speed relative to the reference, a line through the models for each method; ours in a panel of its own."""
    points = []
    for row in sheet.table.rows:
        numbers = [number for number, cell in enumerate(sheet.table.cells) if cell.row == row]
        for score, fast in zip(numbers[::2], numbers[1::2], strict=True):
            own, ratio = sheet.of(score).iloc[0], sheet.of(fast).iloc[1]
            model, method = sheet.table.cells[score].column.partition(" / ")[0], own.optimizer
            points.append(("the paper", row, model, method, float(ratio.paper or "nan"), float(own.paper or "nan")))
            points.append(("ours", row, model, method, float(ratio["mean"] or "nan"), float(own["mean"] or "nan")))
    frame = pd.DataFrame(points, columns=["panel", "label", "model", "method", "x", "y"]).dropna()
    methods = {label: method for label, method in zip(frame.label, frame.method, strict=True) if method != "quoted"}
    methods = {label: methods.get(label, label) for label in frame.label}
    look = styled(frame, methods)
    base = alt.Chart(frame.assign(x=few(frame.x), y=few(frame.y))).encode(
        x=alt.X("x:Q", title=f"speed, % of {sheet.table.ratio_to}'s", scale=alt.Scale(zero=False)),
        y=alt.Y("y:Q", title="accuracy (%)", scale=alt.Scale(zero=False)), color=look["color"], tooltip=["label", "model", "x", "y"],
    )  # fmt: skip
    drawn = alt.layer(
        base.mark_line(strokeWidth=1).encode(strokeDash=look["strokeDash"]), base.mark_point(filled=True).encode(shape=look["shape"]),
        base.mark_text(align="left", dx=6, dy=-5, fontSize=8).encode(text="model"),
    ).properties(width=380, height=300)  # fmt: skip
    return None if frame.empty else drawn.facet(alt.Facet("panel:N", title=None, sort=["the paper", "ours"]))


def psf(sheet: Sheet) -> Chart | None:
    """The norms of SGD's gradient and of the PSF at the steps that a run recorded (``norms_every``) in ``steps.csv``."""
    runs, steps = _own(sheet), sheet.frames.steps
    parts = [
        thinned(steps[steps.run == run.run]).assign(panel=run.panel) for run in runs.drop_duplicates("panel", keep="last").itertuples()
    ]
    if not any(map(len, parts)):
        return None
    names = {"plain_norm": "SGD's gradient", "psf_norm": "PSF"}
    frame = pd.concat(parts).rename(columns=names).melt(["step", "panel"], list(names.values()), var_name="label", value_name="value")
    drawn = frame.rename(columns={"step": "x"}).assign(mean=few(frame.value), low=few(frame.value), high=few(frame.value), marked=False)
    return lines(
        drawn.drop(columns="value"),
        {"SGD's gradient": "sgd", "PSF": "vsam"},
        "iteration",
        "L2-norm",
        panels=list(dict.fromkeys(frame.panel)),
    )


def against(sheet: Sheet, x: str, log: bool = False) -> Chart | None:
    """A panel for each column: the metric over the number in the rows' names, a line for each block of rows."""
    own = sheet.lines.drop_duplicates("cell").loc[lambda one: one.n > 0]
    std = own["std"].astype(float).fillna(0.0)
    if own.empty:
        return None
    parts = own.row.str.rpartition(" / ")
    frame = pd.DataFrame({
        "panel": own.column, "label": parts[0].where(parts[0] != "", own.optimizer), "method": own.optimizer,
        "x": parts[2].str.rpartition("=")[2].astype(float), "mean": few(own["mean"]), "low": few(own["mean"] - std),
        "high": few(own["mean"] + std), "marked": True,
    })  # fmt: skip
    methods = dict(zip(frame.label, frame.method, strict=True))
    return lines(frame.drop(columns="method"), methods, x, "accuracy (%)", panels=list(dict.fromkeys(frame.panel)), log=log)


def _own(sheet: Sheet) -> pd.DataFrame:
    """The finished runs by panel (the column, and the model that stands in for the paper's) and label (the row, and its number of runs)."""
    runs = sheet.selected[(sheet.selected.of == OWN) & (sheet.selected.state == "done")]
    table, known = sheet.table, sheet.frames.runs
    runs = runs.assign(
        row=[table.cells[cell].row for cell in runs.cell], column=[table.cells[cell].column for cell in runs.cell],
        model=runs.run.map(known.model), method=runs.run.map(known.optimizer), n=runs.groupby("cell").run.transform("count"),
        instead=[_other_model(table.cells[cell], setting.scale) for cell, setting in zip(runs.cell, runs.setting, strict=True)],
    )  # fmt: skip
    models = {column: " and ".join(sorted(group.model[group.instead].unique())) for column, group in runs.groupby("column")}
    counts = {row: "–".join(map(str, sorted(set(group.n)))) for row, group in runs.groupby("row")}
    return runs.assign(
        panel=[f"{one} (here {models[one]})" if models[one] else one for one in runs.column],
        label=[f"{row} (n={counts[row]})" for row in runs.row],
    )  # fmt: skip


def _other_model(cell: Cell, scale: str) -> bool:
    return scale in cell.substitutes and any(word.startswith(("model=", "experiment=")) for word in cell.substitutes[scale].words)


def _methods(runs: pd.DataFrame) -> dict[str, str]:
    return dict(zip(runs.label, runs.method, strict=True))


def _panels(runs: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(runs.panel))


PLOTS: dict[str, Callable[[Sheet], Chart | None]] = {
    "learning_curves": lambda sheet: curves(sheet, "score", "accuracy (%)"),
    "grad_norm": lambda sheet: curves(sheet, "grad_norm", "gradient norm of the model (epoch mean)"),
    "layer_norms": layer_norms,
    "perturbations": perturbations,
    "landscape": landscape,
    "speed": speed,
    "psf": psf,
    "micro_batches": lambda sheet: against(sheet, "micro-batches m", log=True),
    "switch": lambda sheet: against(sheet, "switch percent"),
}
