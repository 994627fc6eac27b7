"""Drawn by lot."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..draws import numbered, put_back, state_of
from ..structure import Plan, Structure, norm_of, real, unreal
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
        return {"drawn": list(self._drawn), "random": state_of(self._random)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._drawn = list(state["drawn"])
        put_back(self._random, state["random"])


@dataclass
class Noise(Where):
    """Gaussian noise, std times as large as the filter it falls on (random weight perturbation, Li et al. 2024): no first pass.

    A filter is what belongs to one output of a weight; a vector is one. Each step draws by its own number, so that no generator
    has to be kept, and all processes draw alike.
    """

    name = "noise"
    needs_first_pass = False
    std: float

    def setup(self, structure: Structure, plan: Plan) -> None:
        super().setup(structure, plan)
        self.refuse_shards()
        self.seed = plan.seed
        self.begin(0)

    def begin(self, step: int) -> None:
        self.step = step

    @property
    def varies(self) -> str:
        return "each step draws noise of its own"

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        weights = [self.structure.parameters[index].detach() for index in selected]
        pairs = real(weights)
        generator = numbered(self.seed, self.step, pairs[0].device)
        drawn = torch.randn(sum(t.numel() for t in pairs), generator=generator, device=pairs[0].device)
        wide = [torch.promote_types(t.dtype, torch.float32) for t in pairs]
        sizes = [w.flatten(1).norm(dim=1).view(-1, *[1] * (w.ndim - 1)) if w.ndim > 1 else w.norm() for w in pairs]
        noise = [part.view(t.shape) for part, t in zip(drawn.split([t.numel() for t in pairs]), pairs, strict=True)]
        scaled = [(n.to(dtype) * (self.std * size)).to(t.dtype) for n, size, t, dtype in zip(noise, sizes, pairs, wide, strict=True)]
        return unreal(scaled, weights)
