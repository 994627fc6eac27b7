"""Others' sharpness-aware steps, used as their documentation says, on models of their own.

What they compute and ours does not, and the other way round: plain SAM and pytorch-optimizer's SAM and LookSAM move BatchNorm's running
statistics in both passes; pytorch-optimizer's LookSAM makes both passes at every step, whatever k is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .contestants import LR, MOMENTUM, clock

Take = Callable[[Tensor, Tensor], Any]  # a step on inputs and targets
SGD = torch.optim.SGD
BASE: dict[str, Any] = {"lr": LR, "momentum": MOMENTUM}
RHO = 0.05


class Passes(NamedTuple):
    """Of a step, as a method's report has them."""

    forward_units: float
    backward_units: float


@dataclass
class Rival:
    """Someone else's step, which makes two passes forward and two backward."""

    label: str
    same_work: str  # the label of the contestant that does the same work
    take: Take

    def step(self, inputs: Tensor, targets: Tensor, **_: Any) -> tuple[float, Passes]:
        """Seconds of one step, and its passes."""
        started = clock(targets.device)
        self.take(inputs, targets)
        return clock(targets.device) - started, Passes(2.0, 2.0)


def by_hand(net: nn.Module) -> Take:
    """SAM as everybody writes it first: two calls of ``loss.backward()``."""
    parameters, base = list(net.parameters()), SGD(net.parameters(), **BASE)

    def take(inputs: Tensor, targets: Tensor) -> None:
        F.cross_entropy(net(inputs), targets).backward()
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
            moves = [(p, p.grad * (RHO / (norm + 1e-12))) for p in parameters if p.grad is not None]
            for p, move in moves:
                p.add_(move)
        base.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        with torch.no_grad():
            for p, move in moves:
                p.sub_(move)
        base.step()
        base.zero_grad()

    return take


def passes_alone(net: nn.Module, m: int) -> Take:
    """What the passes of mSAM take by themselves: two over each of m micro-batches, and nothing in between.

    Small batches are slower for their size than a whole one, which the limit, counted in samples, does not know.
    """
    base = SGD(net.parameters(), **BASE)

    def take(inputs: Tensor, targets: Tensor) -> None:
        for x, y in zip(inputs.tensor_split(m), targets.tensor_split(m), strict=True):
            for _ in range(2):
                F.cross_entropy(net(x), y).backward()
        base.step()
        base.zero_grad()

    return take


def _closed(net: nn.Module, optimizer: Any, inputs: Tensor, targets: Tensor) -> Callable[[], Tensor]:
    """The closure of pytorch-optimizer's examples."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(inputs), targets)
        loss.backward()
        return loss

    return closure


def sam(net: nn.Module, theirs: Any) -> Take:
    """``first_step``, ``second_step``."""
    optimizer = theirs.SAM(net.parameters(), SGD, rho=RHO, **BASE)

    def take(inputs: Tensor, targets: Tensor) -> None:
        F.cross_entropy(net(inputs), targets).backward()
        optimizer.first_step(zero_grad=True)
        F.cross_entropy(net(inputs), targets).backward()
        optimizer.second_step(zero_grad=True)

    return take


def looksam(net: nn.Module, theirs: Any) -> Take:
    """``closure(); step(closure)``, with our k."""
    optimizer = theirs.LookSAM(net.parameters(), SGD, rho=RHO, k=5, alpha=0.7, **BASE)

    def take(inputs: Tensor, targets: Tensor) -> None:
        closure = _closed(net, optimizer, inputs, targets)
        closure()
        optimizer.step(closure)

    return take


def gsam(net: nn.Module, theirs: Any) -> Take:
    """``set_closure``, ``step``, then the schedules of learning rate and rho."""
    base = SGD(net.parameters(), **BASE)
    schedule = torch.optim.lr_scheduler.ConstantLR(base, factor=1.0)
    rho = theirs.ProportionScheduler(schedule, max_lr=LR, max_value=RHO, min_value=RHO)
    optimizer = theirs.GSAM(net.parameters(), base, net, rho)

    def take(inputs: Tensor, targets: Tensor) -> None:
        optimizer.set_closure(F.cross_entropy, inputs, targets)
        optimizer.step()
        schedule.step()
        optimizer.update_rho_t()

    return take


def wsam(net: nn.Module, theirs: Any) -> Take:
    """``step(closure)``."""
    optimizer = theirs.WSAM(net, net.parameters(), SGD, rho=RHO, **BASE)

    def take(inputs: Tensor, targets: Tensor) -> None:
        optimizer.step(_closed(net, optimizer, inputs, targets))

    return take


# Beside which of ours. GSAM takes the gradient at w apart into what is along that at w + eps and what is not, as LookSAM's ascent does.
SAME_WORK: dict[str, tuple[str, Callable[[nn.Module, Any], Take]]] = {
    "SAM": ("sam", sam), "LookSAM (k=5)": ("looksam", looksam), "GSAM": ("looksam (k=1)", gsam), "WSAM": ("generalized_sam", wsam),
}  # fmt: skip


def version() -> str | None:
    """Of pytorch-optimizer; None where it is not installed."""
    try:
        return metadata.version("pytorch-optimizer")
    except metadata.PackageNotFoundError:
        return None


def rivals() -> dict[str, tuple[str, Callable[[nn.Module], Take]]]:
    """For every rival that is installed: the label of ours that does the same work, and what makes its step of a model."""
    found: dict[str, tuple[str, Callable[[nn.Module], Take]]] = {"SAM by hand": ("sam", by_hand)}
    for m in (8, 32):
        found[f"passes alone, {m} micro-batches"] = f"msam (m={m})", partial(passes_alone, m=m)
    if version() is not None:
        theirs = importlib.import_module("pytorch_optimizer")
        for label, (same, make) in SAME_WORK.items():
            found[f"pytorch-optimizer's {label}"] = same, lambda net, make=make: make(net, theirs)  # type: ignore[misc]
    return found
