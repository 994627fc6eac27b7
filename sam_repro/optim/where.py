"""Where, and how far, are the weights moved? One class an option of ``conf/optimizer/where``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..schema import UserError
from .host import HostCopy
from .structure import Plan, Structure

Tensors = list[Tensor] | tuple[Tensor, ...]


class Where:
    """Chooses the parameters to perturb and the perturbation."""

    name: ClassVar[str]

    def setup(self, structure: Structure, plan: Plan) -> None:
        """Learn the model; UserError if the option does not fit it."""
        self.structure = structure
        self.everything = list(range(len(structure.parameters)))

    def select(self) -> list[int]:
        """The parameters (indices into ``structure.parameters``) that this step perturbs."""
        return self.everything

    def perturbation(self, parameters: list[Tensor], gradients: list[Tensor]) -> Tensors:
        """The perturbation of ``parameters`` (those selected that have a gradient), tensor by tensor."""
        raise NotImplementedError

    def observe(self, layer_norms: Tensor) -> None:
        """See the norm of every layer's gradient in the last pass, before the mix; a tensor on the device."""

    def state_dict(self) -> dict[str, Any]:
        """What the option has learned so far."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where ``state_dict`` left off."""


@dataclass
class Model(Where):
    """rho g/|g| over the whole model (SAM, Foret et al. 2021, Eq. 2), or rho g (KDD'24, Eq. 3)."""

    name = "model"
    rho: float
    normalize: bool

    def perturbation(self, parameters: list[Tensor], gradients: list[Tensor]) -> Tensors:
        if not self.normalize:
            return torch._foreach_mul(gradients, self.rho)
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        # A zero gradient has no direction: stay where we are rather than divide zero by zero.
        scale = torch.where(norm == 0, torch.zeros_like(norm), self.rho / norm)
        return torch._foreach_mul(gradients, scale)


@dataclass
class Layers(Where):
    """r g on the k layers whose gradient was largest in the last pass (KDD'24, Eq. 6 and Algorithm 1)."""

    name = "layers"
    k: int | str
    r: float
    criterion: str

    def setup(self, structure: Structure, plan: Plan) -> None:
        super().setup(structure, plan)
        total = len(structure.layers)
        self.count = total if self.k == "all" else int(self.k)
        if not 0 <= self.count <= total:
            raise UserError(f"k={self.k} does not fit: the model has {total} layers, k is 0 to {total}, or all.")
        # Line 2: all norms are equal before the first step, and the layers near the output are the paper's usual choice.
        self._chosen: list[int] | HostCopy = list(range(total - self.count, total))
        self._generator = torch.Generator().manual_seed(plan.seed)

    def select(self) -> list[int]:
        """Line 4: w' <- k layers with the top gradient norms."""
        if self.count == len(self.structure.layers):
            return self.everything
        return self.structure.parameters_of(self.chosen)

    @property
    def chosen(self) -> list[int]:
        """The layers to perturb next; reading it waits for the one small copy from the device."""
        if isinstance(self._chosen, HostCopy):
            self._chosen = sorted(self._chosen.value().tolist())
        return self._chosen

    def perturbation(self, parameters: list[Tensor], gradients: list[Tensor]) -> Tensors:
        return torch._foreach_mul(gradients, self.r)

    def observe(self, layer_norms: Tensor) -> None:
        """Line 9: collect |grad L(w_i + r grad L(w_i))| of every layer."""
        if self.count in (0, len(self.structure.layers)):
            return
        if self.criterion == "random":
            self._chosen = torch.randperm(len(layer_norms), generator=self._generator)[: self.count].tolist()
        else:
            self._chosen = HostCopy(layer_norms.topk(self.count, largest=self.criterion == "high").indices)

    def state_dict(self) -> dict[str, Any]:
        return {"chosen": self.chosen, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._chosen = list(state["chosen"])
        self._generator.set_state(state["generator"])


OPTIONS: dict[str, type[Where]] = {option.name: option for option in (Model, Layers)}
