"""Residual networks for small images (He et al. 2016, section 4.2)."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ..chain import Chain


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: ``(B, i, H, W)`` to ``(B, o, H/stride, W/stride)``."""

    def __init__(self, i: int, o: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        self.stride, self.wider = stride, o - i
        self.projection: nn.Module | None = None
        if shortcut == "B" and (stride > 1 or o > i):
            self.projection = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x), inplace=True)

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: every stride-th pixel, zeros for the new channels. Option B: a 1x1 convolution."""
        if self.projection is not None:
            return self.projection(x)
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.wider)) if self.wider else x


class Head(nn.Sequential):
    """Mean over the pixels, then a linear map to the classes."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(width, num_classes)))


def resnet20(num_classes: int, in_channels: int, shortcut: str) -> Chain:
    """ResNet-20: stem, nine blocks of width 16, 32 and 64, head; 20 layers with shortcut A."""
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stages["stem"] = nn.Sequential(
        OrderedDict(conv=nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False), bn=nn.BatchNorm2d(16), relu=nn.ReLU(inplace=True))
    )
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    for index, (i, o) in enumerate(pairwise(widths), start=1):
        stages[f"block{index}"] = BasicBlock(i, o, 2 if o > i else 1, shortcut)
    stages["head"] = Head(64, num_classes)
    model = Chain(stages)
    he_normal(model)
    return model


def he_normal(model: nn.Module) -> None:
    """Convolutions from N(0, 2 / (kernel area x output channels)) (He et al. 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
