"""A plug-in's data set: whether it is one that a training can take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..schema import UserError
from .split import Dataset, Tensors, unscored


def fitting(name: str, found: Any) -> Dataset:
    """The data set that the code of ``dataset=name`` made; UserError where it is none, or its shapes do not fit each other."""
    if not isinstance(found, Dataset):
        raise UserError(f"dataset={name} makes {type(found).__name__}, which is no sam_repro.data.Dataset.")
    if wrong := unscored(found.metrics, found.classes):
        raise UserError(f"dataset={name}: {wrong}.")
    for part in ("train", "test"):
        if wrong := _wrong(getattr(found, part), found.classes):
            raise UserError(f"dataset={name}: {part} {wrong}.")
    return found


def _wrong(split: Any, classes: int) -> str:
    """What does not fit in a part of the data set; empty where all does."""
    targets = getattr(split, "targets", None)
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64 or targets.ndim != 1:
        shown = f"{targets.dtype} of shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        return f"has targets that are {shown}, not a tensor of torch.int64, one number for each sample"
    if not len(targets):
        return "is empty"
    if not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        return f"has targets from {int(targets.min())} to {int(targets.max())}; of {classes} classes they are 0 to {classes - 1}"
    if isinstance(split, Tensors) and (split.inputs.ndim != 4 or len(split.inputs) != len(targets)):
        return f"has inputs of shape {tuple(split.inputs.shape)} for {len(targets)} targets, not ({len(targets)}, channels, height, width)"
    return "" if len(split) == len(targets) else f"has {len(split)} samples and {len(targets)} targets"
