"""Layer-wise SAM for a share of SGD's time that the user sets: ``budget``, an option of ``conf/optimizer/where``."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ...schema import UserError
from ..host import HostCopy
from ..structure import Plan, Structure
from .layers import Layers


class Ascent(NamedTuple):
    """One that a step may make."""

    cost: float  # in steps of SGD
    held: float  # squared gradient norm of the layers that it perturbs
    layers: Sequence[int]


NONE = Ascent(0.0, 0.0, ())


def best_turns(ascents: Sequence[Ascent], budget: float) -> tuple[Ascent, Ascent]:
    """The two that take turns, the dearer one as often as the budget pays for it; the same one twice where it does so always.

    Of all ways to mix ascents in turns whose mean cost is at most ``budget``, and whose shares add up to 1, none holds more of the
    squared norm on average: these are two constraints, so that a best mixture has two parts at most.
    """
    within = [one for one in ascents if one.cost <= budget]
    beyond = [one for one in ascents if one.cost > budget]

    def held(turns: tuple[Ascent, Ascent]) -> float:
        low, high = turns
        return low.held if low is high else low.held + (high.held - low.held) * (budget - low.cost) / (high.cost - low.cost)

    return max([*((one, one) for one in within), *product(within, beyond)], key=held)


@dataclass
class Budget(Layers):
    """r g on what holds the most gradient norm among all that ``budget`` pays for; 0.1: ascents take a tenth of SGD's time.

    An ascent behind a cut of the chain costs the passes over the stages behind it and perturbs, of the layers there, the ``k`` with
    the largest norms in the last step. Each step adds the budget to an account, an ascent takes its cost from it. Of all plans
    that the account can pay for, the two cuts are taken in turn (or one and none) that hold the most squared norm a step; so a
    budget below the price of any cut ascends at every n-th step, one of 0 never, and one above all prices is layer-wise SAM with k.

    Costs are counted in FLOPs at the first step, which therefore makes no ascent unless the budget is 1; or they are ``costs``, of
    every cut from the input on, as ``measure cost`` finds them. They never depend on a clock in training.
    """

    name = "budget"
    criterion: ClassVar[str] = "high"  # type: ignore[misc]
    tensors: ClassVar[str] = "all"  # type: ignore[misc]
    budget: float
    costs: list[float]

    def setup(self, structure: Structure, plan: Plan) -> None:
        super().setup(structure, plan)
        self._stages = [layer.stage for layer in structure.layers]
        self._cuts = sorted(set(self._stages))
        if self._cuts == [0]:
            often = f"optimizer=sam_n n={max(1, math.ceil(1 / self.budget - 1e-9))}" if self.budget else "optimizer=sgd"
            raise UserError(f"optimizer=budget cuts a chain of stages, and this model is in one piece: use {often} for the same time.")
        _check(self.costs, len(self._cuts))
        self.counted = list(self.costs)  # of the cuts; none before the first step, where they are not given
        self._held = [1.0] * len(self._stages)  # all are equal before the first step, and ties go to the output
        self._arriving = deque(maxlen=self.lag + 1)  # norms; older ones go where `when` does not ask
        self._saved = 0.0
        self._ascent = NONE  # of this step

    def price(self, costs: Callable[[Sequence[int]], list[float]]) -> None:
        if not self.counted:
            self.counted = costs(self._cuts)

    @property
    def chosen(self) -> list[int]:
        """The layers that this step perturbs."""
        return sorted(self._ascent.layers)

    def select(self) -> list[int]:
        low, high = best_turns(self._ascents(), self.budget)
        self._ascent = high if self._saved + self.budget >= high.cost - 1e-9 else low  # ten tenths are one
        return self.structure.parameters_of(self._ascent.layers)

    def _ascents(self) -> list[Ascent]:
        """One behind each cut, and none; before costs are known each counts as a step of SGD, which is the most it can be."""
        if not self.budget or not self.count:
            return [NONE]
        if len(self._arriving) > self.lag:
            norms = self._arriving.popleft().value().tolist()
            if all(map(math.isfinite, norms)):  # else the loss was scaled too high, and the step skipped
                self._held = [norm**2 for norm in norms]
        costs = dict(zip(self._cuts, self.counted or [1.0] * len(self._cuts), strict=True))
        ranked = sorted(range(len(self._stages)), key=lambda layer: (self._held[layer], layer), reverse=True)
        found = [NONE]
        for cut in self._cuts:
            layers = [layer for layer in ranked if self._stages[layer] >= cut][: self.count]
            cost = costs[min(self._stages[layer] for layer in layers)]
            found.append(Ascent(cost, sum(self._held[layer] for layer in layers), layers))
        return found

    def observe(self, layer_norms: Tensor) -> None:
        """See the norms, and close the step's account; more than one whole ascent is not saved up."""
        self._saved = min(self._saved + self.budget - self._ascent.cost, max(self.counted, default=0.0))
        self._ascent = NONE
        if self.budget and self.count:
            self._arriving.append(HostCopy(layer_norms))

    def state_dict(self) -> dict[str, Any]:
        arriving = [copy.value().clone() for copy in self._arriving]
        return {"saved": self._saved, "held": list(self._held), "counted": list(self.counted), "arriving": arriving}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved, self._held, self.counted = state["saved"], list(state["held"]), list(state["counted"])
        self._arriving = deque((HostCopy(norms.cpu()) for norms in state["arriving"]), maxlen=self.lag + 1)


def _check(costs: Sequence[Any], cuts: int) -> None:
    """UserError where the costs are not those of so many cuts."""
    measure = "'python -m sam_repro.measure cost stages=true' finds them."
    if costs and len(costs) != cuts:
        raise UserError(f"costs= has {len(costs)} numbers, and the model {cuts} stages with layers, one cost each: {measure}")
    numbers = [cost for cost in costs if isinstance(cost, int | float) and not isinstance(cost, bool) and 0 < cost < 1e6]
    if len(numbers) < len(costs):
        raise UserError(f"costs= is a list of numbers above 0, in steps of SGD, not {list(costs)!r}: {measure}")
