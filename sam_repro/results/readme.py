"""The part of a README that shows what the tables came to, and the index of all tables, from ``results/*.csv``."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from ..files import write
from ..schema import UserError, options, read
from .claims.judge import VERDICTS
from .declare import EXPERIMENTS, Table, names, select
from .render import diverged, markdown, ours, papers, read_csv

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
    parts = [
        "# The papers' tables and figures\n\nOurs beside the papers', rendered from the finished runs in `runs/` by "
        "`python -m sam_repro.tables report --all`; this page by `python -m sam_repro.tables readme`."
    ]
    tables = select(names(folder), folder)
    for paper in dict.fromkeys(table.name.partition("/")[0] for table in tables):
        of = [table for table in tables if table.name.partition("/")[0] == paper]
        rows = [f"| [{table.source}]({table.name}.md) | {table.title} | {_filled(table, results)} |" for table in of]
        parts.append("\n".join([f"## {paper}\n\n{of[0].citation}\n", "| | | cells with runs |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def _filled(table: Table, results: Path) -> str:
    if table.kind == "recipe":
        return "a recipe, checked without runs"
    lines = _with_runs(table, results)
    where = ", ".join(sorted(_where(lines)))
    return f"{len(lines.groupby(['row', 'column']))} of {len(table.cells)}{f': {where}' if where else ''}"


def section(results: Path, base: Path, folder: Path = EXPERIMENTS) -> str:
    """Every table and figure that has runs, as rows and columns of ours and the paper's values; links are relative to ``base``."""
    tables = select(names(folder), folder)
    filled = [(table, lines) for table in tables if len(lines := _with_runs(table, results))]
    scales = {scale for _, lines in filled for scale in _scale(lines[lines.n > 0])}
    head = f"{len(filled)} of {len(tables)} tables and figures have runs; the others hold the papers' values, recipes what the presets set."
    head += " Bold: ours, mean ± sample standard deviation (seeds). Ours of speeds are ratios: absolute ones do not compare."
    for scale in sorted(scales & {*options("scale")} - {"paper"}):
        factors = read(f"scale/{scale}")
        head += f" Scale {scale} is epochs x {factors['epochs']:g} and data x {factors['data']:g}, where nothing else is said:"
        head += " such a number and the paper's do not compare."
    return f"{head}\n\n{_claims(results, os.path.relpath(results, base))}" + "\n".join(
        _table(table, results, os.path.relpath(results, base)) for table, _ in filled
    )


def _claims(results: Path, where: str) -> str:
    """How many claims of each paper are supported, contradicted, undecided and not run; nothing where none was judged."""
    path = results / "claims.csv"
    if not path.exists():
        return ""
    claims = pd.read_csv(path, dtype=str, keep_default_na=False)
    counts = pd.crosstab(claims.paper, claims.verdict).reindex(columns=list(VERDICTS), fill_value=0)
    reduced = {scale for scale in claims.scale[claims.verdict != "not run"] if scale not in ("", "paper")}
    said = f" of runs at scale {' and '.join(sorted(reduced))}" if reduced else ""
    return (
        f"**[Claims]({where}/claims.md)** of the papers, each judged by the 95 % interval{said}, never typed "
        f"(docs/claims.md):\n\n{markdown(counts.astype(str))}\n\n"
    )


def _lines(table: Table, results: Path) -> pd.DataFrame:
    path = results / f"{table.name}.csv"
    return read_csv(path) if path.exists() else pd.DataFrame(columns=["row", "column", "n", "scale", "device", "run_ids"])


def _with_runs(table: Table, results: Path) -> pd.DataFrame:
    lines = _lines(table, results)
    return lines[lines.run_ids != ""]


def _where(lines: pd.DataFrame) -> set[str]:
    return {f"scale {scale} on {device}" for scale, device in zip(lines.scale, lines.device, strict=True)}


def _scale(lines: pd.DataFrame) -> list[str]:
    """Without the overrides that may stand behind it."""
    return [scale.partition(" ")[0] for scale in lines.scale]


def _table(table: Table, results: Path, where: str) -> str:
    lines = _lines(table, results)
    done = lines[lines.n > 0]
    scales = dict(zip(zip(done.row, done.column, strict=True), _scale(done), strict=True))
    notes = {cell.substitutes[scale].note for cell in table.cells if (scale := scales.get((cell.row, cell.column), "")) in cell.substitutes}
    head = f"**[{table.name}]({where}/{table.name}.md)** {table.title} ({'; '.join([*sorted(_where(done)), *sorted(notes)])})\n"
    if table.kind == "figure":
        drawn = (results / f"{table.name}.png").exists()
        return f"{head}\n![{table.title}]({where}/{table.name}.png)\n" if drawn else head
    said: dict[str, dict[str, str]] = {}
    for (row, column), group in lines.groupby(["row", "column"], sort=False):
        cell = list(group.itertuples())
        if any(line.n or diverged(line) for line in cell):
            paper = papers(cell, table)
            said.setdefault(column, {})[row] = "<br>".join(ours(cell, table)) + (f"; paper {paper}" if paper else "")
    rows = [row for row in table.rows if any(row in inside for inside in said.values())]
    frame = pd.DataFrame({column: [said[column].get(row, "") for row in rows] for column in table.columns if column in said}, index=rows)
    return f"{head}\n{markdown(frame)}\n"
