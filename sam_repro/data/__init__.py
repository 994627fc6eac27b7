"""The data sets: read, checked, split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..own import OWN, make
from ..schema import UserError
from .cifar import cifar10, cifar100
from .digits import digits
from .flowers import flowers102
from .glue import glue
from .imagenet import image_folder, imagenet
from .images import Augment, ImageDataset, moments
from .noise import with_noise
from .own import fitting
from .small import fashion_mnist, svhn
from .split import Batch, Batches, Dataset, Sampling, Tensors

__all__ = [
    "Augment", "Batch", "Batches", "Dataset", "ImageDataset", "Parts", "Sampling", "Tensors", "image_folder", "load", "moments", "to",
]  # fmt: skip

READERS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "fashion_mnist": fashion_mnist,
    "flowers102": flowers102,
    "imagenet": imagenet,
}


@dataclass(frozen=True)
class Parts:
    """What a run trains on and what its score is measured on."""

    train: Any
    score: Any
    dataset: Dataset


def load(
    settings: dict[str, Any],
    data_dir: str,
    *,
    train_fraction: float = 1.0,
    val_fraction: float = 0.0,
    max_samples: int = 0,
    label_noise: float = 0.0,
    seed: int = 0,
) -> Parts:
    """The data set of ``settings`` (an option of ``conf/dataset`` with its fields), found under ``data_dir`` or downloaded to it.

    ``train_fraction`` keeps that share of the training set; ``val_fraction`` holds out a share of what is kept, and the
    score is then measured on it, not on the test set; ``max_samples`` is the most to train on, and the most to score on (0: all).
    All cut one fixed shuffle, the same for every seed. ``label_noise`` is the share of the samples to train on whose label is wrong,
    drawn by ``seed`` (:func:`.noise.with_noise`).

    Raises UserError where the files are not to be had, or are not the data set.
    """
    values = dict(settings)
    name = values.pop("name")
    if f"dataset/{name}" in OWN:
        dataset = fitting(name, make(f"dataset/{name}", data_dir, **values))
    else:
        reader: Callable[..., Dataset] = READERS.get(name, glue)
        dataset = reader(data_dir, **values)
    train, score = dataset.train, dataset.test
    if train_fraction != 1.0 or val_fraction != 0.0:
        order = _shuffled(len(train))
        kept = order[: max(1, round(train_fraction * len(order)))]
        held_out = round(val_fraction * len(kept))
        if val_fraction and not 0 < held_out < len(kept):
            raise UserError(f"val_fraction={val_fraction} of {len(kept)} training samples leaves one part empty.")
        train, score = train[kept[held_out:]], train[kept[:held_out]] if held_out else score
    if max_samples:
        train, score = (split[_shuffled(len(split))[:max_samples]] if len(split) > max_samples else split for split in (train, score))
    return Parts(with_noise(train, label_noise, dataset.classes, seed), score, dataset)


def _shuffled(n: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def to(parts: Parts, device: torch.device, workers: int = 0, layout: torch.memory_format = torch.channels_last) -> Parts:
    """The parts on the device, where they stay for the whole training; files are read by so many processes, images laid out so."""
    dataset = parts.dataset.on(device, workers, layout)
    return replace(parts, train=parts.train.to(device), score=parts.score.to(device), dataset=dataset)
