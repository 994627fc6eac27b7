"""The checks of KDD'24's claims (Lee 2024): identities, FLOPs counted, steps timed in turns, and the bound of Theorem 1."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from itertools import cycle, islice, product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ... import models, optim
from ...chain import layers
from ...measure.compare import WARM_UP, Compared, compare
from ...measure.contestants import Contestant, contestant, per_sample_loss
from ...measure.cost import Costs
from ...optim.structure import norm_of

Side = tuple[str, dict[str, Any]]  # a method and its knobs

MODEL = "resnet20"
DEPTHS = ([0], [9], [17], [19], [16, 17, 18, 19], [0, 7, 12, 19])  # layers of ResNet-20 to perturb, 0 next to the input
LIMITS: tuple[tuple[Side, Side], ...] = (
    (("layerwise", {"k": 0}), ("sgd", {})),
    (("layerwise", {"k": "all"}), ("generalized_sam", {})),  # the paper's SAM with its alpha of 0.8 (section 4.2)
    (("layerwise", {"k": "all", "alpha": 1.0, "normalize": True}), ("sam", {"rho": 0.1})),
)


def limit_difference(pairs: Sequence[tuple[Side, Side]] = LIMITS) -> list[float]:
    """The largest relative difference of the weights after 10 steps in float64, of k = 0 and SGD, and of k = all and SAM."""
    return [max(_difference(*pair) for pair in pairs)]


def _difference(own: Side, other: Side) -> float:
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(4, 3, 16, 16, generator=generator).double(), torch.randint(10, (4,), generator=generator)) for _ in range(10)]
    ends = []
    for name, knobs in (own, other):
        torch.manual_seed(0)
        net: Any = models.create(MODEL).double()
        one = Contestant(name, optim.create(name, net, **knobs), torch.optim.SGD(net.parameters(), 0.05, 0.9))
        for inputs, targets in batches:
            one.step(inputs, targets)
        ends.append([p.detach() for p in net.parameters()])
    return (norm_of(torch._foreach_sub(*ends)) / norm_of(ends[1])).item()


def uncounted_flops(perturbed: Sequence[Sequence[int]] = DEPTHS, own: str = "layerwise") -> list[float]:
    """By how much, at most, the FLOPs counted in a step differ from SGD's and those of the perturbed layers alone (Eq. 8), relatively."""
    inputs, targets = _batch(2)
    found = []
    for chosen in perturbed:
        one = _fixed(chosen) if own == "layerwise" else contestant(own, MODEL, own, _device())
        report = one.step(inputs, targets)[1]  # finds out the FLOPs of the stages, which would be counted too
        net = one.gradient.passes.model
        names = [layer.name for index, layer in enumerate(layers(net)) if index in chosen]
        costs = Costs(net, inputs)
        expected = costs.forward * report.forward_units + costs.backward + costs.ascent(names)
        with FlopCounterMode(display=False) as counter:
            one.gradient.backward(inputs, targets, per_sample_loss)
        found.append(abs(counter.get_total_flops() / len(targets) / expected - 1))
    return [max(found)]


def eq8_slope() -> list[float]:
    """The slope of the time of a step on its cost by Eq. 8, both in SGD's steps, over choices of layers."""
    return [float(np.polyfit([row.predicted for row in rows], [row.measured for row in rows], 1)[0]) for rows in _eq8()]


def eq8_fit() -> list[float]:
    """The share of the variance of the time of a step that its cost by Eq. 8 explains, over choices of layers."""
    return [float(np.corrcoef([row.predicted for row in rows], [row.measured for row in rows])[0, 1] ** 2) for rows in _eq8()]


@cache
def _eq8() -> list[list[Compared]]:
    """Both passes run the whole model forward (``bn="both"``): Eq. 8 has that in its constant, where a chain would save a part of it."""
    return _in_turns([_fixed(chosen, bn="both") for chosen in DEPTHS])


def eq9_slope() -> list[float]:
    """The slope of LookSAM's mean step on the share of steps with an ascent, 1/k, in SGD's steps: 1 where an ascent costs one."""
    replicates = _in_turns([contestant("looksam", MODEL, "looksam", _device(), k=k) for k in (2, 3, 4, 5)], rounds=12)
    return [float(np.polyfit([row.ascents for row in rows], [row.measured for row in rows], 1)[0]) for rows in replicates]


def input_side_cost() -> list[float]:
    """The time of a step that perturbs the first four layers of ResNet-20 in that of one that perturbs the last four."""
    last = len(layers(models.create(MODEL)))
    return [first.measured / other.measured for first, other in _in_turns([_fixed(range(4)), _fixed(range(last - 4, last))])]


def parameterwise_saving(own: Side = ("esam", {"beta": 0.5, "gamma": 1.0})) -> list[float]:
    """The share of what SAM's step takes beyond SGD's that ESAM saves, which perturbs half of the tensors and descends by all samples."""
    name, knobs = own
    timed = [contestant("sam", MODEL, "sam", _device()), contestant(name, MODEL, name, _device(), **knobs)]
    return [(sam.measured - other.measured) / (sam.measured - 1) for sam, other in _in_turns(timed)]


