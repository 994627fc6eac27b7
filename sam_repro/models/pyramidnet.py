"""PyramidNet (Han et al. 2017) with basic blocks: every block is a little wider than the one before."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from ..chain import Chain
from .resnet import NormalisedHead, branches_at_zero, he_normal


class PyramidBlock(nn.Module):
    """BN-conv-BN-ReLU-conv-BN beside a shortcut padded with zero channels: ``(B, i, H, W)`` to ``(B, o, H/stride, W/stride)``."""

    feeds = {"bn1": "conv1", "bn2": "conv2"}
    last_norm = "bn3"

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(i)
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(o)
        self.stride, self.wider = stride, o - i

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.bn1(x))
        y = self.bn3(self.conv2(F.relu(self.bn2(y), inplace=True)))
        shortcut = F.avg_pool2d(x, 2, ceil_mode=True) if self.stride > 1 else x
        return y + F.pad(shortcut, (0, 0, 0, 0, 0, self.wider))


def pyramidnet110(num_classes: int, in_channels: int, alpha: int, zero_gamma: bool) -> Chain:
    """PyramidNet-110: stem of width 16, 54 blocks that add ``alpha / 54`` channels each, head."""
    blocks = 54
    widths = [16 + round(alpha * index / blocks) for index in range(blocks + 1)]
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stages["stem"] = nn.Sequential(OrderedDict(conv=nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False), bn=nn.BatchNorm2d(16)))
    for index in range(blocks):
        stride = 2 if index in (blocks // 3, 2 * blocks // 3) else 1
        stages[f"block{index + 1}"] = PyramidBlock(widths[index], widths[index + 1], stride)
    stages["head"] = NormalisedHead(widths[-1], num_classes)
    model = Chain(stages)
    he_normal(model)
    if zero_gamma:
        branches_at_zero(model)
    return model
