"""The data sets, as tensors: read, checked, split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..schema import UserError
from .cifar import cifar10, cifar100
from .digits import digits
from .split import Dataset, Split

__all__ = ["Dataset", "Split", "load"]

READERS: dict[str, Callable[[str], Dataset]] = {"digits": digits, "cifar10": cifar10, "cifar100": cifar100}


@dataclass(frozen=True)
class Parts:
    """What a run trains on and what its score is measured on."""

    train: Split
    score: Split
    dataset: Dataset


def load(name: str, data_dir: str, *, train_fraction: float = 1.0, val_fraction: float = 0.0) -> Parts:
    """The data set ``name``, found under ``data_dir`` or downloaded to it.

    ``train_fraction`` keeps that share of the training set; ``val_fraction`` holds out a share of what is kept, and the
    score is then measured on it, not on the test set. Both cut one fixed shuffle, the same for every seed.

    Raises UserError where the files are not to be had, or are not the data set.
    """
    dataset = READERS[name](data_dir)
    if train_fraction == 1.0 and val_fraction == 0.0:
        return Parts(dataset.train, dataset.test, dataset)
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(0))
    kept = order[: max(1, round(train_fraction * len(order)))]
    held_out = round(val_fraction * len(kept))
    if val_fraction and not 0 < held_out < len(kept):
        raise UserError(f"val_fraction={val_fraction} of {len(kept)} training samples leaves one part empty.")
    train = dataset.train[kept[held_out:]]
    return Parts(train, dataset.train[kept[:held_out]] if held_out else dataset.test, dataset)


def to(parts: Parts, device: torch.device) -> Parts:
    """The parts on the device, where they stay for the whole training."""
    return replace(parts, train=parts.train.to(device), score=parts.score.to(device))
