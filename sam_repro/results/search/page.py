"""What a search came to, as a page, a table of values and a figure: derived from the runs alone."""

from __future__ import annotations

import math
import shlex
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ...files import write
from ...plain import harmless
from ...schema import QUESTIONS, UserError
from ...store import OVER
from ..archive import archive
from ..render import markdown
from ..select import Request
from .halving import Entry, Search, Stage, cost, front, ranked

COLUMNS = (
    "stage", "combination", *QUESTIONS, "epochs", "seeds", "metric", "split", "mean", "std", "n", "cost", "time", "step_cost", "seconds",
    "front", "dataset", "model", "scale", "device", "run_ids",
)  # fmt: skip
DIGITS = {"cost": 3, "step_cost": 3, "time": 1}
LEGEND = """`cost` is that of a step in SGD's steps by its passes, (forward + 2 backward) / 3, over the whole run: no clock has a part
in it, so another user of the machine does not change the front. `timed` is the same by the clock where it was measured (steps in turns with
SGD's in one process, `python -m sam_repro.measure cost`); what micro-batches and many small operations cost shows there alone. `time` is
cost times epochs: how many epochs of SGD the training is worth. A run that diverged has no score; `n` counts those that have one."""


def write_all(search: Search, stages: Sequence[Stage], left_out: Sequence[str], declared: Path, request: Request) -> list[Path]:
    """``<results_dir>/search.md``, ``.csv`` and, once there is a score, ``.png`` and ``.svg``; the runs shown go into the archive."""
    rows, folder = table(stages, request), Path(request.results_dir)
    written = {folder / "search.csv": harmless(rows.to_csv(index=False, lineterminator="\n", float_format="%.6g")).encode()}
    pictures = _pictures(rows, folder)
    common = [word for word in search.common if word not in request.overrides]  # no paths of the machine
    text = page(search, common, stages, rows, left_out, declared, bool(pictures))
    for path, content in (written | pictures | {folder / "search.md": harmless(text).encode()}).items():
        write(path, content)
    for task in (task for stage in stages for task in stage.tasks):
        if task.run.state in OVER and task.run.path.parent != folder / "runs":
            archive(task.run, folder / "runs")
    return [*written, *pictures, folder / "search.md"]


def table(stages: Sequence[Stage], request: Request) -> pd.DataFrame:
    """A row an entry with runs that are over, best first; the final ones, which the test set scored, when all of them are over."""
    timed = request.frames.runs.step_cost
    rows = []
    for stage in stages:
        if stage.final:
            entries, marked = stage.entries if stage.over else (), []
        else:
            entries = (*ranked(stage), *(entry for entry in stage.entries if not entry.done))
            marked = front(stage) if stage.over and stage is [one for one in stages if not one.final][-1] else []
        rows += [_row(stage, entry, entry in marked, timed) for entry in entries if any(task.run.state in OVER for task in entry.tasks)]
    return pd.DataFrame(rows, columns=[*COLUMNS])


def _row(stage: Stage, entry: Entry, marked: bool, timed: pd.Series) -> dict[str, object]:
    config, runs = entry.tasks[0].config, entry.done
    over = [task for task in entry.tasks if task.run.state in OVER]
    found = pd.DataFrame([{**run.summary, "cost": cost(run.summary), "step_cost": timed.get(run.id)} for run in runs])
    mean = found.mean(numeric_only=True) if runs else pd.Series(dtype=float)
    answers = {answer.question: str(answer) for answer in entry.combination.answers} if entry.combination else {}
    said = {key: runs[0].summary[key] for key in ("metric", "split")} if runs else {}
    precision = "" if config["precision"] == "fp32" else f" {config['precision']}"
    return {
        "stage": stage.title, "combination": entry.label, **answers, "epochs": config["epochs"], **said,
        "seeds": ";".join(str(task.seed) for task in over), "mean": mean.get("score_last"), "n": len(runs),
        "std": found.score_last.std() if len(runs) > 1 else None, "front": "yes" if marked else "",
        **{key: mean.get(key) for key in ("cost", "step_cost", "seconds")}, "time": mean.get("cost", math.nan) * config["epochs"],
        "dataset": config["dataset"]["name"], "model": config["model"]["name"], "scale": config["scale"],
        "device": f"{config['device'].partition(':')[0]}{precision}", "run_ids": ";".join(task.run.id for task in over),
    }  # fmt: skip


