"""What stands between two ascents? One class an option of ``conf/optimizer/between``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..schema import UserError
from .structure import Structure, norm_of, own, real, whole
from .where import ratio


class Between:
    """May remember something of an ascent and add it to the gradient of the steps that make none."""

    name: ClassVar[str]
    needs_clean: ClassVar[bool]  # whether ``remember`` wants the gradient at w

    def setup(self, structure: Structure) -> None:
        """Learn the model."""

    def count(self, ascends: bool) -> None:
        """A step begins, with or without an ascent."""

    def remember(self, kept: Sequence[int], clean: list[Tensor], sam: list[Tensor], scale: Tensor | None) -> dict[str, Tensor]:
        """See the gradients at w and at w + eps of the perturbed parameters ``kept``, times ``scale`` if there is one.

        Returns sizes that a user may want to see, 0-dim, by name.
        """
        return {}

    def reuse(self, gradients: Sequence[Tensor | None], scale: Tensor | None) -> None:
        """Change the gradient (of all parameters) of a step without an ascent, in place."""

    def state_dict(self) -> dict[str, Any]:
        """What the option has learned so far."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where ``state_dict`` left off."""


@dataclass
class Plain(Between):
    """Nothing: such a step takes the plain gradient."""

    name = "gradient"
    needs_clean = False


class Direction(Between):
    """Keeps one vector over the parameters that the last ascent perturbed."""

    needs_clean = True

    def setup(self, structure: Structure) -> None:
        self.structure = structure

    def __post_init__(self) -> None:
        self.kept: list[int] = []
        self.vector: list[Tensor] = []
        self.age = 0  # steps since the ascent

    def keep(self, kept: Sequence[int], vector: Sequence[Tensor], scale: Tensor | None) -> None:
        """Take a new vector; of scaled gradients one that overflowed, whose step will be skipped, gives way to the one before.

        In place where there is one of the same parameters: a recorded step finds it where it was.
        """
        if scale is not None:
            finite, before = torch.isfinite(norm_of(vector)), dict(zip(self.kept, self.vector, strict=True))
            vector = [torch.where(finite, v, before.get(i, torch.zeros_like(v))) for i, v in zip(kept, vector, strict=True)]
        if self.kept == list(kept) and kept:
            torch._foreach_copy_(own(self.vector), own(vector))
        else:
            self.kept, self.vector = list(kept), list(vector)

    def count(self, ascends: bool) -> None:
        self.age = 0 if ascends else self.age + 1

    def present(self, gradients: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
        """The gradients of the kept parameters that have one, and the vector's parts beside them."""
        pairs = [(g, v) for i, v in zip(self.kept, self.vector, strict=True) if (g := gradients[i]) is not None]
        return [g for g, _ in pairs], [v for _, v in pairs]

    def state_dict(self) -> dict[str, Any]:
        return {"kept": list(self.kept), "vector": list(self.vector), "age": self.age}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        parameters = self.structure.parameters
        vector = dict(zip(state["kept"], state["vector"], strict=True))
        if any(index >= len(parameters) or v.shape != parameters[index].shape for index, v in vector.items()):
            raise UserError("The state is one of another model: the vector in it does not have the shapes of this one's parameters.")
        self.kept, self.age = list(state["kept"]), state["age"]
        where = [self.structure.parameters[index].device for index in self.kept]
        self.vector = [v.to(device, copy=True) for v, device in zip(state["vector"], where, strict=True)]


@dataclass
class Orthogonal(Direction):
    """LookSAM: g + alpha |g| g_v/|g_v|, with g_v the part of the last SAM gradient orthogonal to the gradient at w.

    Over the whole vector of perturbed parameters (LookSAM supplement, Algorithm 3), not tensor by tensor.
    """

    name = "orthogonal"
    alpha: float

    def remember(self, kept: Sequence[int], clean: list[Tensor], sam: list[Tensor], scale: Tensor | None) -> dict[str, Tensor]:
        along = ratio(dot(clean, sam), dot(clean, clean))  # |g_s| cos(theta) / |g|
        g_v = torch._foreach_sub(sam, torch._foreach_mul(clean, along))
        size, whole = norm_of(g_v), norm_of(sam)
        # Below this, g_v is rounding: the two gradients were parallel.
        noise = 100 * torch.finfo(size.dtype).eps * whole
        self.keep(kept, torch._foreach_mul(g_v, torch.where(size <= noise, torch.zeros_like(size), 1 / size)), scale)
        return {f"{name}_norm": n if scale is None else n / scale for name, n in (("g_v", size), ("g_s", whole))}

    def reuse(self, gradients: Sequence[Tensor | None], scale: Tensor | None) -> None:
        present, unit = self.present(gradients)
        if present:
            torch._foreach_add_(present, torch._foreach_mul(unit, self.alpha * norm_of(present)))


@dataclass
class DecayedPSF(Direction):
    """vSAM: g + gamma^(i - i*) PSF, with PSF the last SAM gradient less the gradient at w of the same step (Eq. 17)."""

    name = "decayed_psf"
    gamma: float

    def setup(self, structure: Structure) -> None:
        super().setup(structure)
        first = structure.parameters[0]
        self.decay = first.new_ones((), dtype=torch.promote_types(first.dtype, torch.float32))  # gamma^age, which a recorded step reads

    def count(self, ascends: bool) -> None:
        super().count(ascends)
        self.decay.fill_(self.gamma**self.age)

    def remember(self, kept: Sequence[int], clean: list[Tensor], sam: list[Tensor], scale: Tensor | None) -> dict[str, Tensor]:
        psf = torch._foreach_sub(sam, clean)
        self.keep(kept, psf if scale is None else torch._foreach_div(psf, scale), scale)
        return {}

    def reuse(self, gradients: Sequence[Tensor | None], scale: Tensor | None) -> None:
        present, psf = self.present(gradients)
        if present:
            decayed = torch._foreach_mul(psf, self.decay)
            torch._foreach_add_(present, decayed if scale is None else torch._foreach_mul(decayed, scale))


def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """The inner product of two vectors given in parts."""
    return torch.stack([whole(product.sum()) for product in torch._foreach_mul(real(a), real(b))]).sum()


OPTIONS: dict[str, type[Between]] = {option.name: option for option in (Plain, Orthogonal, DecayedPSF)}
