"""ImageNet (ILSVRC 2012), or any tree of the same form: ``imagenet/{train,val}/<class>/<image>``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..schema import UserError
from .files import Files, FolderDataset
from .images import Augment

SUFFIXES = {".jpeg", ".jpg", ".png", ".webp"}


def imagenet(data_dir: str, *, margin: float, **augment: Any) -> FolderDataset:
    """``imagenet/train`` and ``imagenet/val`` under ``data_dir``, a folder a class; it cannot be downloaded without an account."""
    root = Path(data_dir) / "imagenet"
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise UserError(
                f"{root / part} is not there: put ImageNet as {root}/train/<class>/<image> and {root}/val/<class>/<image>, "
                "or set data_dir= (see image-net.org; it cannot be fetched without an account)."
            )
    return image_folder(root, margin=margin, **augment)


def image_folder(root: Path, *, margin: float = 1.0, **augment: Any) -> FolderDataset:
    """The images of any tree ``root/{train,val}/<class>/<image>``, shown at ``size``; ``augment``: the fields of ``Augment``.

    To measure on, the short side is resized to ``size * margin`` and the middle taken. UserError where there is no such tree.
    """
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise UserError(f"There is no folder {root / part}: images lie as {root}/{{train,val}}/<class>/<image>; set data_dir=.")
    names = sorted(path.name for path in (root / "train").iterdir() if path.is_dir())
    if len(names) < 2:
        raise UserError(f"{root / 'train'} needs a folder for each class, at least two; it has {len(names)}.")
    train, test = _files(root / "train", names), _files(root / "val", names)
    return FolderDataset(train, test, len(names), Augment(**augment), margin)


def _files(folder: Path, names: list[str]) -> Files:
    strange = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in names)
    if strange:
        raise UserError(f"{folder} has the class {strange[0]!r}, which the training set has not.")
    found, labels = [], []
    for label, name in enumerate(names):
        images = sorted(path.name for path in (folder / name).glob("*") if path.suffix.lower() in SUFFIXES)
        found += [f"{name}/{image}".encode() for image in images]
        labels += [label] * len(images)
    if not found:
        raise UserError(f"{folder} has no images ({', '.join(sorted(SUFFIXES))}) in its folders of classes.")
    return Files(folder, np.array(found), torch.tensor(labels))
