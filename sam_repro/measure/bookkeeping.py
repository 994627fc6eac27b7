"""How much of an epoch the trainer's bookkeeping takes: the records, and the checkpoint."""

from __future__ import annotations

import tempfile
from typing import Any, NamedTuple

import torch

from ..config import compose
from ..store import Run
from ..tracking.console import Display
from ..train.job import Job
from ..train.loop import train_epoch
from ..train.record import EpochRecord
from .contestants import clock

IMAGES = 50_000  # of an epoch
EPOCHS = 100  # that are on record: every one of them is written anew after each


class Bookkeeping(NamedTuple):
    """Seconds."""

    step: float  # what is noted of a step
    epoch: float  # the sums of an epoch, its files and its line
    checkpoint: float

    def shares(self, steps: int, seconds: float) -> tuple[float, float]:
        """Of records and checkpoint in the time of an epoch of so many steps that take ``seconds`` each."""
        records = self.step * steps + self.epoch
        whole = seconds * steps + records + self.checkpoint
        return records / whole, self.checkpoint / whole


class _Clocked(EpochRecord):
    """Knows how long it takes to take down the steps."""

    spent = 0.0

    def step(self, *args: Any) -> None:
        started = clock(self.job.device)
        super().step(*args)
        self.spent += clock(self.job.device) - started


def bookkeeping(model: str, batch_size: int, device: torch.device) -> Bookkeeping:
    """Timed in two epochs of SGD on the digits, the first of them to warm up, with the files of a run of ``EPOCHS`` epochs."""
    words = ("dataset=digits", f"model={model}", "optimizer=sgd", f"batch_size={batch_size}", f"device={device}", "epochs=2")
    job = Job(compose(words))
    with tempfile.TemporaryDirectory() as folder:
        run, display = Run(folder, "bench"), Display(1, 0, EPOCHS)
        found = [_epoch(job, run, display) for _ in range(2)]
    return found[-1]


def _epoch(job: Job, run: Run, display: Display) -> Bookkeeping:
    record = _Clocked(job)
    train_epoch(job, record)
    started = clock(job.device)
    row, layers = record.close()
    run.record([row | {"split": job.split}] * EPOCHS, layers * EPOCHS)
    display.epoch({**row, "score": None, "split": job.split}, left=0.0)
    between = clock(job.device)
    job.save(run.checkpoint)
    return Bookkeeping(record.spent / record.steps, between - started, clock(job.device) - between)
