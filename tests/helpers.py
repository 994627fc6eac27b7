"""Small models and data for the tests, and plain references written from the papers' formulas."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linprog
from torch import nn

from sam_repro.chain import Chain, layers
from sam_repro.optim import create


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


# Every method, with knobs that make twelve steps of a small network eventful; a new method is a row.
METHODS = [
    ("sgd", {}),
    ("sam", {"rho": 0.1}),
    ("generalized_sam", {"r": 0.2, "alpha": 0.7}),
    ("generalized_sam", {"r": 0.2, "alpha": 0.7, "normalize": True}),
    ("layerwise", {"k": 2, "r": 0.3}),
    ("generalized_sam", {"r": 0.2, "alpha": 0.7, "normalize": True, "tensors": "weights"}),
    ("layerwise", {"k": 1, "r": 0.3, "criterion": "low"}),
    ("layerwise", {"k": 2, "r": 0.3, "normalize": True}),
    ("layerwise", {"k": 2, "r": 0.3, "normalize": True, "tensors": "weights"}),
    ("layerwise", {"k": 2, "r": 0.3, "tensors": "weights"}),
    ("layerwise", {"k": "all", "r": 0.3, "alpha": 0.6}),
    ("layerwise", {"k": 2, "r": 0.3, "lag": 1}),
    ("budget", {"budget": 0.3, "r": 0.3, "alpha": 0.6}),
    ("budget", {"budget": 0.6, "k": 2, "r": 0.3}),
    ("budget", {"budget": 0.5, "r": 0.3, "normalize": True, "lag": 1, "costs": [1.1, 0.9, 0.4, 0.3]}),
    ("sam_n", {"rho": 0.1, "n": 3}),
    ("asam", {"rho": 0.5, "eta": 0.01}),
    ("looksam", {"rho": 0.1, "k": 3, "alpha": 0.7}),
    ("layersam", {"rho": 0.2, "trust": "printed"}),
    ("layersam", {"rho": 0.05, "trust": "local"}),
    ("layersam", {"rho": 0.05, "trust": "whole"}),
    ("looklayersam", {"rho": 0.2, "k": 4, "alpha": 0.6, "trust": "printed"}),
    ("aesam", {"rho": 0.1, "lambda1": 0.5, "lambda2": 1.0, "delta": 0.2}),
    ("aesam", {"rho": 0.1, "lambda1": 0.5, "lambda2": 1.0, "delta": 0.2, "lag": 1}),
    ("vsam", {"rho": 0.1, "gamma": 0.8, "start": 2, "s1": 10.0, "N": 20}),
    ("vsam_a", {"rho": 0.1, "start": 2, "s1": 10.0, "N": 20}),
    ("msam", {"rho": 0.1, "m": 4}),
    ("msam", {"rho": 0.1, "m": 5}),
    ("esam", {"rho": 0.1, "beta": 1.0, "gamma": 0.5}),
    ("esam", {"rho": 0.1, "beta": 0.6, "gamma": 0.5}),
    ("late", {"rho": 0.1, "percent": 50.0}),
    ("late_layerwise", {"k": 2, "r": 0.3, "percent": 50.0}),
    ("rst", {"rho": 0.1, "p": 0.9, "p_end": 0.1, "p_schedule": "linear", "c": 1.6}),
    ("gsam", {"rho": 0.2, "rho_end": 0.05, "rho_schedule": "linear", "alpha": 0.4}),
    ("gsam", {"rho": 0.05, "rho_end": 0.2, "rho_schedule": "cosine", "alpha": 1.3}),
    ("wsam", {"rho": 0.1, "gamma": 0.8}),
    ("wsam", {"rho": 0.1, "gamma": 0.3}),
    ("renormalised_sam", {"rho": 0.2}),
    ("saf", {"start": 0, "delay": 1}),
    ("mesa", {"start": 0}),
    ("sam_on", {"rho": 0.3}),
    ("asam_on", {"rho": 0.5, "eta": 0.01}),
    ("fsam", {"rho": 0.1, "sigma": 0.7, "lam": 0.6}),
    ("vasso", {"rho": 0.1, "lam": 0.4}),
    ("s2sam", {"rho": 0.1}),
    ("momentum_sam", {"rho": 0.1, "mu": 0.8}),
    ("async_sam", {"rho": 0.1, "batch": 0.25}),
    ("fisher_sam", {"rho": 0.1, "eta": 50.0}),
    ("unified_sam", {"rho": 0.1, "lambd": 0.3}),
    ("unified_sam", {"rho": 0.1, "lambd": "1-1/t"}),
    ("zsharp", {"rho": 0.1, "percentile": 0.7}),
    ("ssam_f", {"rho": 0.1, "sparsity": 0.6, "every_epochs": 2}),
    ("ssam_d", {"rho": 0.1, "sparsity": 0.6, "every_epochs": 1, "drop": 0.5}),
    ("random_sam", {"std": 0.1}),
]
STEPS = 12
PLAN = {"total_steps": STEPS, "steps_per_epoch": 2, "dataset_size": 24}


def make(name, model, knobs):
    return create(name, model, **PLAN, **knobs)


def places(step, n=12):
    """Where the samples of a step stand in the training set."""
    return torch.arange(n) + 12 * (step % 2)


class Reference:
    """Two full passes, written from the formulas, on a model of its own."""

    def __init__(self, name, model, *, rho=0.05, r=0.1, alpha=0.8, k=None, criterion="high", normalize=False, tensors="all", lag=0):
        self.name, self.model, self.rho, self.r, self.alpha = name, model, rho, r, alpha
        self.k, self.criterion, self.normalize, self.tensors = k, criterion, normalize, tensors
        self.groups = [[i for i, p in enumerate(model.parameters()) if any(p is q for q in layer.parameters)] for layer in layers(model)]
        self.norms = []  # of every step so far
        self.lag = lag
        self.sampled = []  # whether each step made an ascent, told by the test

    def gradient(self, x, y):
        everything = set(range(len(list(self.model.parameters()))))
        _, g = plain_gradient(self.model, x, y, train_statistics=True)
        if self.name == "sgd":
            return g
        chosen, alpha, scale = everything, self.alpha, self.r
        if self.name in ("layerwise", "budget"):
            chosen = {index for layer in self.picked() for index in self.groups[layer]}
        if self.tensors == "weights":
            chosen = {index for index in chosen if g[index].ndim > 1}
        norm = torch.sqrt(sum((g[index].square().sum() for index in chosen), torch.tensor(0.0)))
        if self.name == "sam":
            alpha, scale = 1.0, self.rho / norm
        if self.normalize:
            scale = self.r / norm
        moved = shifted(self.model, chosen, [scale * t for t in g])
        _, sam = plain_gradient(moved, x, y, train_statistics=False)
        self.norms.append([torch.sqrt(sum(sam[i].square().sum() for i in group)).item() for group in self.groups])
        return [(1 - alpha) * a + alpha * b if i in chosen else b for i, (a, b) in enumerate(zip(g, sam, strict=True))]

    def ranked(self):
        """The layers from the first to be chosen to the last."""
        norms = self.norms[-1 - self.lag] if len(self.norms) > self.lag else [0.0] * len(self.groups)
        ties = range(len(self.groups)) if self.criterion == "low" else reversed(range(len(self.groups)))
        return sorted(ties, key=lambda i: norms[i], reverse=self.criterion == "high")

    def picked(self):
        return self.ranked()[: None if self.k == "all" else self.k]


FLOPS = [2 * 4 * 2 * 9 * 25, 2 * 5 * 4 * 9 * 25, 2 * 6 * 5 * 9 * 25, 2 * 3 * 6]  # of small_chain's layers, a stage each


def best_shares(ascents, budget):
    """How often each of some ascents, pairs of what it costs and what it holds, is made in the best plan; the rest are plain steps."""
    cost, held = np.array([(0.0, 0.0), *ascents]).T
    found = linprog(-held, A_ub=[cost], b_ub=[budget], A_eq=[np.ones(len(cost))], b_eq=[1.0])
    return found.x[1:], -found.fun


class Turns(Reference):
    """``optimizer=budget`` on a chain of a layer a stage, with the plan found by linear programming."""

    def __init__(self, name, model, *, budget, costs=(), k="all", accumulated=False, **knobs):
        super().__init__(name, model, k=k, **knobs)
        self.budget, self.saved, self.known = budget, 0.0, bool(costs)
        shares = [sum(FLOPS[stage:]) / sum(FLOPS) for stage in range(4)]
        self.costs = costs or [((1.0 if accumulated else share) + 2 * share) / 3 for share in shares]

    def picked(self):
        norms = self.norms[-1 - self.lag] if len(self.norms) > self.lag else [1.0] * 4
        cuts = [[i for i in self.ranked() if i >= cut][: None if self.k == "all" else self.k] for cut in range(4)]
        ascents = [(self.costs[min(layers)], sum(norms[i] ** 2 for i in layers)) for layers in cuts]
        shares, _ = best_shares(ascents, self.budget)
        able = [cut for cut in range(4) if shares[cut] > 1e-6 and ascents[cut][0] <= self.saved + self.budget + 1e-9]
        cut = able[0] if able and (self.known or self.norms) else None
        self.saved += self.budget - (0.0 if cut is None else ascents[cut][0])
        return [] if cut is None else cuts[cut]


# -- the other methods, as plainly ---------------------------------------------------------------------------------------


def total_norm(parts):
    return torch.sqrt(sum(p.square().sum() for p in parts))


def scaled_sum(a, x, y):
    return [u + a * v for u, v in zip(x, y, strict=True)]


class Family(Reference):
    """``gradient(x, y)`` of every other method, step after step."""

    def __init__(self, name, model, **knobs):
        super().__init__(name, model)
        self.total_steps, self.knobs, self.t = STEPS, knobs, 0
        self.kept, self.age = None, 0
        self.mean, self.variance = 0.0, math.exp(-10)
        if name == "late_layerwise":
            self.layerwise = Reference("layerwise", model, k=knobs["k"], r=knobs["r"])

    def perturbation(self, g):
        knobs, weights = self.knobs, [p.detach() for p in self.model.parameters()]
        if self.name == "asam":
            named = dict(self.model.named_parameters())
            t = [p.detach().abs() + knobs["eta"] if "weight" in n else torch.ones_like(p) for n, p in named.items()]
            norm = total_norm([a * b for a, b in zip(t, g, strict=True)])
            return [knobs["rho"] * a * a * b / norm for a, b in zip(t, g, strict=True)]
        if self.name in ("layersam", "looklayersam"):
            eps = list(g)
            for group in self.groups:
                w_norm, g_norm = total_norm([weights[i] for i in group]), total_norm([g[i] for i in group])
                for i in group:
                    eps[i] = knobs["rho"] * w_norm / g_norm * g[i] / (total_norm(g) if knobs["trust"] == "printed" else 1)
            return [knobs["rho"] * e / total_norm(eps) for e in eps] if knobs["trust"] == "whole" else eps
        return [knobs["rho"] * t / total_norm(g) for t in g]

    def sam(self, x, y, g):
        moved = shifted(self.model, set(range(len(g))), self.perturbation(g))
        return plain_gradient(moved, x, y, train_statistics=False)[1]

    def gradient(self, x, y):
        result = getattr(
            self, {"sam_n": "every", "looksam": "every", "looklayersam": "every", "vsam": "psf", "vsam_a": "psf"}.get(self.name, self.name)
        )(x, y)
        self.t += 1
        return result

    def late(self, x, y):
        inside = self.t >= self.total_steps - round(self.total_steps * self.knobs["percent"] / 100)
        return (self.asam if inside else self.plain)(x, y)

    def late_layerwise(self, x, y):
        if self.t >= self.total_steps - round(self.total_steps * self.knobs["percent"] / 100):
            return self.layerwise.gradient(x, y)
        g = self.plain(x, y)
        self.layerwise.norms.append([total_norm([g[i] for i in group]).item() for group in self.groups])
        return g

    def rst(self, x, y):
        """The lot is told: whether it falls as often as it should is tested apart."""
        g = self.plain(x, y)
        if not self.sampled[self.t]:
            return g
        return [a + self.knobs["c"] * (b - a) for a, b in zip(g, self.sam(x, y, g), strict=True)]

    def whole(self, x, y, rho):
        """Both gradients as one vector each; SAM's perturbation."""
        g = self.plain(x, y)
        self.knobs = {**self.knobs, "rho": rho}
        return (torch.cat([part.flatten() for part in vector]) for vector in (g, self.sam(x, y, g)))

    def parts(self, vector):
        parameters = list(self.model.parameters())
        return [part.view_as(p) for part, p in zip(vector.split([p.numel() for p in parameters]), parameters, strict=True)]

    def gsam(self, x, y):
        rho, end, share = self.knobs.setdefault("first", self.knobs["rho"]), self.knobs["rho_end"], self.t / self.total_steps
        lr = 1 - share if self.knobs["rho_schedule"] == "linear" else (1 + math.cos(math.pi * share)) / 2  # lr_min = 0, lr_max = 1
        g, g_s = self.whole(x, y, end + (rho - end) * lr)
        direction = g_s / g_s.norm()
        vertical = g - (g @ direction) * direction
        return self.parts(g_s - self.knobs["alpha"] * vertical)

    def wsam(self, x, y):
        g, g_s = self.whole(x, y, self.knobs["rho"])
        weight = self.knobs["gamma"] / (1 - self.knobs["gamma"])
        return self.parts(g + weight * (g_s - g))

    def renormalised_sam(self, x, y):
        g, g_s = self.whole(x, y, self.knobs["rho"])
        return self.parts(g_s / g_s.norm() * g.norm())

    def plain(self, x, y):
        return plain_gradient(self.model, x, y, train_statistics=True)[1]

    def asam(self, x, y):
        return self.sam(x, y, plain_gradient(self.model, x, y, train_statistics=True)[1])

    layersam = asam

    def every(self, x, y):
        _, g = plain_gradient(self.model, x, y, train_statistics=True)
        if self.t % self.knobs.get("n", self.knobs.get("k")) == 0:
            g_s = self.sam(x, y, g)
            cosine = sum((a * b).sum() for a, b in zip(g, g_s, strict=True)) / (total_norm(g) * total_norm(g_s))
            self.kept = scaled_sum(-total_norm(g_s) * cosine / total_norm(g), g_s, g)
            return g_s
        if self.name == "sam_n":
            return g
        return scaled_sum(self.knobs["alpha"] * total_norm(g) / total_norm(self.kept), g, self.kept)

    def aesam(self, x, y):
        _, g = plain_gradient(self.model, x, y, train_statistics=True)
        self.norms.append(total_norm(g).item() ** 2)
        delta, lag = self.knobs["delta"], self.knobs.get("lag", 0)
        if len(self.norms) <= 2 * lag:
            return g
        square = self.norms[-1 - 2 * lag]
        self.mean = delta * self.mean + (1 - delta) * square
        self.variance = delta * self.variance + (1 - delta) * (square - self.mean) ** 2
        c = self.t / self.total_steps * self.knobs["lambda1"] + (1 - self.t / self.total_steps) * self.knobs["lambda2"]
        return self.sam(x, y, g) if square >= self.mean + c * math.sqrt(self.variance) else g

    def msam(self, x, y):
        parts = list(zip(x.tensor_split(min(self.knobs["m"], len(x))), y.tensor_split(min(self.knobs["m"], len(x))), strict=True))
        total = [torch.zeros_like(p) for p in self.model.parameters()]
        for part_x, part_y in parts:
            _, g = plain_gradient(self.model, part_x, part_y, train_statistics=True)
            total = scaled_sum(len(part_x) / len(x), total, self.sam(part_x, part_y, g))
        return total

    def esam(self, x, y):
        """With beta = 1 the tensors are all of them; the draws are tested apart."""
        _, g = plain_gradient(self.model, x, y, train_statistics=False)
        clean = criterion(self.model(x), y)
        moved = shifted(self.model, set(range(len(g))), self.perturbation(g))
        rise = criterion(copy.deepcopy(moved)(x), y) - clean
        keep = rise.argsort(descending=True)[: int(self.knobs["gamma"] * len(x))]
        return plain_gradient(moved, x[keep], y[keep], train_statistics=False)[1]

    def psf(self, x, y):
        """The sampling rate is given: s1 / N of 1 ascends always, what comes of less is tested apart."""
        _, g = plain_gradient(self.model, x, y, train_statistics=True)
        if self.sampled[self.t]:
            g_s = self.sam(x, y, g)
            self.kept, self.age = scaled_sum(-1.0, g_s, g), 0
            return g_s
        self.age += 1
        return g if self.name == "vsam_a" else scaled_sum(self.knobs["gamma"] ** self.age, g, self.kept)
