"""``python -m sam_repro.tables.html [ID ...] [runs_dir=runs] [out=report.html]``: a report to look at, one file that needs nothing else.

Tables and text are there without JavaScript; ``report.js`` sorts the tables and draws the charts.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from ..command import command
from ..config import OUTSIDE
from ..schema import UserError, suggest
from ..tracking.describe import command_of
from ..train.provenance import now
from ..train.store import Run, all_runs, find, write
from .charts import chart_data
from .compare import Benchmark, Setting, benchmarks
from .metrics import METRICS
from .readme import read_csv
from .render import comparable, printed
from .values import Line

USAGE = "python -m sam_repro.tables.html [ID ...] [runs_dir=runs] [out=report.html] [title=...] [table=results/kdd24/table1.csv]"
KEYS = ("runs_dir", "out", "title", "table")
HERE = Path(__file__).parent
DECLARED = ("Row", "Column", "Metric", "Paper", "Ours", "n", "Δ", "Scale", "Device", "Runs")
MEASURED = ("Setting", "Score, %", "Best epoch, %", "Images/s", "Steps with ascent, %", "Forward", "Backward", "n", "Epochs", "Runs")


def html(runs: Sequence[Run], title: str, lines: Sequence[Line] = (), notes: Sequence[str] = ()) -> str:
    """The report on ``runs``; ``lines`` are those of a declared table, ``notes`` sentences to stand above them."""
    known = benchmarks(runs)
    data = json.dumps([chart_data(benchmark) for benchmark in known], separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = [
        header(title, runs, known),
        "".join(f"<p>{escape(note)}</p>" for note in notes),
        declared(lines, {run.id for run in runs}) if lines else "",
        *(section(i, benchmark) for i, benchmark in enumerate(known)),
        "<section><h2>Runs</h2>" + "".join(map(article, runs)) + "</section>",
    ]
    return PAGE.format(
        title=escape(title),
        style=(HERE / "report.css").read_text(),
        body="\n".join(parts),
        data=data,
        script=(HERE / "report.js").read_text(),
    )


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<script type="application/json" id="data">{data}</script>
<script>
{script}</script>
</body>
</html>
"""


