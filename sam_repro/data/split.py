"""What every data set is to a training: two parts, and batches made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor


class Batch(NamedTuple):
    """A batch. ``inputs``: what the model takes, samples along dim 0; ``indices``: the samples' places in the split."""

    inputs: Any
    targets: Tensor
    indices: Tensor


class Split(Protocol):
    """Samples with their labels, in memory or on a disk."""

    targets: Tensor  # int64, (n,)

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor) -> Self:
        """The samples ``index``, int64 on the host, as a split of their own."""

    def to(self, device: torch.device) -> Self:
        """A copy on the device."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""


@dataclass(frozen=True)
class Tensors:
    """Samples in memory, along dim 0: of images uint8, ``(n, channels, height, width)``. ``targets``: int64, ``(n,)``."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Tensor) -> Tensors:
        return Tensors(self.inputs[index], self.targets[index])

    def to(self, device: torch.device) -> Tensors:
        """A copy on the device."""
        return Tensors(self.inputs.to(device), self.targets.to(device))

    @property
    def nbytes(self) -> int:
        """Of the inputs."""
        return self.inputs.numel() * self.inputs.element_size()


class Batches(Protocol):
    """The training set, epoch by epoch. All draws of an epoch follow from the seed and its number alone."""

    def __len__(self) -> int:
        """Batches in an epoch; the last one may be shorter."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory, beside the split's."""

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch ``number``."""


@dataclass(frozen=True)
class Shuffled:
    """What batches of most kinds have in common: nothing in memory beside the split, and a seed for each epoch."""

    split: Any
    batch_size: int
    seed: int

    nbytes = 0

    def __len__(self) -> int:
        """Batches in an epoch; one of them may be shorter."""
        return -(-len(self.split) // self.batch_size)

    def seed_of(self, number: int) -> int:
        """All draws of epoch ``number`` follow from it."""
        return 1_000_003 * self.seed + number


@dataclass(frozen=True)
class FullBatches:
    """``batches`` without the one of an epoch that is shorter than ``batch_size``: in every epoch other samples are left out."""

    batches: Batches
    batch_size: int
    samples: int

    def __len__(self) -> int:
        return self.samples // self.batch_size

    @property
    def nbytes(self) -> int:
        """Bytes of memory, beside the split's."""
        return self.batches.nbytes

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch ``number``."""
        return (samples for samples in self.batches.epoch(number) if len(samples.targets) == self.batch_size)


class Dataset(ABC):
    """A data set with what a model and a reader of its scores need to know."""

    train: Any  # a split of its own kind
    test: Any
    classes: int
    metrics: tuple[str, ...] = ("accuracy",)  # the first is the score
    note: str = ""  # what a reader of its scores must know, e.g. that it is not the whole data set

    def on(self, device: torch.device, workers: int, layout: torch.memory_format = torch.channels_last) -> Dataset:
        """The data set that makes its batches for ``device``, images laid out so; where it reads files, with so many processes."""
        return self

    @property
    def shape(self) -> dict[str, Any]:
        """What a model must know of the inputs, as arguments of ``models.create``."""
        return {}

    @abstractmethod
    def batches(self, split: Any, batch_size: int, seed: int) -> Batches:
        """Shuffled and augmented, to train on."""

    @abstractmethod
    def in_order(self, split: Any, batch_size: int) -> Iterator[Batch]:
        """The split as it is, to measure on."""
