"""Answers that keep a vector from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...schema import UserError
from ..structure import Plan, Structure, norm_of, own, real
from .base import Parts, Tensors, Where, along

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a number


class Moving(Where):
    """Keeps one vector, zero at first. Its place in memory stays, so that a recorded step finds it."""

    vectors = 1
    pairs: ClassVar[bool] = False  # whether a complex number has two places in it

    def setup(self, structure: Structure, plan: Plan) -> None:
        super().setup(structure, plan)
        self.vector: list[Tensor] = []  # of all parameters, made where they lie when it is first asked for

    def initial(self) -> list[Tensor]:
        """The vector before the first step."""
        return [torch.zeros_like(p, requires_grad=False) for p in self.structure.parameters]

    def held(self, indices: Sequence[int]) -> list[Tensor]:
        """Its parts that belong to some parameters."""
        if not self.vector:
            self.vector = self.initial()
        return [self.vector[index] for index in indices]

    def replace(self, indices: Sequence[int], new: Sequence[Tensor], finite: Tensor) -> Tensor:
        """Put ``new`` in the place of some parts, in a few operations; where it or the step is not finite, all stays.

        Returns whether it did, 0-dim. The difference is of the bits: zero times it is zero also where the new number is NaN.
        """
        finite = finite & torch.isfinite(norm_of(new))
        old = _bits(self.held(indices))
        torch._foreach_add_(old, torch._foreach_mul(torch._foreach_sub(_bits(new), old), finite.to(old[0].dtype)))
        return finite

    def state_dict(self) -> dict[str, Any]:
        return {"vector": list(self.vector)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        parameters = real(self.structure.parameters) if self.pairs else self.structure.parameters
        parameters = parameters if state["vector"] else []
        if [v.shape for v in state["vector"]] != [p.shape for p in parameters]:
            raise UserError("The state is one of another model: the vector in it does not have the shapes of this one's parameters.")
        self.vector = [v.to(p.device, copy=True) for v, p in zip(state["vector"], parameters, strict=True)]


def _bits(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The numbers as integers, in the same memory."""
    return [t.view(BITS[t.element_size()]) for t in real(own(tensors))]


@dataclass
class Smoothed(Moving):
    """A moving mean m <- lam m + (1 - lam) g of the gradients at w, and the perturbation made with it; at first m is g.

    ``noise``: rho d/|d| with d = g - sigma m, m before it moves (F-SAM, Li et al. 2024, and its official code). ``mean``: d is m after
    it has moved (VaSSO, Li & Giannakis 2023, whose theta is 1 - lam). It moves in steps with an ascent alone.
    """

    name = "smoothed"
    rho: float
    take: str
    lam: float
    sigma: float

    def setup(self, structure: Structure, plan: Plan) -> None:
        super().setup(structure, plan)
        self.begun = structure.number()  # 1: m is a mean

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        held = self.held(selected)
        d = self._moved(held, gradients) if self.take == "mean" else torch._foreach_sub(gradients, torch._foreach_mul(held, self.sigma))
        return along(list(d), self.rho, normalize=True)

    def commit(self, seen: Parts, found: Parts, finite: Tensor) -> None:
        if seen.indices:
            moved = self.replace(seen.indices, self._moved(self.held(seen.indices), seen.gradients), finite)
            self.begun.copy_(torch.maximum(self.begun, moved.to(self.begun.dtype)))

    def _moved(self, held: list[Tensor], gradients: list[Tensor]) -> Tensors:
        keep = self.lam * self.begun
        return torch._foreach_add(torch._foreach_mul(held, keep), torch._foreach_mul(gradients, 1 - keep))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "begun": self.begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.begun.copy_(state["begun"])


@dataclass
class Stale(Moving):
    """rho g/|g| with a gradient of the step before: no pass for the perturbation, none at all at the first step.

    It is the last gradient that a step took, the one at its perturbed point (S2-SAM, Ji et al. 2024). With a ``batch``, a share of
    the samples, it is the gradient at w of so many of them (AsyncSAM, Jo et al. 2025, on one device): a small pass a step.
    """

    name = "stale"
    needs_first_pass = False
    rho: float
    normalize: bool
    batch: float

    def setup(self, structure: Structure, plan: Plan) -> None:
        super().setup(structure, plan)
        self.share = self.batch

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        return along(self.held(selected), self.rho, self.normalize)

    def commit(self, seen: Parts, found: Parts, finite: Tensor) -> None:
        parts = seen if self.share else found
        if parts.indices:
            self.replace(parts.indices, parts.gradients, finite)


@dataclass
class Momentum(Moving):
    """-rho v/|v| with v <- mu v + g, the momentum of the gradients taken: where SGD goes anyway (Momentum-SAM, Becker et al. 2024).

    The buffer is the method's own, and equal to that of SGD without weight decay, clipping and dampening.
    """

    name = "momentum"
    needs_first_pass = False
    rho: float
    mu: float
    normalize: bool

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        return along(self.held(selected), -self.rho, self.normalize)

    def commit(self, seen: Parts, found: Parts, finite: Tensor) -> None:
        if found.indices:
            moved = torch._foreach_mul(self.held(found.indices), self.mu)
            self.replace(found.indices, torch._foreach_add(moved, found.gradients), finite)
