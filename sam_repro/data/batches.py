"""Batches made on the device: shuffled, cropped, flipped, cut and normalised, every sample on its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .split import Dataset, Split


class Samples(NamedTuple):
    """``inputs``: float32 in channels-last layout; ``indices``: the samples' places in the split."""

    inputs: Tensor
    targets: Tensor
    indices: Tensor


class TrainBatches:
    """The training set, epoch by epoch. All draws of an epoch follow from the seed and its number alone."""

    def __init__(
        self, split: Split, dataset: Dataset, batch_size: int, seed: int, *, crop: int, flip: bool, cutout: int, cutout_p: float
    ) -> None:
        self.targets = split.targets
        self.batch_size, self.seed = batch_size, seed
        self.crop, self.flip, self.cutout, self.cutout_p = crop, flip, cutout, cutout_p
        self.normalise = Normalise(dataset, split.inputs.device)
        height, width = split.inputs.shape[2:]
        padded = F.pad(split.inputs, (crop, crop, crop, crop))
        # Every crop of every image, as a view: windows[i, :, dy, dx] is image i moved by (dy, dx).
        self.windows = padded.unfold(2, height, 1).unfold(3, width, 1)

    def __len__(self) -> int:
        """Batches in an epoch; the last one may be shorter."""
        return -(-len(self.targets) // self.batch_size)

    def epoch(self, number: int) -> Iterator[Samples]:
        """The batches of epoch ``number``."""
        device = self.targets.device
        generator = torch.Generator(device).manual_seed(1_000_003 * self.seed + number)
        for indices in torch.randperm(len(self.targets), generator=generator, device=device).split(self.batch_size):
            yield Samples(self.augmented(indices, generator), self.targets[indices], indices)

    def augmented(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """The images ``indices``, each with its own draw."""

        def draw(high: int) -> Tensor:
            return torch.randint(high, (len(indices),), generator=generator, device=indices.device)

        images = self.windows[indices, :, draw(2 * self.crop + 1), draw(2 * self.crop + 1)]
        if self.flip:
            images = torch.where(draw(2).bool().view(-1, 1, 1, 1), images.flip(-1), images)
        images = self.normalise(images)
        if self.cutout:
            # DeVries & Taylor 2017: the centre is anywhere in the image, so the square may stick out of it.
            height, width = images.shape[2:]
            cut = torch.rand(len(indices), generator=generator, device=indices.device) < self.cutout_p
            rows, columns = (self._square(draw(extent), extent) for extent in (height, width))
            hidden = rows[:, :, None] & columns[:, None, :] & cut[:, None, None]
            images.masked_fill_(hidden[:, None], 0.0)
        return images

    def _square(self, centre: Tensor, extent: int) -> Tensor:
        """Which of ``extent`` rows (or columns) the square around ``centre`` covers, shape ``(batch, extent)``."""
        distance = torch.arange(extent, device=centre.device) - centre[:, None]
        return (distance >= -(self.cutout // 2)) & (distance < self.cutout - self.cutout // 2)


class Normalise:
    """uint8 images to float32 ones with mean 0 and deviation 1 in every channel, channels last."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self.mean = torch.tensor(dataset.mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(dataset.std, device=device).view(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """``(n, channels, height, width)``."""
        return images.to(torch.float32, memory_format=torch.channels_last).sub_(self.mean).div_(self.std)


def in_order(split: Split, dataset: Dataset, batch_size: int) -> Iterator[Samples]:
    """The split as it is, for evaluation."""
    normalise = Normalise(dataset, split.inputs.device)
    for indices in torch.arange(len(split), device=split.inputs.device).split(batch_size):
        yield Samples(normalise(split.inputs[indices]), split.targets[indices], indices)
