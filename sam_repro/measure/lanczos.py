"""The largest eigenvalues of a symmetric operator, and its trace, from products with vectors alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


class Spectrum(NamedTuple):
    """``values``: the largest eigenvalues (algebraic, not by size), falling; ``bounds``: how far each is off, at most."""

    values: list[float]
    bounds: list[float]
    iterations: int
    converged: bool


class Trace(NamedTuple):
    """The estimate and its standard error."""

    value: float
    error: float
    probes: int


def largest_eigenvalues(
    operator: Operator,
    start: Tensor,
    top: int = 1,
    *,
    tolerance: float = 1e-3,
    iterations: int = 100,
    watch: Callable[[int, float, float], None] | None = None,
) -> Spectrum:
    """Lanczos' method with full reorthogonalisation (Golub & Van Loan, 4th ed., section 10.1 and 10.3).

    Stops when the residual |A u - theta u| of each of the ``top`` Ritz pairs is at most ``tolerance`` times |theta|: an
    eigenvalue is then that close, in practice far closer, as the error falls with the residual's square. Holds one vector
    for every iteration. Of an eigenvalue that occurs several times one is found, until the space is exhausted.

    Args:
        operator: ``(n,)`` to ``(n,)``, symmetric.
        start: ``(n,)``, random, not zero.
        top: how many eigenvalues, at most n.
        tolerance: relative.
        iterations: products with vectors, at most.
        watch: called after every iteration with its number, the largest value so far, and the bound of its error.
    """
    q = start / start.norm()
    basis: list[Tensor] = []
    alphas: list[float] = []
    betas: list[float] = []
    most = min(iterations, len(start))
    values, bounds = [math.nan], [math.inf]
    noise = 100 * torch.finfo(start.dtype).eps
    others = torch.Generator(start.device).manual_seed(0)
    while len(basis) < most:
        basis.append(q)
        w = operator(q)
        alphas.append(torch.dot(w, q).item())
        w, beta = _next(w, basis)
        values, bounds = _ritz(alphas, betas, 0.0 if len(basis) == len(start) else beta, top)
        if watch is not None:
            watch(len(basis), values[0], bounds[0])
        if len(values) == top and all(b <= tolerance * abs(v) for v, b in zip(values, bounds, strict=True)):
            return Spectrum(values, bounds, len(basis), converged=True)
        if beta <= noise * max(map(abs, alphas + betas)):  # an invariant subspace: go on in another one
            w, _ = _next(torch.randn(start.shape, generator=others, dtype=start.dtype, device=start.device), basis)
            beta = 0.0
        betas.append(beta)
        q = w
    return Spectrum(values, bounds, len(basis), converged=len(basis) == len(start))


def _next(w: Tensor, basis: list[Tensor]) -> tuple[Tensor, float]:
    """``w`` made orthogonal to the basis (twice is enough) and its norm; normalised, where there is anything left."""
    for _ in range(2):
        for q in basis:
            w = w - torch.dot(q, w) * q
    norm = w.norm().item()
    return (w / norm if norm else w), norm


def _ritz(alphas: list[float], betas: list[float], beta: float, top: int) -> tuple[list[float], list[float]]:
    """The largest eigenvalues of the tridiagonal matrix, and their residuals beta |s_mi|."""
    t = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    if betas:
        off = torch.tensor(betas, dtype=torch.float64)
        t += torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(t)
    chosen = range(len(alphas) - 1, max(-1, len(alphas) - 1 - top), -1)
    return [values[i].item() for i in chosen], [beta * abs(vectors[-1, i].item()) for i in chosen]


def hutchinson(
    operator: Operator, like: Tensor, probes: int, generator: torch.Generator, watch: Callable[[int], None] | None = None
) -> Trace:
    """The trace as the mean of v^T A v over vectors v of random signs (Hutchinson 1990), with the standard error of the mean.

    ``like``: any vector of the space; the generator is on its device.
    """
    found = []
    for probe in range(probes):
        signs = torch.randint(2, like.shape, generator=generator, device=like.device).to(like.dtype) * 2 - 1
        found.append(torch.dot(signs, operator(signs)).item())
        if watch is not None:
            watch(probe + 1)
    samples = torch.tensor(found, dtype=torch.float64)
    return Trace(samples.mean().item(), samples.std().item() / math.sqrt(probes) if probes > 1 else math.nan, probes)
