"""The checks of vSAM's claims (Deng et al. 2024): identities, counts and steps timed in turns. No network is trained for its accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ... import models, optim
from ...measure.compare import WARM_UP
from ...measure.contestants import contestant, per_sample_loss
from ...measure.objective import Objective
from ...optim.structure import norm_of

Side = tuple[str, dict[str, Any]]  # a method and its knobs


def remainder_order(method: str = "sam") -> list[float]:
    """The power of rho with which SAM's gradient less its two parts of Eq. 5 and 6 vanishes: 2 where they are its first order.

    On smooth networks in float64, for their exact Hessian times the unit gradient; a replicate a network.
    """
    rhos = np.logspace(-4, -1, 7)
    return [float(np.polyfit(np.log(rhos), [np.log(_remainder(method, seed, rho)) for rho in rhos], 1)[0]) for seed in range(5)]


def _remainder(method: str, seed: int, rho: float) -> float:
    net, inputs, targets = _digits(seed)
    objective = Objective(net, per_sample_loss, [(inputs, targets)])
    plain = objective.gradient()
    psf = objective.hessian_times(list(torch._foreach_div(plain, norm_of(plain))))
    optim.create(method, net, rho=rho).backward(inputs, targets, per_sample_loss)
    parts: list[Tensor] = [p.grad - g - rho * h for p, g, h in zip(objective.parameters, plain, psf, strict=True) if p.grad is not None]
    return norm_of(parts).item()


def lemma1_ratio(definite: bool = True) -> list[float]:
    """The largest norm of PSF over its bound in Lemma 1, of 1,000 random Hessians and gradients."""
    generator = torch.Generator().manual_seed(0)
    largest = -np.inf
    for index in range(1000):
        size = 2 + index % 30
        gradient = torch.randn(size, generator=generator, dtype=torch.float64)
        root = torch.randn(size, size, generator=generator, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(root @ root.T if definite else root + root.T)
        along = vectors.T @ gradient / gradient.norm()  # the cosines: eigenvectors have length 1
        largest = max(largest, ((values * along).norm() / (values * along.abs()).sum().abs()).item())
    return [largest]


def growth(gamma: float = 0.7) -> list[float]:
    """The power of T, from 100 to 1,000 steps, with which the mean squared norm of vSAM's gradient grows at the rates 1/t of Lemma 2."""
    return [_growth(gamma, seed) for seed in range(5)]


def _growth(gamma: float, seed: int) -> float:
    net, inputs, targets = _digits(seed)
    method = optim.create("vsam", net, gamma=gamma, start=1, s1=2.0, seed=seed)
    base = torch.optim.SGD(net.parameters(), 1.0)
    squares = []
    for step in range(1, 1001):
        base.param_groups[0]["lr"] = 1 / step
        batch = torch.randint(len(targets), (32,))
        method.backward(inputs[batch], targets[batch], per_sample_loss)
        squares.append(sum(p.grad.square().sum().item() for p in net.parameters() if p.grad is not None))
        base.step()
        base.zero_grad()
    return float(np.log(np.mean(squares) / np.mean(squares[:100])) / np.log(10))


