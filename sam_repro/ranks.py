"""The processes of one training: started on this machine, and how they end: one of them speaks, for all of them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from socket import socketpair
from threading import Thread
from typing import Any
from uuid import uuid4

from . import world

PATIENCE = 5.0  # seconds that those which still live have to say so; torchrun kills them after 30


def start(processes: int, words: Sequence[str]) -> int:
    """torchrun, on this machine and without its own words: so many processes of the same command; the exit status.

    SIGTERM and Ctrl-C are handed on to them; none outlives this.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does
    logging.disable(logging.CRITICAL)  # what ends early is said here, or by one of the processes
    config = LaunchConfig(
        1, 1, processes, run_id=uuid4().hex, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.1
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-u", "-m", "sam_repro", *words)
    except SignalException:
        return 130  # process 0 has said so
    except ChildFailedError as error:
        statuses = [failure.exitcode for failure in error.failures.values()]
        if spoken := [status for status in statuses if status > 0]:
            return min(spoken)
        rank, failure = error.get_first_failure()
        print(f"sam_repro: {gone([rank], processes)} ({failure.signal_name()}), and no other could go on alone.", file=sys.stderr)
        return 1
    return 0


def last_word(reason: str) -> tuple[str, str] | None:
    """What this process is to say for all of them now that it ends: the reasons, and who is gone; None where another one speaks.

    ``reason`` is why it ends, empty where it was interrupted, or another one has left it. Whoever lives says that it does; the first of
    these speaks. They meet at torchrun's store, which outlives them.
    """
    undisturbed()
    try:
        words = _words_of_all(reason)
    except (RuntimeError, KeyError, ValueError, OSError):  # the store is gone, with the machine that had it
        return reason, "Another process of this training is gone"
    if world.rank() != min(words):
        return None
    missing = [rank for rank in range(world.count()) if rank not in words]
    return " ".join(dict.fromkeys(word for word in words.values() if word)), gone(missing, world.count()) if missing else ""


@contextmanager
def answering() -> Iterator[None]:
    """A signal is answered at once, that this process lives: it may be waiting for another one, which has been interrupted too.

    Python's own handlers run between two lines of Python only, and a collective is one: it ends when the other process has.
    """
    ours, theirs = socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno())

    def answer() -> None:
        if ours.recv(1):
            with suppress(RuntimeError, OSError):  # the store is gone, with the machine that had it
                _store().compare_set(_key(world.rank()), "", "")  # sets what is not there; what is said by then stays

    listener = Thread(target=answer, daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        theirs.close()
        listener.join(timeout=PATIENCE)
        ours.close()


def undisturbed() -> None:
    """End in peace: torchrun interrupts whoever lives as soon as one has ended, at whatever point of its own end that one is."""
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, signal.SIG_IGN)


def gone(ranks: Sequence[int], count: int) -> str:
    """Who has ended without a word, as the beginning of a sentence."""
    which = ", ".join(map(str, ranks))
    return f"Process{'es' * (len(ranks) > 1)} {which} (of 0 to {count - 1}) {'are' if len(ranks) > 1 else 'is'} gone"


def _words_of_all(reason: str) -> Mapping[int, str]:
    """What each process says that answers in time."""
    store, keys = _store(), [_key(rank) for rank in range(world.count())]
    store.set(keys[world.rank()], reason)
    until = time.monotonic() + PATIENCE
    while not store.check(keys) and time.monotonic() < until:
        time.sleep(0.05)
    return {rank: store.get(key).decode() for rank, key in enumerate(keys) if store.check([key])}


def _store() -> Any:
    from torch import distributed

    connect: Any = getattr(distributed, "TCPStore")  # noqa: B009 (torch does not export it in so many words)
    return connect(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=20))


def _key(rank: int) -> str:
    return f"sam_repro/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{rank}"
