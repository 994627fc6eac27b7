"""``python -m sam_repro.runs list | show ID | rm ID [runs_dir=runs]``: look into the run store."""

from __future__ import annotations

import json
import sys
from typing import Any

from .command import command
from .schema import UserError, suggest
from .train.store import Run, all_runs, find

USAGE = "python -m sam_repro.runs list | show ID | rm ID [ID ...]   [runs_dir=runs]"


def main() -> None:
    """The command line."""
    words = [word for word in sys.argv[1:] if "=" not in word]
    settings = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    with command("sam_repro.runs"):
        run(words, settings.pop("runs_dir", "runs"), settings)


def run(words: list[str], runs_dir: str, unknown: dict[str, str]) -> None:
    """Do what the words say; UserError where they say nothing."""
    for key in unknown:
        raise UserError(f"There is no key {key!r}.{suggest(key, ['runs_dir'])}")
    match words:
        case ["list"]:
            show_list(runs_dir)
        case ["show", prefix]:
            show(find(runs_dir, prefix))
        case ["rm", *prefixes] if prefixes:
            for found in [find(runs_dir, prefix) for prefix in prefixes]:
                found.remove()
                print(f"removed {found.path}")
        case _:
            raise UserError(f"usage: {USAGE}")


def show_list(runs_dir: str) -> None:
    """All runs, a line each."""
    from .tracking.console import show_runs

    runs = all_runs(runs_dir)
    if runs:
        show_runs([_row(run) for run in runs])
    else:
        print(f"There are no runs in {runs_dir}.")


def _row(run: Run) -> dict[str, Any]:
    try:
        return row_of(run, run.config)
    except UserError as error:
        return {"run": run.id, "state": "damaged", "error": str(error)}


def show(run: Run) -> None:
    """One run: how it stands, how it came out, what it was."""
    from .tracking.console import show_summary

    status = run.status
    print(f"run      {run.id}: {run.state}, started {status['started']} on {status['host']}, commit {status['commit']}")
    print(f"command  {status['command']}")
    if status.get("error"):
        print(f"error    {status['error']}")
    print(f"config   {json.dumps(run.config)}")
    if run.summary:
        show_summary(run.summary, str(run.path))


def row_of(run: Run, config: dict[str, Any]) -> dict[str, Any]:
    """A run as a line of a table; ``config`` is its configuration."""
    model = config["model"]
    row = {
        "run": run.id,
        "state": run.state,
        "dataset": config["dataset"]["name"],
        "model": model.get("arch", model["name"]),
        "method": config["optimizer"]["name"],
        "seed": config["seed"],
        "epochs": f"{len(run.metrics())}/{config['epochs']}",
    }
    if run.state == "failed":
        row["error"] = run.status.get("error")
    if s := run.summary:
        row |= {
            "score": f"{s['score_last']:.2f}",
            "best": f"{s['score_best']:.2f}",
            "samples/s": f"{s['images_per_second']:,.0f}",
            "ascents": f"{s['sampling_number'] / s['steps']:.0%}",
            "passes": f"{s['forward_units'] / s['steps']:.2f}+{s['backward_units'] / s['steps']:.2f}",
        }
    return row


if __name__ == "__main__":
    main()
