"""``python -m sam_repro.tables list | show | run | report | readme``: the papers' tables and figures."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ..config import DEVICE, check_overrides
from ..schema import UserError, options, suggest
from ..tracking.console import clock, console
from ..train.store import write
from .declare import EXPERIMENTS, Table, names, select
from .lookup import Request, Shelf
from .report import report
from .values import number
from .work import Work, default_jobs, places, tasks, time_left

USAGE = """python -m sam_repro.tables list
    show TABLE ...     the runs of a table, which are done, and about how long the others take
    run TABLE ...      do what is missing   [jobs=N processes at a time]
    report TABLE ...   render results/<paper>/<table>.{md,csv,tex,png,svg} from the finished runs   [--all]
                       [--html: a page to look at besides, with learning curves, layers, speed, and every run's command]
    readme [README.md] rewrite the tables in a README from results/
  TABLE is kdd24/table1, or kdd24 for all of a paper.
  [scale=small] [seeds=0,1] [device=...] [precision=...] [runs_dir=runs] [results_dir=results] [experiments=FOLDER] [any override]"""


def main() -> None:
    """The command line: errors in one sentence and exit status 1, Ctrl-C in 130."""
    try:
        dispatch(sys.argv[1:])
    except KeyboardInterrupt:
        print("\nsam_repro.tables: stopped; the same command resumes.", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        sys.exit(f"sam_repro.tables: {error}")


def dispatch(arguments: list[str]) -> None:
    """Do what the words say; UserError where they say nothing."""
    words = [word for word in arguments if "=" not in word and word != "--html"]
    settings = [word for word in arguments if "=" in word]
    folder = Path(_take(settings, "experiments", str(EXPERIMENTS)))
    jobs = default_jobs(_take(settings, "jobs", "0"))
    request = _request(settings)
    match words:
        case ["list"]:
            show_list(folder)
        case ["show", *wanted] if wanted:
            show(select(wanted, folder), request)
        case ["run", *wanted] if wanted:
            run(select(wanted, folder), request, jobs)
        case ["report", *wanted] if wanted:
            for table in select(names(folder) if wanted == ["--all"] else wanted, folder):
                render(table, request, page="--html" in arguments)
        case ["readme", *paths] if len(paths) < 2:
            from .readme import update

            update(Path([*paths, "README.md"][0]), Path(request.results_dir), folder)
        case _:
            raise UserError(f"usage: {USAGE}")


def _request(settings: list[str]) -> Request:
    named = {key: _take(settings, key, "") for key in ("scale", "device", "precision")}
    paths = {key: _take(settings, key, default) for key, default in (("runs_dir", "runs"), ("results_dir", "results"))}
    seeds = _take(settings, "seeds", "")
    if seeds and not all(seed.isdecimal() for seed in seeds.split(",")):
        raise UserError(f"seeds={seeds} is a list of whole numbers, as in seeds=0,1,2.")
    for word in settings:
        if word.startswith("seed="):
            raise UserError("seed= is seeds= here, as in seeds=0,1,2.")
        if word.startswith(("experiment=", "dataset=", "optimizer=")):
            raise UserError(f"{word!r} is what the cells of a table say themselves: leave it out, or use python -m sam_repro.")
        if word.startswith(("rerun=", "dry_run=")):
            raise UserError(
                f"{word!r} is for single runs: python -m sam_repro; 'python -m sam_repro.runs rm' removes runs to be made anew."
            )
    if not re.fullmatch(DEVICE, named["device"] or "auto"):
        raise UserError(f"device={named['device']} is one of auto, cpu, cuda, cuda:0, cuda:1, ...")
    if named["scale"] and named["scale"] not in options("scale"):
        raise UserError(f"scale has no option {named['scale']!r}.{suggest(named['scale'], options('scale'))}")
    check_overrides(settings)
    return Request(tuple(settings), **named, **paths, seeds=tuple(map(int, seeds.split(","))) if seeds else ())


def _take(settings: list[str], key: str, default: str) -> str:
    found = [word for word in settings if word.startswith(f"{key}=")]
    for word in found:
        settings.remove(word)
    return found[-1].partition("=")[2] if found else default


def show_list(folder: Path) -> None:
    """All declared tables, a line each."""
    for table in select(names(folder), folder):
        console.print(f"{table.name:<18} {table.kind:<7} {len(table.cells):>4} cells  {table.source}: {table.title}")


def show(tables: list[Table], request: Request) -> None:
    """The runs of tables, and how long those that are missing take."""
    everything = tasks(tables, request, Shelf(request.runs_dir, request.results_dir))
    for task in everything:
        epochs = f"{task.done_epochs}/{task.config['epochs']}"
        console.print(f"{task.run.id}  {task.run.state:<8} {epochs:>8}  {task.label}: {' '.join(task.words)} seed={task.seed}")
    todo = [task for task in everything if task.run.state != "done"]
    seconds, unknown = time_left(todo, everything)
    left = f"; one after the other they train for about {clock(seconds)}" if todo and unknown < len(todo) else ""
    guess = f" ({unknown} more of which nothing like them has been timed)" if left and unknown else ""
    console.print(f"{len(everything) - len(todo)} of {len(everything)} runs are done, {len(todo)} are missing{left}{guess}.")


def run(tables: list[Table], request: Request, jobs: int) -> None:
    """Run what is missing; UserError (exit status 1) where something did not finish."""
    everything = tasks(tables, request, Shelf(request.runs_dir, request.results_dir))
    todo = [task for task in everything if task.run.state not in ("done", "running")]
    environments = places(request, jobs) if todo else []
    elsewhere = sum(task.run.state == "running" for task in everything)
    console.print(
        f"{len(everything) - len(todo) - elsewhere} of {len(everything)} runs are done, {elsewhere} at work elsewhere, {len(todo)} to do."
    )
    failed = Work(todo, everything, request, environments).go() if todo else []
    if failed:
        raise UserError(
            f"{len(failed)} of {len(todo)} runs did not finish: {', '.join(task.run.id for task in failed)}; the same command runs them."
        )
    console.print(f"Render with: {' '.join(['python -m sam_repro.tables report', *(table.name for table in tables), *request.words])}")


def render(table: Table, request: Request, *, page: bool = False) -> None:
    """Write the files of a table and say what is in them; ``page``: the HTML as well."""
    sheet = report(table, request, Shelf(request.runs_dir, request.results_dir))
    filled = sum(bool(cell.line.n or cell.line.mean) for cell in sheet.cells)
    console.print(f"{Path(request.results_dir) / table.name}.md: {filled} of {len(sheet.cells)} cells filled, from {len(sheet.runs)} runs")
    for note in sheet.notes:
        console.print(f"  {note}")
    if page:
        from .html import html

        path = Path(request.results_dir) / f"{table.name}.html"
        lines = [{**vars(line), "mean": number(line.mean)} for line in sheet.lines]
        write(
            path,
            html(list(sheet.runs.values()), f"{table.name}: {table.title}", lines, [f"{table.source} of: {table.citation}", *sheet.notes]),
        )
        console.print(f"  {path}")


if __name__ == "__main__":
    main()
