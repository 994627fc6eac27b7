"""The place that runs lie in: full, read-only, gone."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random

from .process import Moments, command
from .straight import METHODS, other_than, run_of, straight, train, words_of

ROOM = 9 << 20  # bytes: more than a run of ours takes at any time


def full(rng: Random, tries: int, folder: Path) -> Iterator[str]:
    """A sentence, no state ``running``, and once there is room the same bits. Without the right to mount, a limit on a file's size."""
    for number in range(tries):
        method, runs_dir = rng.choice([*METHODS]), folder / str(number)
        expected, _ = straight(method)
        size, said = rng.randrange(1 << 14, ROOM), "There is no room on the disk for "
        with _disk(runs_dir, f"size={size}") as mounted:
            limited = None if mounted and number % 4 else _limit(size // 3)
            ended = command("sam_repro.__main__", *words_of(method, runs_dir), before=limited)
            fault = ended.fault(0, 1)
            if not fault and ended.status and limited is None and f"{said}{runs_dir}" not in ended.said:
                fault = f"the sentence names no file: {ended.said}"
            run = run_of(method, runs_dir)
            if not fault and run.path.exists() and run.state == "running":
                fault = "the state is running"
            if mounted:
                subprocess.run(["mount", "-o", "remount,size=64m", runs_dir], check=True)
            fault = fault or train(method, runs_dir).fault(0) or other_than(run, expected)
        yield fault and f"{method}, {size:,} bytes{' a disk' if limited is None else ', a third of that a file'}: {fault}"


def read_only(rng: Random, tries: int, folder: Path) -> Iterator[str]:
    """What is finished can be read, what is not is refused in a sentence, and nothing changes."""
    for number in range(tries):
        method, runs_dir = rng.choice([*METHODS]), folder / str(number)
        expected, count = straight(method)
        with _disk(runs_dir, "size=64m") as mounted:
            runs_dir.mkdir(exist_ok=True)
            ended = number % 2 == 0
            train(method, runs_dir, None if ended else Moments(runs_dir, count // 2, lambda: os.kill(os.getpid(), 9)))
            if not mounted:
                if os.geteuid() == 0:
                    return  # root may write anywhere
                subprocess.run(["chmod", "-R", "a-w", runs_dir], check=True)
            else:
                subprocess.run(["mount", "-o", "remount,ro", runs_dir], check=True)
            run, where = run_of(method, runs_dir), f"runs_dir={runs_dir}"
            fault = train(method, runs_dir).fault(0 if ended else 1)
            for words in (["list"], ["show", run.id]):
                fault = fault or command("sam_repro.runs", *words, where).fault(0)
            fault = fault or command("sam_repro.evaluate", f"run={run.id}", where, "device=cpu").fault(0 if ended else 1)
            subprocess.run(["mount", "-o", "remount,rw", runs_dir] if mounted else ["chmod", "-R", "u+w", runs_dir], check=True)
            fault = fault or train(method, runs_dir).fault(0) or other_than(run, expected)
        yield fault and f"{method}, {'finished' if ended else 'stopped'}: {fault}"


def vanished(rng: Random, tries: int, folder: Path) -> Iterator[str]:
    """A run whose directory is removed while it is at work is never one that is done; the same command makes it anew, or asks to."""
    for number in range(tries):
        method, runs_dir = rng.choice([*METHODS]), folder / str(number)
        expected, count = straight(method)
        run, at = run_of(method, runs_dir), rng.randint(1, count)
        gone = Moments(runs_dir, at, partial(shutil.rmtree, rng.choice([run.path, runs_dir]), ignore_errors=True))
        ended = train(method, runs_dir, gone)
        fault = ended.fault(0, 1)
        if not fault and ended.status == 0:
            fault = other_than(run, expected)
        again = train(method, runs_dir)
        fault = fault or again.fault(0, 1)
        if again.status == 1:  # what was saved afterwards is no whole run
            fault = fault or command("sam_repro.__main__", *words_of(method, runs_dir), "rerun=true").fault(0)
        fault = fault or other_than(run, expected)
        yield fault and f"{method}, moment {at}: {fault}"


def _limit(size: int) -> object:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@contextmanager
def _disk(path: Path, options: str) -> Iterator[bool]:
    """A disk of its own at the path, where this process may mount one; whether it could."""
    path.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", path], check=True)
