"""The places of a machine where trainings may run at a time: each has a GPU, or a share of the CPU's threads."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from .device import device_type


def places(device: str, jobs: int = 0) -> list[dict[str, str]]:
    """The environment of each process that may run at a time; ``jobs=0``: one for each GPU, or one."""
    return shares(jobs, gpus(device), cores())


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus(device: str) -> list[str]:
    """The GPUs to share out; none where there are none, and where ``device`` names one itself."""
    if device_type(device) != "cuda" or ":" in device:
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]


def shares(jobs: int, gpus: Sequence[str], cores: int) -> list[dict[str, str]]:
    """``jobs`` environments, with the GPUs in turn and the cores divided."""
    jobs = jobs or max(1, len(gpus))
    threads = {"OMP_NUM_THREADS": str(max(1, cores // jobs))} if jobs > 1 else {}
    return [{**threads, **({"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} if gpus else {})} for index in range(jobs)]


@contextlib.contextmanager
def a_free_one(of: Sequence[dict[str, str]], folder: Path) -> Iterator[dict[str, str]]:
    """One of these places that no other process of this machine has taken, by a lock in ``folder``; waits for it."""
    folder.mkdir(parents=True, exist_ok=True)
    locks = [FileLock(folder / f"{platform.node()}-{index}.lock", blocking=False) for index in range(len(of))]
    while (taken := _taken(locks)) is None:
        time.sleep(0.2)
    try:
        yield of[taken]
    finally:
        locks[taken].release()


def _taken(locks: Sequence[BaseFileLock]) -> int | None:
    """The first of them that could be acquired, and is."""
    for index, lock in enumerate(locks):
        with contextlib.suppress(Timeout):
            lock.acquire()
            return index
    return None
