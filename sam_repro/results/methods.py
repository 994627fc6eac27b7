"""The methods side by side, from the runs there are: accuracy, time, sharpness; for the front page."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from ..differences import from_defaults, in_words
from ..schema import options, read
from ..store import Row
from .compare import benchmarks
from .figures import colour, finish
from .frames import Frames


def side_by_side(results: Path) -> tuple[str, pd.DataFrame]:
    """The settings of the benchmark that has most of them: in words which it is, and a row each, by accuracy; empty where there is none."""
    frames = Frames("none", results / "runs")
    runs = frames.runs[(frames.runs.state == "done") & (frames.runs.split == "test")] if len(frames.runs) else frames.runs
    known = benchmarks(frames, runs.index)
    if not known:
        return "", pd.DataFrame()
    most = max(known, key=lambda one: len(one.means))
    alike = [one for one in known if (one.name, one.scale, one.split) == (most.name, most.scale, most.split)]
    eigenvalues, samples = (_measured(frames, name) for name in ("lambda_max", "samples"))
    rows = []
    for place, setting, group in ((one, *named) for one in alike for named in one.done.groupby("setting")):
        sharpness, steps = eigenvalues.reindex(group.index), group.step_cost.astype(float)
        rows.append({
            "setting": _named(frames.found[group.index[0]].config, setting) + (f" ({place.where})" if place.where != most.where else ""),
            "method": group.optimizer.iloc[0],
            "score": group.score_last.mean(), "score_std": group.score_last.std(), "step": steps.mean(), "step_std": steps.std(),
            "samples": samples.reindex(group.index[sharpness.notna()]).max(),
            "lambda_max": sharpness.mean(), "lambda_max_std": sharpness.std(), "n": len(group),
        })  # fmt: skip
    epochs = ", ".join(map(str, sorted({int(count) for one in alike for count in one.done.epochs})))
    said = f"{most.name}, {epochs} epochs, scale {most.scale}, {most.where}; accuracy on the {most.split} after the last epoch"
    return said, pd.DataFrame(rows).sort_values("score", ascending=False, ignore_index=True)


def _measured(frames: Frames, name: str) -> pd.Series:
    """A number that ``measure sharpness`` left, by run."""
    found = frames.measurements
    found = found[(found.measure == "sharpness") & (found.name == name)]
    return pd.Series(found.value.to_numpy(), found.run.astype(str))


def _named(config: Row, setting: str) -> str:
    """The method with its own keys where they are not the defaults, whether other runs differ in them or not; then what else differs."""
    method = config["optimizer"]["name"]
    own = read(f"optimizer/{method}").get("methods", {}).get(method, {}) if method in options("optimizer") else {}
    keys = {key: found[0] for key, found in from_defaults(config).items() if key in own}
    others = [word for word in setting.split()[1:] if word.partition("=")[0] not in keys]
    return " ".join([method, *filter(None, [in_words(keys)]), *others])


def picture_of_methods(results: Path) -> Any:
    """Accuracy against the time of a step, a point each setting, its deviation over seeds as a line; None where there are no two."""
    said, rows = side_by_side(results)
    rows = rows.dropna(subset=["step"]) if len(rows) else rows
    if len(rows) < 2:
        return None
    look = alt.Color("setting:N", legend=None, scale=alt.Scale(domain=list(rows.setting), range=[colour(one) for one in rows.method]))
    drawn = rows.assign(low=rows.score - rows.score_std.fillna(0), high=rows.score + rows.score_std.fillna(0)).round(4)
    drawn["label"] = _labels(drawn)
    base = alt.Chart(drawn[["setting", "step", "score", "low", "high", "n", "label"]]).encode(
        x=alt.X("step:Q", title="time of a step (SGD = 1)", scale=alt.Scale(zero=False, nice=True, padding=30)), color=look
    )
    y = alt.Y("score:Q", title="test accuracy, %", scale=alt.Scale(zero=False, padding=20))
    parts = [
        base.mark_rule().encode(y=alt.Y("low:Q", title="test accuracy, %", scale=alt.Scale(zero=False, padding=20)), y2="high:Q"),
        base.mark_circle(size=110, opacity=1).encode(y=y, tooltip=["setting", "step", "score", "n"]),
        base.mark_text(align="left", dx=9, fontSize=11).encode(y="label:Q", text="setting"),
    ]
    below = alt.TitleParams(textwrap.wrap(f"{said}; {seeds_of(rows)}.", 105), orient="bottom", anchor="start", fontSize=9,
                            fontWeight="normal", offset=12)  # fmt: skip
    return finish(alt.layer(*parts).properties(width=620, height=340, title=below, description=f"{said}."))


def seeds_of(rows: pd.DataFrame) -> str:
    """How many there are, and what follows from it."""
    low, high = rows.n.min(), rows.n.max()
    if high == 1:
        return "one seed each, from which no ranking follows"
    return f"{low if low == high else f'{low} to {high}'} seeds, lines are their sample standard deviation"


def mean_and_deviation(value: Any, std: Any, digits: int) -> str:
    """``75.34 ± 0.20``; without what is not known."""
    return "" if pd.isna(value) else f"{value:.{digits}f}" + ("" if pd.isna(std) else f" ± {std:.{digits}f}")


def _labels(rows: pd.DataFrame) -> list[float]:
    """How high each point's name stands: as the point, or above the name below it where they would overlap."""
    gap = (rows.high.max() - rows.low.min() or 1.0) / 20
    placed: dict[int, float] = {}
    for index, one in rows.sort_values("score").iterrows():
        near = [height for other, height in placed.items() if abs(rows.step[other] - one.step) < 0.4]
        placed[index] = max([one.score, *(height + gap for height in near if height + gap > one.score)])
    return [round(placed[index], 4) for index in rows.index]
