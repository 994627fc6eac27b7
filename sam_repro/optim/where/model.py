"""The whole model at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..structure import Plan, Structure
from .base import Tensors, Where, along


@dataclass
class Model(Where):
    """rho g/|g| over the whole model (SAM, Foret et al. 2021, Eq. 2), or rho g (KDD'24, Eq. 3)."""

    name = "model"
    rho: float
    normalize: bool
    tensors: str

    def setup(self, structure: Structure, plan: Plan) -> None:
        super().setup(structure, plan)
        self._selected = self.among(self.everything, self.tensors)

    def select(self) -> list[int]:
        return self._selected

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        return along(gradients, self.rho, self.normalize)