def page(
    search: Search,
    common: Sequence[str],
    stages: Sequence[Stage],
    rows: pd.DataFrame,
    left_out: Sequence[str],
    declared: Path,
    picture: bool,
) -> str:
    """The page in Markdown."""
    rungs = "; ".join(f"{count} for {epochs} epochs" for count, epochs in search.rungs)
    named = f" file={declared}" if declared.name != "search.yaml" else ""
    parts = [
        "# Search of the family",
        f"Every combination is one answer to each of the four questions: {', '.join(QUESTIONS)} (docs/search.md). Successive halving: "
        f"{rungs}, all at seed {search.seed}, ranked by the score on the held-out part of the training set alone. The front of the last "
        f"rung is then trained at seeds {', '.join(map(str, search.seeds))}, which the search has not seen, with nothing held out; the "
        f"test set scores those runs, and nothing is chosen by it. All runs have: `{shlex.join(common)}`.",
        f"Made by `python -m sam_repro.search run{named}`, rendered by `python -m sam_repro.search report{named}`.",
        "\n".join(f"- {line}" for line in left_out),
    ]
    if rows.empty:
        return "\n\n".join([*parts, "No run of the search is over yet."]) + "\n"
    if picture:
        parts.append("![Score against time](search.png) ([SVG](search.svg))")
    for stage in reversed(stages):
        shown = rows[rows.stage == stage.title]
        verdict = [_verdict(shown, ranked(stages[-2])[0].label)] if stage.final and len(shown) else []
        parts += [f"## {stage.title.capitalize()}", *verdict, *_section(stage, shown)]
    return "\n\n".join([*parts, LEGEND]) + "\n"


def _section(stage: Stage, rows: pd.DataFrame) -> list[str]:
    over = sum(task.run.state in OVER for task in stage.tasks)
    waits = f"{over} of {len(stage.tasks)} runs are over" + ("; the test scores are shown when all are." if stage.final else ".")
    return [*([] if stage.over else [waits]), *([markdown(_cells(rows))] if len(rows) else [])]


def _verdict(final: pd.DataFrame, chosen: str) -> str:
    """How the combination that the search chose came out, and the best one by the test set, named as that."""
    found = final[final.when.notna() & (final.n > 0)]
    if found.empty:
        return "Every run of the front diverged."
    best, own = found.loc[found["mean"].idxmax()].to_dict(), final[final.combination == chosen].iloc[0].to_dict()
    return (
        f"The best by the held-out part, {chosen}: {_score(own)}. Best of {len(found)} by the test score, {best['combination']}: "
        f"{_score(best)}, which is the largest of {len(found)} means, and so higher by chance than what new seeds would give it."
    )


def _cells(rows: pd.DataFrame) -> pd.DataFrame:
    cells = {key: ["" if pd.isna(one) else f"{one:.{count}f}" for one in rows[key]] for key, count in DIGITS.items()}
    return pd.DataFrame({
        "score": [_score(row) for row in rows.to_dict("records")],
        "cost": cells["cost"], "timed": cells["step_cost"], "time": cells["time"],
        "epochs": rows.epochs.astype(str).values, "front": rows.front.values, "scale": rows.scale.values, "device": rows.device.values,
        "seeds": rows.seeds.str.replace(";", ", ").values, "runs": rows.run_ids.str.replace(";", ", ").values,
    }, index=rows.combination)  # fmt: skip


def _score(row: Mapping[Hashable, Any]) -> str:
    mean, std, n = (row[key] for key in ("mean", "std", "n"))
    return f"{mean:.2f}{'' if pd.isna(std) else f' ± {std:.2f}'} ({n})" if n else "diverged"


def _pictures(rows: pd.DataFrame, folder: Path) -> dict[Path, bytes]:
    if not rows.n.sum():
        return {}
    try:
        from ..figures import picture
        from .figure import draw
    except ImportError as error:
        raise UserError("The figure needs altair and vl-convert-python: pip install 'sam-repro[figures]'.") from error
    chart = draw(rows)
    return {folder / f"search.{kind}": picture(chart, kind) for kind in ("png", "svg")}
