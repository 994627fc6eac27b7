"""The whole model at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...schema import UserError
from ..falls import left
from ..structure import Plan, Structure, norm_of
from .base import Filtered, Tensors, Where, along, ratio


@dataclass
class Model(Filtered):
    """rho g/|g| over the whole model (SAM, Foret et al. 2021, Eq. 2), or rho g (KDD'24, Eq. 3)."""

    name = "model"
    rho: float
    normalize: bool
    tensors: str

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        return along(gradients, self.rho, self.normalize)


@dataclass
class Unified(Where):
    """rho (1 - lambd + lambd/|g|) g: between rho g (lambd = 0) and SAM (lambd = 1) (Unified SAM, Oikonomou & Loizou 2025).

    ``lambd`` is a number, or 1/t or 1-1/t with t the number of the step, from 1 on.
    """

    name = "unified"
    rho: float
    lambd: float | str

    def setup(self, structure: Structure, plan: Plan) -> None:
        super().setup(structure, plan)
        self._lambd = structure.number()  # which a recorded step reads
        self.begin(0)

    def begin(self, step: int) -> None:
        t = step + 1
        self._lambd.fill_({"1/t": 1 / t, "1-1/t": 1 - 1 / t}[self.lambd] if isinstance(self.lambd, str) else self.lambd)

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        return torch._foreach_mul(gradients, ratio(self.rho * self._lambd, norm_of(gradients)) + self.rho * (1 - self._lambd))


@dataclass
class Annealed(Where):
    """rho_t g/|g| over the whole model, rho_t on its way from ``rho`` to ``rho_end`` as the learning rate is on its to zero (GSAM).

    ``schedule`` is the formula of the learning rate's; where that one is another, rho_t does not follow it.
    """

    name = "annealed"
    rho: float
    rho_end: float
    schedule: str

    def setup(self, structure: Structure, plan: Plan) -> None:
        super().setup(structure, plan)
        if plan.total_steps is None:
            raise UserError("where=annealed changes rho over the training: give total_steps=.")
        self.total_steps = plan.total_steps
        self.length = structure.number()  # rho_t, which a recorded step reads
        self.begin(0)

    def begin(self, step: int) -> None:
        self.length.fill_(self.rho_end + (self.rho - self.rho_end) * left(self.schedule, step / self.total_steps))

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        return torch._foreach_mul(gradients, ratio(self.length, norm_of(gradients)))
