"""``python -m sam_repro.runs html``: one HTML file on runs, with the charts to look into; nothing is fetched.

The template escapes whatever comes from a run or a command line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import pandas as pd
import vl_convert
import yaml

from ..config import OUTSIDE
from ..provenance import now
from ..tracking.describe import command_of
from .compare import Benchmark, benchmarks
from .figures import colour, few, finish, lines, spread
from .frames import Frames
from .metrics import METRICS
from .render import absolute, diverged, plus_minus, printed
from .sheet import Sheet

# What one who does not see a chart is told of it.
ALT = {
    "figure": "The figure of the paper, from our runs.",
    "curves": "Score, training loss, share of steps with an ascent and gradient norm over the epochs, a line for each setting.",
    "speed": "Score against images per second, a point for each run and the means of the settings.",
    "layers": "Gradient norm and perturbations of every layer in every epoch, as shades, of one run.",
}
CURVES = {"score": "Score, %", "train_loss": "Training loss", "rate": "Steps with an ascent, %", "grad_norm": "Gradient norm"}


def page(
    frames: Frames,
    ids: Sequence[str],
    title: str,
    sheet: Sheet | None = None,
    notes: Iterable[str] = (),
    claims: pd.DataFrame | None = None,
) -> str:
    """The report on runs; of a declared table its lines and its figure, with ``notes`` above them and the paper's judged claims below."""
    known = benchmarks(frames, ids)
    runs = frames.runs.loc[list(ids)]
    charts: dict[str, Any] = {}
    if sheet is not None and sheet.table.plot:
        from .report import draw

        charts["figure"] = draw(sheet)
    for number, benchmark in enumerate(known):
        charts |= {f"{name}{number}": chart for name, chart in _charts(benchmark, frames).items()}
    specifications = {name: finish(chart).to_dict() for name, chart in charts.items() if chart is not None}
    for name, specification in specifications.items():
        specification.setdefault("description", f"{ALT[name.rstrip('0123456789')]} The numbers stand below the chart.")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        title=title, notes=list(notes),
        claims=[] if claims is None else claims.to_dict("records"), facts=_facts(runs, known), known=known, charts=specifications,
        reduced="; ".join(dict.fromkeys(one.scale for one in known if one.scale != "paper")),
        declared=[_declared(line, set(sheet.of(line.cell).metric)) for line in sheet.lines.itertuples()] if sheet is not None else [],
        runs=[_article(frames, run) for run in ids],
        epochs=lambda of: "; ".join(dict.fromkeys(_epochs(frames, run) for run in of.index)),
        specifications=json.dumps(specifications, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        library=vl_convert.javascript_bundle(),  # type: ignore[call-arg]  # its stub lacks the default
    )  # fmt: skip


def _epochs(frames: Frames, run_id: str) -> str:
    """``150``, or how far it came: ``12 of 150 (stopped)``."""
    row = frames.runs.loc[run_id]
    total = row["config.epochs"]
    return f"{total}" if row.state == "done" else f"{len(frames.found[run_id].metrics())} of {total} ({row.state})"


def _facts(runs: pd.DataFrame, known: Sequence[Benchmark]) -> dict[str, str]:
    days = sorted({str(day)[:10] for key in ("started", "ended") for day in runs[key].dropna()})
    where = dict.fromkeys([*(one.where for one in known), *(name for one in known for name in one.hardware)])
    return {
        "Runs": ", ".join(f"{count} {state}" for state, count in runs.state.value_counts(sort=False).items()) or "none",
        "Scale": "; ".join(dict.fromkeys(one.scale for one in known)), "Device": "; ".join(where),
        "Trained": " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "",
        "Commit": "; ".join(dict.fromkeys(runs.commit.fillna("unknown"))), "Report made": now()[:10],
    }  # fmt: skip


def _declared(line: Any, beside: set[str]) -> dict[str, Any]:
    """A line of the declared table, beside others of its cell; a recipe has words for numbers."""
    shown = line.n and not absolute(line.metric, beside)
    comparable = line.metric not in METRICS or not METRICS[line.metric].relative  # speeds and the like compare as ratios alone
    return {
        "row": line.row, "column": line.column, "metric": line.metric, "paper": printed(line),
        "ours": plus_minus(line) if shown else line.mean if isinstance(line.mean, str) else "",
        "n": f"{line.n or ''} {diverged(line)}".strip(),
        "delta": f"{line.mean - float(line.paper):+.2f}" if line.n and line.paper and comparable else "",
        "scale": line.scale, "device": line.device, "ids": line.run_ids.split(";") if line.run_ids else [],
    }  # fmt: skip


