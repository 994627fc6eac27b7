"""A filled table as CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace

from .declare import Table
from .metrics import METRICS
from .recipe import agrees
from .sheet import Sheet, describe
from .values import COLUMNS, Line, Shown, number

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
    "layer_norms": "The shades end at the 1st and the 99th percentile of the norms. ",
}


def as_csv(lines: Iterable[Line]) -> str:
    """One line a number; the columns are ``values.COLUMNS``."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in lines:
        values = {**line.__dict__, "mean": number(line.mean), "std": number(line.std), "n": line.n or "", "run_ids": ";".join(line.run_ids)}
        writer.writerow([values[column] for column in COLUMNS])
    return text.getvalue()


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
    parts += [matrix(sheet), legend(table)]
    if sheet.tests:
        parts.append(tests(sheet))
    parts.append("\n".join(f"- {note}" for note in table.footnotes))
    return "\n\n".join(part for part in parts if part) + "\n"


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
    table = sheet.table
    settings: dict[str, None] = {}  # in the order of the cells
    for one in sheet.filled:
        if one.setting:
            instead = one.cell.substitutes.get(one.setting.scale)
            settings[f"{describe(one.setting, [one.cell], sheet.request)}{f' ({instead.note})' if instead else ''}"] = None
    ours = "what the presets set" if table.kind == "recipe" else "; ".join(settings) or "no runs yet"
    remark = REMARKS.get(table.plot, "") if settings else ""
    return f"{table.title}. {remark}{table.source} of {table.citation.rstrip('.')}. Ours: {ours}; {command(sheet, 'report')}"


def matrix(sheet: Sheet, rows: list[str] | None = None) -> str:
    """Rows and columns as the paper prints them."""
    table = sheet.table
    head = ["", *table.columns]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in rows or table.rows:
        cells = ["<br>".join(told(sheet, sheet.at(row, column))) for column in table.columns]
        lines.append(f"| {' | '.join([row, *cells])} |")
    return "\n".join(lines)


def told(sheet: Sheet, cell: Shown) -> list[str]:
    """The lines of a cell of the page: ours, best, ratio, the paper's, difference; those that there are."""
    if sheet.table.kind == "recipe":
        line = cell.line
        sign = {True: " ✓", False: " ✗", None: ""}[agrees(line)]
        said = [f"**{line.mean}**{sign}"] if line.mean is not None else []
        return [*said, *([f"paper {line.paper}"] if line.paper and sign != " ✓" else [])]
    lines = comparable(cell.lines)
    found = [*(ours(line, sheet.table) for line in lines if line.n), *([cell.line.diverged] if cell.line.diverged else [])]
    if cell.best is not None:
        found.append(f"best {cell.best:.{digits(cell.line)}f}")
    if cell.line.paper:
        found.append(f"paper {papers(lines, sheet.table)}{' (quoted)' if cell.cell.quoted else ''}")
    return [*found, *difference(cell)]


def comparable(lines: Sequence[Line]) -> list[Line]:
    """What is shown of lines of the CSV: our absolute speeds and times are not, where lines of their own have what compares."""
    there = {(line.row, line.column, line.metric) for line in lines}
    return [
        replace(line, mean=None, std=None, n=0, scale="", device="", run_ids=())
        if line.metric in METRICS and METRICS[line.metric].clock and (line.row, line.column, METRICS[line.metric].derived) in there
        else line
        for line in lines
    ]


def papers(lines: Iterable[Line], table: Table) -> str:
    """The paper's values of a cell: ``604.2, 91.7 % of SGD``."""
    return ", ".join(f"{printed(line)}{unit(line, table)}" for line in lines if line.paper)


def printed(line: Line) -> str:
    """The paper's value and deviation, with the digits that it prints."""
    return f"{line.paper} ± {line.paper_std}" if line.paper_std else line.paper


def ours(line: Line, table: Table) -> str:
    """``**62.31 ± 0.40** (2)``, ``**49.7 ± 0.2 % of SGD** (3)``."""
    return f"**{spread(line)}{unit(line, table)}** ({line.n})"


def spread(line: Line) -> str:
    """``62.31 ± 0.40``, with as many digits as the metric has."""
    return f"{line.mean:,.{digits(line)}f}" + ("" if line.std is None else f" ± {line.std:,.{digits(line)}f}")


def unit(line: Line, table: Table) -> str:
    """What a number is relative to; empty for those that are not."""
    units = {"ratio": f" % of {table.ratio_to}", "rate": " % of steps", "extra": f" of {table.extra_of}'s extra time"}
    return units.get(line.metric.rpartition("_")[2], "")


def difference(cell: Shown) -> list[str]:
    """Ours less the paper's; of speeds and counts that of what is relative, which alone compares."""
    lines = cell.derived if METRICS[cell.cell.metric].relative else [cell.line]
    both = [(line, line.mean - float(line.paper)) for line in lines if line.paper and isinstance(line.mean, float)]
    differences = ", ".join(f"{value:+.{digits(line)}f}" for line, value in both)
    return [f"Δ {differences}".replace("-", "−")] if both else []


def digits(line: Line) -> int:
    """Decimals of a metric; ratios and rates have one, shares of extra time two."""
    return METRICS[line.metric].digits if line.metric in METRICS else 2 if line.metric.endswith("_extra") else 1


def tests(sheet: Sheet) -> str:
    """The paired tests as a table."""
    lines = [
        "Paired t-tests over seeds (scipy.stats.ttest_rel, two-sided):\n",
        "| | | against | n | mean difference | t | p |",
        f"|{' --- |' * 7}",
    ]
    for test in sheet.tests:
        values = f"{test.n} | {test.difference:+.3f} | {test.t:.2f} | {test.p:.3f}".replace("-", "−")
        lines.append(f"| {test.row} | {test.column} | {test.against} | {values} |")
    return "\n".join(lines)
