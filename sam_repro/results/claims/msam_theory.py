"""The checks of mSAM's theory (Behdin et al. 2023, section 3): lemmas and theorems on random Hessians, and small networks at the edge of stability."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ... import optim
from ...measure.objective import Objective
from ...measure.sharpness import eigenvalues
from .toy import digits, smooth, trained

PLAIN = {"where.normalize": False}  # assumption 3.2: the normalisation of the ascent is left out
SHAPES = ((5, 2, 2), (5, 3, 3), (6, 4, 2), (6, 4, 4))  # samples, of them in a batch, micro-batches
SIZES = (1, 2, 3, 5, 10)  # of the Hessians

# -- the linearised dynamics on random positive semi-definite Hessians ---------------------------------------------------------


def splits(samples: int, batch: int, m: int) -> Tensor:
    """All ways to draw a batch and cut it into m micro-batches, ``(ways, m, batch / m)``, each once."""
    size = batch // m
    found = set()
    for order in permutations(range(samples), batch):
        found.add(tuple(sorted(tuple(sorted(order[start : start + size])) for start in range(0, batch, size))))
    return torch.tensor(sorted(found))


def hessians(draws: int, samples: int, size: int, generator: torch.Generator) -> Tensor:
    """Positive semi-definite matrices of all ranks and of several scales, some of them zero, ``(draws, samples, size, size)``."""
    root = torch.randn(draws, samples, size, size, generator=generator, dtype=torch.float64)
    columns = torch.rand(draws, samples, 1, size, generator=generator, dtype=torch.float64) < 0.7
    scale = torch.rand(draws, samples, 1, 1, generator=generator, dtype=torch.float64)
    root = root * columns
    return scale * root @ root.mT


def linearised(per_sample: Tensor, rho: Tensor, parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """J of SGD, SAM and mSAM for each way to draw the batch (Lemma 3.4), ``(draws, ways, size, size)``."""
    of_micro = per_sample[:, parts].mean(3)
    sgd = of_micro.mean(2)
    spread = of_micro - sgd[:, :, None]
    sam = sgd + rho * sgd @ sgd
    return sgd, sam, sam + rho * (spread @ spread).mean(2)


def moments(j: Tensor) -> tuple[Tensor, Tensor]:
    """J* and Sigma, the mean of J over the ways and that of its squared deviation."""
    mean = j.mean(1)
    deviation = j - mean[:, None]
    return mean, (deviation @ deviation).mean(1)


def unstable_from(j: Tensor) -> Tensor:
    """The learning rate above which the condition of Eq. 12 is violated (Lemma 3.3), of each draw."""
    mean, variance = moments(j)
    return torch.minimum(2 / _largest(mean), _largest(variance).rsqrt())


def _largest(matrices: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(matrices)
    return values[..., -1]


def _drawn(draws: int = 500) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Random Hessians, their radius and the ways to draw a batch, for all shapes and sizes: 10,000 sets in all."""
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        for size in SIZES:
            rho = 10 ** (3 * torch.rand(draws, 1, 1, 1, generator=generator, dtype=torch.float64) - 2)
            found = hessians(draws, shape[0], size, generator)
            some = (found.diagonal(dim1=-2, dim2=-1).sum(-1) > 0).sum(1) > 1  # else there is nothing to be unstable
            yield found[some], rho[some], splits(*shape)


def lemma31_error(power: int = 2) -> list[float]:
    """The largest relative difference of the two sides of Lemma 3.1; ``power`` of eta before Sigma."""
    largest = 0.0
    for found, rho, parts in _drawn(50):
        for j in linearised(found, rho, parts):
            eta = 0.5 / _largest(moments(j)[0])[:, None, None, None]
            mean, variance = moments(j)
            one = torch.eye(j.shape[-1], dtype=j.dtype)
            step, eta_ = one - eta * j, eta[:, 0]
            left, right = (step @ step).mean(1), (one - eta_ * mean) @ (one - eta_ * mean) + eta_**power * variance
            largest = max(largest, ((left - right).flatten(1).norm(dim=1) / left.flatten(1).norm(dim=1)).max().item())
    return [largest]


def lemma32_exceptions(bound: float = 2.0) -> list[float]:
    """How many of 10,000 random J* and learning rates satisfy S1 where eta lambda_1 is above 2, or violate it where it is not."""
    return [float(sum(int((stable != (size <= bound)).sum()) for size, stable, _, _ in _conditions()))]


