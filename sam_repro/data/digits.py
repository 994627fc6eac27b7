"""scikit-learn's handwritten digits (UCI, Alpaydin & Kaynak 1998): real images that need no download."""

from __future__ import annotations

from typing import Any

import torch

from .images import Augment, ImageDataset
from .split import Tensors


def digits(_data_dir: str, **augment: Any) -> ImageDataset:
    """1,797 grey images of 8x8 pixels, of which a stratified fifth (360) is the test set, always the same."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)

    def split(x, y) -> Tensors:  # type: ignore[no-untyped-def]
        pixels = torch.from_numpy(x * (255 / 16)).round().to(torch.uint8)
        return Tensors(pixels.view(-1, 1, 8, 8), torch.from_numpy(y).long())

    train = split(train_x, train_y)
    values = train.inputs.float()
    return ImageDataset(train, split(test_x, test_y), 10, (values.mean().item(),), (values.std().item(),), Augment(**augment))