def _article(frames: Frames, run_id: str) -> dict[str, Any]:
    """A run: what it was, how to run it again, how it came out."""
    run, row = frames.found[run_id], frames.runs.loc[run_id]
    if row.state == "damaged":
        return {"id": run_id, "name": "", "command": "", "facts": {"State": f"damaged: {row.error}"}, "config": ""}
    done, config, status = row.state == "done", run.config, run.status  # in a frame with others what a run has not is NaN
    error = f": {status['error']}" if status.get("error") else ""
    facts = {
        "State": f"{row.state}, {len(run.metrics())} of {config['epochs']} epochs{error}",
        "Score": f"{row.score_last:.2f} % last, {row.score_best:.2f} % best (epoch {row.best_epoch:.0f})" if done else "",
        "Speed": f"{row.images_per_second:,.0f} images/s" if done else "",
        "Device": f"{row.hardware if done else row.device}, {row.precision}", "Scale": row.scale,
        "Time": " to ".join(str(status[key]) for key in ("started", "ended") if key in status), "Commit": status.get("commit") or "unknown",
        "Versions": ", ".join(f"{name} {version}" for name, version in status.get("versions", {}).items()),
    }  # fmt: skip
    inside = yaml.safe_dump({key: value for key, value in config.items() if key not in OUTSIDE}, sort_keys=False)
    name = f"{row.optimizer}, {row.dataset}, {row.model}, seed {row.seed}"
    return {"id": run_id, "name": name, "command": command_of(run), "facts": facts, "config": inside}


def _charts(benchmark: Benchmark, frames: Frames) -> dict[str, Any]:
    runs = benchmark.runs
    methods = dict(zip(runs.setting, runs.optimizer, strict=True))
    epochs = frames.epochs[frames.epochs.run.isin(runs.index)].astype({"run": str})
    if epochs.empty:
        return {}
    epochs = epochs.assign(label=epochs.run.map(runs.setting), rate=100 * epochs.sampling_number / epochs.steps, x=epochs.epoch)
    rows = epochs.melt(["label", "x"], list(CURVES), var_name="panel", value_name="value").dropna().replace({"panel": CURVES})
    found = {"curves": lines(spread(rows, ["panel", "label", "x"]), methods, "epoch", "", panels=list(CURVES.values()))}
    if len(benchmark.done):
        found["speed"] = _speed(benchmark)
    layers = frames.layers[frames.layers.run.isin(runs.index)].astype({"run": str, "layer": str})
    return found | (
        {"layers": _layers(layers.assign(label=layers.run.map(runs.setting + ", seed " + runs.seed.astype(str))))} if len(layers) else {}
    )


def _speed(benchmark: Benchmark) -> Any:
    """Each run, the means of the settings, and a step through those that none beats in both."""
    done = benchmark.done.reset_index().assign(href=lambda one: "#run-" + one.run)
    front = benchmark.front
    settings = list(dict.fromkeys(done.setting))
    shade = alt.Color(
        "setting:N", scale=alt.Scale(domain=settings, range=[colour(one) for one in done.drop_duplicates("setting").optimizer])
    )
    x = alt.X("images_per_second:Q", title="images/s", scale=alt.Scale(zero=False))
    y = alt.Y("score_last:Q", title=f"score, % ({benchmark.split})", scale=alt.Scale(zero=False))
    shown = done[["run", "seed", "setting", "images_per_second", "score_last", "href"]]
    points = alt.Chart(shown).mark_circle(size=70, opacity=0.5).encode(
        x=x, y=y, color=shade, href="href:N", tooltip=["setting", "seed", "score_last", "images_per_second", "run"]
    )  # fmt: skip
    means = benchmark.means.dropna(subset=["score_last"]).reset_index()[["setting", "images_per_second", "score_last", "n"]]
    middle = alt.Chart(means).encode(x=x, y=y)
    parts = [points, middle.mark_point(shape="diamond", size=90, filled=True).encode(color=shade, tooltip=["setting", "n", "score_last"])]
    if len(front) > 1:
        step = alt.Chart(front.reset_index()[["images_per_second", "score_last"]]).mark_line(
            interpolate="step-after", strokeDash=[5, 4], color="#777777"
        )
        parts.insert(0, step.encode(x=x, y=y))
    return alt.layer(*parts).properties(width=560, height=320)


def _layers(layers: pd.DataFrame) -> Any:
    """Norms and perturbations of a run that is picked from a list, layers by epochs."""
    names = list(layers.sort_values("depth").layer.unique())
    labels = list(dict.fromkeys(layers.label))
    chosen = alt.param(name="run", value=labels[0], bind=alt.binding_select(options=labels, name="Run: "))
    data = layers.assign(grad_norm=few(layers.grad_norm))[["label", "layer", "epoch", "grad_norm", "perturbations"]]
    parts = []
    shown: Any = (  # what, its title, its shades
        ("grad_norm", "gradient norm, mean over the epoch's steps", "log"),
        ("perturbations", "perturbations in the epoch", "linear"),
    )
    for value, title, kind in shown:
        parts.append(
            alt.Chart(data).mark_rect().transform_filter("datum.label == run").encode(
                x=alt.X("epoch:O", axis=alt.Axis(labelOverlap=True, labelAngle=0, ticks=False)),
                y=alt.Y("layer:N", sort=names, title=None, axis=alt.Axis(labelOverlap=True, ticks=False)),
                color=alt.Color(f"{value}:Q", title=None, scale=alt.Scale(type=kind, scheme="viridis")), tooltip=["layer", "epoch", value],
            ).properties(title=title, width=380, height=max(120, 13 * len(names)))
        )  # fmt: skip
    return alt.hconcat(*parts).add_params(chosen).resolve_scale(color="independent")
