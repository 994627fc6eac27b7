"""Drawn by lot."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..structure import Plan, Structure, norm_of
from .base import Tensors, Where, ratio


@dataclass
class RandomTensors(Where):
    """(rho / beta) g/|g| on each tensor with probability beta, |g| over those drawn: |eps| = rho / beta (ESAM's code).

    The paper draws single weights and divides by the norm over all; the code, followed here, draws whole tensors, all of
    them at the first step.
    """

    name = "random_tensors"
    rho: float
    beta: float

    def setup(self, structure: Structure, plan: Plan) -> None:
        super().setup(structure, plan)
        self._drawn = self.everything
        self._random = random.Random(plan.seed)

    @property
    def varies(self) -> str:
        return "other tensors are perturbed in each step" if self.beta < 1 else ""

    def select(self) -> list[int]:
        return self._drawn

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        return torch._foreach_mul(gradients, ratio(self.rho / self.beta, norm_of(gradients)))

    def observe(self, layer_norms: Tensor) -> None:
        """Draw the tensors of the next step."""
        self._drawn = [index for index in self.everything if self._random.random() < self.beta]

    def state_dict(self) -> dict[str, Any]:
        version, numbers, gauss = self._random.getstate()
        return {"drawn": list(self._drawn), "random": [version, list(numbers), gauss]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._drawn = list(state["drawn"])
        version, numbers, gauss = state["random"]
        self._random.setstate((version, tuple(numbers), gauss))
