"""Running what a table lacks: each run a process of the ordinary command, several at a time, each with its share of the machine."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from .. import provide
from ..config import Config
from ..console import clock, console
from ..device import device_type
from ..schema import UserError
from ..store import OVER, Run
from ..trial import Trial
from .declare import Cell, Table, Words
from .select import Request, configuration, run_id, words_of

if TYPE_CHECKING:
    from .frames import Frames

PATIENCE = 60  # seconds that a process has to write its checkpoint once it is told to stop


@dataclass(frozen=True)
class Task:
    """One run of a table."""

    run: Run
    config: Config
    words: Words  # of the command, but for where and with which seed
    base: Words  # those that say what is learned
    seed: int
    label: str
    measures: tuple[Words, ...] = ()  # of python -m sam_repro.measure, once it has finished

    @property
    def done_epochs(self) -> int:
        """Epochs that need not be run any more."""
        return len(self.run.metrics())

    def command(self, request: Request) -> list[str]:
        """The ordinary command of this run."""
        return [sys.executable, "-m", "sam_repro", *self.overrides(request)]

    def overrides(self, request: Request) -> list[str]:
        """All overrides of its command."""
        device = [f"device={request.device}"] if request.device else []
        return [*self.words, f"seed={self.seed}", *device, f"runs_dir={request.runs_dir}"]


def tasks(tables: Iterable[Table], request: Request, frames: Frames) -> list[Task]:
    """The runs of the tables' cells and references, each once; the first seed of all of them before the second."""
    device, scale = device_type(request.device), request.scale or "paper"
    found: dict[str, Task] = {}
    for table in tables:
        for cell, label, measures in _wanted(table, request.experiment):
            config = configuration(cell, scale, request)
            for seed in request.seeds or range(table.seeds):
                one = run_id(config, seed, device)
                run = frames.ended(one) or Run(request.runs_dir, one)
                task = found.setdefault(one, Task(run, config, words_of(cell, scale, request), cell.base, seed, label))
                found[one] = replace(task, measures=tuple(dict.fromkeys((*task.measures, *measures))))
    return sorted(found.values(), key=lambda task: task.seed)


def check_all(todo: Iterable[Task]) -> None:
    """UserError, before any of them starts, where one of the runs cannot."""
    trial = Trial()
    for task in todo:
        try:
            trial.check(task.config)
        except UserError as error:
            raise UserError(f"No run was started, for this one does not fit: {' '.join(task.words)}\n{error}") from error


def provide_all(todo: Iterable[Task]) -> None:
    """Fetch the data of all of them that are not here; UserError, before any starts, where some cannot be had."""
    try:
        provide.provide_all((task.words, task.config) for task in todo)
    except UserError as error:
        raise UserError(f"No run was started, {error}") from error


def _wanted(table: Table, experiment: str) -> Iterator[tuple[Cell, str, tuple[Words, ...]]]:
    """The cells that take a run, with a label and measurements; after them the references, in the place of each cell."""
    cells = table.of(experiment)
    for cell in cells:
        yield cell, f"{cell.row}, {cell.column.partition(' / ')[0]}", cell.measures
    for cell in cells:
        for label in table.references:
            yield table.reference(cell, label), f"{label} (reference)", cell.measures if label in (table.ratio_to, table.extra_of) else ()


def time_left(todo: Iterable[Task], known: Iterable[Task]) -> tuple[float, int]:
    """Seconds that the runs need one after the other, and how many there are of which nothing like them has been timed.

    An epoch takes as long as those of the same command; else as those of the same benchmark.
    """
    paces: dict[Words, list[float]] = {}
    for task in known:
        if seconds := [row["seconds"] for row in task.run.metrics()]:
            for key in (task.words, task.base):
                paces.setdefault(key, []).append(statistics.fmean(seconds))
    total, unknown = 0.0, 0
    for task in todo:
        pace = paces.get(task.words) or paces.get(task.base)
        total += statistics.fmean(pace) * (task.config["epochs"] - task.done_epochs) if pace else 0.0
        unknown += not pace
    return total, unknown