def _digits(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A smooth network in float64 with random weights, and real images."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)).double()
    images, labels = load_digits(return_X_y=True)
    return net, torch.as_tensor(images / 16)[:256], torch.as_tensor(labels)[:256]


def most_samples(cap: float = 0.8) -> list[float]:
    """The most steps with an ascent in N = 50, of 1,000 steps of vSAM whose rate is the largest there is."""
    net, inputs, targets = _digits(0)
    method = optim.create("vsam", net, start=0, s1=50.0, alpha=0.0, cap=cap)
    ascended = [method.backward(inputs[:8], targets[:8], per_sample_loss).ascended for _ in range(1000)]
    return [float(max(sum(ascended[start : start + 50]) for start in range(0, 1000, 50)))]


def gradients_per_step(method: str = "esam") -> list[float]:
    """How often a step of ResNet-20 computes a gradient; 20 steps."""
    net: Any = models.create("resnet20")
    inputs, targets = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    passes: list[int] = []

    def watch(_module: nn.Module, _inputs: Any, outputs: Tensor) -> None:
        if outputs.requires_grad:
            outputs.register_hook(lambda _gradient: passes.append(1))

    list(net.modules())[-1].register_forward_hook(watch)  # the last layer
    steps = optim.create(method, net)
    for _ in range(20):
        steps.backward(inputs, targets, per_sample_loss)
    return [len(passes) / 20]


def evaluations_per_step(method: str = "aesam") -> list[float]:
    """How often a step of AE-SAM asks for the sharpness, that is the gradient's norm; 50 steps."""
    net, inputs, targets = _digits(0)
    steps: Any = optim.create(method, net, total_steps=50)
    decides, calls = steps.when.decides, []

    def counted(*given: Any) -> bool:
        calls.append(given)
        return bool(decides(*given))

    steps.when.decides = counted
    for _ in range(50):
        steps.backward(inputs, targets, per_sample_loss)
    return [len(calls) / 50]


def held(samples: int = 256, delay: int = 3) -> list[float]:
    """What SAF holds over one output of each sample and class for each epoch of its delay, and what MESA holds over one model."""
    net, inputs, targets = _digits(0)
    plan = {"steps_per_epoch": 1, "dataset_size": 256}
    saf, mesa = optim.create("saf", net, delay=delay, **plan), optim.create("mesa", net, **plan)
    for _ in range(delay):
        saf.backward(inputs[:samples], targets[:samples], per_sample_loss, indices=torch.arange(samples))
    teacher = saf.state_dict()["teacher"]
    outputs = teacher["bank"][teacher["written"] >= 0].numel()
    weights = sum(t.numel() for t in mesa.state_dict()["teacher"]["teacher"].values())
    return [outputs / (256 * 10 * 3), weights / sum(p.numel() for p in net.parameters())]


def weight_perturbation_speed() -> list[float]:
    """The speed of ESAM that perturbs half of the tensors, and descends by all samples, in SAM's."""
    return _speeds(("esam", {"beta": 0.5, "gamma": 1.0}), ("sam", {}), ascending=True)


def reuse_speed() -> list[float]:
    """The speed of vSAM in vSAM-A's in the steps between samples: with the PSF added, and without."""
    seldom = {"start": 1, "s1": 1.0, "alpha": 0.0}  # at the first step, then at one of 50
    return _speeds(("vsam", seldom), ("vsam_a", seldom), ascending=False)


def _speeds(own: Side, other: Side, ascending: bool, rounds: int = 12) -> list[float]:
    """Speed of ``own`` in ``other``'s on ResNet-20, in steps with an ascent or without; a replicate for two steps of each, in turns."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pair = [contestant(name, "resnet20", name, device, **knobs) for name, knobs in (own, other)]
    inputs = torch.randn(64, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    targets = torch.randint(10, (64,), device=device)
    rows: list[tuple[float, float]] = []
    for step in range(WARM_UP + 100):
        order = (0, 1) if step % 2 else (1, 0)  # who goes first may matter
        taken = {place: pair[place].step(inputs, targets) for place in order}
        if step >= WARM_UP and all(report.ascended is ascending for _, report in taken.values()):
            rows.append((taken[0][0], taken[1][0]))
        if len(rows) == 2 * rounds:
            break
    return [(a[1] + b[1]) / (a[0] + b[0]) for a, b in zip(rows[::2], rows[1::2], strict=False)]


CHECKS: dict[str, Callable[[], list[float]]] = {
    check.__name__: check
    for check in (
        *(remainder_order, lemma1_ratio, growth, most_samples, gradients_per_step, evaluations_per_step, held),
        *(weight_perturbation_speed, reuse_speed),
    )
}  # fmt: skip
