"""What an ascent behind each stage of a chain costs by the clock, for ``optimizer=budget costs=[...]``; and what a budget then comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate, islice, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from .. import optim
from ..chain import layers
from ..schema import UserError
from ..train.score import autocast
from .compare import WARM_UP, Compared, batches_of, compare
from .contestants import LR, MOMENTUM, Contestant, LastLayers, network, random_batch
from .cost import Costs

if TYPE_CHECKING:
    from ..train.job import Job

Subject = tuple[nn.Module, torch.optim.Optimizer, Iterator[dict[str, Any]], Costs]
BUDGETS = (0.05, 0.1, 0.2, 0.5)
LEAST = 0.001  # of a cost: what is below cannot be timed


class Priced(NamedTuple):
    """A stage with layers."""

    stage: int
    flops: float  # of an ascent behind it, in steps of SGD
    clock: float


class Asked(NamedTuple):
    """A budget, and the share of SGD's time that its ascents took."""

    budget: float
    by_flops: float  # where the method counts FLOPs
    by_clock: float  # where it has the costs that were timed


class Timing(NamedTuple):
    """Steps on a model that all methods share: they leave its time alone, and there may be no room for many."""

    model: nn.Module
    base: torch.optim.Optimizer
    batches: Iterator[dict[str, Any]]
    costs: Costs
    steps: int
    tick: Callable[[int], None]

    def ratios(self, methods: list[optim.Method]) -> list[float]:
        """The mean step of each in steps of SGD, less one; all take their steps in turn."""
        plain = optim.create("sgd", self.model)
        contestants = [Contestant(method.name, method, self.base) for method in (plain, *methods)]
        found: list[Compared] = compare(contestants, self.costs, islice(self.batches, self.steps + WARM_UP), self.tick)
        return [one.measured - 1 for one in found[1:]]


@contextmanager
def prepared(job: Job | None, model: str, batch_size: int, device: torch.device) -> Iterator[Subject]:
    """What is timed: the model, its base optimizer, batches, FLOPs; of a run at its precision, else on random images."""
    if job is None:
        net, batch = network(model, device), random_batch(batch_size, device)
        yield net, torch.optim.SGD(net.parameters(), LR, MOMENTUM), repeat(batch), Costs(net, batch["inputs"])
    else:
        job.model.train()
        with autocast(job.device, job.config["precision"]):
            yield job.model, job.base, batches_of(job), Costs(job.model, next(job.batches.epoch(0)).inputs)


def price(timing: Timing) -> list[Priced]:
    """What an ascent behind every stage costs, from the input on; UserError where there is one stage alone."""
    found = layers(timing.model)
    stages = sorted({layer.stage for layer in found})
    if stages == [0]:
        raise UserError("stages=true cuts a chain of stages, and this model is in one piece.")
    counting: Any = optim.create("budget", timing.model, budget=0.0)
    methods = [_behind(timing.model, sum(layer.stage >= stage for layer in found)) for stage in stages]
    *timed, _ = timing.ratios([*methods, counting])
    # What lies further back costs no less.
    clock = list(accumulate(reversed([max(cost, LEAST) for cost in timed]), max))[::-1]
    return [Priced(*row) for row in zip(stages, counting.where.counted, clock, strict=True)]


def ask(timing: Timing, priced: list[Priced]) -> list[Asked]:
    """What budgets come to, by FLOPs and with the costs that were found."""
    costs = [round(one.clock, 4) for one in priced]
    asked = [(budget, known) for budget in BUDGETS for known in ([], costs)]
    got = timing.ratios([optim.create("budget", timing.model, budget=budget, costs=known, r=0.01) for budget, known in asked])
    return [Asked(budget, *got[2 * place : 2 * place + 2]) for place, budget in enumerate(BUDGETS)]


def _behind(model: nn.Module, k: int) -> optim.Method:
    """Layer-wise SAM that stays with the last k layers."""
    method: Any = optim.create("layerwise", model, k=k, r=0.01)
    method.where.__class__ = LastLayers
    return method
