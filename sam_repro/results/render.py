"""A filled table as CSV, Markdown and LaTeX."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pylatexenc.latexencode import RULE_DICT, UnicodeToLatexConversionRule, UnicodeToLatexEncoder

from ..schema import UserError
from .declare import Table
from .metrics import METRICS
from .numbers import COLUMNS
from .recipe import agrees
from .select import OWN
from .sheet import Sheet, describe

LEGEND = {
    "table": (
        "Bold: ours, the mean ± sample standard deviation (number of seeds), of scores and losses those of the last epoch; then the mean "
        "of the best epochs, the paper's value, and Δ, ours less the paper's. Absolute speeds and times depend on the machine, and on a "
        "shared one on its other users: ours are in the CSV alone where cells have what compares, and Δ is of that. A ratio of speeds "
        "is that of steps timed in turns in one process, where that was done after training (`python -m sam_repro.measure cost run=ID`; "
        "what a step takes beyond a plain one is scaled to the passes of all training), else that of the runs."
    ),
    "recipe": "Ours ✓ where it is what the paper prints, ✗ where it is not.",
}
# Of what a figure draws, where its axes do not say it.
SHADED = "Lines are means over seeds, shaded ± the sample standard deviation. "
REMARKS = {
    "learning_curves": SHADED,
    "grad_norm": SHADED,
    "layer_norms": "Curves on the left, the same as shades on the right, which end at the 1st and the 99th percentile. ",
}
SIGNS = UnicodeToLatexConversionRule(RULE_DICT, {ord("✓"): r"\ensuremath{\checkmark}", ord("✗"): r"\ensuremath{\times}"})
ENCODER = UnicodeToLatexEncoder(conversion_rules=[SIGNS, "defaults"])
HEAD, LABEL = 16, 26  # characters in a line of a column's and of a row's name in LaTeX


def as_csv(lines: pd.DataFrame) -> str:
    """One line a number; the columns are ``numbers.COLUMNS``."""
    text = lines[list(COLUMNS)].assign(mean=lines["mean"].map(_number), std=lines["std"].map(_number), n=lines.n.map(lambda n: n or ""))
    return text.to_csv(index=False, lineterminator="\n")


def _number(value: float | str | None) -> str:
    return value if isinstance(value, str) else "" if pd.isna(value) else f"{value:.12g}"


def read_csv(path: Path) -> pd.DataFrame:
    """The lines of a rendered table; UserError where the file is no such."""
    try:
        lines = pd.read_csv(path, dtype=str, keep_default_na=False)
        if tuple(lines.columns) != COLUMNS:
            raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
        n = lines.n.replace("", "0").astype(int)
        mean = [
            (float(value) if count else value) if value else None for value, count in zip(lines["mean"], n, strict=True)
        ]  # words of a recipe
        return lines.assign(mean=pd.Series(mean, dtype=object), std=pd.to_numeric(lines["std"]), n=n)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not as 'python -m sam_repro.tables report' writes it, render it anew: {error}.") from error


# -- what stands in a cell ---------------------------------------------------------------------------------------------


def told(sheet: Sheet, cell: int) -> list[str]:
    """The lines of a cell of the page: ours, best, ratio, the paper's, difference; those that there are."""
    own, *derived = list(sheet.of(cell).itertuples())
    if sheet.table.kind == "recipe":
        sign = {True: " ✓", False: " ✗", None: ""}[agrees(own.mean if isinstance(own.mean, str) else None, own.paper)]
        said = [f"**{own.mean}**{sign}"] if isinstance(own.mean, str) else []
        return [*said, *([f"paper {own.paper}"] if own.paper and sign != " ✓" else [])]
    found = ours([own, *derived], sheet.table)
    if not pd.isna(own.best):
        found.append(f"best {own.best:.{digits(own.metric)}f}")
    if own.paper:
        found.append(f"paper {papers([own, *derived], sheet.table)}{' (quoted)' if sheet.table.cells[cell].quoted else ''}")
    lines = derived if METRICS[own.metric].relative else [own]  # of speeds and counts, what is relative alone compares
    both = [(line.metric, line.mean - float(line.paper)) for line in lines if line.paper and line.n]
    differences = ", ".join(f"{value:+.{digits(metric)}f}" for metric, value in both)
    return [*found, *([f"Δ {differences}".replace("-", "−")] if both else [])]


