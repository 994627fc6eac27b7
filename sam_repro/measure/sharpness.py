"""How sharp the minimum is: the largest eigenvalues and the trace of the Hessian, and how far the loss rises nearby.

For any model, without a run::

    objective = Objective(model, nn.CrossEntropyLoss(reduction="none"), [(inputs, targets), ...])
    eigenvalues(objective, top=1).values[0]  # lambda_max
    trace(objective, probes=32)
    sam_sharpness(objective, rho=0.05)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..chain import Unperturbed
from ..optim.passes import perturbed
from ..optim.structure import norm_of
from ..optim.watched import curvature
from ..optim.where import ratio
from ..schema import UserError
from .lanczos import Operator, Spectrum, Trace, hutchinson, largest_eigenvalues
from .objective import Objective

__all__ = ["Objective", "Rise", "curvature", "eigenvalues", "sam_sharpness", "trace"]


class Rise(NamedTuple):
    """The loss at w, |its gradient|, and L(w + eps) - L(w)."""

    loss: float
    grad_norm: float
    sharpness: float


def eigenvalues(
    objective: Objective,
    top: int = 1,
    *,
    tolerance: float = 1e-3,
    iterations: int = 100,
    seed: int = 0,
    watch: Callable[[int, float, float], None] | None = None,
) -> Spectrum:
    """The ``top`` largest eigenvalues of the Hessian (algebraic, so a large negative one does not count), falling.

    ``tolerance``, ``iterations`` and ``watch`` are those of ``lanczos.largest_eigenvalues``; ``seed`` is of the start.
    UserError where ``top`` is more than there are variables or iterations.
    """
    if not 1 <= top <= min(objective.size, iterations):
        raise UserError(
            f"top={top} does not fit: {objective.size:,} parameters have as many eigenvalues, {iterations} iterations find as many."
        )
    start = _vector(objective)
    start = torch.randn(start.shape, generator=_generator(start, seed), dtype=start.dtype, device=start.device)
    return largest_eigenvalues(_operator(objective), start, top, tolerance=tolerance, iterations=iterations, watch=watch)


def trace(objective: Objective, probes: int = 32, *, seed: int = 0, watch: Callable[[int], None] | None = None) -> Trace:
    """Hutchinson's estimate of the trace of the Hessian, with its standard error."""
    like = _vector(objective)
    return hutchinson(_operator(objective), like, probes, _generator(like, seed), watch)


def sam_sharpness(objective: Objective, rho: float = 0.05) -> Rise:
    """L(w + eps) - L(w) with eps = rho g/|g|, g the gradient over all samples (Foret et al. 2021, Eq. 2)."""
    pairs = zip(objective.parameters, objective.gradient(), strict=True)
    moving = [(p, g) for p, g in pairs if not isinstance(p, Unperturbed)]  # as in training
    parameters: list[Tensor] = [p for p, _ in moving]
    gradient = [g for _, g in moving]
    norm = norm_of(gradient)
    before = objective.value()
    with perturbed(parameters, torch._foreach_mul(gradient, ratio(rho, norm))):
        after = objective.value()
    return Rise(before.item(), norm.item(), (after - before).item())


def _operator(objective: Objective) -> Operator:
    """The Hessian on flat vectors."""
    sizes = [p.numel() for p in objective.parameters]

    def times(vector: Tensor) -> Tensor:
        parts = [part.view_as(p) for part, p in zip(vector.split(sizes), objective.parameters, strict=True)]
        return torch.cat([part.reshape(-1) for part in objective.hessian_times(parts)])

    return times


def _vector(objective: Objective) -> Tensor:
    """One number for each variable, none of them set."""
    first = objective.parameters[0]
    return torch.empty(objective.size, dtype=first.dtype, device=first.device)


def _generator(like: Tensor, seed: int) -> torch.Generator:
    return torch.Generator(like.device).manual_seed(seed)
