"""The checks of mSAM's theory (Behdin et al. 2023, section 3) on small networks: the edge of stability, and what is assumed of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ... import optim
from ...measure.objective import Objective
from ...measure.sharpness import eigenvalues
from .msam_theory import PLAIN, linearised, moments
from .toy import digits, smooth, trained

SAMPLES = 96  # of digits, with squared errors: of the cross-entropy the curvature vanishes as the fit gets perfect
SEEDS = range(5)


def edge_of_stability(rates: Sequence[float] = (0.08, 0.1, 0.12)) -> list[float]:
    """The largest eigenvalue times eta / 2, at the end of full-batch gradient descent; a replicate a learning rate and network."""
    return [_settled("sgd", None, seed, eta) * eta / 2 for eta in rates for seed in range(3)]


def edge_ratio(own: str, other: str, batch: int | None) -> list[float]:
    """The largest eigenvalue at the end of training with one method in that with another; a replicate a network."""
    return [_settled(own, batch, seed) / _settled(other, batch, seed) for seed in SEEDS]


@cache
def _settled(method: str, batch: int | None, seed: int, eta: float = 0.1, steps: int = 500) -> float:
    """The median over the last third of training at a constant learning rate, without momentum; ``batch``: None for all samples."""
    inputs, targets = (whole[:SAMPLES] for whole in digits())
    net = smooth(seed, hidden=12)
    knobs: dict[str, Any] = {"sgd": {}, "sam": {"rho": 0.05, **PLAIN}, "msam": {"rho": 0.05, "m": 8, **PLAIN}}[method]
    steps_of, base = optim.create(method, net, **knobs), torch.optim.SGD(net.parameters(), eta)
    objective = Objective(net, squared_error, [(inputs, targets)])
    generator = torch.Generator().manual_seed(seed)
    found = []
    for step in range(steps):
        chosen = torch.randperm(SAMPLES, generator=generator)[: batch or SAMPLES]
        steps_of.backward(inputs[chosen], targets[chosen], squared_error)
        base.step()
        base.zero_grad()
        if step >= 2 * steps // 3 and step % 20 == 0:
            found.append(eigenvalues(objective, tolerance=1e-2).values[0])
    return float(np.median(found))


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """From the one-hot target, ``(batch,)``."""
    return (outputs - nn.functional.one_hot(targets, 10)).square().sum(1)


def alignment_cosine() -> list[float]:
    """The cosine of J* and Sigma of SGD after training, as vectors; a replicate a network."""
    return [_alignment(seed)["sgd"][0] for seed in SEEDS]


def alignment_factor(method: str) -> list[float]:
    """The factor between J* and Sigma of a method in SGD's, at the same weights and batch size; a replicate a network."""
    return [_alignment(seed)[method][1] / _alignment(seed)["sgd"][1] for seed in SEEDS]


@cache
def _alignment(seed: int, rho: float = 0.05, batch: int = 16, m: int = 4) -> dict[str, tuple[float, float]]:
    """Cosine, and beta of J* = beta Sigma by least squares, of each method: exact Hessians, 100 random batches."""
    net = trained("sgd", 200, seed, hidden=3)
    inputs, targets = (whole[:SAMPLES] for whole in digits())
    per_sample = _hessians_of(net, inputs, targets)
    order = torch.rand(100, SAMPLES, generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :batch]
    found = {}
    for name, j in zip(
        ("sgd", "sam", "msam"),
        linearised(per_sample[None], torch.tensor(rho, dtype=torch.float64), order.reshape(100, m, batch // m)),
        strict=True,
    ):
        mean, variance = (one.flatten() for one in moments(j))
        found[name] = ((mean @ variance / mean.norm() / variance.norm()).item(), (mean @ variance / (variance @ variance)).item())
    return found


def _hessians_of(net: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Of the loss of each sample, ``(samples, weights, weights)``."""
    names, values = zip(*net.named_parameters(), strict=True)
    sizes, shapes = [v.numel() for v in values], [v.shape for v in values]

    def loss(flat: Tensor, one: Tensor, target: Tensor) -> Tensor:
        parts = {name: part.view(shape) for name, part, shape in zip(names, flat.split(sizes), shapes, strict=True)}
        outputs = torch.func.functional_call(net, parts, (one[None],))
        return nn.functional.cross_entropy(outputs, target[None])

    flat = torch.cat([v.detach().flatten() for v in values])
    return torch.func.vmap(torch.func.hessian(loss), (None, 0, 0))(flat, inputs, targets)


CHECKS: dict[str, Callable[[], list[float]]] = {
    **{check.__name__: check for check in (edge_of_stability, alignment_cosine)},
    **{f"alignment_factor_{method}": partial(alignment_factor, method) for method in ("sam", "msam")},
    **{
        f"edge_{own}_over_{other}_{kind}": partial(edge_ratio, own, other, batch)
        for own, other in (("sam", "sgd"), ("msam", "sam"))
        for kind, batch in (("full_batch", None), ("batch_24", 24))
    },
}
