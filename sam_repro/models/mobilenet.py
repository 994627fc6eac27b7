"""MobileNet v1 (Howard et al. 2017) and v2 (Sandler et al. 2018) for images of 32x32 pixels."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from ..chain import Chain
from .lsq import lsq
from .resnet import Head, first

# Output channels and stride of the thirteen separable convolutions of v1.
V1 = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
# Expansion, output channels, blocks and stride of v2; the first two strides are 1 where ImageNet's are 2.
V2 = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


def convolution(i: int, o: int, kernel: int, stride: int = 1, groups: int = 1, *, relu: bool = True) -> list[nn.Module]:
    """Convolution, normalisation, and a ReLU unless it is left out."""
    conv = nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(o), *([nn.ReLU(inplace=True)] if relu else [])]


class InvertedResidual(nn.Module):
    """1x1 to ``expansion`` times the channels, 3x3 within each, 1x1 to ``o``; beside a shortcut at stride 1."""

    def __init__(self, i: int, o: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * i
        self.convs = nn.Sequential(
            *convolution(i, inner, 1), *convolution(inner, inner, 3, stride, inner), *convolution(inner, o, 1, relu=False)
        )
        self.stride = stride
        self.projection = nn.Sequential(*convolution(i, o, 1, relu=False)) if stride == 1 and i != o else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs(x)
        if self.stride > 1:
            return y
        return y + (x if self.projection is None else self.projection(x))


def mobilenet(num_classes: int, in_channels: int, version: str, bits: int) -> Chain:
    """``v1``: 3x3 convolutions within each channel, then 1x1. ``v2``: inverted residuals."""
    stages: OrderedDict[str, nn.Module] = OrderedDict(stem=first(in_channels, 32))
    before = 32
    if version == "v1":
        for index, (o, stride) in enumerate(V1, start=1):
            stages[f"block{index}"] = nn.Sequential(*convolution(before, before, 3, stride, before), *convolution(before, o, 1))
            before = o
    else:
        for expansion, o, count, stride in V2:
            for index in range(count):
                stages[f"block{len(stages)}"] = InvertedResidual(before, o, expansion, stride if index == 0 else 1)
                before = o
        stages["last"] = nn.Sequential(*convolution(before, 1280, 1))
        before = 1280
    stages["head"] = Head(before, num_classes)
    model = Chain(stages)
    lsq(model, bits)
    return model
