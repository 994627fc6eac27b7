"""Scores of a model on a split, in percent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ..data import Batch
from .processes import gathered


def widest(device: torch.device) -> torch.dtype:
    """The most exact type that the device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def accuracy(predictions: Tensor, targets: Tensor) -> Tensor:
    """Percent of ``predictions`` that equal ``targets``, both ``(n,)``."""
    return (predictions == targets).to(widest(targets.device)).mean() * 100


def matthews(predictions: Tensor, targets: Tensor) -> Tensor:
    """Matthews' correlation of ``predictions`` and ``targets`` times 100, as CoLA is scored."""
    from sklearn.metrics import matthews_corrcoef

    return torch.tensor(100 * matthews_corrcoef(targets.cpu().numpy(), predictions.cpu().numpy()))


def f1(predictions: Tensor, targets: Tensor) -> Tensor:
    """F1 of class 1 in percent, as MRPC and QQP are scored beside their accuracy."""
    from sklearn.metrics import f1_score

    return torch.tensor(100 * f1_score(targets.cpu().numpy(), predictions.cpu().numpy(), zero_division=0.0))


HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"accuracy": accuracy, "matthews": matthews, "f1": f1}


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], metrics: Sequence[str], precision: str) -> dict[str, float]:
    """Every metric of the model in evaluation mode, which is left as it was; NaN where a logit is not finite.

    Of several processes each has some of the batches, and all get the metrics of all.
    """
    training = model.training
    model.eval()
    predictions, targets, finite = [], [], []
    for batch in batches:
        with autocast(batch.targets.device, precision):
            logits = model(batch.inputs)
        predictions.append(logits.argmax(1))
        finite.append(logits.isfinite().all())
        targets.append(batch.targets)
    model.train(training)
    if not gathered(torch.stack(finite)).all():  # argmax takes a NaN for the largest: a number that means nothing
        return dict.fromkeys(metrics, math.nan)
    said, true = gathered(torch.cat(predictions)), gathered(torch.cat(targets))
    return {name: METRICS[name](said, true).item() for name in metrics}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which passes run at ``precision``: fp32, bf16 or fp16."""
    return torch.autocast(device.type, HALF.get(precision, torch.bfloat16), enabled=precision in HALF)
