"""What every answer to the question *where* has in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..structure import Plan, Structure, norm_of

Tensors = list[Tensor] | tuple[Tensor, ...]


class Where:
    """Chooses the parameters to perturb and the perturbation."""

    name: ClassVar[str]

    def setup(self, structure: Structure, plan: Plan) -> None:
        """Learn the model; UserError if the option does not fit it."""
        self.structure = structure
        self.everything = list(range(len(structure.parameters)))

    def among(self, indices: Sequence[int], tensors: str) -> list[int]:
        """Of the parameters ``indices``: ``all``, or the ``weights`` alone, those of more than one dimension.

        The code of KDD'24's author perturbs convolution and dense kernels, and neither normalisations nor biases.
        """
        return [index for index in indices if tensors == "all" or self.structure.parameters[index].ndim > 1]

    def select(self) -> list[int]:
        """The parameters (indices into ``structure.parameters``) that this step perturbs."""
        return self.everything

    @property
    def varies(self) -> str:
        """Why no recorded step could serve another one; empty where one can."""
        return ""

    def recorded(self, selected: Sequence[int]) -> tuple[Sequence[int], Tensor | None]:
        """What a recorded step perturbs in place of ``selected``, so that it serves other choices as well.

        With it goes the factor of every layer's perturbation and mix, ``(layers,)`` on the device: 1, or 0 for those not selected.
        """
        return selected, None

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        """The perturbation of the parameters ``selected`` (those that have a gradient at w), tensor by tensor."""
        raise NotImplementedError

    def observe(self, layer_norms: Tensor) -> None:
        """See the norm of every layer's gradient in the last pass, before the mix; a tensor on the device."""

    def state_dict(self) -> dict[str, Any]:
        """What the option has learned so far."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where ``state_dict`` left off."""


def ratio(numerator: Tensor | float, denominator: Tensor) -> Tensor:
    """The quotient; zero over zero is zero: where there is no direction we stay where we are."""
    return torch.where(denominator == 0, torch.zeros_like(denominator), numerator / denominator)


def along(gradients: list[Tensor], length: float, normalize: bool) -> Tensors:
    """``length`` g/|g| with |g| over all that is perturbed, or ``length`` g."""
    return torch._foreach_mul(gradients, ratio(length, norm_of(gradients)) if normalize else length)
