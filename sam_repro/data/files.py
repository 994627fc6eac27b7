"""Images in files: read into memory at one size, or batch by batch by worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..schema import UserError
from .images import KNOWN, Augment, Normalise
from .picture import read_image
from .split import Batch, Dataset, Sampling, Shuffled

Draw = tuple[int, int]  # the seed of an epoch, and the index of a sample
PIECE = 256  # images that a worker hands over together


def centre_square(image: Any, side: int, margin: float = 1.0) -> Tensor:
    """The middle of the image, its short side resized to ``side * margin`` first; uint8, ``(3, side, side)``."""
    from torchvision.transforms import functional as T

    return T.pil_to_tensor(T.center_crop(T.resize(image, round(side * margin), antialias=True), [side, side]))


@dataclass(frozen=True)
class Files:
    """``names``: one file a sample, under ``root``; ``targets``: int64, ``(n,)``, on the host."""

    root: Path
    names: np.ndarray[Any, np.dtype[np.bytes_]]  # not a list: worker processes would copy it, by counting references
    targets: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Tensor) -> Files:
        return Files(self.root, self.names[index.numpy()], self.targets[index])

    def path(self, index: int) -> Path:
        """Of the file of a sample."""
        return self.root / os.fsdecode(self.names[index])

    def to(self, device: torch.device) -> Files:
        """The files stay where they are."""
        return self

    nbytes = 0


@dataclass(frozen=True)
class FolderDataset(Dataset):
    """Images of any size in files, shown at ``augment.size``, read by ``workers`` processes (0: by this one)."""

    train: Files
    test: Files
    classes: int
    augment: Augment
    margin: float  # of the short side over the square that is measured on
    workers: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (it is immutable)
    layout: torch.memory_format = torch.channels_last

    def on(self, device: torch.device, workers: int, layout: torch.memory_format = torch.channels_last) -> FolderDataset:
        """The data set that makes its batches for ``device``, laid out so, read by so many processes."""
        return replace(self, device=device, workers=workers, layout=layout)

    @property
    def shape(self) -> dict[str, Any]:
        """Three channels, and the side of the images that reach the model."""
        return {"in_channels": 3, "image_size": self.augment.size}

    def batches(self, split: Files, sampling: Sampling) -> FileBatches:
        """Shuffled and augmented, to train on."""
        return FileBatches(split, sampling, self)

    def in_order(self, split: Files, batch_size: int) -> Iterator[Batch]:
        """The middle of every image, to measure on."""
        if id(split) not in self._readers:  # a reader holds its split, so that no other can have its id
            self._readers[id(split)] = Reader(Squares(split, self.augment.size, self.margin), self)
        yield from self._readers[id(split)].batches(list(torch.arange(len(split)).split(batch_size)))

    @cached_property
    def _readers(self) -> dict[int, Reader]:
        return {}


class Reader:
    """Makes batches of what worker processes read; they stay from one pass over the data to the next."""

    def __init__(self, samples: Squares | RandomParts, dataset: FolderDataset) -> None:
        self.pieces: list[list[Draw]] = []  # of the pass to come
        self.device = dataset.device
        self.loader: Any = DataLoader(
            samples,
            batch_sampler=self.pieces,
            num_workers=dataset.workers,
            persistent_workers=dataset.workers > 0,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=2 if dataset.workers else None,
            generator=torch.Generator(),  # or it would draw from the global one
        )
        mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in KNOWN[dataset.augment.normalise])
        self.normalise = Normalise(mean, std, dataset.augment.size, self.device, dataset.layout)
        self.passes = 0

    def batches(self, order: list[Tensor], seed: int = 0) -> Iterator[Batch]:
        """The batches ``order``, indices on the host, with the draws of ``seed``. A pass ends where the next one begins."""
        # A batch travels in pieces: a worker holds some hundred images at a time, however large the batch is.
        self.pieces[:] = [[(seed, index) for index in piece.tolist()] for indices in order for piece in indices.split(PIECE)]
        self.passes += 1
        loaded, this = iter(self.loader), self.passes
        for indices in order:
            if this != self.passes:
                raise RuntimeError("Another pass over the same images has begun: finish one before the next.")
            got = [self._next(loaded) for _ in indices.split(PIECE)]
            pixels, targets = (torch.cat(column) if len(column) > 1 else column[0] for column in zip(*got, strict=True))
            yield Batch(self.normalise(pixels), targets, indices.to(self.device, non_blocking=True))

    def _next(self, loaded: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        try:
            pixels, targets = next(loaded)
        except UserError as error:  # a worker hands it on with its traceback around it
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
        return pixels.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)


@dataclass(frozen=True)
class FileBatches(Shuffled):
    """The training set, epoch by epoch; an image's draws follow from the seed, the epoch and its index alone."""

    dataset: FolderDataset

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``number`` after the first ``start``."""
        seed = self.sampling.seed_of(number)
        whole = self.sampling.cut(torch.randperm(len(self.split), generator=torch.Generator().manual_seed(seed)))[start:]
        mine = self._reader.batches([self.sampling.mine(indices) for indices in whole], seed)
        yield from (batch._replace(whole=len(indices)) for batch, indices in zip(mine, whole, strict=True))

    @cached_property
    def _reader(self) -> Reader:
        return Reader(RandomParts(self.split, self.dataset.augment), self.dataset)


@dataclass(frozen=True)
class Squares(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """The middle of every image."""

    split: Files
    side: int
    margin: float

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        _, index = draw
        return centre_square(read_image(self.split.path(index)), self.side, self.margin), self.split.targets[index]


@dataclass(frozen=True)
class RandomParts(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """A random part of every image (Szegedy et al. 2015), or its middle; mirrored every second time."""

    split: Files
    augment: Augment

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        from torchvision.transforms import RandomResizedCrop
        from torchvision.transforms import functional as T

        image, side = read_image(self.split.path(draw[1])), self.augment.size
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(hash(draw))  # torch.manual_seed would seed GPUs too
            if self.augment.inception:
                part = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
                pixels = T.pil_to_tensor(T.resized_crop(image, *part, [side, side], antialias=True))
            else:
                pixels = centre_square(image, side)
            if self.augment.flip and torch.rand(()) < 0.5:
                pixels = pixels.flip(-1)
        return pixels, self.split.targets[draw[1]]