def ours(lines: Sequence[Any], table: Table) -> list[str]:
    """``**62.31 ± 0.40** (2)``, ``**49.7 ± 0.2 % of SGD** (3)``; then what diverged. No speed or time where a line has what compares."""
    metrics = {line.metric for line in lines}
    shown = [line for line in lines if line.n and not absolute(line.metric, metrics)]
    return [*(f"**{plus_minus(line)}{unit(line.metric, table)}** ({line.n})" for line in shown), *filter(None, [diverged(lines[0])])]


def absolute(metric: str, beside: set[str]) -> bool:
    """Whether ours is a speed or a time of the machine, where a line beside it has what compares."""
    return metric in METRICS and bool(METRICS[metric].clock) and METRICS[metric].derived in beside


def diverged(line: Any) -> str:
    """``diverged (1 of 3)``; empty where none did."""
    tried = len(line.run_ids.split(";")) if line.run_ids else 0
    return f"diverged ({tried - line.n} of {tried})" if tried > line.n else ""


def papers(lines: Iterable[Any], table: Table) -> str:
    """The paper's values of a cell: ``604.2, 91.7 % of SGD``."""
    return ", ".join(f"{printed(line)}{unit(line.metric, table)}" for line in lines if line.paper)


def printed(line: Any) -> str:
    """The paper's value and deviation, with the digits that it prints."""
    return f"{line.paper} ± {line.paper_std}" if line.paper_std else line.paper


def plus_minus(line: Any) -> str:
    """``62.31 ± 0.40``, with as many digits as the metric has."""
    return f"{line.mean:,.{digits(line.metric)}f}" + ("" if pd.isna(line.std) else f" ± {line.std:,.{digits(line.metric)}f}")


def unit(metric: str, table: Table) -> str:
    """What a number is relative to; empty for those that are not."""
    units = {"ratio": f" % of {table.ratio_to}", "rate": " % of steps", "extra": f" of {table.extra_of}'s extra time"}
    return units.get(metric.rpartition("_")[2], "")


def digits(metric: str) -> int:
    """Decimals of a metric; ratios and rates have one, shares of extra time two."""
    return METRICS[metric].digits if metric in METRICS else 2 if metric.endswith("_extra") else 1


# -- pages -------------------------------------------------------------------------------------------------------------


def pivot(sheet: Sheet) -> pd.DataFrame:
    """Rows and columns as the paper prints them, in each cell the list of its lines."""
    table = sheet.table
    place = {(cell.row, cell.column): number for number, cell in enumerate(table.cells)}
    content = [[told(sheet, place[row, column]) for column in table.columns] for row in table.rows]
    return pd.DataFrame(content, index=table.rows, columns=table.columns)