def relaxation_exceptions() -> list[float]:
    """How many satisfy the exact condition of Eq. 11, but not its relaxation of Eq. 12."""
    return [float(sum(int((exact & ~(first & second)).sum()) for _, first, second, exact in _conditions()))]


def _conditions() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """eta lambda_1(J*), and whether S1, S2 and Eq. 11 hold."""
    generator = torch.Generator().manual_seed(1)
    for found, rho, parts in _drawn():
        mean, variance = moments(linearised(found, rho, parts)[2])
        eta = (3 * torch.rand(len(found), generator=generator, dtype=torch.float64) / _largest(mean))[:, None, None]
        square = (torch.eye(mean.shape[-1], dtype=mean.dtype) - eta * mean) @ (torch.eye(mean.shape[-1], dtype=mean.dtype) - eta * mean)
        exact = _largest(square + eta**2 * variance) <= 1
        yield eta[:, 0, 0] * _largest(mean), _largest(square) <= 1 + 1e-12, eta[:, 0, 0] ** 2 * _largest(variance) <= 1, exact


def lemma34_error(method: str = "msam") -> list[float]:
    """The largest relative difference of the gradient that the code of mSAM takes on quadratics from J w of Lemma 3.4."""
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for m in (1, 2, 4, 8):
        found = hessians(1, 8, 6, generator)
        net = _Quadratic(found[0], torch.randn(6, generator=generator, dtype=torch.float64))
        knobs = {"m": m} if method == "msam" else {}
        gradient = _gradient(net, optim.create(method, net, rho=0.3, **PLAIN, **knobs))
        j = linearised(found, torch.tensor(0.3, dtype=torch.float64), torch.arange(8).reshape(1, m, 8 // m))[2][0, 0]
        expected = j @ net.weight.detach()
        largest = max(largest, ((gradient - expected).norm() / expected.norm()).item())
    return [largest]


class _Quadratic(nn.Module):
    """Samples of loss w'Hw / 2 with their own H."""

    def __init__(self, per_sample: Tensor, start: Tensor) -> None:
        super().__init__()
        self.weight, self.per_sample = nn.Parameter(start), per_sample

    def forward(self, samples: Tensor) -> Tensor:
        """The loss of each sample, which is told by its place."""
        return (self.per_sample[samples] @ self.weight) @ self.weight / 2


def _gradient(net: _Quadratic, method: optim.Method) -> Tensor:
    samples = torch.arange(len(net.per_sample))
    method.backward(samples, samples, lambda outputs, _targets: outputs)
    assert net.weight.grad is not None
    return net.weight.grad


def omega_least() -> list[float]:
    """The least eigenvalue of Omega (Eq. 24) in its largest, over random Hessians."""
    least = np.inf
    for found, rho, parts in _drawn(50):
        _, sam, msam = linearised(found, rho, parts)
        values = torch.linalg.eigvalsh((msam - sam).mean(1))
        least = min(least, (values[:, 0] / values[:, -1]).min().item())
    return [float(least)]


def theorem31a() -> list[float]:
    """The largest ratio, over 10,000 sets of Hessians, of the learning rates at which SAM and SGD become unstable; 1 at most, says (a)."""
    return [max((unstable_from(sam) / unstable_from(sgd)).max().item() for sgd, sam, _ in _all_three())]


def theorem31b(variance: bool = True) -> list[float]:
    """The same of mSAM and SAM, for (b); without the ``variance`` the mean alone decides."""
    edge = unstable_from if variance else lambda j: 2 / _largest(moments(j)[0])
    return [max((edge(msam) / edge(sam)).max().item() for _, sam, msam in _all_three())]


def _all_three() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    return (linearised(*drawn) for drawn in _drawn())


# -- small networks --------------------------------------------------------------------------------------------------------------

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
    for name, j in zip(("sgd", "sam", "msam"), linearised(per_sample[None], torch.tensor(rho, dtype=torch.float64), order.reshape(100, m, batch // m)), strict=True):
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
    check.__name__: check
    for check in (
        *(lemma31_error, lemma32_exceptions, relaxation_exceptions, lemma34_error, omega_least, theorem31a, theorem31b),
        *(edge_of_stability, alignment_cosine),
    )
} | {
    **{f"edge_{own}_over_{other}_{kind}": partial(edge_ratio, own, other, batch)
       for own, other in (("sam", "sgd"), ("msam", "sam")) for kind, batch in (("full_batch", None), ("batch_24", 24))},
    **{f"alignment_factor_{method}": partial(alignment_factor, method) for method in ("sam", "msam")},
}  # fmt: skip
