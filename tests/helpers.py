"""Small models and data for the tests, and plain references written from the papers' formulas."""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from sam_repro.chain import Chain, layers


def criterion(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def small_chain(dropout: float = 0.0) -> Chain:
    """Four layers in four stages, with BatchNorm, in float64."""
    torch.manual_seed(3)

    def stage(i, o):
        return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.Tanh(), nn.Dropout(dropout))

    stages = OrderedDict(stem=stage(2, 4), block1=stage(4, 5), block2=stage(5, 6))
    stages["head"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    return Chain(stages).double()


def as_module(chain: Chain) -> nn.Module:
    """The same network, as a module that cannot be run from stage to stage."""

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(OrderedDict(chain.named_children()))

        def forward(self, x):
            return self.net(x)

    return Plain()


def batch(n: int = 12, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 5, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (n,), generator=generator)


def plain_gradient(model, x, y, train_statistics: bool):
    """The gradient of the mean loss by a full pass over a copy; moves the model's BatchNorm statistics if told to."""
    subject = model if train_statistics else copy.deepcopy(model)
    loss = criterion(subject(x), y).mean()
    return loss, list(torch.autograd.grad(loss, list(subject.parameters())))


def shifted(model, chosen, eps):
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for index, (p, e) in enumerate(zip(moved.parameters(), eps, strict=True)):
            if index in chosen:
                p.add_(e)
    return moved


class Reference:
    """Two full passes, written from the formulas, on a model of its own."""

    def __init__(self, name, model, *, rho=0.05, r=0.1, alpha=0.8, k=None, criterion="high", normalize=False):
        self.name, self.model, self.rho, self.r, self.alpha = name, model, rho, r, alpha
        self.k, self.criterion, self.normalize = k, criterion, normalize
        self.groups = [[i for i, p in enumerate(model.parameters()) if any(p is q for q in layer.parameters)] for layer in layers(model)]
        self.norms = [0.0] * len(self.groups)
        self.first = True

    def gradient(self, x, y):
        everything = set(range(len(list(self.model.parameters()))))
        _, g = plain_gradient(self.model, x, y, train_statistics=True)
        if self.name == "sgd":
            return g
        norm = torch.sqrt(sum(t.square().sum() for t in g))
        chosen, alpha, scale = everything, self.alpha, self.r
        if self.name == "sam":
            alpha, scale = 1.0, self.rho / norm
        if self.name == "generalized_sam" and self.normalize:
            scale = self.r / norm
        if self.name == "layerwise" and self.k != "all":
            order = sorted(range(len(self.groups)), key=lambda i: self.norms[i], reverse=self.criterion == "high")
            picked = range(len(self.groups) - self.k, len(self.groups)) if self.first else order[: self.k]
            chosen = {index for layer in picked for index in self.groups[layer]}
        moved = shifted(self.model, chosen, [scale * t for t in g])
        _, sam = plain_gradient(moved, x, y, train_statistics=False)
        self.norms = [torch.sqrt(sum(sam[i].square().sum() for i in group)).item() for group in self.groups]
        self.first = False
        return [(1 - alpha) * a + alpha * b if i in chosen else b for i, (a, b) in enumerate(zip(g, sam, strict=True))]
