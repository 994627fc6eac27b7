"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): torchvision's, with draws that follow from the seed, epoch and step alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from .split import Batch, Batches, Sampling


class Mixed:
    """The batches with every image mixed with another one of its batch (of this process's part of it), and their labels likewise."""

    def __init__(
        self, batches: Batches, sampling: Sampling, classes: int, *, mixup: float, cutmix: float, layout: torch.memory_format
    ) -> None:
        from torchvision.transforms import v2

        kinds = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
        chosen = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
        self.mix: Callable[..., Any] = v2.RandomChoice(chosen) if len(chosen) > 1 else chosen[0]
        self.batches, self.sampling, self.layout = batches, sampling, layout

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def nbytes(self) -> int:
        """Of the batches as they were."""
        return self.batches.nbytes

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``number`` after the first ``start``; ``targets`` is the share of each class, ``(n, classes)``."""
        for step, samples in enumerate(self.batches.epoch(number, start), start):
            with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator, which is the model's
                torch.default_generator.manual_seed(1_000_003 * self.sampling.seed_of(number) + step)
                images, targets = self.mix(samples.inputs, samples.targets)
            yield samples._replace(inputs=images.contiguous(memory_format=self.layout), targets=targets)