class Work:
    """The processes of a table's runs, and how far they are."""

    def __init__(self, todo: list[Task], known: list[Task], request: Request, environments: list[dict[str, str]]) -> None:
        self.waiting, self.known, self.request, self.free = list(todo), known, request, list(environments)
        self.total, self.jobs = len(todo), len(environments)
        self.running: dict[subprocess.Popen[bytes], tuple[Task, dict[str, str], float]] = {}
        self.failed: list[Task] = []
        self.besides: list[float] = []  # seconds that finished runs took for other things than training
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TextColumn("{task.fields[left]}"),
            console=console, disable=not console.is_terminal, transient=True,
        )  # fmt: skip

    def go(self) -> list[Task]:
        """Run everything; returns what neither finished nor diverged. An interruption stops the processes, which save what they have."""
        epochs = sum(task.config["epochs"] for task in self.waiting)
        try:
            with self._bar:
                bar, shown = self._bar.add_task("", total=epochs, left=""), 0.0
                everything = list(self.waiting)
                while self.waiting or self.running:
                    self._start()
                    time.sleep(0.1)
                    self._collect()
                    if not self._bar.disable and time.monotonic() - shown > 2:
                        shown = time.monotonic()
                        self._bar.update(
                            bar, completed=sum(task.done_epochs for task in everything), description=self._state(), left=self._left()
                        )  # fmt: skip
        except BaseException:
            self._stop()
            raise
        return self.failed

    def _start(self) -> None:
        while self.free and self.waiting:
            task = self.waiting.pop(0)
            if task.run.state in (*OVER, "running"):  # somebody else took it in the meantime
                self.total -= 1
                continue
            environment = self.free.pop(0)
            log = _log(task)
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as file:  # a session of its own: Ctrl-C reaches us alone, and we stop it
                process = subprocess.Popen(
                    task.command(self.request), stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                    env={**os.environ, **environment}, start_new_session=True,
                )  # fmt: skip
            self.running[process] = (task, environment, time.monotonic())

    def _collect(self) -> None:
        for process in [process for process in self.running if process.poll() is not None]:
            task, environment, started = self.running.pop(process)
            self.free.append(environment)
            seconds = time.monotonic() - started
            took = clock(seconds)
            state = task.run.state
            if state == "done":
                self.besides.append(max(0.0, seconds - sum(row["seconds"] for row in task.run.metrics())))
                said = f"done in {took}: {task.run.summary['metric']} {task.run.summary['score_last']:.2f}"
            elif state == "diverged":  # which is an end as well
                said = f"diverged after {took}: {_last_line(_log(task))}"
            elif state == "running":  # another command began it at the same moment
                said = "is at work elsewhere"
            else:
                self.failed.append(task)
                said = f"{state} after {took}: {_last_line(_log(task))}"
            over = self.total - len(self.waiting) - len(self.running)
            console.print(f"[{over}/{self.total}] {task.run.id} {said}  ({task.label}, seed {task.seed}){self._left()}")

    def _state(self) -> str:
        done = self.total - len(self.waiting) - len(self.running) - len(self.failed)
        return f"{done}/{self.total} runs" + (f", {len(self.failed)} failed" if self.failed else "")

    def _left(self) -> str:
        todo = [*self.waiting, *(task for task, *_ in self.running.values())]
        seconds, unknown = time_left(todo, self.known)
        seconds += len(todo) * (statistics.fmean(self.besides) if self.besides else 0.0)
        return f"  left about {clock(seconds / self.jobs)}" if todo and not unknown else ""

    def _stop(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would leave them behind
        for process in self.running:
            process.terminate()
        deadline = time.monotonic() + PATIENCE
        for process in self.running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def number_of_jobs(text: str) -> int:
    """The value of ``jobs=``; 0 where none was given: as many as there are GPUs."""
    if text and not (text.isdecimal() and 0 < int(text) <= 1024):
        raise UserError(f"jobs={text} is the number of processes at a time, as in jobs=2.")
    return int(text or 0)


def _log(task: Task) -> Path:
    return task.run.path.parent / ".logs" / f"{task.run.id}.txt"


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"it said nothing in {path}"
