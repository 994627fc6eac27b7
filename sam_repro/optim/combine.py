"""What is made of the gradients at w and at w + eps? One class an option of ``conf/optimizer/combine``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .structure import Structure


class Combine:
    """Makes the gradient of a step with an ascent of g, at w, and g', at w + eps: (1 - mix) g + mix g', unless it is another option.

    What it makes of both times a loss scale is what it makes of both, times that scale. g is only needed where ``needs_clean``.
    """

    name: ClassVar[str]
    whole: ClassVar[bool] = False  # it looks at the vectors as a whole, not at each of their numbers for itself

    def setup(self, structure: Structure, mix: float) -> None:
        """Learn the model, and alpha of the mix, which every method has."""
        self.structure, self.mix = structure, mix

    @property
    def needs_clean(self) -> bool:
        """Whether it makes anything else than g'."""
        return self.mix != 1.0

    def combine(self, kept: Sequence[int], clean: list[Tensor], sam: list[Tensor], mask: Tensor | None) -> None:
        """Put it in the place of ``sam``, g' of the perturbed parameters ``kept``; ``clean`` is g, and of no use afterwards.

        ``mask``, ``(layers,)``: in a recorded step 0 for layers among them that take g' as it is. An option that looks at ``whole``
        vectors gets none.
        """
        raise NotImplementedError


@dataclass
class Mix(Combine):
    """(1 - alpha) g + alpha g' (KDD'24, Eq. 2); alpha above 1 goes on beyond g'."""

    name = "mix"

    def combine(self, kept: Sequence[int], clean: list[Tensor], sam: list[Tensor], mask: Tensor | None) -> None:
        alpha = 1.0 - self.mix
        torch._foreach_lerp_(sam, clean, alpha if mask is None else self.structure.spread(alpha * mask, kept, sam))


OPTIONS: dict[str, type[Combine]] = {option.name: option for option in (Mix,)}
