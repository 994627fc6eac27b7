"""Writing a table's files, and keeping the runs they came from beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from ..files import write
from ..plain import harmless, plain
from ..schema import UserError
from .archive import archive
from .declare import Table
from .frames import Frames
from .render import as_csv, as_latex, as_markdown
from .select import Request
from .sheet import Sheet, sheet


def report(table: Table, request: Request, frames: Frames) -> Sheet:
    """Render a table into ``<results_dir>/<paper>/``, and put the runs it shows into the archive."""
    filled = sheet(table, request, frames)
    path, kept = Path(request.results_dir) / table.name, Path(request.results_dir) / "runs"
    chart = draw(filled)
    for kind in ("png", "svg"):
        if chart is None:  # nothing to show (any more)
            path.with_suffix(f".{kind}").unlink(missing_ok=True)
        else:
            from .figures import picture

            write(path.with_suffix(f".{kind}"), picture(chart, kind))
    write(path.with_suffix(".csv"), harmless(as_csv(filled.lines)))
    write(path.with_suffix(".md"), harmless(as_markdown(filled, chart is not None)))
    write(path.with_suffix(".tex"), plain(as_latex(filled, chart is not None)))
    for run in (frames.found[one] for one in filled.runs):
        if run.path.parent != kept:
            archive(run, kept)
    return filled


def draw(filled: Sheet) -> Any | None:
    """The table's chart; None of a table without a plot, or without runs."""
    if not filled.table.plot:
        return None
    try:
        from .figures import draw as drawn
    except ImportError as error:
        raise UserError("The figures need altair and vl-convert-python: pip install 'sam-repro[figures]'.") from error
    return drawn(filled)


def page_of(filled: Sheet) -> str:
    """The HTML page of a table and its runs."""
    from .page import page

    table = filled.table
    notes = [f"{table.source} of: {table.citation}", *filled.notes]
    path = Path(filled.request.results_dir) / "claims.csv"
    claims = pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else pd.DataFrame(columns=["paper", "verdict"])
    judged = claims[(claims.paper == table.name.partition("/")[0]) & (claims.verdict != "not run")]
    return page(filled.frames, filled.runs, f"{table.name}: {table.title}", filled, notes, judged)
