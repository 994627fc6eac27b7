"""What every answer to the question *where* has in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...schema import UserError
from ..structure import Plan, Structure, norm_of, sharded

Tensors = list[Tensor] | tuple[Tensor, ...]


class Parts(NamedTuple):
    """Some of the parameters (indices), each with its gradient, in true units."""

    indices: list[int]
    gradients: list[Tensor]


class Where:
    """Chooses the parameters to perturb and the perturbation."""

    name: ClassVar[str]
    # Where not, the perturbation comes of earlier steps alone: a step is one pass, at w + eps. Buffers, such as BatchNorm's
    # statistics, then move in that one, whatever ``bn`` says, and the step's loss and outputs are those at w + eps.
    needs_first_pass: ClassVar[bool] = True
    vectors: ClassVar[int] = 0  # of the model's size that are kept from step to step; where there are, ``commit`` is to be called
    share = 0.0  # of the samples, on which a step without a first pass takes a gradient at w, for the next one

    def setup(self, structure: Structure, plan: Plan) -> None:
        """Learn the model; UserError if the option does not fit it."""
        self.structure = structure
        self.everything = list(range(len(structure.parameters)))

    def among(self, indices: Sequence[int], tensors: str) -> list[int]:
        """Of the parameters ``indices``: ``all``; the ``weights`` alone, those of more than one dimension; those of a ``norm`` alone.

        The code of KDD'24's author perturbs convolution and dense kernels, and neither normalisations nor biases; SAM-ON nothing
        but normalisations. Raises UserError where the model trains none.
        """
        if tensors == "norm":
            if not self.structure.of_norms:
                raise UserError("tensors=norm perturbs normalisations alone, and the model trains none: use tensors=all.")
            return [index for index in indices if index in self.structure.of_norms]
        return [index for index in indices if tensors == "all" or self.structure.parameters[index].ndim > 1]

    def refuse_shards(self) -> None:
        """UserError where no process has the whole of a tensor, and the option has to see all of its weights."""
        if sharded(self.structure.parameters):
            raise UserError(f"where={self.name} ranks or draws single weights, and of a sharded model (FSDP2) no process has them all.")

    def begin(self, step: int) -> None:
        """Step ``step`` (from 0) begins; on the host."""

    def price(self, costs: Callable[[Sequence[int]], list[float]]) -> None:
        """A step begins: ``costs`` tells what an ascent behind each of some stages costs, in steps of SGD."""

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
        """The perturbation of the parameters ``selected`` (those that have a gradient at w), tensor by tensor.

        Where there is no first pass, there are no ``gradients``. Moves nothing: asked again, it says the same.
        """
        raise NotImplementedError

    def commit(self, seen: Parts, found: Parts, finite: Tensor) -> None:
        """Move what is kept, once the passes of a step are done: a step that fails has moved nothing.

        ``seen`` are the gradients at w, empty in a step without an ascent, ``found`` those of the last pass before the mix. Where
        ``finite``, 0-dim, is false, the step has overflown and will be skipped: then nothing is to move either. On the device.
        """

    def observe(self, layer_norms: Tensor) -> None:
        """See the norm of every layer's gradient in the last pass, before the mix; a tensor on the device."""

    def state_dict(self) -> dict[str, Any]:
        """What the option has learned so far."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where ``state_dict`` left off."""


class Filtered(Where):
    """Perturbs, at every step, the parameters of the model that ``tensors`` lets pass: all, weights, norm."""

    tensors: str

    def setup(self, structure: Structure, plan: Plan) -> None:
        super().setup(structure, plan)
        self._selected = self.among(self.everything, self.tensors)

    def select(self) -> list[int]:
        return self._selected


def ratio(numerator: Tensor | float, denominator: Tensor) -> Tensor:
    """The quotient; zero over zero is zero: where there is no direction we stay where we are."""
    return torch.where(denominator == 0, torch.zeros_like(denominator), numerator / denominator)


def along(gradients: list[Tensor], length: float, normalize: bool) -> Tensors:
    """``length`` g/|g| with |g| over all that is perturbed, or ``length`` g."""
    return torch._foreach_mul(gradients, ratio(length, norm_of(gradients)) if normalize else length)
