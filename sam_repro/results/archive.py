"""Keeping what runs came to beside the tables that show it: all but weights, and what is true of one machine only."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import yaml

from ..config import OUTSIDE
from ..files import write
from ..store import LAYER_COLUMNS, Row, Run
from ..tracking.describe import command_of

POINTS = 2000  # more steps than a figure can show are not kept


def archive(run: Run, place: Path) -> None:
    """Copy what a run that is over showed into ``<place>/<run id>/``."""
    status = _without_machine(run.status)
    status["history"] = [_without_machine(earlier) for earlier in status.get("history", [])]
    status["command"] = command_of(run)
    config = {key: value for key, value in run.config.items() if key not in OUTSIDE}
    files = {
        "config.yaml": yaml.safe_dump(config, sort_keys=False),
        "metrics.jsonl": (run.path / "metrics.jsonl").read_text() if run.metrics() else "",  # it may diverge in the first epoch
        # Norms of five digits: they are drawn, and a deep model has many.
        "layers.csv": pd.DataFrame(run.layers(), columns=LAYER_COLUMNS).to_csv(index=False, float_format="%.5g", lineterminator="\n"),
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


def _without_machine(status: Row) -> Row:
    return {key: value for key, value in status.items() if key not in ("host", "pid")}


def thinned(steps: pd.DataFrame) -> pd.DataFrame:
    """The recorded steps of a run that have both norms of vSAM's Figure 2, at most 2,000 of them."""
    both = steps.reindex(columns=["step", "plain_norm", "psf_norm"]).dropna()
    return both.iloc[:: -(-len(both) // POINTS) or 1]


def _steps(run: Run) -> str:
    return thinned(pd.DataFrame(run.steps())).astype({"step": int}).to_csv(index=False, float_format="%.7g", lineterminator="\n")