def markdown(frame: pd.DataFrame) -> str:
    """A frame of words as a table, its index first."""
    rows = [
        ["", *frame.columns],
        ["---"] * (len(frame.columns) + 1),
        *([row, *cells] for row, cells in zip(frame.index, frame.values, strict=True)),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def as_markdown(sheet: Sheet, pictures: bool) -> str:
    """The table as a page: what it is, how it is made, ours beside the paper's, footnotes."""
    table, fill, render = sheet.table, command(sheet, "run"), command(sheet, "report")
    parts = [f"# {table.name}: {table.title}", f"{table.source} of: {table.citation}"]
    # What runs show is filled by a command of their own setting, which the notes have.
    empty = table.kind != "recipe" and not sheet.runs
    parts.append(f"Filled by `{fill}`, rendered by `{render}`." if empty else f"Rendered by `{render}`.")
    if pictures:
        picture = table.name.rpartition("/")[2]
        parts.append(f"![{table.title}]({picture}.png)\n\n{caption(sheet)} ([SVG]({picture}.svg))")
    parts.append("\n".join(f"- {note}" for note in sheet.notes or ["No runs yet."] * empty))
    parts += [markdown(pivot(sheet).map("<br>".join)), legend(table)]
    if len(sheet.tests):
        parts.append(f"Paired t-tests over seeds (scipy.stats.ttest_rel, two-sided):\n\n{markdown(_tests(sheet))}")
    parts.append("\n".join(f"- {note}" for note in table.footnotes))
    return "\n\n".join(part for part in parts if part) + "\n"


def _tests(sheet: Sheet) -> pd.DataFrame:
    signed = {"difference": "{:+.3f}", "t": "{:.2f}", "p": "{:.3f}", "n": "{}"}
    words = sheet.tests.assign(**{key: sheet.tests[key].map(form.format).str.replace("-", "−") for key, form in signed.items()})
    return words.set_index("row").rename(columns={"column": "", "difference": "mean difference"})


def as_latex(sheet: Sheet, pictures: bool) -> str:
    """The figure's picture if there is one, then the table as a ``longtable``, and all that the Markdown page says.

    It takes the packages longtable, booktabs, amssymb and, for a picture, graphicx.
    """
    table, label = sheet.table, sheet.table.name.replace("/", ":")
    picture = [
        r"\begin{figure}", r"\centering", rf"\includegraphics[width=\linewidth]{{{table.name.rpartition('/')[2]}}}",
        rf"\caption{{{latex(caption(sheet))}}}", rf"\label{{fig:{label}}}", r"\end{figure}",
    ]  # fmt: skip
    frame = pivot(sheet).map(lambda lines: _stacked([part for line in lines for part in line.split(", ")], "r"))
    frame.index = pd.Index([_stacked(_wrapped(row, LABEL), "l") for row in frame.index])
    frame.columns = pd.Index([_stacked(_wrapped(column, HEAD), "r") for column in frame.columns])
    text = frame.style.to_latex(
        environment="longtable", hrules=True, column_format=f"l{'r' * len(table.columns)}", caption=latex(caption(sheet)), label=label
    )  # fmt: skip
    tests = [f"{t.row}, {t.column} against {t.against}: {t.difference:+.3f}, p = {t.p:.3f} (n = {t.n})." for t in sheet.tests.itertuples()]
    paired = [f"Paired t-tests over seeds, two-sided: {' '.join(tests)}"] if tests else []
    said = [rf"{latex(note)}\par" for note in (legend(table), *sheet.notes, *paired, *table.footnotes)]
    return "\n".join(
        [
            *(picture if pictures else []),
            r"{\scriptsize\setlength{\tabcolsep}{3pt}",
            text,
            "}",
            r"{\footnotesize\raggedright",
            *said,
            "}",
            "",
        ]
    )


def latex(text: str) -> str:
    """Markdown's bold and code within plain text, the rest escaped."""
    marked = re.split(r"\*\*(.+?)\*\*|`([^`]+)`", text)
    parts = zip(marked[::3], [*marked[1::3], None], [*marked[2::3], None], strict=True)
    code = {0: "{}", 1: r"\textbf{{{}}}", 2: r"\texttt{{{}}}"}
    return "".join(code[kind].format(ENCODER.unicode_to_latex(part)) for three in parts for kind, part in enumerate(three) if part)


def _wrapped(label: str, width: int) -> list[str]:
    return [line for part in label.split(" / ") for line in textwrap.wrap(part, width)]


def _stacked(lines: list[str], side: str) -> str:
    # {}: LaTeX would take a star or a bracket at the beginning of a line for an argument of the \\ before it.
    inside = r"\\".join("{}" + latex(line) for line in lines)
    return inside if len(lines) < 2 else rf"\shortstack[{side}]{{{inside}}}"


def legend(table: Table) -> str:
    """How to read a cell."""
    if table.kind == "recipe" or not table.extra_of:
        return LEGEND["recipe" if table.kind == "recipe" else "table"]
    plain, other = table.ratio_to, table.extra_of
    return (
        f"{LEGEND['table']} Of {other}'s extra time a method spends (1/v − 1/v_{plain}) / (1/v_{other} − 1/v_{plain}), v its speed: "
        f"{plain} 0, {other} 1. A cost that every step has, whatever its method, cancels in it."
    )


def command(sheet: Sheet, verb: str) -> str:
    """The command line that runs or reports the table as it was asked for."""
    return " ".join(["python -m sam_repro.tables", verb, sheet.table.name, *sheet.request.words, *sheet.request.declared])


def caption(sheet: Sheet) -> str:
    """What a figure shows, of which paper, at which scale and with which models instead of the paper's, and by which command."""
    table, settings = sheet.table, dict.fromkeys(_settings(sheet))
    ours = "what the presets set" if table.kind == "recipe" else "; ".join(settings) or "no runs yet"
    remark = REMARKS.get(table.plot, "") if settings else ""
    return f"{table.title}. {remark}{table.source} of {table.citation.rstrip('.')}. Ours: {ours}; {command(sheet, 'report')}"


def _settings(sheet: Sheet) -> Iterable[str]:
    own = sheet.selected[sheet.selected.of == OWN].drop_duplicates("cell").sort_values("cell")
    for one in own.itertuples():
        cell = sheet.table.cells[one.cell]
        instead = cell.substitutes.get(one.setting.scale)
        yield f"{describe(one.setting, [cell], sheet.request)}{f' ({instead.note})' if instead else ''}"
