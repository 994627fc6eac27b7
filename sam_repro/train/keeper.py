"""When a training is saved within an epoch: where a signal ends it, and every so many minutes.

Ctrl-C, SIGTERM, a lost terminal and the warnings of a queue (Slurm's SIGUSR1) let the step under way end; the training is saved there,
and the same command goes on from there with the same bits. A second Ctrl-C or SIGTERM does not wait.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .. import world
from ..command import Stopped
from ..store import Run

if TYPE_CHECKING:
    from .job import Job
    from .record import EpochRecord

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
AT_ONCE = (signal.SIGINT, signal.SIGTERM)  # the second time


class Keeper:
    """Saves a training at a step. Of several processes none does: each would have to know at which step the others are."""

    def __init__(self, job: Job, run: Run) -> None:
        self.job, self.run = job, run
        self.every = job.config["save_every"] * 60
        self.saved = time.monotonic()
        self.lines = 0  # of steps.csv, of the epochs before
        self.asked: signal.Signals | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals are heard while this lasts; one that the process was started to ignore, as by nohup, it ignores."""
        alone = world.count() == 1 and threading.current_thread() is threading.main_thread()
        before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS if alone}
        before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
        for number in before:
            signal.signal(number, self._hear)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _: Any) -> None:
        if self.asked is not None and number in AT_ONCE:
            raise Stopped(number)
        self.asked = signal.Signals(number)

    def after_step(self, record: EpochRecord) -> None:
        """Save, where it is time to; Stopped, after that, where a signal has come."""
        if self.asked is None and not (self.every and time.monotonic() - self.saved >= self.every):
            return
        self.job.save(self.run.checkpoint, {"lines": self.lines, "record": record.state()})
        self.saved = time.monotonic()
        self._end(f"in epoch {record.number} after step {record.steps}")

    def after_epoch(self) -> None:
        """Stopped, where a signal has come while the epoch was scored and saved."""
        self.saved = time.monotonic()
        self._end(f"after epoch {self.job.epoch}")

    def _end(self, place: str) -> None:
        if self.asked is not None:
            said = f"stopped by {self.asked.name} {place}, and saved there; the same command (without rerun=true) goes on from there."
            raise Stopped(self.asked, said)
