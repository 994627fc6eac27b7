"""``python -m sam_repro.measure.throughput [model=resnet20] [batch_size=128] [steps=30] [device=auto]``: speed beside SGD's.

Machines are noisy, so the methods take their steps in turn in one process, on the same batch, and what counts is the
median of the ratios of neighbouring steps. Speed is SGD's step time divided by the method's: 1 is SGD, 0.5 half of it.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import models, optim
from ..command import command
from ..optim.passes import Criterion
from ..optim.where import Layers
from ..schema import UserError, kind, options, suggest


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
        started = _now(targets.device)
        report = self.gradient.backward(inputs, targets, criterion, **more)
        self.base.step()
        self.base.zero_grad()
        return _now(targets.device) - started, report


def contestant(label: str, model: str, method: str, device: torch.device, **knobs: Any) -> Contestant:
    """A method on a fresh copy of a model; a layer-wise one stays with the last k layers."""
    torch.manual_seed(0)
    if model in options("model") and kind("model", model) != "images":
        raise UserError(f"{model} takes no images: train it, and use python -m sam_repro.measure cost run=ID.")
    net: Any = models.create(model).to(device)
    net.to(memory_format=torch.channels_last)
    gradient = optim.create(method, net, **knobs)
    if isinstance(gradient, optim.Gradient) and isinstance(gradient.where, Layers):
        gradient.where.__class__ = LastLayers
    return Contestant(label, gradient, torch.optim.SGD(net.parameters(), 0.01, 0.9))


def contest(model: str, batch_size: int, device: torch.device, size: int = 32) -> tuple[list[Contestant], Tensor, Tensor]:
    """SGD, SAM and layer-wise SAM on the last k layers, every method on a fresh copy of the model, and a batch."""
    inputs = torch.randn(batch_size, 3, size, size, device=device).to(memory_format=torch.channels_last)
    targets = torch.randint(10, (batch_size,), device=device)
    found = [contestant(name, model, name, device) for name in ("sgd", "sam")]
    layers = found[0].gradient.structure.layers
    stages = sorted({layer.stage for layer in layers}, reverse=True)
    for count in (1, 4, len(stages)):
        if count <= len(stages):
            k = sum(layer.stage >= stages[count - 1] for layer in layers)
            label = f"layerwise, last {count} of {len(stages)} stages (k={k})"
            found.append(contestant(label, model, "layerwise", device, k=k, r=0.01))
    return found, inputs, targets


def measure(contestants: list[Contestant], inputs: Tensor, targets: Tensor, steps: int) -> list[tuple[str, float, float, optim.Report]]:
    """For every method: its label, median speed relative to the first, median seconds a step, last report."""
    for contestant in contestants:
        for _ in range(2):  # the first steps allocate, and find out FLOPs
            contestant.step(inputs, targets)
    rounds = [[contestant.step(inputs, targets) for contestant in contestants] for _ in range(steps)]
    results = []
    for index, contestant in enumerate(contestants):
        ratios = [row[0][0] / row[index][0] for row in rounds]
        seconds = statistics.median(row[index][0] for row in rounds)
        results.append((contestant.label, statistics.median(ratios), seconds, rounds[-1][index][1]))
    return results


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def main() -> None:
    """The command line."""
    settings = {"model": "resnet20", "batch_size": "128", "steps": "30", "device": "auto"}
    with command("sam_repro.measure.throughput"):
        for word in sys.argv[1:]:
            key, _, value = word.partition("=")
            if key not in settings:
                raise UserError(f"There is no key {key!r}.{suggest(key, settings)}")
            if key in ("batch_size", "steps") and not (value.isdecimal() and int(value)):
                raise UserError(f"{word!r}: {key} is a whole number, as in {key}={settings[key]}.")
            settings[key] = value
        from ..train.job import resolve_device

        device = torch.device(resolve_device(settings)["device"])
        contestants, inputs, targets = contest(settings["model"], int(settings["batch_size"]), device)
        results = measure(contestants, inputs, targets, int(settings["steps"]))
    print(f"{settings['model']}, batch {settings['batch_size']}, {device}, torch {torch.__version__}, median of {settings['steps']}")
    print(f"{'method':<42}{'speed':>7}{'ms/step':>9}{'forward':>9}{'backward':>9}")
    for label, speed, seconds, report in results:
        print(f"{label:<42}{speed:>7.3f}{seconds * 1000:>9.1f}{report.forward_units:>9.2f}{report.backward_units:>9.2f}")


if __name__ == "__main__":
    main()
