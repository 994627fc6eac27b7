"""The part of a README that says what the runs came to, and the index of all tables, from ``results/``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..schema import UserError, options, read
from .claims.declare import load_all
from .claims.judge import VERDICTS
from .declare import EXPERIMENTS, Table, names, select
from .figures import picture
from .methods import mean_and_deviation, picture_of_methods, seeds_of, side_by_side
from .reference import methods_page, options_page
from .render import diverged, markdown, ours, papers, read_csv

TOLD = 6  # claims
BEGIN, END = "<!-- tables:begin -->", "<!-- tables:end -->"


def pages(readme: Path, results: Path, folder: Path = EXPERIMENTS) -> dict[Path, str | bytes]:
    """All that is made of ``results/`` and the option files, by the file it belongs into; UserError where a README has no markers."""
    made: dict[Path, str | bytes] = {readme: filled_in(readme, results, folder), results / "README.md": index(results, folder)}
    if (drawn := picture_of_methods(results)) is not None:
        made |= {results / f"methods.{kind}": picture(drawn, kind) for kind in ("png", "svg")}
    if (docs := readme.parent / "docs").is_dir():
        made |= {docs / "options.md": options_page(), docs / "methods" / "README.md": methods_page(docs / "methods", results)}
    return made


def filled_in(readme: Path, results: Path, folder: Path = EXPERIMENTS) -> str:
    """A README with what stands between the markers made anew; UserError where they are not there."""
    try:
        text = readme.read_text()
    except OSError as error:
        raise UserError(f"{readme} cannot be read: {error.strerror}.") from error
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{readme} needs a line {BEGIN} and after it a line {END}: the results go between them.")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{section(results, readme.parent, folder)}\n{END}{rest.partition(END)[2]}"


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
    parts.append(_all_tables(tables, results))
    return "\n\n".join(parts) + "\n"


def _all_tables(tables: Sequence[Table], results: Path) -> str:
    """Every table that has runs, as rows and columns of ours and the paper's values."""
    filled = [(table, lines) for table in tables if table.kind != "figure" and len(lines := _with_runs(table, results))]
    scales = {scale for _, lines in filled for scale in _scale(lines[lines.n > 0])}
    head = (
        "## What has runs\n\nBold: ours, mean ± sample standard deviation (seeds). Ours of speeds are ratios: absolute ones do not compare."
    )
    for scale in sorted(scales & {*options("scale")} - {"paper"}):
        factors = read(f"scale/{scale}")
        head += f" Scale {scale} is epochs x {factors['epochs']:g} and data x {factors['data']:g}, where nothing else is said:"
        head += " such a number and the paper's do not compare."
    return "\n\n".join([head, *(_table(table, results).rstrip() for table, _ in filled)])


def _filled(table: Table, results: Path) -> str:
    if table.kind == "recipe":
        return "a recipe, checked without runs"
    lines = _with_runs(table, results)
    where = ", ".join(sorted(_where(lines)))
    return f"{len(lines.groupby(['row', 'column']))} of {len(table.cells)}{f': {where}' if where else ''}"


def section(results: Path, base: Path, folder: Path = EXPERIMENTS) -> str:
    """What the runs came to, for somebody in a hurry: the methods side by side, the claims, the figures; links relative to ``base``."""
    where = os.path.relpath(results, base)
    tables = select(names(folder), folder)
    filled = [table for table in tables if len(_with_runs(table, results))]
    parts = [_methods(results), _claims(results, where)]
    if drawn := [table for table in filled if (results / f"{table.name}.png").exists()]:
        parts.append("\n\n".join(f"[![{one.title}]({where}/{one.name}.png)]({where}/{one.name}.md)\n*{one.title}.*" for one in drawn))
    parts.append(f"{len(filled)} of {len(tables)} tables and figures of the papers have runs: [{where}/README.md]({where}/README.md).")
    return "\n\n".join(filter(None, parts)) + "\n"


