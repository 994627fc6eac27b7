"""What the two gradients of a step say beside the update, where somebody watches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .structure import norm_of, real, whole


class Watched(NamedTuple):
    """Of one step. The tensors are 0-dim, stay on the device, and speak of the perturbed parameters; None without an ascent."""

    sampling_rate: float | None
    plain_norm: Tensor | None = None  # |g|, at w
    psf_norm: Tensor | None = None  # |g_s - g|: the PSF of vSAM, Eq. 6
    curvature: Tensor | None = None  # along the perturbation


def watched(rate: float | None, perturbation: Sequence[Tensor] | None, clean: list[Tensor], sam: list[Tensor]) -> Watched:
    """From the gradients at w and at w + eps; without a perturbation there is no curvature."""
    psf = torch._foreach_sub(sam, clean)
    along = None if perturbation is None else curvature(perturbation, psf)
    return Watched(rate, norm_of(clean), norm_of(psf), along)


def curvature(perturbation: Sequence[Tensor], difference: Sequence[Tensor]) -> Tensor:
    """The curvature of the loss along the perturbation, eps^T H eps / |eps|^2, from two gradients that are there anyway.

    ``difference`` is g_s - g, the gradient at w + eps less the one at w, tensor by tensor like ``perturbation``. As
    g_s = g + H eps + O(|eps|^2), eps^T H eps is <eps, g_s - g>, exactly so on a quadratic. With SAM's eps = rho g/|g| this
    is (<eps, g_s> - rho |g|) / rho^2. Zero where nothing was perturbed.
    """
    square = _dot(perturbation, perturbation)
    return torch.where(square == 0, torch.zeros_like(square), _dot(perturbation, difference) / square)


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([whole(product.sum()) for product in torch._foreach_mul(real(a), real(b))]).sum()
