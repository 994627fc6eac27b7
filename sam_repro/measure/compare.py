"""The cost model beside the clock: how many times SGD's step a method's takes, by its FLOPs and by interleaved timing."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .. import optim
from ..train.base import base_optimizer
from ..train.score import autocast
from .contestants import Contestant, contestant, entries, mean_of_kinds, random_batch
from .cost import Costs

if TYPE_CHECKING:
    from ..train.job import Job

WARM_UP = 2


class Compared(NamedTuple):
    """A method's mean step, in SGD's steps."""

    method: str
    predicted: float  # by FLOPs
    measured: float  # by the clock: for each kind of step the median ratio to the SGD step beside it, weighted by how often
    milliseconds: float  # the mean of what the steps took
    ascents: float  # share of the steps; of a run those of all its training, as the means above
    forward_units: float  # passes forward of these steps: of a part of the model only, where the method perturbs the last layers


def compare(
    contestants: Sequence[Contestant],
    costs: Costs,
    batches: Iterable[dict[str, Any]],
    tick: Callable[[int], None] | None = None,
    sampling_rate: float | None = None,
) -> list[Compared]:
    """Every method takes every batch (the arguments of ``Contestant.step``), in turn; the first contestant is SGD.

    ``sampling_rate``: the share of steps with an ascent that the means are of; None: that of the timed steps.
    """
    rounds = []
    for index, batch in enumerate(batches):
        rounds.append([one.step(**batch) for one in contestants])
        if tick is not None:
            tick(index + 1)
    rounds = rounds[WARM_UP:]
    plain = [row[0][0] for row in rounds]
    return [_compared(one, costs, plain, [row[place] for row in rounds], sampling_rate) for place, one in enumerate(contestants)]


def _compared(
    one: Contestant, costs: Costs, plain: list[float], steps: list[tuple[float, optim.Report]], sampling_rate: float | None
) -> Compared:
    reports = [report for _, report in steps]
    timed = statistics.fmean(report.ascended for report in reports)
    # A method that samples its steps does so at another rate at the end of a run than over all of it.
    rate = sampling_rate if sampling_rate is not None and 0 < timed < 1 else timed
    weights = [(rate / timed if report.ascended else (1 - rate) / (1 - timed)) / len(steps) for report in reports]
    ratios = [seconds / beside for (seconds, _), beside in zip(steps, plain, strict=True)]
    return Compared(
        one.label,
        sum(weight * costs.step(one.gradient, report) for weight, report in zip(weights, reports, strict=True)) / costs.sgd,
        mean_of_kinds((tuple(report.layers) for report in reports), ratios, weights),
        sum(weight * seconds for weight, (seconds, _) in zip(weights, steps, strict=True)) * 1000,
        rate,
        sum(weight * report.forward_units for weight, report in zip(weights, reports, strict=True)),
    )


def compare_methods(
    model: str, batch_size: int, device: torch.device, steps: int, tick: Callable[[int], None] | None = None
) -> tuple[Costs, list[Compared]]:
    """SGD, SAM, layer-wise SAM on the last layers, and LookSAM, on random images."""
    found = entries(("sgd", "sam", "layerwise", "looksam"), model)
    contestants = [contestant(entry.label, model, entry.method, device, **entry.knobs) for entry in found]
    batch = random_batch(batch_size, device)
    costs = Costs(contestants[0].gradient.passes.model, batch["inputs"])
    return costs, compare(contestants, costs, [batch] * (steps + WARM_UP), tick)


def batches_of(job: Job) -> Iterator[dict[str, Any]]:
    """The arguments of ``Contestant.step``, epoch after epoch."""
    samples = chain.from_iterable(map(job.batches.epoch, count()))
    return ({"inputs": s.inputs, "targets": s.targets, "criterion": job.objective, "indices": s.indices} for s in samples)


def compare_run(
    job: Job, steps: int, tick: Callable[[int], None] | None = None, sampling_rate: float | None = None
) -> tuple[Costs, list[Compared]]:
    """SGD and the run's own method, which goes on from where it ended, on the run's batches and at its precision.

    ``sampling_rate`` is that of the whole run.
    """
    config = job.config
    model = copy.deepcopy(job.model)
    sgd = optim.create("sgd", model)
    base = base_optimizer(config["base"], sgd.structure.parameters, job.base.param_groups[0]["lr"], config["weight_decay"])
    plain = Contestant("sgd", sgd, base)
    own = Contestant(config["optimizer"]["name"], job.gradient, job.base)
    job.model.train()
    model.train()
    batches = islice(batches_of(job), steps + WARM_UP)
    costs = Costs(job.model, next(job.batches.epoch(0)).inputs)
    with autocast(job.device, config["precision"]):
        return costs, compare([plain, own], costs, batches, tick, sampling_rate)
