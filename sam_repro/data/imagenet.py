"""ImageNet (ILSVRC 2012), or any tree of the same form: ``imagenet/{train,val}/<class>/<image>``."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..console import console
from ..schema import UserError
from .files import Files, FolderDataset
from .images import Augment
from .picture import SUFFIXES


def imagenet(data_dir: str, *, margin: float, **augment: Any) -> FolderDataset:
    """``imagenet/train`` and ``imagenet/val`` under ``data_dir``, a folder a class; it cannot be downloaded without an account."""
    return image_folder(check_folders(data_dir), margin=margin, **augment)


def check_folders(data_dir: str) -> Path:
    """Where ImageNet lies; UserError where it does not."""
    root = Path(data_dir) / "imagenet"
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise UserError(
                f"{root / part} is not there: put ImageNet as {root}/train/<class>/<image> and {root}/val/<class>/<image>, "
                "or set data_dir= (see image-net.org; it cannot be fetched without an account)."
            )
    return root


def image_folder(root: Path, *, margin: float = 1.0, **augment: Any) -> FolderDataset:
    """The images of any tree ``root/{train,val}/<class>/<image>``, shown at ``size``; ``augment``: the fields of ``Augment``.

    To measure on, the short side is resized to ``size * margin`` and the middle taken. UserError where there is no such tree.
    """
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise UserError(f"There is no folder {root / part}: images lie as {root}/{{train,val}}/<class>/<image>; set data_dir=.")
    names = _classes(root / "train")
    if len(names) < 2:
        raise UserError(f"{root / 'train'} needs a folder for each class, at least two; it has {len(names)}.")
    if strange := sorted({*_classes(root / "val")} ^ {*names}):
        part, other = ("train", "validation") if strange[0] in names else ("val", "training")
        raise UserError(f"{root / part} has the class {strange[0]!r}, which the {other} set has not.")
    train, test = _files(root / "train", names), _files(root / "val", names)
    return FolderDataset(train, test, len(names), Augment(**augment), margin)


def _classes(folder: Path) -> list[str]:
    """The folders in it; hidden ones are of programs, as .ipynb_checkpoints is."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path, names: list[str]) -> Files:
    found, labels, left = [], [], Counter[str]()
    for label, name in enumerate(names):
        images = _images(folder / name, left)
        found += [os.fsencode(f"{name}/{image}") for image in images]
        labels += [label] * len(images)
    if left:
        console.print(
            f"{folder}: left out are {', '.join(f'{count:,} {kind}' for kind, count in left.most_common(5))}, by their names no images"
        )
    return Files(folder, np.array(found), torch.tensor(labels))


def _images(folder: Path, left: Counter[str]) -> list[str]:
    """The names of the images of a class; what else lies there is counted in ``left``. UserError where there are no images."""
    images, others = [], Counter[str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            suffix = Path(entry.name).suffix.lower()
            if entry.name.startswith("."):
                continue
            if suffix not in SUFFIXES:
                others[suffix or "without a suffix"] += 1
            elif entry.is_file():  # without a look at the file itself, where the folder says what it is
                images.append(entry.name)
            else:
                raise UserError(f"{entry.path} is no file, though its name is that of an image: remove it.")
    if not images:
        there = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(5)) or "nothing"
        raise UserError(f"{folder} has no images ({', '.join(sorted(SUFFIXES))}); it has {there}.")
    left.update(others)
    return sorted(images)
