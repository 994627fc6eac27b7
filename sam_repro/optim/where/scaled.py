"""Perturbations that scale with the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..structure import norm_of, real, unreal
from .base import Filtered, Tensors, Where, along, ratio


@dataclass
class Adaptive(Filtered):
    """rho T^2 g/|T g| with T = |w| + eta for weights, 1 for the rest (ASAM, Kwon et al. 2021, and its official code).

    ``biases``: T = |w| + eta for the rest as well, as in the code of SAM-ON.
    """

    name = "adaptive"
    rho: float
    eta: float
    biases: bool
    tensors: str

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        # As in the official code, "weight" in the name decides: normalisation weights scale, biases do not.
        places = [place for place, index in enumerate(selected) if self.biases or "weight" in self.structure.names[index]]
        scales = torch._foreach_abs([self.structure.parameters[selected[place]].detach() for place in places])
        torch._foreach_add_(scales, self.eta)
        once = _scaled(gradients, places, scales)
        return torch._foreach_mul(_scaled(once, places, scales), ratio(self.rho, norm_of(once)))


def _scaled(tensors: list[Tensor], places: list[int], scales: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, those at ``places`` times ``scales``."""
    result = list(tensors)
    if places:
        products = torch._foreach_mul([tensors[place] for place in places], list(scales))
        for place, product in zip(places, products, strict=True):
            result[place] = product
    return result


@dataclass
class Fisher(Where):
    """rho F^-1 g / sqrt(g F^-1 g) with F^-1 = 1 / (1 + eta g^2), weight by weight (Fisher-SAM, Kim et al. 2022).

    The square is of the batch's mean gradient. With D = sqrt(F^-1) it is rho D h/|h|, h = D g.
    """

    name = "fisher"
    rho: float
    eta: float

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        g = real(gradients)
        roots = torch._foreach_sqrt(torch._foreach_add(torch._foreach_mul(torch._foreach_mul(g, g), self.eta), 1.0))
        h = torch._foreach_div(g, roots)
        return unreal(torch._foreach_div(torch._foreach_mul(h, ratio(self.rho, norm_of(h))), roots), gradients)


@dataclass
class TrustRatio(Where):
    """LayerSAM (LookSAM supplement, Algorithm 2), layer by layer.

    ``printed``: rho |w_i|/|g_i| g_i/|g|, with |g| over the model. ``local``: rho |w_i| g_i/|g_i|. ``whole``: every layer's
    gradient times its trust ratio |w_i|/|g_i|, then all of it at the length rho; ``printed`` at rho = 1 is as long as the weights.
    """

    name = "trust_ratio"
    rho: float
    trust: str

    def perturbation(self, selected: Sequence[int], gradients: list[Tensor]) -> Tensors:
        padded: list[Tensor | None] = [None] * len(self.everything)
        weights = list(padded)
        for index, gradient in zip(selected, gradients, strict=True):
            padded[index], weights[index] = gradient, self.structure.parameters[index].detach()
        factor = self.rho * ratio(self.structure.layer_norms(weights), self.structure.layer_norms(padded))
        if self.trust == "printed":
            factor = factor * ratio(1.0, norm_of(gradients))
        scaled = torch._foreach_mul(gradients, self.structure.spread(factor, selected, gradients))
        return along(list(scaled), self.rho, normalize=True) if self.trust == "whole" else scaled
