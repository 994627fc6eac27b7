"""Wide residual networks (Zagoruyko & Komodakis 2016): normalisation and ReLU before the convolutions, or after them."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from ..chain import Chain
from ..schema import UserError
from .resnet import Head, NormalisedHead, branches_at_zero, he_normal


class WideBlock(nn.Module):
    """BN-ReLU-conv twice beside a shortcut: ``(B, i, H, W)`` to ``(B, o, H/stride, W/stride)``."""

    feeds = {"bn1": "conv1", "bn2": "conv2"}  # bn1 feeds the projection as well

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


class PostBlock(nn.Module):
    """conv-BN-ReLU-dropout-conv-BN beside a shortcut, then ReLU, as in the code of KDD'24's author; shapes as above."""

    last_norm = "bn2"

    def __init__(self, i: int, o: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        changed = nn.Sequential(OrderedDict(conv=nn.Conv2d(i, o, 1, stride, bias=False), bn=nn.BatchNorm2d(o)))
        self.projection = changed if i != o else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(self.dropout(y)))
        return F.relu(y + (x if self.projection is None else self.projection(x)), inplace=True)


def wide_resnet(depth: int, width: int, num_classes: int, in_channels: int, *, dropout: float, activation: str, zero_gamma: bool) -> Chain:
    """WRN-depth-width: stem, (depth - 4) / 2 blocks of width 16, 32 and 64 times ``width``, head.

    ``activation``: ``pre``, the paper's blocks, or ``post``. UserError where ``zero_gamma`` has no normalisation to act on.
    """
    if zero_gamma and activation == "pre":
        raise UserError(
            "model.zero_gamma=true needs a normalisation at the end of each residual branch; with model.activation=pre a convolution is "
            "there, and a scale of 0 before it would keep the branch at 0 for ever: set model.activation=post, or model.zero_gamma=false."
        )
    blocks = (depth - 4) // 6
    block = WideBlock if activation == "pre" else PostBlock
    convolution = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
    stages: OrderedDict[str, nn.Module] = OrderedDict(stem=convolution)
    if activation == "post":
        stages["stem"] = nn.Sequential(OrderedDict[str, nn.Module](conv=convolution, bn=nn.BatchNorm2d(16), relu=nn.ReLU(inplace=True)))
    before = 16
    for group, base in enumerate((16, 32, 64)):
        for index in range(blocks):
            stride = 2 if group > 0 and index == 0 else 1
            stages[f"block{group * blocks + index + 1}"] = block(before, base * width, stride, dropout)
            before = base * width
    stages["head"] = Head(before, num_classes) if activation == "post" else NormalisedHead(before, num_classes)
    model = Chain(stages)
    he_normal(model)
    nn.init.zeros_(model.get_parameter("head.linear.bias"))
    if zero_gamma:
        branches_at_zero(model)
    return model
