"""The figure of a search: score against the time of a training, of the rungs, and of the final runs beside them."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from ..figures import COLOURS as METHODS
from ..figures import few, finish

SHADES = ("#a8a8a8", "#1e8fd2", "#d55e00", "#009e73", "#882255")  # the last rungs stand out


def draw(rows: pd.DataFrame) -> Any:
    """A panel of the rungs, with a line through the front, and one of the final runs, where there are any; columns as in page.COLUMNS."""
    scored = rows[rows.n > 0].assign(
        time=few(rows.time),
        cost=few(rows.cost),
        score=few(rows["mean"]),
        low=few(rows["mean"] - rows["std"]),
        high=few(rows["mean"] + rows["std"]),
    )
    scored = scored[["stage", "combination", "epochs", "front", "time", "cost", "score", "low", "high"]]
    rungs, final = scored[scored.stage != "final"], scored[scored.stage == "final"]
    panels = [_rungs(rungs), *([_final(final)] if len(final) else [])]
    return finish(
        alt.hconcat(*panels)
        .resolve_scale(color="independent", shape="independent")
        .properties(description="Score against the time of a training, by its passes")
    )


def _base(rows: pd.DataFrame, title: str, log: bool = False) -> alt.Chart:
    across = alt.Scale(zero=False, nice=False, padding=12, type="log" if log else "linear")
    return alt.Chart(rows).encode(
        x=alt.X("time:Q", title="training, in epochs of SGD by its passes", scale=across),
        y=alt.Y("score:Q", title=title, scale=alt.Scale(zero=False)), tooltip=["combination", "epochs", "cost", "time", "score"],
    )  # fmt: skip


def _rungs(rows: pd.DataFrame) -> Any:
    epochs = list(rows.epochs.unique())
    shades = alt.Scale(domain=epochs, range=[SHADES[place % len(SHADES)] for place in range(len(epochs))])
    base = _base(rows, "score on the held-out part (%)", log=True)
    line = base.transform_filter("datum.front == 'yes'").mark_line(strokeWidth=1, color="#000000", interpolate="step-after")
    points = base.mark_point(filled=True).encode(color=alt.Color("epochs:N", scale=shades, title="epochs"))
    return alt.layer(line, points).properties(width=340, height=300, title="The rungs, and the front of the last one")


def _final(rows: pd.DataFrame) -> Any:
    base = _base(rows, "test score (%)")
    bars = base.mark_rule().encode(y=alt.Y("low:Q", scale=alt.Scale(zero=False), title="test score (%)"), y2="high:Q")
    names, legend = list(rows.combination), alt.Legend(title=None, labelLimit=500)
    shades = alt.Scale(domain=names, range=[*METHODS.values()])
    points = base.mark_point(filled=True, size=60).encode(
        color=alt.Color("combination:N", scale=shades, legend=legend),
        shape=alt.Shape("combination:N", scale=alt.Scale(domain=names), legend=legend),
    )
    return alt.layer(bars, points).properties(width=340, height=300, title="New seeds, the test set: mean ± deviation")
