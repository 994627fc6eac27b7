"""Methods that take their steps in turn in one process, on the same batch, each on a model of its own."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import models, optim
from ..chain import layers
from ..optim.passes import Criterion
from ..optim.where import Layers
from ..schema import UserError, kind, options

LR, MOMENTUM = 0.01, 0.9
# With which knobs a method takes part where its defaults would not show what it costs.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "budget": [{"budget": share, "r": 0.01} for share in (0.1, 0.5)],
    "looksam": [{}, {"k": 1}],
    "msam": [{"m": 8}, {"m": 32}],
    "saf": [{"start": 0, "delay": 1}], "mesa": [{"start": 0}],  # not only after some epochs
    "vsam": [{"start": 0, "s1": 25.0}], "vsam_a": [{"start": 0, "s1": 25.0}],  # of N = 50: about every other step
}  # fmt: skip


class LastLayers(Layers):
    """Stays with the first choice: the last k layers."""

    def observe(self, layer_norms: Tensor) -> None:
        """Take no notice."""


def per_sample_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, ``(batch,)``."""
    return F.cross_entropy(outputs, targets, reduction="none")


@dataclass
class Contestant:
    """A method on a model of its own."""

    label: str
    gradient: optim.Method
    base: torch.optim.Optimizer

    def step(self, inputs: Any, targets: Tensor, criterion: Criterion = per_sample_loss, **more: Any) -> tuple[float, optim.Report]:
        """Seconds of one step, and its report."""
        started = clock(targets.device)
        report = self.gradient.backward(inputs, targets, criterion, **more)
        self.base.step()
        self.base.zero_grad()
        return clock(targets.device) - started, report


class Entry(NamedTuple):
    """A method with its knobs, before it has a model."""

    label: str
    method: str
    knobs: dict[str, Any]

    @property
    def steady(self) -> bool:
        """Whether all of its steps make the same passes."""
        when = optim.settings(self.method).get("when")
        return when is None or when["name"] in ("never", "always")


def entries(methods: Iterable[str], model: str) -> Iterator[Entry]:
    """The methods in the variants that are measured; layer-wise SAM on the last 1, 4 and all stages of the model."""
    for method in methods:
        if method == "layerwise":
            found = [layer.stage for layer in layers(network(model, torch.device("cpu")))]
            stages = sorted(set(found), reverse=True)
            for count in sorted({min(count, len(stages)) for count in (1, 4, len(stages))}):
                k = sum(stage >= stages[count - 1] for stage in found)
                yield Entry(f"layerwise, last {count} of {len(stages)} stages (k={k})", method, {"k": k, "r": 0.01})
        else:
            for knobs in VARIANTS.get(method, [{}]):
                said = ", ".join(f"{key}={value:g}" for key, value in knobs.items())
                yield Entry(f"{method} ({said})" if said else method, method, knobs)


def network(model: str, device: torch.device) -> nn.Module:
    """A fresh model, the same at each call; UserError where it takes no images."""
    torch.manual_seed(0)
    if model in options("model") and kind("model", model) != "images":
        raise UserError(f"{model} takes no images: train it, and use python -m sam_repro.measure cost run=ID.")
    net: Any = models.create(model)
    return net.to(device, memory_format=torch.channels_last)


def contestant(label: str, model: str, method: str, device: torch.device, **knobs: Any) -> Contestant:
    """A method on a fresh copy of a model; a layer-wise one stays with the last k layers."""
    net = network(model, device)
    gradient = optim.create(method, net, **knobs)
    if isinstance(gradient, optim.Gradient) and type(gradient.where) is Layers:
        gradient.where.__class__ = LastLayers
    return Contestant(label, gradient, torch.optim.SGD(net.parameters(), LR, MOMENTUM))


def random_batch(batch_size: int, device: torch.device, size: int = 32) -> dict[str, Tensor]:
    """Random images with their classes and their places in a training set that they are all of: the arguments of a step."""
    inputs = torch.randn(batch_size, 3, size, size, device=device).to(memory_format=torch.channels_last)
    return {
        "inputs": inputs,
        "targets": torch.randint(10, (batch_size,), device=device),
        "indices": torch.arange(batch_size, device=device),
    }


def mean_of_kinds(kinds: Iterable[Hashable], values: Iterable[float], weights: Iterable[float]) -> float:
    """The mean of values that noise has spoilt: for each kind the median, weighted by how often the kind came.

    The steps of some methods differ in cost, and a median over all of them would be that of the most frequent kind.
    """
    groups: dict[Hashable, list[tuple[float, float]]] = defaultdict(list)
    for which, value, weight in zip(kinds, values, weights, strict=True):
        groups[which].append((value, weight))
    return sum(statistics.median(value for value, _ in group) * sum(weight for _, weight in group) for group in groups.values())


def clock(device: torch.device) -> float:
    """Seconds; the device has done its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
