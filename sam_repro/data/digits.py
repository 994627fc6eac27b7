"""scikit-learn's handwritten digits (UCI, Alpaydin & Kaynak 1998): real images that need no download.

Read and split as ``load_digits`` and ``train_test_split`` do it, without them: their import takes longer than that of torch.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..schema import UserError
from .images import Augment, ImageDataset
from .split import Tensors

TEST = 360  # of 1,797


def digits(_data_dir: str, **augment: Any) -> ImageDataset:
    """1,797 grey images of 8x8 pixels, of which a stratified fifth (360) is the test set, always the same."""
    table = read()

    def split(rows: NDArray[np.int64]) -> Tensors:
        pixels = torch.from_numpy(table[rows, :-1] * (255 / 16)).round().to(torch.uint8)
        return Tensors(pixels.view(-1, 1, 8, 8), torch.from_numpy(table[rows, -1]).long())

    train, test = map(split, stratified(table[:, -1].astype(int), TEST))
    values = train.inputs.float()
    return ImageDataset(train, test, 10, (values.mean().item(),), (values.std().item(),), Augment(**augment))


def read() -> NDArray[np.float64]:
    """The images and their labels, ``(1797, 64 + 1)``, from the file in scikit-learn's package; UserError where it is not installed."""
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise UserError("dataset=digits comes with scikit-learn: pip install scikit-learn.")
    return np.loadtxt(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")


def stratified(labels: NDArray[np.int64], test: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The indices to train on and the ``test`` ones to test on, each class in its share: ``train_test_split`` with random_state=0."""
    random = np.random.RandomState(0)
    counts = np.bincount(labels)
    train_counts = _shares(counts, len(labels) - test, random)
    test_counts = _shares(counts - train_counts, test, random)
    train: list[int] = []
    tested: list[int] = []
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label)[random.permutation(count)]
        cut = train_counts[label]
        train += members[:cut].tolist()
        tested += members[cut : cut + test_counts[label]].tolist()
    return random.permutation(train), random.permutation(tested)


def _shares(counts: NDArray[np.int64], total: int, random: np.random.RandomState) -> NDArray[np.int64]:
    """``total`` in proportion to ``counts``, rounded down; what is left goes to the largest remainders, equal ones by lot."""
    exact = counts / counts.sum() * total
    shares = np.floor(exact)
    remainders = exact - shares
    for remainder in np.unique(remainders)[::-1]:
        if not (left := int(total - shares.sum())):
            break
        (equal,) = np.where(remainders == remainder)
        shares[random.choice(equal, size=min(len(equal), left), replace=False)] += 1
    return shares.astype(int)
