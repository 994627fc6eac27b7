"""The checks of mSAM's theory (Behdin et al. 2023, section 3): its lemmas, and Theorem 3.1, on random Hessians."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations

import numpy as np
import torch
from torch import Tensor, nn

from ... import optim

PLAIN = {"where.normalize": False}  # assumption 3.2: the normalisation of the ascent is left out
SHAPES = ((5, 2, 2), (5, 3, 3), (6, 4, 2), (6, 4, 4))  # samples, of them in a batch, micro-batches
SIZES = (1, 2, 3, 5, 10)  # of the Hessians


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
    """The product eta lambda_1(J*), and whether S1, S2 and Eq. 11 hold."""
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


CHECKS: dict[str, Callable[[], list[float]]] = {
    check.__name__: check
    for check in (lemma31_error, lemma32_exceptions, relaxation_exceptions, lemma34_error, omega_least, theorem31a, theorem31b)
}
