"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from the official files.

The files are pickles. Each is compared with its published checksum first, and then read by an unpickler that knows
arrays and nothing else: no code of a file is ever run.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..fetch import fetched
from ..schema import UserError
from .images import Augment, ImageDataset
from .split import Tensors

MD5 = {
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}
# Mean and deviation of CIFAR-10's training pixels. ESAM's code, which vSAM follows, takes them for CIFAR-100 too.
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)


def cifar10(data_dir: str, **augment: Any) -> ImageDataset:
    """``cifar-10-batches-py/`` under ``data_dir``, downloaded if it is not there."""
    folder = "cifar-10-batches-py"
    names = [f"{folder}/data_batch_{i}" for i in range(1, 6)]
    _fetch(data_dir, "CIFAR10", folder)
    train = [_read(data_dir, name, b"labels") for name in names]
    joined = Tensors(torch.cat([s.inputs for s in train]), torch.cat([s.targets for s in train]))
    return ImageDataset(joined, _read(data_dir, f"{folder}/test_batch", b"labels"), 10, MEAN, STD, Augment(**augment))


def cifar100(data_dir: str, **augment: Any) -> ImageDataset:
    """``cifar-100-python/`` under ``data_dir``, downloaded if it is not there; the fine labels."""
    folder = "cifar-100-python"
    _fetch(data_dir, "CIFAR100", folder)
    train, test = (_read(data_dir, f"{folder}/{part}", b"fine_labels") for part in ("train", "test"))
    return ImageDataset(train, test, 100, MEAN, STD, Augment(**augment))


def _fetch(data_dir: str, name: str, folder: str) -> None:
    if (Path(data_dir) / folder).is_dir():
        return

    def download() -> None:
        import torchvision

        getattr(torchvision.datasets, name)(data_dir, download=True)

    try:
        fetched(name.lower(), data_dir, True, download)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{name} is not under data_dir={data_dir} and could not be downloaded ({error}): unpack the official "
            f"'python version' archive there, so that {Path(data_dir) / folder} exists, or set data_dir=."
        ) from error


def _read(data_dir: str, name: str, labels: bytes) -> Tensors:
    path = Path(data_dir) / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): delete its folder to download the data again.") from error
    if hashlib.md5(content).hexdigest() != MD5[name]:
        raise UserError(f"{path} is not the official file (its MD5 differs): delete its folder to download the data again.")
    fields = ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    pixels = torch.from_numpy(np.ascontiguousarray(fields[b"data"])).view(-1, 3, 32, 32)
    return Tensors(pixels, torch.tensor(fields[labels]))


class ArrayUnpickler(pickle.Unpickler):
    """Reads numbers, strings, lists, dicts and NumPy arrays; refuses a pickle that names anything else."""

    KNOWN = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle means by ``module.name``; UserError unless it is part of an array."""
        if (module, name) not in self.KNOWN:
            raise UserError(f"A data file asks for {module}.{name}, which no data file needs: it is not the official one.")
        return self.KNOWN[module, name]
