"""A finished run, ready to be measured: its weights, its loss, its training samples. Imports torch only when it loads one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .. import plugins
from ..config import check_named_after, complete
from ..provenance import commit, now, versions
from ..schema import Diverged, UserError
from ..store import Row, Run, find

if TYPE_CHECKING:
    from ..train.job import Job


def find_finished(run: str, runs_dir: str) -> Run:
    """The run whose id begins with ``run``; UserError if it is none, is not done, was changed, or needs code that nobody named."""
    found = find(runs_dir, run)
    if found.state == "diverged":
        raise Diverged(found.verdict)
    if found.state != "done":
        raise UserError(f"Run {found.id} is {found.state}, not done: '{found.status['command']}' brings it to its end.")
    plugins.check_run(found.id, found.config)
    check_named_after(found)
    return found


PAPERS = 1024  # samples of KDD'24's landscapes (appendix A.2): of a smaller training set, all


class Finished:
    """The run's training set, the first ``samples`` of a fixed shuffle or all, under the weights it ended with."""

    def __init__(self, run: Run, *, device: str, data_dir: str, samples: int | str, batch_size: int) -> None:
        import torch

        from ..device import resolve_device
        from ..train.job import Job

        config = complete(run.config, device=device, **({"data_dir": data_dir} if data_dir else {}))
        self.run = run
        self.job: Job = Job(resolve_device(config))
        self.job.resume(run.checkpoint)
        self.job.take_average()
        self.model, self.loss = self.job.model, self.job.criterion
        self.batch_size = batch_size
        self.split = self.job.parts.train
        self.of = len(self.split)
        if samples == PAPERS and self.of < PAPERS:
            samples = "all"
        if isinstance(samples, int) and samples > self.of:
            raise UserError(f"samples={samples} is more than the {self.of:,} training samples of run {run.id}.")
        if isinstance(samples, int) and samples < self.of:
            order = torch.randperm(self.of, generator=torch.Generator().manual_seed(0))  # data sets may be sorted by class
            self.split = self.split[order[:samples]]  # on the host: files and texts lie there, and what is on the device takes either
        self._started = time.perf_counter()

    def __len__(self) -> int:
        return len(self.split)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """``(inputs, targets)`` of every batch, without augmentation."""
        return ((samples.inputs, samples.targets) for samples in self.job.in_order(self.split, self.batch_size))

    def where_from(self) -> Row:
        """What a file of results says of its origin."""
        from ..train.loop import hardware

        return {
            **{key: self.run.summary[key] for key in ("run_id", "dataset", "model", "optimizer")},
            "epoch": self.job.epoch,
            "split": "train",
            "samples": len(self),
            "of": self.of,
            "precision": "fp32",
            "hardware": hardware(self.job.device),
            "seconds": round(time.perf_counter() - self._started, 2),
            "date": now(),
            "commit": commit(),
            "versions": versions(),
        }

    def __str__(self) -> str:
        which = f"all {self.of:,}" if len(self) == self.of else f"{len(self):,} of the {self.of:,}"
        return f"run {self.run.id}, epoch {self.job.epoch}, on {which} training samples, {self.job.device}"
