"""Images and labels in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """``inputs``: uint8, ``(n, channels, height, width)``; ``targets``: int64, ``(n,)``."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Tensor) -> Split:
        return Split(self.inputs[index], self.targets[index])

    def to(self, device: torch.device) -> Split:
        """A copy on the device."""
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Dataset:
    """A data set with what a model and a reader of its scores need to know."""

    train: Split
    test: Split
    classes: int
    mean: tuple[float, ...]  # of each channel, on the scale 0-255
    std: tuple[float, ...]
    metric: str = "accuracy"

    @property
    def channels(self) -> int:
        """Of an image."""
        return self.train.inputs.shape[1]
