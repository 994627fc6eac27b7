"""The part of a README that shows what the tables came to, and the index of all tables, from ``results/*.csv``."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from ..schema import UserError, options, read
from ..train.store import write
from .declare import EXPERIMENTS, Table, names, select
from .render import comparable, ours, papers
from .values import COLUMNS, Line

BEGIN, END = "<!-- tables:begin -->", "<!-- tables:end -->"


def update(readme: Path, results: Path, folder: Path = EXPERIMENTS) -> None:
    """Rewrite what stands between the markers; UserError where they are not there."""
    try:
        text = readme.read_text()
    except OSError as error:
        raise UserError(f"{readme} cannot be read: {error.strerror}.") from error
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{readme} needs a line {BEGIN} and after it a line {END}: the tables go between them.")
    before, _, rest = text.partition(BEGIN)
    write(readme, f"{before}{BEGIN}\n\n{section(results, readme.parent, folder)}\n{END}{rest.partition(END)[2]}")


def index(results: Path, folder: Path = EXPERIMENTS) -> str:
    """``results/README.md``: every table and figure by paper, and how much of it has runs."""
    tables = select(names(folder), folder)
    parts = [
        "# The papers' tables and figures\n\nOurs beside the papers', rendered from the finished runs in `runs/` by "
        "`python -m sam_repro.tables report --all`; this page by `python -m sam_repro.tables readme`."
    ]
    for paper in dict.fromkeys(table.name.partition("/")[0] for table in tables):
        of = [table for table in tables if table.name.partition("/")[0] == paper]
        rows = [f"| [{table.source}]({table.name}.md) | {table.title} | {_filled(table, results)} |" for table in of]
        parts.append("\n".join([f"## {paper}\n\n{of[0].citation}\n", "| | | cells with runs |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def _filled(table: Table, results: Path) -> str:
    if table.kind == "recipe":
        return "a recipe, checked without runs"
    path = results / f"{table.name}.csv"
    lines = [line for line in read_csv(path) if line.run_ids] if path.exists() else []
    where = ", ".join(sorted({f"scale {line.scale} on {line.device}" for line in lines}))
    return f"{len({(line.row, line.column) for line in lines})} of {len(table.cells)}{f': {where}' if where else ''}"


def section(results: Path, base: Path, folder: Path = EXPERIMENTS) -> str:
    """Every table and figure that has runs, as rows and columns of ours and the paper's values; links are relative to ``base``."""
    tables, parts, scales = select(names(folder), folder), [], set()
    for table in tables:
        path = results / f"{table.name}.csv"
        lines = read_csv(path) if path.exists() else []
        if any(line.run_ids for line in lines):
            parts.append(_table(table, lines, results, os.path.relpath(results, base)))
            scales |= {_scale(line) for line in lines if line.n}
    head = f"{len(parts)} of {len(tables)} tables and figures have runs; the others hold the papers' values, recipes what the presets set."
    head += " Bold: ours, mean ± sample standard deviation (seeds). Ours of speeds are ratios: absolute ones do not compare."
    for scale in sorted({scale for scale in scales if scale in options("scale") and scale != "paper"}):
        factors = read(f"scale/{scale}")
        head += f" Scale {scale} is epochs x {factors['epochs']:g} and data x {factors['data']:g}, where nothing else is said:"
        head += " such a number and the paper's do not compare."
    return f"{head}\n\n" + "\n".join(parts)


def _table(table: Table, lines: list[Line], results: Path, where: str) -> str:
    filled = {(line.row, line.column): _scale(line) for line in lines if line.n}
    notes = {cell.substitutes[scale].note for cell in table.cells if (scale := filled.get((cell.row, cell.column), "")) in cell.substitutes}
    shown = "; ".join([*sorted({f"scale {line.scale} on {line.device}" for line in lines if line.n}), *sorted(notes)])
    head = f"**[{table.name}]({where}/{table.name}.md)** {table.title} ({shown})\n"
    if table.kind == "figure":
        drawn = (results / f"{table.name}.png").exists()
        return f"{head}\n![{table.title}]({where}/{table.name}.png)\n" if drawn else head
    cells: dict[tuple[str, str], list[Line]] = {}
    for line in comparable(lines):
        cells.setdefault((line.row, line.column), []).append(line)
    diverged = {(line.row, line.column): line.diverged for line in lines if line.diverged}
    said = {
        place: _said(inside, diverged.get(place, ""), table)
        for place, inside in cells.items()
        if place in diverged or any(line.n for line in inside)
    }
    columns = list(dict.fromkeys(column for _, column in said))
    rows = {row: [said.get((row, column), "") for column in columns] for row, _ in said}
    text = ["", f"| {' | '.join(['', *columns])} |", f"|{' --- |' * (len(columns) + 1)}"]
    text += [f"| {' | '.join([row, *inside])} |" for row, inside in rows.items()]
    return head + "\n".join(text) + "\n"


def _scale(line: Line) -> str:
    """Without the overrides that may stand behind it."""
    return line.scale.partition(" ")[0]


def _said(lines: list[Line], diverged: str, table: Table) -> str:
    """A cell: ours, then the paper's values."""
    paper = papers(lines, table)
    found = [*(ours(line, table) for line in lines if line.n), *([diverged] if diverged else [])]
    return "<br>".join(found) + (f"; paper {paper}" if paper else "")


def read_csv(path: Path) -> list[Line]:
    """The lines of a rendered table; UserError where the file is no such."""
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
            return [_read(row) for row in reader]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{path} is not as 'python -m sam_repro.tables report' writes it, render it anew: {error}.") from error


def _read(row: dict[str, str]) -> Line:
    number: Any = float if row["n"] else str  # a recipe has words
    values: dict[str, Any] = {**row, "mean": number(row["mean"]) if row["mean"] else None, "n": int(row["n"] or 0)}
    return Line(**{**values, "std": float(row["std"]) if row["std"] else None, "run_ids": tuple(filter(None, row["run_ids"].split(";")))})
