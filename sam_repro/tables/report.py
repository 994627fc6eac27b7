"""Writing a table's files, and keeping the runs they came from beside them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import yaml

from ..config import OUTSIDE
from ..schema import UserError
from ..tracking.describe import command_of
from ..train.store import LAYER_COLUMNS, Run, write
from .declare import Table
from .latex import as_latex
from .lookup import Request, Shelf
from .render import as_csv, as_markdown
from .sheet import Sheet, sheet

POINTS = 2000  # more steps than a figure can show are not kept


def report(table: Table, request: Request, shelf: Shelf) -> Sheet:
    """Render a table into ``<results_dir>/<paper>/``, and put the runs it shows into the archive."""
    filled = sheet(table, request, shelf)
    path = Path(request.results_dir) / table.name
    pictures = _draw(filled, path)
    write(path.with_suffix(".csv"), as_csv(filled.lines))
    write(path.with_suffix(".md"), as_markdown(filled, pictures))
    write(path.with_suffix(".tex"), as_latex(filled, pictures))
    for run in filled.runs.values():
        if run.path.parent != shelf.archive:
            archive(run, shelf.archive)
    return filled


def _draw(filled: Sheet, path: Path) -> bool:
    """Write the figure's PNG and SVG; those of a figure that shows nothing (any more) are removed."""
    figure = None
    if filled.table.plot:
        try:
            from .figures import draw
        except ImportError as error:
            raise UserError("The figures need matplotlib: pip install 'sam-repro[figures]'.") from error

        figure = draw(filled)
    for kind in ("png", "svg"):
        if figure is None:
            path.with_suffix(f".{kind}").unlink(missing_ok=True)
        else:
            write(path.with_suffix(f".{kind}"), _picture(figure, kind))
    return figure is not None


def _picture(figure: object, kind: str) -> bytes:
    content = io.BytesIO()
    # Without the date, the same runs give the same file.
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "sam_repro"}):  # or the ids in an SVG are others each time
        figure.savefig(content, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else {})  # type: ignore[attr-defined]
    return content.getvalue()


def archive(run: Run, place: Path) -> None:
    """Copy what a run that is over showed, but for its weights and for what is true of this machine only."""
    status = _without_machine(run.status)
    status["history"] = [_without_machine(earlier) for earlier in status.get("history", [])]
    status["command"] = command_of(run)
    config = {key: value for key, value in run.config.items() if key not in OUTSIDE}
    files = {
        "config.yaml": yaml.safe_dump(config, sort_keys=False),
        "metrics.jsonl": (run.path / "metrics.jsonl").read_text() if run.metrics() else "",  # it may diverge in the first epoch
        "layers.csv": _short(run),
        **{path.relative_to(run.path).as_posix(): path.read_text() for path in run.all_measured()},
        **({"steps.csv": _steps(run)} if run.steps() else {}),
        "status.json": json.dumps(status, indent=2) + "\n",
        **({"summary.json": (run.path / "summary.json").read_text()} if run.state == "done" else {}),
    }
    kept = place / run.id / "summary.json"
    if kept.exists() and kept.read_text() != files.get("summary.json"):
        for path in (kept, *Run(place, run.id).all_measured()):
            path.unlink()  # of the run before it was trained anew
    for name, content in files.items():
        target = place / run.id / name
        if not target.exists() or target.read_text() != content:
            write(target, content)


def _without_machine(status: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in status.items() if key not in ("host", "pid")}


def _short(run: Run) -> str:
    """``layers.csv`` with norms of five digits: they are drawn, and a deep model has many."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, LAYER_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "grad_norm": shortened(row["grad_norm"])} for row in run.layers())
    return text.getvalue()


def shortened(norm: float) -> str:
    """A layer's norm as it is kept; drawn from the store or from the archive, a figure is the same."""
    return f"{norm:.5g}"


def thinned(run: Run) -> list[dict[str, float]]:
    """The steps of a ``steps.csv`` that have both norms of vSAM's Figure 2, at most 2,000 of them."""
    rows = [row for row in run.steps() if {"plain_norm", "psf_norm"} <= row.keys()]
    return rows[:: -(-len(rows) // POINTS) or 1]


def _steps(run: Run) -> str:
    columns = ("step", "plain_norm", "psf_norm")
    return "".join(",".join(row) + "\n" for row in [columns, *([f"{row[column]:.7g}" for column in columns] for row in thinned(run))])
