"""What the frozen first stages of a model make of a data set, computed once: the rest is then trained on that alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..chain import Chain
from ..console import track
from ..schema import UserError
from . import Parts
from .images import ImageDataset
from .split import Batch, Dataset, Sampling, Shuffled, Tensors


@dataclass(frozen=True)
class VectorDataset(Dataset):
    """Vectors with labels."""

    train: Tensors
    test: Tensors
    classes: int
    metrics: tuple[str, ...] = ("accuracy",)

    def batches(self, split: Tensors, sampling: Sampling) -> VectorBatches:
        """Shuffled, to train on."""
        return VectorBatches(split, sampling)

    def in_order(self, split: Tensors, batch_size: int) -> Iterator[Batch]:
        """The split as it is, to measure on."""
        for indices in torch.arange(len(split), device=split.targets.device).split(batch_size):
            yield Batch(split.inputs[indices], split.targets[indices], indices)


@dataclass(frozen=True)
class VectorBatches(Shuffled):
    """The training set, epoch by epoch, in the order that the images would have."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``number`` after the first ``start``."""
        device = self.split.targets.device
        generator = torch.Generator(device).manual_seed(self.sampling.seed_of(number))
        for whole in self.sampling.cut(torch.randperm(len(self.split), generator=generator, device=device))[start:]:
            indices = self.sampling.mine(whole)
            yield Batch(self.split.inputs[indices], self.split.targets[indices], indices, len(whole))


def cached(parts: Parts, model: nn.Module, batch_size: int, autocast: Any) -> tuple[Parts, Chain]:
    """The parts as the state that the frozen first stages hand on, and the stages that are left.

    Raises UserError where nothing is frozen, or where every epoch shows other images.
    """
    stages = list(model.named_children()) if isinstance(model, Chain) else []
    frozen = next((i for i, (_, stage) in enumerate(stages) if any(p.requires_grad for p in stage.parameters())), 0)
    if not frozen:
        raise UserError(
            "model.cache=true keeps what frozen stages compute, and none is frozen: set model.freeze=true (of a vision transformer), "
            "or model.cache=false."
        )
    if not (isinstance(parts.dataset, ImageDataset) and parts.dataset.fixed):
        raise UserError(
            "model.cache=true needs images that are the same in every epoch: set dataset.crop=0, dataset.flip=false, "
            "dataset.inception=false and dataset.cutout=0, or model.cache=false."
        )
    model.eval()
    train, score = (_features(model, frozen, parts.dataset, split, batch_size, autocast) for split in (parts.train, parts.score))
    dataset = VectorDataset(train, score, parts.dataset.classes, parts.dataset.metrics)
    return Parts(train, score, dataset), Chain(OrderedDict(stages[frozen:]))


@torch.no_grad()
def _features(model: nn.Module, stop: int, dataset: ImageDataset, split: Any, batch_size: int, autocast: Any) -> Tensors:
    made = []
    for samples in track(dataset.in_order(split, batch_size), -(-len(split) // batch_size), "frozen stages"):
        with autocast:
            made.append(model(samples.inputs, stop=stop).float())
    return Tensors(torch.cat(made), split.targets)