def header(title: str, runs: Sequence[Run], known: Sequence[Benchmark]) -> str:
    """What the report is about, and how far it can be trusted."""
    states = [run.state for run in runs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    facts = {
        "Runs": counts or "none",
        "Scale": _joined(benchmark.scale for benchmark in known),
        "Device": _joined([*(benchmark.where for benchmark in known), *(name for benchmark in known for name in benchmark.hardware)]),
        "Trained": _span([str(run.status.get(key, ""))[:10] for run in runs for key in ("started", "ended")]),
        "Commit": _joined(str(run.status.get("commit") or "unknown") for run in runs),
        "Report made": now()[:10],
    }
    reduced = _joined(benchmark.scale for benchmark in known if benchmark.scale != "paper")
    warning = f'<p class="reduced"><strong>Reduced runs</strong> (scale {escape(reduced)}): not the paper’s training.</p>'
    return f"<header><h1>{escape(title)}</h1>{warning if reduced else ''}<dl>{''.join(map(_fact, facts.items()))}</dl></header>"


def declared(lines: Sequence[Line], known: set[str]) -> str:
    """The declared table, a line a cell: the paper's value beside ours."""
    return "<section><h2>The paper’s table</h2>" + table(DECLARED, [_declared(line, known) for line in comparable(lines)]) + "</section>"


def _declared(line: Line, known: set[str]) -> list[str]:
    paper, mean = _number(line.paper), _number(line.mean)
    # Speeds and the like compare as ratios alone, which are lines of their own.
    comparable = line.metric not in METRICS or not METRICS[line.metric].relative
    delta = mean - paper if paper is not None and mean is not None and comparable else None
    words = [word_cell(word) for word in (line.row, line.column, line.metric)]
    values = [  # a recipe has words: 87M, cosine
        word_cell(line.paper) if paper is None else f'<td class="number" data-value="{paper}">{escape(printed(line))}</td>',
        word_cell(str(line.mean or "")) if mean is None else number_cell(mean, line.std),
        word_cell(", ".join(filter(None, [str(line.n or ""), line.diverged]))),
    ]
    where = [number_cell(delta, None), word_cell(line.scale), word_cell(line.device)]
    return [*words, *values, *where, f"<td>{' '.join(link(one) if one in known else escape(one) for one in line.run_ids)}</td>"]


def section(number: int, benchmark: Benchmark) -> str:
    """A benchmark: its table, and room for its charts."""
    about = f"Scale {benchmark.scale}; {benchmark.where}; score on the {benchmark.split}."
    if len(benchmark.hardware) > 1:
        about += f" Trained on {' and '.join(benchmark.hardware)}: speeds cannot be compared, so no front is drawn."
    rows = [_measured(setting) for setting in benchmark.settings]
    charts = "".join(f'<div data-chart="{chart}"></div>' for chart in ("legend", "curves", "speed", "heatmap"))
    return (
        f'<section data-benchmark="{number}"><h2>{escape(benchmark.name)}</h2><p>{escape(about)}</p>{table(MEASURED, rows)}'
        "<p class=note>Mean ± sample standard deviation over n finished runs, of the last epoch. Forward and backward passes a step: "
        "SGD is 1 and 1. Speeds are those of the machine in its state then, its other users included.</p>"
        f"<noscript><p>The charts need JavaScript.</p></noscript>{charts}</section>"
    )


def _measured(setting: Setting) -> list[str]:
    total = {key: sum(summary[key] for summary in setting.done) for key in ("steps", "sampling_number", "forward_units", "backward_units")}

    def per_step(key: str, factor: float = 1.0) -> float | None:
        return factor * total[key] / total["steps"] if setting.done else None

    epochs = [str(run.config["epochs"]) if run.state == "done" else f"{_progress(run)} ({run.state})" for run in setting.runs]
    return [
        f'<th scope="row">{escape(setting.label)}</th>',
        number_cell(setting.mean("score_last"), setting.std("score_last")),
        number_cell(setting.mean("score_best"), None),
        number_cell(setting.mean("images_per_second"), setting.std("images_per_second"), digits=0),
        number_cell(per_step("sampling_number", 100), None, digits=1),
        number_cell(per_step("forward_units"), None),
        number_cell(per_step("backward_units"), None),
        word_cell(str(len(setting.done))),
        word_cell(_joined(epochs)),
        f"<td>{' '.join(link(run.id) for run in setting.runs)}</td>",
    ]


def article(run: Run) -> str:
    """A run: what it was, how to run it again, how it came out."""
    config, status, summary = run.config, run.status, run.summary
    facts = {
        "State": f"{run.state}, {_progress(run)} epochs" + (f": {status['error']}" if status.get("error") else ""),
        "Score": f"{summary['score_last']:.2f} % last, {summary['score_best']:.2f} % best (epoch {summary['best_epoch']})"
        if summary
        else "",
        "Speed": f"{summary['images_per_second']:,.0f} images/s" if summary else "",
        "Device": f"{summary.get('hardware', config['device'])}, {config['precision']}",
        "Scale": config["scale"],
        "Time": " to ".join(str(status[key]) for key in ("started", "ended") if key in status),
        "Commit": status.get("commit") or "unknown",
        "Versions": ", ".join(f"{name} {version}" for name, version in status.get("versions", {}).items()),
    }
    inside = yaml.safe_dump({key: value for key, value in config.items() if key not in OUTSIDE}, sort_keys=False)
    model = config["model"].get("arch", config["model"]["name"])
    name = f"{config['optimizer']['name']}, {config['dataset']['name']}, {model}, seed {config['seed']}"
    return (
        f'<article id="run-{escape(run.id)}" tabindex="-1"><h3><code>{escape(run.id)}</code> {escape(name)}</h3>'
        f'<div class="command"><pre><code>{escape(command_of(run))}</code></pre></div>'
        f"<dl>{''.join(_fact(fact) for fact in facts.items() if fact[1])}</dl>"
        f"<details><summary>Configuration</summary><pre>{escape(inside)}</pre></details></article>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls by itself where the page is narrow; ``rows`` are cells in HTML."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    content = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="table">{content}</div>'


def number_cell(mean: float | None, std: float | None, digits: int = 2) -> str:
    """A number that sorts as one; empty where there is none."""
    if mean is None:
        return '<td class="number"></td>'
    spread = "" if std is None else f" ± {std:,.{digits}f}"
    return f'<td class="number" data-value="{mean}">{mean:,.{digits}f}{spread}</td>'


def word_cell(word: str) -> str:
    """Text, or a number as it is written."""
    return f"<td>{escape(word)}</td>"


def link(run_id: str) -> str:
    """To the run's place on the page."""
    return f'<a href="#run-{escape(run_id)}"><code>{escape(run_id[:6])}</code></a>'


def _fact(fact: tuple[str, Any]) -> str:
    return f"<div><dt>{escape(fact[0])}</dt><dd>{escape(str(fact[1]))}</dd></div>"


def _progress(run: Run) -> str:
    return f"{len(run.metrics())} of {run.config['epochs']}"


def _joined(words: Any) -> str:
    return "; ".join(dict.fromkeys(words))


def _span(dates: Sequence[str]) -> str:
    known = sorted(date for date in dates if date)
    return "" if not known else known[0] if known[0] == known[-1] else f"{known[0]} to {known[-1]}"


def _number(value: float | str | None) -> float | None:
    if isinstance(value, str):
        return float(value) if re.fullmatch(r"-?\d+\.?\d*(e-?\d+)?", value) else None
    return value


def main() -> None:
    """The command line."""
    words = [word for word in sys.argv[1:] if "=" not in word]
    settings = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    with command("sam_repro.tables.html"):
        for key in settings.keys() - set(KEYS):
            raise UserError(f"There is no key {key!r}.{suggest(key, KEYS)}")
        if any(word.startswith("-") for word in words):
            raise UserError(f"usage: {USAGE}")
        print(make(words, **settings))


def make(prefixes: Sequence[str], runs_dir: str = "runs", out: str = "report.html", title: str = "", table: str = "") -> str:
    """Write the report on the runs named, or on all; returns where it is."""
    runs = [find(runs_dir, prefix) for prefix in prefixes] if prefixes else all_runs(runs_dir)
    if not runs:
        raise UserError(f"There are no runs in {runs_dir}: 'python -m sam_repro' trains one.")
    lines = read_csv(Path(table)) if table else []
    write(Path(out), html(runs, title or f"sam-repro: {len(runs)} runs", lines))
    return out


if __name__ == "__main__":
    main()
