"""``python -m sam_repro.study show | run``: a list of runs, one after the other on one thread, each measured and archived before the next.

The list is ``experiments/study.yaml``, or another file of that form. Stopped at any time, the same command goes on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from . import plugins
from .command import command, misused
from .config import compose
from .console import clock, console
from .device import device_type
from .differences import columns
from .results.declare import EXPERIMENTS, Words, distinct, measures_of
from .results.measurements import measure, missing
from .results.select import Request, run_id
from .results.work import Task, Work, check_all, provide_all, time_left
from .schema import UserError, parse, suggest
from .store import OVER, Run

USAGE = "python -m sam_repro.study show | run   [file=experiments/study.yaml runs_dir=runs results_dir=results data_dir=... plugins=...]"
KEYS = {"file", "runs_dir", "results_dir", "data_dir", "plugins"}
FIELDS = {"with", "seeds", "measure", "runs"}


def main() -> None:
    """The command line."""
    with command("sam_repro.study", "the same command goes on", USAGE):
        word, path, request = asked("study.yaml", ("show", "run"), USAGE)
        todo = tasks(path, request)
        if word == "show":
            show(todo)
        else:
            run(todo, request)


def asked(file: str, commands: Sequence[str], usage: str) -> tuple[str, Path, Request]:
    """What the words on the command line say: which command, on which declaration, which runs. UserError where they do not fit."""
    words = [word for word in sys.argv[1:] if "=" not in word]
    settings = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    for key in settings.keys() - KEYS:
        raise UserError(f"There is no key {key!r}.{suggest(key, KEYS)}")
    if len(words) != 1 or words[0] not in commands:
        raise misused(words, commands, usage)
    plugins.load(sys.argv[1:])
    request = Request(
        tuple(f"{key}={settings[key]}" for key in ("data_dir", "plugins") if key in settings),
        runs_dir=settings.get("runs_dir", "runs"), results_dir=settings.get("results_dir", "results"),
    )  # fmt: skip
    return words[0], Path(settings.get("file", EXPERIMENTS / file)), request


@contextmanager
def reading(path: Path, described: str) -> Iterator[None]:
    """While a declaration is read: UserError, which names the file, where it does not fit."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (UserError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    except (TypeError, AttributeError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not as {described} describes it ({error}).") from error


def tasks(path: Path, request: Request) -> list[Task]:
    """The runs of the file, each once, in order; UserError, which names the file, where it does not fit."""
    with reading(path, "docs/tables.md"):
        return list({task.run.id: task for task in _tasks(parse(path.read_text()), request)}.values())


def _tasks(content: dict[str, Any], request: Request) -> Iterator[Task]:
    frames, shared = request.frames, tuple(content.get("with", "").split())
    for name, block in content["blocks"].items():
        for key in block.keys() - FIELDS:
            raise UserError(f"block {name!r} has no key {key!r}.{suggest(key, FIELDS)}")
        common = (*shared, *block.get("with", "").split())
        measures = measures_of([content, block])
        settings = [
            (words, compose((*words, *request.overrides))) for words in (distinct((*common, *run.split())) for run in block["runs"])
        ]
        for seed in block["seeds"]:
            for words, config in settings:
                one = run_id(config, seed, device_type(config["device"]))
                found = frames.ended(one) or Run(request.runs_dir, one)
                label = " ".join(_own(words, shared))
                yield Task(found, config, (*words, *request.overrides), common, seed, label, measures)


def _own(words: Words, common: Words) -> Words:
    return tuple(word for word in words if word not in common)


def show(todo: list[Task]) -> None:
    """Every run: how it stands, and how it came out."""
    rows: list[tuple[str, ...]] = [("run", "state", "epochs", "test", "val", "seed", "with")]
    for task in todo:
        summary = task.run.summary if task.run.state == "done" else {}
        scores = [f"{summary['score_last']:.2f}" if summary.get("split") == split else "" for split in ("test", "val")]
        rows.append((task.run.id, task.run.state, f"{task.done_epochs}/{task.config['epochs']}", *scores, str(task.seed), task.label))
    console.print("\n".join(columns(rows)), markup=False, highlight=False)
    left = [task for task in todo if task.run.state not in OVER]
    seconds, unknown = time_left(left, todo)
    takes = f"; {len(left) - unknown} of the others take about {clock(seconds)}" if len(left) > unknown else ""
    untimed = f"; of {unknown} nothing like them was timed" if unknown else ""
    console.print(f"{len(todo) - len(left)} of {len(todo)} runs are over{takes}{untimed}. 'study run' goes on with them, in this order.")


def run(todo: list[Task], request: Request) -> None:
    """Do what is missing of each run: train, measure, archive. A run that fails is named, and the next begins."""
    from .results.archive import archive

    if hasattr(os, "nice"):
        os.nice(19)  # the children too: whoever works on the machine comes first
    os.environ["OMP_NUM_THREADS"] = "1"
    left = [task for task in todo if task.run.state not in OVER]
    check_all(left)
    provide_all(left)
    archived, failed = Path(request.results_dir) / "runs", []
    for index, task in enumerate(todo, 1):
        if task.run.path.parent == archived or task.run.state == "running":
            continue
        console.print(f"[{index}/{len(todo)}] {task.run.id}  seed {task.seed}  {task.label}")
        if task.run.state not in OVER:
            failed += Work([task], todo, request, [{}]).go()
        if task.run.state == "done":
            measure(missing([task]), request)
        if task.run.state in OVER:
            archive(task.run, archived)
    if failed:
        raise UserError(f"{len(failed)} runs did not finish: {', '.join(task.run.id for task in failed)}; the same command tries again.")


if __name__ == "__main__":
    main()
