"""Scores of a model on a split, in percent."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..data.batches import Samples


def accuracy(predictions: Tensor, targets: Tensor) -> Tensor:
    """Percent of ``predictions`` that equal ``targets``, both ``(n,)``."""
    return (predictions == targets).double().mean() * 100


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"accuracy": accuracy}


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Samples], metric: str, precision: str) -> float:
    """The score of the model in evaluation mode; its mode is left as it was."""
    training = model.training
    model.eval()
    predictions, targets = [], []
    for batch in batches:
        with autocast(batch.inputs.device, precision):
            predictions.append(model(batch.inputs).argmax(1))
        targets.append(batch.targets)
    model.train(training)
    return METRICS[metric](torch.cat(predictions), torch.cat(targets)).item()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which passes run at ``precision``: fp32 or bf16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
