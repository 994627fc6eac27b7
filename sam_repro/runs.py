"""``python -m sam_repro.runs list | show | diff | rm | ...``: look into the run store, keep what it came to, take in others' runs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from . import plugins
from .command import command, misused
from .config import OUTSIDE, compose, identity
from .differences import apart, between, columns, described, in_words, value
from .files import write
from .fingerprint import describe
from .plain import say
from .schema import UserError, suggest
from .store import OVER, Run, all_runs, find

USAGE = """python -m sam_repro.runs COMMAND   [runs_dir=runs results_dir=results out=FILE title=TEXT]
  list                      every run, a line each
  show ID                   one run: how it stands, how it came out, what it was
  diff ID ID                in what two runs differ, and how they came out
  rm ID [ID ...]            remove runs
  archive ID [ID ...]       copy what runs that are over came to into results_dir/runs, without weights; --done: all of them
  html [ID ...]             a page on these runs, or all: tables, charts, every run's command   [out=report.html]
  export                    all runs as one table, a row a run   [out=runs.parquet, or .csv]
  import DIR                take in the runs of another store or archive, checked   [plugins=..., where they were made with such]"""
VERBS = ("list", "show", "diff", "rm", "archive", "html", "export", "import")
OUTCOMES = ("epochs", "test", "best test", "val", "best val", "samples/s", "ascents", "passes")
KEYS = {"runs_dir": "runs", "results_dir": "results", "out": "", "title": "", "plugins": ""}


def main() -> None:
    """The command line."""
    words = [word for word in sys.argv[1:] if "=" not in word]
    settings = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    with command("sam_repro.runs", usage=USAGE):
        run(words, settings)


def run(words: list[str], settings: dict[str, str]) -> None:
    """Do what the words say; UserError where they say nothing."""
    for key in settings.keys() - KEYS.keys():
        raise UserError(f"There is no key {key!r}.{suggest(key, KEYS)}")
    runs_dir, results_dir, out, title, _ = (settings.get(key, default) for key, default in KEYS.items())
    plugins.load(f"{key}={value}" for key, value in settings.items())
    if (out or title) and words[:1] not in (["html"], ["export"]):
        raise UserError("out= and title= go with html and export.")
    match words:
        case ["list"]:
            show_list(runs_dir)
        case ["show", prefix]:
            show(find(runs_dir, prefix))
        case ["diff", first, second]:
            diff(find(runs_dir, first), find(runs_dir, second))
        case ["rm", *ids] if ids:
            for found in [_whole(runs_dir, one) for one in ids]:
                found.remove()
                say(f"removed {found.path}")
        case ["archive", "--done"]:
            keep([found for found in all_runs(runs_dir) if _over(found)], Path(results_dir) / "runs")
        case ["archive", *prefixes] if prefixes:
            keep([find(runs_dir, prefix) for prefix in prefixes], Path(results_dir) / "runs")
        case ["html", *prefixes]:
            html([find(runs_dir, prefix) for prefix in prefixes] or all_runs(runs_dir), runs_dir, Path(out or "report.html"), title)
        case ["export"]:
            from .results.frames import export, load

            export(load(runs_dir), Path(out or "runs.parquet"))
            say(out or "runs.parquet")
        case ["import", folder]:
            take_in(Path(folder), Path(runs_dir))
        case _:
            raise misused(words, VERBS, USAGE)


def _whole(runs_dir: str, one: str) -> Run:
    found = find(runs_dir, one)
    if found.id != Path(one).name:
        raise UserError(f"{one} is the beginning of {found.id}: 'rm' wants the whole id, as what it removes is gone.")
    return found


def _over(run: Run) -> bool:
    try:
        return run.state in OVER
    except UserError as error:
        say(f"left out: {error}")
        return False


def keep(runs: list[Run], place: Path) -> None:
    """Copy the runs into the archive; UserError for one that is not over."""
    from .results.archive import archive

    for found in runs:
        if found.state not in OVER:
            raise UserError(f"Run {found.id} is {found.state}: only what is over is archived.")
        archive(found, place)
        say(f"archived {place / found.id}")
    if not runs:
        say("There is no run that is over.")


def html(runs: list[Run], runs_dir: str, out: Path, title: str) -> None:
    """Write the page on these runs; UserError where there are none, or no library to draw."""
    from .results.frames import load

    if not runs:
        raise UserError(f"There are no runs in {runs_dir}: 'python -m sam_repro' trains one.")
    try:
        from .results.page import page
    except ImportError as error:
        raise UserError("The page needs altair and vl-convert-python: pip install 'sam-repro[figures]'.") from error
    write(out, page(load(runs_dir), [run.id for run in runs], title or f"sam-repro: {len(runs)} runs"))
    say(out)


def take_in(folder: Path, runs_dir: Path) -> None:
    """Copy the runs of another store, or archive, that are over and whole; those that are here already stay.

    The id of each is computed anew from its configuration. UserError where it is another: the run is of a version whose numbers
    were others, or somebody changed its configuration. Nothing is copied then.
    """
    found = [run for run in all_runs(folder) if run.state in OVER]
    if not found:
        raise UserError(f"There is no run that is over in {folder}: give the folder that holds the folders of the runs.")
    for run in found:
        if run.state == "done":
            run.check()
        plugins.check_run(run.id, run.config)
        if (computed := identity(run.config)) != run.id:
            raise UserError(
                f"{run.path} is of a configuration whose id is {computed} here, not {run.id}: another version made it, or it was changed. "
                "Nothing was imported."
            )
    for run in found:
        if (runs_dir / run.id).exists():
            say(f"{run.id} is here already")
            continue
        part = runs_dir / f".{run.id}.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(run.path, part, symlinks=True, ignore=shutil.ignore_patterns(".*"))
        write(part / "config.yaml", yaml.safe_dump({**usual(), **run.config}, sort_keys=False))
        part.rename(runs_dir / run.id)
        say(f"imported {run.id}")


def usual() -> dict[str, Any]:
    """Where a run lies and how it is watched, as the configuration has it by default: an archived run has none of it."""
    return {key: value for key, value in compose([]).items() if key in OUTSIDE}


def show_list(runs_dir: str) -> None:
    """All runs, a line each."""
    from .tracking.console import show_runs

    runs = all_runs(runs_dir)
    if runs:
        show_runs(rows_of(runs))
    else:
        say(f"There are no runs in {runs_dir}.")


def rows_of(runs: Sequence[Run], configs: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Runs as the lines of a table, with what tells each from the others; a run that cannot be read says so in its line.

    ``configs`` are their configurations, where they are known; else those in their directories.
    """
    rows, known = [], []
    for index, run in enumerate(runs):
        try:
            config = configs[index] if configs else run.config
            rows.append(row_of(run, config))
            known.append((rows[-1], config))
        except (UserError, OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            said = str(error) if isinstance(error, UserError) else f"its files are none that a run writes ({type(error).__name__}: {error})"
            rows.append({"run": run.id, "state": "damaged", "error": said})
    for (row, _), keys in zip(known, apart([config for _, config in known]), strict=True):
        row["with"] = in_words(keys)
    return rows


def show(run: Run) -> None:
    """One run: how it stands, how it came out, what it was."""
    from .tracking.console import show_summary

    status = run.status
    say(f"run      {run.id}: {run.state}, started {status.get('started')} on {status.get('host')}, commit {status.get('commit')}")
    say(f"command  {status.get('command')}")
    if status.get("error"):
        say(f"error    {status['error']}")
    if last := status.get("last_finite"):
        say(f"last     {', '.join(f'{name} {value:.4g}' for name, value in last.items())}, of epoch {status['epoch'] - 1}")
    if data := status.get("data"):
        say(f"data     {describe(data)}")
    for line in described(run.config):
        say(line)
    if run.summary:
        show_summary(run.summary, str(run.path))


def diff(one: Run, other: Run) -> None:
    """In what two runs differ: keys of their configurations, and then how they came out."""
    rows = [(key, value(first), value(second)) for key, first, second in between(one.config, other.config)]
    rows = rows or [("the configurations are equal", "", "")]
    for key in ("commit", "host", "state"):
        if one.status.get(key) != other.status.get(key):
            rows.append((key, value(one.status.get(key)), value(other.status.get(key))))
    outcomes = [{key: item for key, item in row_of(run, run.config).items() if key in OUTCOMES} for run in (one, other)]
    rows += [(key, outcomes[0].get(key, "-"), outcomes[1].get(key, "-")) for key in OUTCOMES if any(key in found for found in outcomes)]
    for line in columns([("", one.id, other.id), *rows]):
        say(line)


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
    if run.state in ("failed", "diverged"):
        row["error"] = run.status.get("error")
    if s := run.summary:
        row |= {
            s["split"]: f"{s['score_last']:.2f}",  # of the test set, or of the part that was held out: never in one column
            f"best {s['split']}": f"{s['score_best']:.2f}",
            "samples/s": f"{s['images_per_second']:,.0f}",
            "ascents": f"{s['sampling_number'] / s['steps']:.0%}",
            "passes": f"{s['forward_units'] / s['steps']:.2f}+{s['backward_units'] / s['steps']:.2f}",
        }
    return row


if __name__ == "__main__":
    main()
