"""Ends at random moments, also within saves: kill -9, with one process and with two, and every signal."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from sam_repro.train.keeper import SIGNALS

from .process import Child, Ended, Moments, kill
from .straight import AN_EPOCH, METHODS, STEPS, other_than, run_of, straight, train, words_of


def killed(rng: Random, tries: int, folder: Path) -> Iterator[str]:
    """kill -9, and sometimes again while it resumes: in the end the same bits, and not more than an epoch trained twice."""
    for number in range(tries):
        method, runs_dir = [*METHODS][number % len(METHODS)], folder / str(number)
        expected, count = straight(method)
        first = Moments(runs_dir, rng.randint(1, count), kill())
        fault = train(method, runs_dir, first).fault(128 + signal.SIGKILL)
        lost, steps = AN_EPOCH, first.steps
        if rng.random() < 0.3:
            again = Moments(runs_dir, rng.randint(1, count), kill())
            fault = fault or train(method, runs_dir, again).fault(0, 128 + signal.SIGKILL)
            lost, steps = 2 * AN_EPOCH, steps + again.steps
        last = Moments(runs_dir)
        fault = fault or train(method, runs_dir, last).fault(0) or other_than(run_of(method, runs_dir), expected)
        twice = steps + last.steps - STEPS
        yield _told(f"{method}, moment {first.at}", fault or (f"{twice} steps trained twice" if twice > lost else ""))


def signalled(rng: Random, tries: int, folder: Path) -> Iterator[str]:
    """A signal: exit status 128 + n, state stopped, no step trained twice once the training is under way, and the same bits."""
    for number in range(tries):
        how = SIGNALS[number % len(SIGNALS)]
        method, runs_dir = rng.choice([*METHODS]), folder / str(number)
        expected, count = straight(method)
        first = Moments(runs_dir, rng.randint(1, count), kill(how))
        ended = train(method, runs_dir, first)
        run, last = run_of(method, runs_dir), Moments(runs_dir)
        fault = ended.fault(0, 128 + how)
        if ended.status and run.path.exists() and run.state not in ("stopped", "new"):
            fault = fault or f"the state is {run.state}"
        fault = fault or train(method, runs_dir, last).fault(0) or other_than(run, expected)
        twice = first.steps + last.steps - STEPS
        yield _told(f"{method}, {how.name} at moment {first.at}", fault or (f"{twice} steps trained twice" if twice else ""))


def killed_ranks(rng: Random, tries: int, folder: Path) -> Iterator[str]:
    """One of two processes is killed: the other ends in a sentence, and both together go on with the same bits."""
    method = "layerwise"
    expected = folder / "straight"
    whole = Moments(expected)
    faults = [ended.fault(0) for ended in _together(method, expected, {0: whole})]
    assert not any(faults), faults
    (original,) = expected.glob("*/status.json")
    for number in range(tries):
        runs_dir, rank = folder / str(number), number % 2
        at = rng.randint(1, whole.count if rank == 0 else STEPS)
        ends = _together(method, runs_dir, {rank: Moments(runs_dir, at, kill())})
        faults = [ends[1 - rank].fault(1, 0), ends[rank].fault(128 + signal.SIGKILL)]
        faults += [ended.fault(0) for ended in _together(method, runs_dir, {})]
        run = type(straight(method)[0])(runs_dir, original.parent.name)
        fault = next(filter(None, faults), "") or other_than(run, type(run)(expected, run.id))
        yield _told(f"process {rank} at moment {at}", fault)


def _together(method: str, runs_dir: Path, moments: dict[int, Moments]) -> list[Ended]:
    """Two processes of one training; as soon as one has ended, the other is told to stop, as torchrun does."""
    store, port = _store()
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    children = [
        Child("sam_repro.__main__", words_of(method, runs_dir), moments.get(rank), **environment, RANK=f"{rank}", LOCAL_RANK=f"{rank}")
        for rank in range(2)
    ]
    while all(os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for child in children):
        time.sleep(0.02)
    time.sleep(0.1)
    for child in children:
        if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            os.kill(child.pid, signal.SIGTERM)
    ends = [child.end() for child in children]
    os.kill(store, signal.SIGKILL)
    os.waitpid(store, 0)
    return ends


def _store() -> tuple[int, int]:
    """The process at whose store the others meet, and its port."""
    reads, writes = os.pipe()
    pid = os.fork()
    if not pid:
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(writes, str(store.port).encode())
        signal.pause()
    os.close(writes)
    with os.fdopen(reads) as file:
        return pid, int(os.read(file.fileno(), 16))


def _told(what: str, fault: str) -> str:
    return fault and f"{what}: {fault}"
