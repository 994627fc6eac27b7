"""Wide residual networks (Zagoruyko & Komodakis 2016): normalisation and ReLU before the convolutions."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from ..chain import Chain
from .resnet import Head, he_normal


class WideBlock(nn.Module):
    """BN-ReLU-conv twice beside a shortcut: ``(B, i, H, W)`` to ``(B, o, H/stride, W/stride)``."""

    def __init__(self, i: int, o: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(i)
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.projection = nn.Conv2d(i, o, 1, stride, bias=False) if i != o else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.projection is None else self.projection(y)
        y = F.relu(self.bn2(self.conv1(y)), inplace=True)
        return self.conv2(self.dropout(y)) + shortcut


def wide_resnet(depth: int, width: int, num_classes: int, in_channels: int, dropout: float) -> Chain:
    """WRN-depth-width: stem, (depth - 4) / 2 blocks of width 16, 32 and 64 times ``width``, head."""
    blocks = (depth - 4) // 6
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stages["stem"] = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
    before = 16
    for group, base in enumerate((16, 32, 64)):
        for index in range(blocks):
            stride = 2 if group > 0 and index == 0 else 1
            stages[f"block{group * blocks + index + 1}"] = WideBlock(before, base * width, stride, dropout)
            before = base * width
    head = Head(before, num_classes)
    stages["head"] = nn.Sequential(OrderedDict([("bn", nn.BatchNorm2d(before)), ("relu", nn.ReLU(inplace=True)), *head.named_children()]))
    model = Chain(stages)
    he_normal(model)
    nn.init.zeros_(model.get_parameter("head.linear.bias"))
    return model
