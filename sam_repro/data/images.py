"""Images of one size in memory: batches made on the device, every image with draws of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..schema import UserError
from .split import Batch, Dataset, Sampling, Tensors

# Mean and deviation of a channel on the scale 0-255, in place of the data set's own.
KNOWN = {"half": ((127.5,), (127.5,)), "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))}


@dataclass(frozen=True)
class Augment:
    """How a batch is made of the images: the fields of ``conf/dataset``."""

    crop: int = 0  # zero padding of the random crop, pixels
    flip: bool = False
    inception: bool = False  # a random part of the image, in place of the crop
    cutout: int = 0
    cutout_p: float = 0.5
    size: int = 0
    normalise: str = "dataset"


@dataclass(frozen=True)
class ImageDataset(Dataset):
    """Images with mean and deviation of each channel, on the scale 0-255."""

    train: Tensors
    test: Tensors
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = Augment()
    layout: torch.memory_format = torch.channels_last

    def on(self, device: torch.device, workers: int, layout: torch.memory_format = torch.channels_last) -> ImageDataset:
        """The data set whose batches are laid out so."""
        return self if layout == self.layout else replace(self, layout=layout)

    @property
    def shape(self) -> dict[str, Any]:
        """Channels, and the side of the (square) images that reach the model."""
        channels, height = self.train.inputs.shape[1:3]
        return {"in_channels": channels, "image_size": self.augment.size or height}

    @property
    def fixed(self) -> bool:
        """Whether every epoch shows the same images."""
        a = self.augment
        return not (a.crop or a.flip or a.inception or a.cutout)

    @cached_property
    def _normalisers(self) -> dict[torch.device, Normalise]:
        return {}

    def normalised(self, device: torch.device) -> Normalise:
        """To the mean and deviation that ``augment.normalise`` names; they are brought to a device once."""
        if device not in self._normalisers:
            self._normalisers[device] = self._to(device)
        return self._normalisers[device]

    def _to(self, device: torch.device) -> Normalise:
        if self.augment.normalise == "pixel":
            return Normalise(*pixel_moments(self.train.inputs), self.augment.size, device, self.layout)
        mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in KNOWN.get(self.augment.normalise, (self.mean, self.std)))
        return Normalise(mean, std, self.augment.size, device, self.layout)

    def batches(self, split: Tensors, sampling: Sampling) -> TrainBatches:
        """Shuffled and augmented, to train on."""
        return TrainBatches(split, self, sampling)

    def in_order(self, split: Tensors, batch_size: int) -> Iterator[Batch]:
        """The split as it is, to measure on."""
        normalise = self.normalised(split.inputs.device)
        for indices in torch.arange(len(split), device=split.inputs.device).split(batch_size):
            yield Batch(normalise(split.inputs[indices]), split.targets[indices], indices)


class TrainBatches:
    """The training set, epoch by epoch. All draws of an epoch follow from the seed and its number alone."""

    def __init__(self, split: Tensors, dataset: ImageDataset, sampling: Sampling) -> None:
        self.inputs, self.targets = split.inputs, split.targets
        self.sampling, self.augment = sampling, dataset.augment
        self.normalise = dataset.normalised(split.inputs.device)
        images = split.inputs
        if self.augment.normalise == "pixel":  # a pixel's mean is of its place: before the image is moved, and padded with zeros after
            if self.augment.inception or self.augment.size:
                raise UserError("dataset.normalise=pixel needs images as they are: set dataset.inception=false and dataset.size=0.")
            images = self.normalise(images).contiguous()
            self.normalise = Normalise(torch.zeros(1, 1, 1), torch.ones(1, 1, 1), 0, images.device, dataset.layout)
        crop, (height, width) = 0 if self.augment.inception else self.augment.crop, images.shape[2:]
        padded = F.pad(images, (crop, crop, crop, crop))
        # Every crop of every image, as a view: windows[i, :, dy, dx] is image i moved by (dy, dx).
        self.windows = padded.unfold(2, height, 1).unfold(3, width, 1)

    def __len__(self) -> int:
        """Batches in an epoch; the last one may be shorter."""
        return self.sampling.count(len(self.targets))

    @property
    def nbytes(self) -> int:
        """Of the padded images."""
        return self.windows.untyped_storage().nbytes()

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``number`` after the first ``start``."""
        device = self.targets.device
        generator = torch.Generator(device).manual_seed(self.sampling.seed_of(number))
        order = self.sampling.cut(torch.randperm(len(self.targets), generator=generator, device=device))
        for place, whole in enumerate(order):
            indices, images = self.sampling.mine(whole), self.augmented(whole, generator)
            if place >= start:  # of those before, the draws are made as well
                yield Batch(images, self.targets[indices], indices, len(whole))

    def augmented(self, whole: Tensor, generator: torch.Generator) -> Tensor:
        """The images of this process's part of a batch, each with its own draw, which is the same whoever has the image."""
        indices, mine = self.sampling.mine(whole), self.sampling.mine

        def draw(high: int) -> Tensor:
            return mine(torch.randint(high, (len(whole),), generator=generator, device=whole.device))

        def uniform() -> Tensor:
            return mine(torch.rand(len(whole), generator=generator, device=whole.device))

        a = self.augment
        if a.inception:
            side = a.size or self.inputs.shape[2]
            images = random_parts(self.inputs[indices], side, a.flip, uniform)
            images = self.normalise(images)
        else:
            images = self.windows[indices, :, draw(2 * a.crop + 1), draw(2 * a.crop + 1)]
            if a.flip:
                images = torch.where(draw(2).bool().view(-1, 1, 1, 1), images.flip(-1), images)
            images = self.normalise(images)
        if a.cutout:
            # DeVries & Taylor 2017: the centre is anywhere in the image, so the square may stick out of it.
            height, width = images.shape[2:]
            cut = uniform() < a.cutout_p
            rows, columns = (self._square(draw(extent), extent) for extent in (height, width))
            hidden = rows[:, :, None] & columns[:, None, :] & cut[:, None, None]
            images.masked_fill_(hidden[:, None], 0.0)
        return images

    def _square(self, centre: Tensor, extent: int) -> Tensor:
        """Which of ``extent`` rows (or columns) the square around ``centre`` covers, shape ``(batch, extent)``."""
        side = self.augment.cutout
        distance = torch.arange(extent, device=centre.device) - centre[:, None]
        return (distance >= -(side // 2)) & (distance < side - side // 2)


def moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of every channel of uint8 images, a part of them at a time."""
    sums = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for part in images.split(256):
        values = part.double()
        sums += torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
    mean, square = sums / (images.numel() / images.shape[1])
    return tuple(mean.tolist()), tuple((square - mean**2).sqrt().tolist())


def pixel_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every pixel of uint8 images, each ``(channels, height, width)``; the deviation of a constant one is 1."""
    deviation, mean = torch.std_mean(images.float(), 0, correction=0)
    return mean, torch.where(deviation == 0, torch.ones_like(deviation), deviation)


class Normalise:
    """uint8 images to float32 ones, in a layout: enlarged to ``size``, mean 0 and deviation 1 in every channel, or in every pixel."""

    def __init__(
        self, mean: Tensor, std: Tensor, size: int, device: torch.device, layout: torch.memory_format = torch.channels_last
    ) -> None:
        self.mean, self.std = mean.to(device), std.to(device)  # (channels or 1, 1 or height, 1 or width)
        self.size, self.layout = size, layout

    def __call__(self, images: Tensor) -> Tensor:
        """``(n, channels, height, width)``, of any type."""
        values = images.to(torch.float32, memory_format=self.layout)
        if self.size not in (0, images.shape[2]):
            values = F.interpolate(values, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
            values = values.contiguous(memory_format=self.layout)
        elif values is images:
            values = images.clone(memory_format=self.layout)
        return values.sub_(self.mean).div_(self.std)


def random_parts(images: Tensor, side: int, flip: bool, uniform: Callable[[], Tensor]) -> Tensor:
    """A part of each image, 8 to 100 % of its area at an aspect ratio of 3:4 to 4:3, drawn to ``(side, side)``; float32.

    ``uniform``: a number in [0, 1) for every image.

    The augmentation of Inception (Szegedy et al. 2015), each image with its own part, mirrored every second time with ``flip``.
    A part that is larger than the image on one side is cut there.
    """
    n, device = len(images), images.device
    area = 0.08 + 0.92 * uniform()
    ratio = torch.exp((2 * uniform() - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
    # affine_grid speaks of the image as [-1, 1]: the part's centre, and half its extent.
    centre_x, centre_y = (2 * uniform() - 1) * (1 - width), (2 * uniform() - 1) * (1 - height)
    sign = torch.where(uniform() < 0.5, -1.0, 1.0) if flip else torch.ones(n, device=device)
    zero = torch.zeros_like(width)
    theta = torch.stack([torch.stack([width * sign, zero, centre_x], 1), torch.stack([zero, height, centre_y], 1)], 1)
    grid = F.affine_grid(theta, [n, images.shape[1], side, side], align_corners=False)
    sampled: Any = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return sampled