def _methods(results: Path) -> str:
    """The settings side by side: a picture of accuracy against time, and the numbers."""
    said, rows = side_by_side(results)
    if rows.empty:
        return ""
    told = pd.DataFrame(
        {
            "accuracy, %": [mean_and_deviation(one.score, one.score_std, 2) for one in rows.itertuples()],
            "time of a step (SGD = 1)": [mean_and_deviation(one.step, one.step_std, 2) for one in rows.itertuples()],
            "λ_max": [mean_and_deviation(one.lambda_max, one.lambda_max_std, 0) for one in rows.itertuples()],
            "seeds": [str(one.n) for one in rows.itertuples()],
        },
        index=list(rows.setting),
    )
    counts = " or ".join(f"{count:,.0f}" for count in sorted(rows.samples.dropna().unique()))
    of = f" of the loss of {counts} training samples" if counts else ""
    sharp = f"λ_max, the largest eigenvalue of the Hessian{of}, says how sharp the minimum is."
    return f"{said}; {seeds_of(rows)}. The time of a step is timed in turns with SGD's. {sharp}\n\n{markdown(told)}"


def _claims(results: Path, where: str) -> str:
    """How many claims are supported, contradicted, undecided and not run, and those that say most; nothing where none was judged."""
    path = results / "claims.csv"
    if not path.exists():
        return ""
    claims = pd.read_csv(path, dtype=str, keep_default_na=False)
    counts = claims.verdict.value_counts().reindex(list(VERDICTS), fill_value=0)
    known = {claim.id: claim for paper in load_all() for claim in paper.claims}
    # What the runs contradict, and then what trainings decided, above what holds by construction.
    decided = claims[claims.verdict.isin(["contradicted", "supported"]) & claims.claim.isin(known)]
    order = (decided.verdict != "contradicted") * 2 + (decided.run_ids == "")
    shown = decided.loc[order.sort_values(kind="stable").index].head(TOLD)
    lines = []
    for one in shown.itertuples():
        claim = known[one.claim]
        why = f" *{claim.note}*" if claim.note and one.verdict == "contradicted" else ""
        lines.append(f"- **{one.verdict}** ({one.paper}, {one.where}): {claim.says}{why}")
    head = f"Of {len(claims)} claims of the papers {counts['supported']} are supported so far, {counts['contradicted']} contradicted and "
    partly = int(((claims.verdict == "undecided") & (claims.parts_not_run != "")).sum())
    head += f"{counts['undecided']} undecided, {partly} of them with a part of their runs; {counts['not run']} have none yet "
    head += f"([all of them]({where}/claims.md)). "
    trained = int((decided.run_ids != "").sum())
    head += f"Trainings have decided {trained} of them; {len(decided) - trained} were decided by what needs none: identities in float64, "
    head += "counts of passes and parameters, timings, counterexamples. Among these:"
    return "\n".join([head, "", *lines])


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


def _table(table: Table, results: Path) -> str:
    lines = _lines(table, results)
    done = lines[lines.n > 0]
    scales = dict(zip(zip(done.row, done.column, strict=True), _scale(done), strict=True))
    notes = {cell.substitutes[scale].note for cell in table.cells if (scale := scales.get((cell.row, cell.column), "")) in cell.substitutes}
    head = f"**[{table.name}]({table.name}.md)** {table.title} ({'; '.join([*sorted(_where(done)), *sorted(notes)])})\n"
    said: dict[str, dict[str, str]] = {}
    for (row, column), group in lines.groupby(["row", "column"], sort=False):
        cell = list(group.itertuples())
        if any(line.n or diverged(line) for line in cell):
            paper = papers(cell, table)
            said.setdefault(column, {})[row] = "<br>".join(ours(cell, table)) + (f"; paper {paper}" if paper else "")
    rows = [row for row in table.rows if any(row in inside for inside in said.values())]
    frame = pd.DataFrame({column: [said[column].get(row, "") for row in rows] for column in table.columns if column in said}, index=rows)
    return f"{head}\n{markdown(frame)}\n"
