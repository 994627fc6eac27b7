"""Residual networks (He et al. 2016): the one for small images of section 4.2, and those of ImageNet with either stem."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ..chain import Chain
from .lsq import lsq


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: ``(B, i, H, W)`` to ``(B, o, H/stride, W/stride)``."""

    last_norm = "bn2"  # that ends the residual branch

    def __init__(self, i: int, o: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        self.stride, self.wider = stride, o - i
        self.projection = None if shortcut == "A" else projection(i, o, stride, always=shortcut == "C")

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x), inplace=True)

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: every stride-th pixel, zeros for the new channels. Else a 1x1 convolution, where there is one."""
        if self.projection is not None:
            return self.projection(x)
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.wider)) if self.wider else x


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolution beside a shortcut: ``i`` to ``o`` channels, ``inner`` between."""

    last_norm = "bn3"

    def __init__(self, i: int, o: int, stride: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, o, 1, bias=False), nn.BatchNorm2d(o)
        self.projection = projection(i, o, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + (x if self.projection is None else self.projection(x)), inplace=True)


def projection(i: int, o: int, stride: int, *, always: bool = False) -> nn.Module | None:
    """The shortcut of a block that changes the shape: a 1x1 convolution; None for one that does not, but for ``always``."""
    if stride == 1 and i == o and not always:
        return None
    return nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))


def first(in_channels: int, width: int, kind: str = "cifar") -> nn.Sequential:
    """``cifar``: a 3x3 convolution. ``imagenet``: 7x7 with stride 2, and a maximum over 3x3 with stride 2."""
    large = kind == "imagenet"
    conv = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False) if large else nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
    parts = OrderedDict[str, nn.Module](conv=conv, bn=nn.BatchNorm2d(width), relu=nn.ReLU(inplace=True))
    if large:
        parts["pool"] = nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(parts)


class Head(nn.Sequential):
    """Mean over the pixels, then a linear map to the classes."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(width, num_classes)))


class NormalisedHead(nn.Sequential):
    """BN and ReLU before the head, in networks whose blocks end without them."""

    feeds = {"bn": "linear"}

    def __init__(self, width: int, num_classes: int) -> None:
        head = Head(width, num_classes)
        super().__init__(OrderedDict([("bn", nn.BatchNorm2d(width)), ("relu", nn.ReLU(inplace=True)), *head.named_children()]))


def resnet20(num_classes: int, in_channels: int, *, shortcut: str, init: str, zero_gamma: bool, bn_momentum: float, bn_eps: float) -> Chain:
    """ResNet-20: stem, nine blocks of width 16, 32 and 64, head; 20 layers with shortcut A, 22 with B.

    ``C``, ``init=glorot`` and other ``bn_momentum`` and ``bn_eps`` are of the code of KDD'24's author: the first block of
    every width has a projection (23 layers).
    """
    stages = OrderedDict[str, nn.Module](stem=first(in_channels, 16))
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    for index, (i, o) in enumerate(pairwise(widths), start=1):
        kind = "B" if shortcut == "C" and index % 3 != 1 else shortcut
        stages[f"block{index}"] = BasicBlock(i, o, 2 if o > i else 1, kind)
    stages["head"] = Head(64, num_classes)
    model = Chain(stages)
    if init == "glorot":
        glorot_uniform(model)
    else:
        he_normal(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum, module.eps = bn_momentum, bn_eps
    if zero_gamma:
        branches_at_zero(model)
    return model


def resnet18(num_classes: int, in_channels: int, *, bits: int, stem: str, zero_gamma: bool) -> Chain:
    """ResNet-18: stem, eight basic blocks of width 64 to 512, head; PyTorch's own initialisation, as in ESAM's code."""
    model = _of_basic_blocks((2, 2, 2, 2), num_classes, in_channels, stem, zero_gamma)
    lsq(model, bits)
    return model


def resnet34(num_classes: int, in_channels: int, *, stem: str, zero_gamma: bool) -> Chain:
    """ResNet-34: stem, sixteen basic blocks of width 64 to 512, head; PyTorch's own initialisation."""
    return _of_basic_blocks((3, 4, 6, 3), num_classes, in_channels, stem, zero_gamma)


def _of_basic_blocks(blocks: Sequence[int], num_classes: int, in_channels: int, stem: str, zero_gamma: bool) -> Chain:
    stages = OrderedDict[str, nn.Module](stem=first(in_channels, 64, stem))
    for index, (i, o, stride) in enumerate(_shapes(64, (64, 128, 256, 512), blocks), start=1):
        stages[f"block{index}"] = BasicBlock(i, o, stride, "B")
    stages["head"] = Head(512, num_classes)
    model = Chain(stages)
    if zero_gamma:
        branches_at_zero(model)
    return model


def resnet50(inner: int, num_classes: int, in_channels: int, *, stem: str, zero_gamma: bool) -> Chain:
    """ResNet-50 (``inner`` 64) or WRN-50-2 (128): stem, sixteen bottlenecks of width 256 to 2048, head."""
    stages = OrderedDict[str, nn.Module](stem=first(in_channels, 64, stem))
    for index, (i, o, stride) in enumerate(_shapes(64, (256, 512, 1024, 2048), (3, 4, 6, 3)), start=1):
        stages[f"block{index}"] = Bottleneck(i, o, stride, inner * o // 256)
    stages["head"] = Head(2048, num_classes)
    model = Chain(stages)
    he_normal(model)
    if zero_gamma:
        branches_at_zero(model)
    return model


def _shapes(before: int, widths: Sequence[int], blocks: Sequence[int]) -> list[tuple[int, int, int]]:
    """Channels in, channels out and stride of every block; each width but the first begins with stride 2."""
    shapes = []
    for group, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for index in range(count):
            shapes.append((before, width, 2 if group > 0 and index == 0 else 1))
            before = width
    return shapes


def he_normal(model: nn.Module) -> None:
    """Convolutions from N(0, 2 / (kernel area x output channels)) (He et al. 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def glorot_uniform(model: nn.Module) -> None:
    """Convolutions and linear maps from U(-a, a), a^2 = 6 / (kernel area x (input + output channels)), biases 0 (Keras' defaults)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def branches_at_zero(model: nn.Module) -> None:
    """The scale of the normalisation that ends a residual branch begins at 0: every block begins as its shortcut (Goyal et al. 2017)."""
    for block in model.modules():
        if isinstance(name := getattr(block, "last_norm", None), str):
            nn.init.zeros_(block.get_submodule(name).weight)  # type: ignore[arg-type]
