"""What the checks of several papers are computed on: small networks in float64 on scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ... import optim
from ...measure.contestants import Contestant, per_sample_loss
from ...optim.structure import norm_of


@cache
def digits() -> tuple[Tensor, Tensor]:
    """All 1,797 images, ``(n, 64)``, in a fixed random order, and their labels."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.as_tensor(images / 16)[order], torch.as_tensor(labels)[order]


def smooth(seed: int, hidden: int = 32) -> nn.Module:
    """A network of two layers without kinks, for digits."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10)).double()


def contestant(method: str, net: nn.Module, lr: float = 0.1, momentum: float = 0.9, **knobs: Any) -> Contestant:
    """The method on this network."""
    return Contestant(method, optim.create(method, net, **knobs), torch.optim.SGD(net.parameters(), lr, momentum))


def batches(steps: int, seed: int, size: int = 64, of: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches of the first ``of`` digits; the others are there to test on."""
    inputs, targets = digits()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(of, (size,), generator=generator)
        yield inputs[batch], targets[batch]


def trained(method: str, steps: int, seed: int = 0, hidden: int = 32, **knobs: Any) -> nn.Module:
    """A network after so many steps of the method."""
    net = smooth(seed, hidden)
    one = contestant(method, net, **knobs)
    for inputs, targets in batches(steps, seed):
        one.step(inputs, targets)
    return net


def plain_gradient(net: nn.Module, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """That of the mean loss at the weights as they are."""
    return list(torch.autograd.grad(per_sample_loss(net(inputs), targets).mean(), list(net.parameters())))


def method_gradient(method: optim.Method, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """That of the method; ``.grad`` is left empty."""
    method.backward(inputs, targets, per_sample_loss)
    found = [p.grad for p in method.structure.parameters if p.grad is not None]
    for p in method.structure.parameters:
        p.grad = None
    return found


def distance(own: list[Tensor], other: list[Tensor]) -> float:
    """The norm of the difference of two vectors in parts, in that of the second."""
    return (norm_of(torch._foreach_sub(own, other)) / norm_of(other)).item()


def weights(net: nn.Module) -> list[Tensor]:
    """The parameters as plain tensors."""
    return [p.detach().clone() for p in net.parameters()]


def passes(method: str, steps: int, size: int = 16, **knobs: Any) -> tuple[int, int]:
    """Samples that pass the network forward and backward in so many steps, counted at its last layer."""
    net = smooth(0)
    counts = [0, 0]

    def forward(_module: nn.Module, _inputs: Any, outputs: Tensor) -> None:
        if outputs.requires_grad:  # else FLOPs are being found out
            counts[0] += len(outputs)
            outputs.register_hook(backward)

    def backward(gradient: Tensor) -> None:
        counts[1] += len(gradient)

    one = contestant(method, net, **knobs)
    list(net.children())[-1].register_forward_hook(forward)
    for inputs, targets in batches(steps, 0, size):
        one.step(inputs, targets)
    return counts[0], counts[1]
