"""SVHN (Netzer et al. 2011) and Fashion-MNIST (Xiao et al. 2017), as torchvision fetches and reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..fetch import SOURCES, fetched
from ..schema import UserError
from .images import Augment, ImageDataset, moments
from .split import Tensors


def svhn(data_dir: str, **augment: Any) -> ImageDataset:
    """``svhn/`` under ``data_dir``, downloaded if it is not there: 73,257 house numbers of 32x32 pixels, 26,032 to test on."""
    train, test = (_read("SVHN", Path(data_dir) / "svhn", split=part) for part in ("train", "test"))
    return _dataset([Tensors(torch.from_numpy(one.data), torch.from_numpy(one.labels).long()) for one in (train, test)], augment)


def fashion_mnist(data_dir: str, **augment: Any) -> ImageDataset:
    """``FashionMNIST/`` under ``data_dir``, downloaded if it is not there: 60,000 grey images of 28x28 pixels, 10,000 to test on."""
    train, test = (_read("FashionMNIST", Path(data_dir), train=part) for part in (True, False))
    return _dataset([Tensors(one.data[:, None], one.targets) for one in (train, test)], augment)


def _dataset(splits: list[Tensors], augment: dict[str, Any]) -> ImageDataset:
    train, test = splits
    return ImageDataset(train, test, 10, *moments(train.inputs), Augment(**augment))


def _read(name: str, root: Path, **part: Any) -> Any:
    def read() -> Any:
        import torchvision

        return getattr(torchvision.datasets, name)(str(root), download=True, **part)

    called = {"SVHN": "svhn", "FashionMNIST": "fashion_mnist"}[name]
    place = root.parent if called == "svhn" else root
    try:
        return fetched(called, str(place), not (place / SOURCES[called].folder).is_dir(), read)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{name} is not complete under {root} and could not be downloaded ({str(error).splitlines()[0]}): put the official files "
            "there, or set data_dir=."
        ) from error