def norm_collection(batch_size: int = 128, times: int = 1) -> list[float]:
    """The time of collecting the norm of every layer and choosing k of them, in that of a forward pass (ResNet-20)."""
    device, (inputs, targets) = _device(), _batch(batch_size)
    one = contestant("layerwise", MODEL, "layerwise", device, k=4)
    gradient: Any = one.gradient
    gradient.where.__class__ = optim.where.Layers  # which chooses anew
    gradient.backward(inputs, targets, per_sample_loss)

    def collect() -> None:
        for _ in range(times):
            gradient.where.observe(gradient.structure.layer_norms(gradient.structure.gradients()))
            _ = gradient.where.chosen

    def forward() -> None:
        gradient.passes.model(inputs)

    rounds = [_seconds(collect, device) / _seconds(forward, device) for _ in range(WARM_UP + 10)]
    return rounds[WARM_UP:]


def theorem1_ratio(stretch: float = 1.0, problems: int = 45) -> list[float]:
    """The largest ratio of the two sides of (7), over random problems, whichever layers and however many are perturbed.

    eta and r are drawn up to ``stretch`` times their limit of 1 / (2 beta).
    """
    torch.manual_seed(0)
    settings = product(("high", "low", "random"), range(1, Problem.layers + 1), (0.8, 1.0))
    return [max(_sides(stretch, *setting) for setting in islice(cycle(settings), problems))]


class Problem(nn.Module):
    """Samples of loss w'Aw / 2 + sum cos(u'w) - b'w with their own b: smooth, not convex, of a known variance; five layers of w."""

    layers = 5

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(4, 1, bias=False) for _ in range(self.layers))
        size = 4 * self.layers
        root, self.waves = torch.randn(size, size) / size**0.5, torch.randn(3, size) / size**0.5
        self.square, self.samples = root @ root.T, torch.randn(32, size)
        self.beta = float(torch.linalg.matrix_norm(self.square, 2) + torch.linalg.matrix_norm(self.waves, 2) ** 2)
        self.variance = float((self.samples - self.samples.mean(0)).square().sum(1).mean())

    def forward(self, samples: Tensor) -> Tensor:
        """The loss of each sample."""
        w = torch.cat([part.weight.reshape(-1) for part in self.parts.children()])  # type: ignore[operator]
        return w @ self.square @ w / 2 + (self.waves @ w).cos().sum() - samples @ w


def _sides(stretch: float, criterion: str, k: int, alpha: float, steps: int = 25, trials: int = 4, batch_size: int = 4) -> float:
    """The left side of (7) over the right one; the means of both are over trials of the same problem."""
    net = Problem().double()
    net.square, net.waves, net.samples = net.square.double(), net.waves.double(), net.samples.double()
    start = [p.detach().clone() for p in net.parameters()]
    # An even k goes to the limit itself.
    eta, r = (stretch * (torch.rand(2) if k % 2 else torch.ones(2)) / (2 * net.beta)).tolist()
    squares, falls = [], []
    for trial in range(trials):
        for p, value in zip(net.parameters(), start, strict=True):
            p.data.copy_(value)
        method = optim.create("layerwise", net, k=k, r=r, alpha=alpha, criterion=criterion, seed=trial)
        base = torch.optim.SGD(net.parameters(), eta)
        falls.append(_loss(net).item())
        for _ in range(steps):
            squares.append(norm_of(torch.autograd.grad(_loss(net), list(net.parameters()))).item() ** 2)
            batch = net.samples[torch.randint(len(net.samples), (batch_size,))]
            method.backward(batch, batch, lambda outputs, _targets: outputs)
            base.step()
            base.zero_grad()
        falls[-1] -= _loss(net).item()
    noise = 4 * (eta * net.beta + net.beta**2 * r**2) * net.variance / batch_size
    return float(np.mean(squares) / (4 / (steps * eta) * np.mean(falls) + noise))


def _loss(net: Problem) -> Tensor:
    return net(net.samples).mean()


def _fixed(chosen: Sequence[int], **knobs: Any) -> Contestant:
    """Layer-wise SAM that stays with the layers ``chosen``."""
    one = contestant("layerwise", MODEL, "layerwise", _device(), k=len(chosen), r=0.01, **knobs)
    where: Any = one.gradient.where  # type: ignore[attr-defined]
    where.load_state_dict({**where.state_dict(), "chosen": list(chosen)})
    return one


def _in_turns(timed: Sequence[Contestant], replicates: int = 5, rounds: int = 5) -> list[list[Compared]]:
    """For each replicate the mean step of every method in SGD's, of so many steps that they and SGD take in turn."""
    inputs, targets = _batch()
    everyone = [contestant("sgd", MODEL, "sgd", _device()), *timed]
    costs = Costs(everyone[0].gradient.passes.model, inputs)
    batches = [{"inputs": inputs, "targets": targets}] * (rounds + WARM_UP)
    return [compare(everyone, costs, batches)[1:] for _ in range(replicates)]


def _batch(size: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(size, 3, 32, 32, generator=generator).to(_device(), memory_format=torch.channels_last)
    return inputs, torch.randint(10, (size,), generator=generator).to(_device())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    started = _now(device)
    work()
    return _now(device) - started


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


CHECKS: dict[str, Callable[[], list[float]]] = {
    check.__name__: check
    for check in (
        limit_difference, uncounted_flops, eq8_slope, eq8_fit, eq9_slope, input_side_cost, parameterwise_saving, norm_collection,
        theorem1_ratio,
    )
}  # fmt: skip
