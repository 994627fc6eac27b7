"""The cost model beside the clock: how many times SGD's step a method's takes, by its FLOPs and by interleaved timing."""

from __future__ import annotations

import copy
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .. import optim
from ..train.base import base_optimizer
from ..train.score import autocast
from .cost import Costs
from .throughput import Contestant, contest, contestant

if TYPE_CHECKING:
    from ..train.job import Job

WARM_UP = 2


class Compared(NamedTuple):
    """A method's mean step, in SGD's steps."""

    method: str
    predicted: float  # by FLOPs
    measured: float  # by the clock: for each kind of step the median ratio to the SGD step beside it, weighted by how often
    milliseconds: float  # the mean of what the steps took
    ascents: float  # share of the steps


def compare(
    contestants: Sequence[Contestant], costs: Costs, batches: Iterable[dict[str, Any]], tick: Callable[[int], None] | None = None
) -> list[Compared]:
    """Every method takes every batch (the arguments of ``Contestant.step``), in turn; the first contestant is SGD."""
    rounds = []
    for index, batch in enumerate(batches):
        rounds.append([one.step(**batch) for one in contestants])
        if tick is not None:
            tick(index + 1)
    rounds = rounds[WARM_UP:]
    return [_compared(one, costs, [row[0][0] for row in rounds], [row[place] for row in rounds]) for place, one in enumerate(contestants)]


def _compared(one: Contestant, costs: Costs, plain: list[float], steps: list[tuple[float, optim.Report]]) -> Compared:
    kinds: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for (seconds, report), beside in zip(steps, plain, strict=True):
        kinds[tuple(report.layers)].append(seconds / beside)
    reports = [report for _, report in steps]
    return Compared(
        one.label,
        statistics.fmean(costs.step(one.gradient, report) for report in reports) / costs.sgd,
        sum(statistics.median(ratios) * len(ratios) for ratios in kinds.values()) / len(steps),
        statistics.fmean(seconds for seconds, _ in steps) * 1000,
        statistics.fmean(report.ascended for report in reports),
    )


def compare_methods(
    model: str, batch_size: int, device: torch.device, steps: int, tick: Callable[[int], None] | None = None
) -> tuple[Costs, list[Compared]]:
    """SGD, SAM, layer-wise SAM on the last layers, and LookSAM with its k, on random images."""
    contestants, inputs, targets = contest(model, batch_size, device)
    k = optim.settings("looksam")["when"]["n"]
    contestants.append(contestant(f"looksam (k={k})", model, "looksam", device))
    costs = Costs(contestants[0].gradient.passes.model, inputs)
    batch = {"inputs": inputs, "targets": targets}
    return costs, compare(contestants, costs, [batch] * (steps + WARM_UP), tick)


def compare_run(job: Job, steps: int, tick: Callable[[int], None] | None = None) -> tuple[Costs, list[Compared]]:
    """SGD and the run's own method, which goes on from where it ended, on the run's batches and at its precision."""
    config = job.config
    model = copy.deepcopy(job.model)
    sgd = optim.create("sgd", model)
    base = base_optimizer(config["base"], sgd.structure.parameters, job.base.param_groups[0]["lr"], config["weight_decay"])
    plain = Contestant("sgd", sgd, base)
    own = Contestant(config["optimizer"]["name"], job.gradient, job.base)
    job.model.train()
    model.train()
    samples = chain.from_iterable(map(job.batches.epoch, count()))
    batches = (
        {"inputs": s.inputs, "targets": s.targets, "criterion": job.criterion, "indices": s.indices}
        for s in islice(samples, steps + WARM_UP)
    )
    costs = Costs(job.model, next(job.batches.epoch(0)).inputs)
    with autocast(job.device, config["precision"]):
        return costs, compare([plain, own], costs, batches, tick)
