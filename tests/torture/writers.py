"""Several at work on one store: two on one run, and sweeps whose jobs fail and that are killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from random import Random

from sam_repro.config import compose, identity
from sam_repro.store import Run

from .process import Child, Moments, command, kill
from .straight import METHODS, other_than, run_of, straight, train, words_of

JOB = ["device=cpu", "max_samples=32", "batch_size=16", "epochs=2", "optimizer=sgd", "weight_decay=0"]
RATES = ["0.05", "0.1", "0.2", "1e25"]  # the last one diverges
KILLS = 20  # one for so many jobs


def two(rng: Random, tries: int, folder: Path) -> Iterator[str]:
    """The first stands still at some moment, also with its lock removed; the second is refused, or was the first to hold the run."""
    for number in range(tries):
        method, runs_dir = rng.choice([*METHODS]), folder / str(number)
        expected, count = straight(method)
        run, at = run_of(method, runs_dir), rng.randint(1, count)
        first = Child("sam_repro.__main__", words_of(method, runs_dir), Moments(runs_dir, at, kill(signal.SIGSTOP)))
        os.waitpid(first.pid, os.WUNTRACED)
        held, unlocked = run.path.exists() and run.is_held(), number % 3 == 2
        if unlocked:
            (run.path / ".lock").unlink(missing_ok=True)
        second = train(method, runs_dir)
        os.kill(first.pid, signal.SIGCONT)
        ended = first.end()
        fault = ended.fault(0, 1) if unlocked or not held else ended.fault(0) or second.fault(1)
        fault = fault or second.fault(0, 1) or train(method, runs_dir).fault(0) or other_than(run, expected)
        yield fault and f"{method}, moment {at}{', without the lock' if unlocked else ''}: {fault}"


def sweep(rng: Random, tries: int, folder: Path) -> Iterator[str]:
    """A sweep of so many jobs: killed several times it ends each that can end, with the numbers that the job has by itself."""
    runs_dir = folder / "runs"
    seeds = ",".join(map(str, range(tries // len(RATES))))
    words = ["-m", *JOB, f"lr={','.join(RATES)}", f"seed={seeds}", f"runs_dir={runs_dir}"]
    jobs = [[*JOB, f"lr={rate}", f"seed={seed}"] for rate, seed in product(RATES, seeds.split(","))]
    runs = {identity(compose(job)): job for job in jobs}
    broken = _break(runs_dir, jobs[rng.randrange(tries // 2)])
    faults = []
    for _ in range(max(2, tries // KILLS)):
        moments = Moments(runs_dir, rng.randint(1, 70 * KILLS), kill())
        faults.append(command("sam_repro.__main__", *words, before=moments).fault(1, 128 + signal.SIGKILL))
    last = command("sam_repro.__main__", *words)
    diverged = len(jobs) // len(RATES)
    if (
        last.status != 1
        or f"1 of {len(jobs)} jobs did not finish" not in last.said
        or f"{diverged} of {len(jobs)} jobs div" not in last.said
    ):
        faults.append(f"the last call ends as {last.status}: {last.said[-300:]}")
    if "Traceback" in last.said:
        faults.append(f"traceback: {last.lines[-1]}")
    for number, (run_id, job) in enumerate(runs.items()):
        run = Run(runs_dir, run_id)
        expected = "failed" if run_id == broken else "diverged" if "lr=1e25" in job else "done"
        fault = "" if run.state == expected else f"the run is {run.state}, not {expected}"
        if not fault and expected == "done" and number % max(1, tries // 10) == 0:
            alone = folder / "alone"
            fault = command("sam_repro.__main__", *job, f"runs_dir={alone}").fault(0) or other_than(run, Run(alone, run_id))
        fault = fault or (next(filter(None, faults), "") if number == 0 else "")
        yield fault and f"{' '.join(job)}: {fault}"


def _break(runs_dir: Path, job: list[str]) -> str:
    """Leave a job that cannot go on: its checkpoints are damaged."""
    run = Run(runs_dir, identity(compose(job)))
    command("sam_repro.__main__", *job, f"runs_dir={runs_dir}")
    (run.path / "summary.json").unlink()
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:-9])
    return run.id
