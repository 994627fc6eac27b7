"""Oxford Flowers102 (Nilsback & Zisserman 2008): 8,189 photographs of 102 kinds of flowers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..fetch import fetched
from ..schema import UserError
from .files import centre_square
from .images import Augment, ImageDataset, moments
from .picture import read_image
from .split import Tensors

OFFICIAL = {"train": 1020, "val": 1020, "test": 6149}


def flowers102(data_dir: str, *, split: str, size: int, **augment: Any) -> ImageDataset:
    """``flowers-102/`` under ``data_dir``, downloaded if it is not there; the middle square of every image, at ``size``.

    ``split``: ``kdd24`` trains on the official test split and measures on the rest, as section 4.1 of the paper does;
    ``official`` trains on the official training and validation split and measures on the test split.
    """
    parts = {name: _read(data_dir, name, size) for name in OFFICIAL}
    rest = Tensors(*(torch.cat([getattr(parts[name], field) for name in ("train", "val")]) for field in ("inputs", "targets")))
    train, test = (parts["test"], rest) if split == "kdd24" else (rest, parts["test"])
    return ImageDataset(train, test, 102, *moments(train.inputs), Augment(size=size, **augment))


def _read(data_dir: str, name: str, size: int) -> Tensors:
    from torchvision.datasets import Flowers102

    there = (Path(data_dir) / "flowers-102" / "jpg").is_dir()
    try:
        listed = fetched("flowers102", data_dir, not there, lambda: Flowers102(data_dir, name, download=not there))
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"Flowers102 is not complete under data_dir={data_dir} and could not be downloaded ({str(error).splitlines()[0]}): "
            f"unpack 102flowers.tgz there with imagelabels.mat and setid.mat, so that {Path(data_dir) / 'flowers-102'} holds all three."
        ) from error
    if len(listed) != OFFICIAL[name]:
        raise UserError(f"{data_dir}/flowers-102 lists {len(listed)} images in its {name} split, not the official {OFFICIAL[name]}.")
    # torchvision keeps the names of the files and their labels to itself; reading through it would decode every image twice.
    pixels = torch.stack([centre_square(read_image(path), size) for path in listed._image_files])
    return Tensors(pixels, torch.tensor(listed._labels))
