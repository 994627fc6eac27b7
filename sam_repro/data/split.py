"""What every data set is to a training: two parts, and batches made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

SCORED = ("accuracy", "matthews", "f1")  # the metrics that there are; F1 is of two classes


class Batch(NamedTuple):
    """A batch. ``inputs``: what the model takes, samples along dim 0; ``indices``: the samples' places in the split.

    ``targets``: classes, int64, ``(n,)``; of mixed samples the share of each class, float, ``(n, classes)``.
    """

    inputs: Any
    targets: Tensor
    indices: Tensor
    whole: int = 0  # samples of all processes that have a part of it, in training

    @property
    def labels(self) -> Tensor:
        """The class of each sample, ``(n,)``; of a mixed one that of its larger part."""
        return self.targets.argmax(1) if self.targets.is_floating_point() else self.targets


@dataclass(frozen=True)
class Sampling:
    """How an epoch is cut into batches, and which part of each is this process's: all processes cut the same order."""

    batch_size: int  # of all processes together
    seed: int
    drop_last: bool = False  # leave out the batch that is shorter than the others: in every epoch other samples
    rank: int = 0
    processes: int = 1

    def count(self, samples: int) -> int:
        """Batches in an epoch; one of them may be shorter."""
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def cut(self, order: Tensor) -> list[Tensor]:
        """The batches of the samples in this order, whole ones."""
        return [part for part in order.split(self.batch_size) if not self.drop_last or len(part) == self.batch_size]

    def mine(self, whole: Tensor) -> Tensor:
        """The part of this process, of a batch or of what belongs to its samples; at most one sample more than another's."""
        return whole.tensor_split(self.processes)[self.rank]

    def seed_of(self, epoch: int) -> int:
        """All draws of an epoch follow from it."""
        return 1_000_003 * self.seed + epoch


def unscored(metrics: Sequence[str], classes: int) -> str:
    """Why a data set cannot be scored by these metrics, in a sentence; empty where it can."""
    if not metrics or {*metrics} - {*SCORED} or len({*metrics}) < len(metrics):
        return f"the metrics are one or several of {', '.join(SCORED)}, each once, not {' '.join(map(str, metrics)) or 'none'}"
    return f"f1 is of two classes, not of {classes}" if "f1" in metrics and classes != 2 else ""


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

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``number``, from the one after ``start`` others on: what they are does not depend on it."""


@dataclass(frozen=True)
class Shuffled:
    """What batches of most kinds have in common: nothing in memory beside the split."""

    split: Any
    sampling: Sampling

    nbytes = 0

    def __len__(self) -> int:
        """Batches in an epoch; one of them may be shorter."""
        return self.sampling.count(len(self.split))


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
    def batches(self, split: Any, sampling: Sampling) -> Batches:
        """Shuffled and augmented, to train on."""

    @abstractmethod
    def in_order(self, split: Any, batch_size: int) -> Iterator[Batch]:
        """The split as it is, to measure on."""
