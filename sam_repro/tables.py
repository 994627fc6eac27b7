"""``python -m sam_repro.tables list | show | run | report | readme``: the papers' tables and figures."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import plugins
from .command import command, misused
from .config import check_device, check_overrides
from .console import clock, console
from .device import device_type
from .files import write
from .places import places
from .results.declare import EXPERIMENTS, Table, Words, names, select
from .results.launcher import PREFIXES, launch
from .results.measurements import measure, missing
from .results.own_place import check_own_place
from .results.select import Request, Setting, at_other_settings
from .results.work import Task, Work, check_all, number_of_jobs, provide_all, tasks, time_left
from .schema import UserError, options, suggest
from .store import OVER

if TYPE_CHECKING:
    from .results.frames import Frames

USAGE = """python -m sam_repro.tables list
    show TABLE         the runs of a table, which are done, and about how long the others take
    show [TABLE ...]   of several tables, or all: how far each is, a line each, and all together
    run TABLE ...      train and measure what is missing   [jobs=N processes at a time | hydra/launcher=...]
    report TABLE ...   render results/<paper>/<table>.{md,csv,tex,png,svg} from the finished runs   [--all]
                       [--html: a page to look at besides, with learning curves, layers, speed, and every run's command]
    readme [README.md] rewrite what a README says of results/, the index results/README.md and what docs/ has of the options and methods
  TABLE is kdd24/table1, or kdd24 for all of a paper; with experiment=kdd24/cifar10, show and run take its runs alone.
  [scale=small] [seeds=0,1] [device=...] [precision=...] [runs_dir=runs] [results_dir=results] [experiments=FOLDER] [any override]"""


VERBS = ("list", "show", "run", "report", "readme")
FLAGS = ("--all", "--html")


def main() -> None:
    """The command line."""
    with command("sam_repro.tables", "the same command resumes", USAGE):
        dispatch(sys.argv[1:])


def dispatch(arguments: list[str]) -> None:
    """Do what the words say; UserError where they say nothing."""
    plugins.load(arguments)
    flags = [word for word in arguments if word.startswith("-")]
    words = [word for word in arguments if "=" not in word and word not in flags]
    settings = [word for word in arguments if "=" in word]
    folder = Path(next((word.partition("=")[2] for word in settings[::-1] if word.startswith("experiments=")), EXPERIMENTS))
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: experiments= names one that holds <paper>/<table>.yaml.")
    jobs = number_of_jobs(_take(settings, "jobs", ""))
    launcher = tuple(word for word in settings if word.startswith(PREFIXES))
    request = _request([word for word in settings if word not in launcher])
    if request.experiment and words[:1] not in (["show"], ["run"]):
        raise UserError("experiment= says which runs of a table 'show' and 'run' take; what is rendered has all that are finished.")
    if jobs and words[:1] != ["run"]:
        raise UserError("jobs= says how many processes 'run' starts at a time: it goes with 'run'.")
    if launcher and (jobs or words[:1] != ["run"]):
        raise UserError(f"{launcher[0]!r} says how 'run' starts what is missing: it goes with 'run', and not with jobs=.")
    if words[:1] == ["report"] and request.runs_dir != Request.runs_dir and not Path(request.runs_dir).is_dir():
        raise UserError(f"There is no folder {request.runs_dir}: runs_dir= names the store that the finished runs are in.")
    for flag in flags:
        if flag not in FLAGS:
            raise UserError(f"There is no {flag!r}.{suggest(flag, FLAGS)}")
        if words[:1] != ["report"]:
            raise UserError(f"{flag!r} goes with report.")
    match words:
        case ["list"]:
            show_list(folder)
        case ["show", *wanted]:
            show(_with_runs(select(wanted or names(folder), folder), request), request)
        case ["run", *wanted] if wanted:
            run(_with_runs(select(wanted, folder), request), request, jobs, launcher)
        case ["report", *wanted] if bool(wanted) != ("--all" in flags):
            if folder.resolve() != EXPERIMENTS.resolve():
                check_own_place(request.results_dir, f"experiments={folder}")
            chosen = select(wanted or names(folder), folder)
            frames = request.frames
            for table in chosen:
                render(table, request, frames, page="--html" in flags)
        case ["readme", *paths] if len(paths) < 2:
            from .results.readme import pages

            for path, content in pages(Path([*paths, "README.md"][0]), Path(request.results_dir), folder).items():
                write(path, content)
        case _:
            raise misused(words, VERBS, USAGE)


def _with_runs(tables: list[Table], request: Request) -> list[Table]:
    """The tables that the experiment asked for has a part in; UserError where none has."""
    known = list(dict.fromkeys(one for table in tables for one in table.experiments))
    if request.experiment and request.experiment not in known:
        raise UserError(f"No cell here runs experiment={request.experiment}.{suggest(request.experiment, known)}")
    return [table for table in tables if not request.experiment or request.experiment in table.experiments]


def _request(settings: list[str]) -> Request:
    named = {key: _take(settings, key, "") for key in ("scale", "device", "precision", "experiment")}
    paths = {key: _take(settings, key, default) for key, default in (("runs_dir", "runs"), ("results_dir", "results"), ("experiments", ""))}
    seeds = _take(settings, "seeds", "")
    if seeds and not all(seed.isdecimal() for seed in seeds.split(",")):
        raise UserError(f"seeds={seeds} is a list of whole numbers, as in seeds=0,1,2.")
    for word in settings:
        if word.startswith(("=", "hydra")):
            raise UserError(f"{word!r} is nothing that a table's runs have; of Hydra's there are hydra/launcher= and hydra.launcher.*.")
        if word.startswith("seed="):
            raise UserError("seed= is seeds= here, as in seeds=0,1,2.")
        if word.startswith(("dataset=", "optimizer=")):
            raise UserError(f"{word!r} is what the cells of a table say themselves: leave it out, or use python -m sam_repro.")
        if word.startswith(("rerun=", "dry_run=")):
            raise UserError(
                f"{word!r} is for single runs: python -m sam_repro; 'python -m sam_repro.runs rm' removes runs to be made anew."
            )
        if re.search(r"=[^\[{('\"]*,", word):
            raise UserError(f"{word!r} is more than one value: a table's runs differ in their seeds and in what its cells say. Give one.")
    check_device(named["device"] or "auto")
    if named["scale"] and named["scale"] not in options("scale"):
        raise UserError(f"scale has no option {named['scale']!r}.{suggest(named['scale'], options('scale'))}")
    check_overrides(settings)
    return Request(tuple(settings), **named, **paths, seeds=tuple(map(int, seeds.split(","))) if seeds else ())


def _take(settings: list[str], key: str, default: str) -> str:
    found = [word for word in settings if word.startswith(f"{key}=")]
    for word in found:
        settings.remove(word)
    if f"{key}=" in found:
        raise UserError(f"{key}= has no value.")
    return found[-1].partition("=")[2] if found else default


def show_list(folder: Path) -> None:
    """All declared tables, a line each."""
    for table in select(names(folder), folder):
        console.print(f"{table.name:<18} {table.kind:<7} {len(table.cells):>4} cells  {table.source}: {table.title}")


def show(tables: list[Table], request: Request) -> None:
    """The runs of a table, and how long those that are missing take; of several tables a line each."""
    frames = request.frames
    if len(tables) > 1:
        from .results.overview import overview

        for line in overview(tables, request, frames):
            console.print(line)
        _point_to_others(tables, request, tasks(tables, request, frames), frames)
        return
    everything = tasks(tables, request, frames)
    if not everything:
        console.print("A recipe has no runs: 'report' checks what the presets set.")
        return
    for task in everything:
        epochs = f"{task.done_epochs}/{task.config['epochs']}"
        console.print(f"{task.run.id}  {task.run.state:<8} {epochs:>8}  {task.label}: {' '.join(task.words)} seed={task.seed}")
    diverged = [task for task in everything if task.run.state == "diverged"]
    unmeasured = missing(task for task in everything if task not in diverged)
    for one in (one for one in unmeasured if one.task.run.state == "done"):
        console.print(f"{one.task.run.id}  to be measured: {' '.join(one.words)}")
    todo = [task for task in everything if task.run.state not in OVER]
    seconds, unknown = time_left(todo, everything)
    left = f"; one after the other they train for about {clock(seconds)}" if todo and unknown < len(todo) else ""
    if todo and not left:
        left = "; how long they take is known once one like them has trained"
    guess = f" (without {unknown} of them, as nothing like those was timed)" if left and 0 < unknown < len(todo) else ""
    measures = f"; still to be measured: {len(unmeasured)}" if unmeasured else ""
    done = len(everything) - len(todo) - len(diverged)
    lost = f"{len(diverged)} diverged, " if diverged else ""
    console.print(f"{done} of {len(everything)} runs are done, {lost}{len(todo)} are missing{left}{guess}{measures}.")
    if todo and unknown == len(todo):
        console.print(f"A few steps of the first are timed by: {' '.join(['python', *todo[0].command(request)[1:], 'dry_run=true'])}")
    _point_to_others(tables, request, everything, frames)


def _point_to_others(tables: list[Table], request: Request, everything: list[Task], frames: Frames) -> None:
    """Name the finished runs of the same cells at other settings, which the words on the command line pass over."""
    for precision in {request.precision or task.config["precision"] for task in everything if task.run.state != "done"}:
        asked = Setting(request.scale or "paper", device_type(request.device), precision)
        for setting, count in at_other_settings(tables, request, asked, frames).items():
            console.print(f"{count} of the same are finished at another setting: add {' '.join(setting.words)} to see them.")


def run(tables: list[Table], request: Request, jobs: int, launcher: Words = ()) -> None:
    """Run and measure what is missing; UserError (exit status 1) where something did not finish. What diverged is over, and named."""
    frames = request.frames
    everything = tasks(tables, request, frames)
    todo = [task for task in everything if task.run.state not in (*OVER, "running")]
    states = [task.run.state for task in everything]
    lost = f"{states.count('diverged')} diverged, " if "diverged" in states else ""
    elsewhere = f"{lost}{states.count('running')} at work elsewhere"
    console.print(f"{states.count('done')} of {len(everything)} runs are done, {elsewhere}, {len(todo)} to do.")
    _point_to_others(tables, request, todo, frames)
    check_all(todo)
    if not launcher:  # whose machines may have data of their own
        provide_all(todo)
    failed: list[Task] = []
    if todo:
        failed = launch(todo, request, launcher) if launcher else Work(todo, everything, request, _places(todo, request, jobs)).go()
    unmeasured = measure(missing(task for task in everything if task.run.state == "done"), request)
    for task in everything:
        if task.run.state == "diverged":
            again = " ".join(["python", *task.command(request)[1:], "rerun=true"])
            said = f"{task.run.id} diverged in epoch {task.run.status.get('epoch')}  ({task.label}, seed {task.seed})"
            console.print(f"{said}, and is not tried again by itself, but by: {again}")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(todo)} runs did not finish: {', '.join(task.run.id for task in failed)}; the same command runs them."
        )
    if unmeasured:
        raise UserError(f"Measuring failed {len(unmeasured)} times, for the reasons above; the same command tries again.")
    shown = [*(table.name for table in tables), *request.words, *request.paths]
    console.print(f"Render with: python -m sam_repro.tables report {' '.join(shown)}")


def _places(todo: list[Task], request: Request, jobs: int) -> list[dict[str, str]]:
    """Where the runs go on at a time; one alone has all GPUs where some have several processes each. UserError if others are asked for."""
    several = max(task.config["processes"] for task in todo)
    if several == 1:
        return places(request.device, jobs)
    if jobs > 1:
        raise UserError(f"jobs={jobs}: these runs have {several} processes each, and all GPUs, so one goes on at a time: leave jobs= out.")
    return [{}]


def render(table: Table, request: Request, frames: Frames, *, page: bool = False) -> None:
    """Write the files of a table and say what is in them; ``page``: the HTML as well."""
    from .results.report import page_of, report

    sheet = report(table, request, frames)
    own = sheet.lines.drop_duplicates("cell")
    filled = int((own["mean"].notna()).sum())
    console.print(f"{Path(request.results_dir) / table.name}.md: {filled} of {len(own)} cells filled, from {len(sheet.runs)} runs")
    for note in sheet.notes:
        console.print(f"  {note}")
    if page:
        path = Path(request.results_dir) / f"{table.name}.html"
        write(path, page_of(sheet))
        console.print(f"  {path}")


if __name__ == "__main__":
    main()
