"""Single weights are perturbed, the others stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...schema import UserError
from ..draws import numbered
from ..host import sent
from ..structure import HALF, Plan, Structure, norm_of, real, unreal
from .base import Parts, Tensors, Where, along, ratio
from .moving import Moving


@dataclass
class ZScore(Where):
    """rho d/|d|, d the gradient where it stands out of its tensor's mean, 0 elsewhere (ZSharp, Yun 2025).

    Of every tensor of more than one dimension the share 1 - ``percentile`` with the largest |z-score| is kept: the places of the
    largest |g - mean|, as the deviation is one number. Vectors are kept whole, as in the author's code.
    """

    name = "zscore"
    rho: float
    percentile: float

    def setup(self, structure: Structure, plan: Plan) -> None:
        super().setup(structure, plan)
        self.refuse_shards()

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        kept = [self._kept(t) if g.ndim > 1 else t for t, g in zip(real(gradients), gradients, strict=True)]
        return unreal(along(kept, self.rho, normalize=True), gradients)

    def _kept(self, gradient: Tensor) -> Tensor:
        g = gradient.float() if gradient.dtype in HALF else gradient
        away = (g - g.mean()).abs()
        lost = math.floor(self.percentile * g.numel())  # the smallest
        return gradient * (away >= away.flatten().kthvalue(lost + 1).values)


@dataclass
class Sparse(Moving):
    """rho g/|g| on the share 1 - ``sparsity`` of the weights, |g| over all of them (SSAM, Mi et al. 2022, and its official code).

    The mask is drawn at first and made anew from the gradient at w of the first step (with an ascent) of every ``every_epochs``-th
    epoch, to hold from the next step on. ``fisher``: where |g| is largest. ``dynamic``: a share of it, ``drop`` at first and falling
    with a cosine, moves from where |g| is smallest to places drawn among the others. ``random``: drawn again.
    """

    name = "sparse"
    pairs = True
    rho: float
    sparsity: float
    mask: str
    every_epochs: int
    drop: float

    def setup(self, structure: Structure, plan: Plan) -> None:
        super().setup(structure, plan)
        self.refuse_shards()
        if plan.steps_per_epoch is None or plan.total_steps is None:
            raise UserError("where=sparse makes its mask anew by epochs: give steps_per_epoch= and total_steps=.")
        self.per_epoch, self.epochs, self.seed = plan.steps_per_epoch, plan.total_steps / plan.steps_per_epoch, plan.seed
        self.made = -1  # the epochs since which the mask is what it is, in units of every_epochs
        self.begin(0)

    def begin(self, step: int) -> None:
        self.step = step

    @property
    def varies(self) -> str:
        return "the mask is made anew in some of the steps"

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        g = real(gradients)
        return unreal(torch._foreach_mul(torch._foreach_mul(g, ratio(self.rho, norm_of(g))), self.held(selected)), gradients)

    def commit(self, seen: Parts, found: Parts, finite: Tensor) -> None:
        due = self.step // (self.per_epoch * self.every_epochs)
        if seen.indices and due > self.made:
            sizes = torch.cat([t.reshape(-1).abs() for t in real(seen.gradients)])
            masks = self.held(seen.indices)
            new = self._anew(sizes, torch.cat([t.reshape(-1) for t in masks]), due + 1)
            self.replace(seen.indices, _shaped(new, masks), finite)
            self.made = due

    def initial(self) -> list[Tensor]:
        like = real([p.detach() for p in self.structure.parameters])
        return [m.clone() for m in _shaped(self._largest(self._draw(sum(t.numel() for t in like), like[0].device, 0)), like)]

    def _anew(self, sizes: Tensor, mask: Tensor, draw: int) -> Tensor:
        """The mask that follows, ``(weights,)``, from the sizes of the gradient."""
        if self.mask == "fisher":
            return self._largest(sizes)
        drawn = self._draw(len(sizes), sizes.device, draw)
        if self.mask == "random":
            return self._largest(drawn)
        live = self._live(len(sizes))
        progress = self.step // self.per_epoch / self.epochs
        moved = min(int(self.drop * (1 + math.cos(math.pi * progress)) / 2 * live), len(sizes) - live)
        lost = torch.where(mask > 0, sizes, torch.inf).topk(moved, largest=False).indices
        won = torch.where(mask > 0, -1.0, drawn).topk(moved).indices
        return mask.clone().index_fill_(0, lost, 0.0).index_fill_(0, won, 1.0)

    def _live(self, total: int) -> int:
        return total - math.ceil(total * self.sparsity)

    def _largest(self, scores: Tensor) -> Tensor:
        """1 for the share 1 - sparsity with the largest scores."""
        return torch.zeros_like(scores).index_fill_(0, scores.topk(self._live(len(scores))).indices, 1.0)

    def _draw(self, count: int, device: torch.device, number: int) -> Tensor:
        """Uniform numbers, the same in all processes: drawn on the host, by the number of the draw."""
        return sent(torch.rand(count, generator=numbered(self.seed, number)), device)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "made": self.made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.made = state["made"]


def _shaped(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A vector as tensors of these shapes and types."""
    parts = flat.split([t.numel() for t in like])
    return [part.view(t.shape).to(t.dtype) for part, t in zip(parts, like, strict=True)]
