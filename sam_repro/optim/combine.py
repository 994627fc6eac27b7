"""What is made of the gradients at w and at w + eps? One class an option of ``conf/optimizer/combine``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .between import dot
from .structure import Structure, norm_of
from .where import ratio


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


@dataclass
class Weighted(Mix):
    """(1 - a) g + a g' with a = gamma / (1 - gamma): WSAM (Yue et al. 2023), its coupled form. The mix multiplies a."""

    name = "weighted"
    gamma: float

    def setup(self, structure: Structure, mix: float) -> None:
        super().setup(structure, mix * (self.gamma / (1 - self.gamma)))


class _Scaled(Combine):
    """h = b g' + a g with numbers of the whole vectors; the mix is then (1 - alpha) g + alpha h."""

    whole = True

    def numbers(self, clean: list[Tensor], sam: list[Tensor]) -> tuple[Tensor, Tensor | float]:
        """The numbers b and a, 0-dim and on the device; an a that is always zero as a number."""
        raise NotImplementedError

    def combine(self, kept: Sequence[int], clean: list[Tensor], sam: list[Tensor], mask: Tensor | None) -> None:
        b, a = self.numbers(clean, sam)
        share = (1.0 - self.mix) + self.mix * a
        torch._foreach_mul_(sam, self.mix * b)
        if isinstance(share, Tensor) or share:
            torch._foreach_mul_(clean, share)
            torch._foreach_add_(sam, clean)


@dataclass
class Gap(_Scaled):
    """g' - alpha g_o, with g_o the part of g that is orthogonal to g' (GSAM, Zhuang et al. 2022, Algorithm 1).

    Over the whole vector of perturbed parameters. Where g' is zero nothing is orthogonal to it, and it stays.
    """

    name = "gap"
    alpha: float

    @property
    def needs_clean(self) -> bool:
        return self.alpha != 0 or super().needs_clean

    def numbers(self, clean: list[Tensor], sam: list[Tensor]) -> tuple[Tensor, Tensor | float]:
        square = norm_of(sam).square()  # at least in float32, and so are both numbers
        alpha = torch.full_like(square, self.alpha) * (square != 0)
        return 1 + alpha * ratio(dot(clean, sam), square), -alpha


@dataclass
class Renormalise(_Scaled):
    """g' at the length of g: g' |g|/|g'|, over the whole vector of perturbed parameters (Tan et al. 2024)."""

    name = "renormalise"

    @property
    def needs_clean(self) -> bool:
        return True

    def numbers(self, clean: list[Tensor], sam: list[Tensor]) -> tuple[Tensor, Tensor | float]:
        return ratio(norm_of(clean), norm_of(sam)), 0.0


OPTIONS: dict[str, type[Combine]] = {option.name: option for option in (Mix, Weighted, Gap, Renormalise)}
