"""Methods that differ in where they move the weights, on one flat vector, line by line from their papers."""

from __future__ import annotations

import math

import torch
from helpers import PLAN, plain_gradient
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

ONE_PASS = ("s2sam", "momentum_sam", "random_sam")  # they make no pass at w
NAMES = ("sam_on", "asam_on", "fsam", "vasso", *ONE_PASS, "async_sam", "fisher_sam", "unified_sam", "zsharp", "ssam_f", "ssam_d")


class Flat:
    """``gradient(x, y)``, step after step."""

    def __init__(self, name, model, **knobs):
        self.name, self.model, self.knobs, self.t = name, model, knobs, 0
        self.m = self.mask = None
        self.sampled = []  # unused: they all ascend in each step

    def at(self, w, x, y, statistics):
        here = [p.detach().clone() for p in self.model.parameters()]
        vector_to_parameters(w, self.model.parameters())
        _, g = plain_gradient(self.model, x, y, train_statistics=statistics)
        with torch.no_grad():
            for p, before in zip(self.model.parameters(), here, strict=True):
                p.copy_(before)
        return parameters_to_vector([t.contiguous() for t in g])

    def gradient(self, x, y):
        w = parameters_to_vector(self.model.parameters()).detach().clone()
        g = None if self.name in ONE_PASS else self.at(w, *self.ahead(x, y), statistics=self.name != "async_sam")
        eps = getattr(self, self.name)(w, g)
        taken = self.at(w + eps, x, y, statistics=self.name in (*ONE_PASS, "async_sam"))
        self.learn(g, taken)
        self.t += 1
        parts = taken.split([p.numel() for p in self.model.parameters()])
        return [part.view_as(p) for part, p in zip(parts, self.model.parameters(), strict=True)]

    def ahead(self, x, y):
        n = max(1, round(self.knobs["batch"] * len(x))) if self.name == "async_sam" else len(x)
        return x[:n], y[:n]

    def learn(self, g, taken):
        if self.name == "s2sam":
            self.m = taken
        if self.name == "async_sam":
            self.m = g
        if self.name == "momentum_sam":
            self.m = taken if self.m is None else self.knobs["mu"] * self.m + taken
        if self.name in ("ssam_f", "ssam_d") and self.t % (PLAN["steps_per_epoch"] * self.knobs["every_epochs"]) == 0:
            self.renew(g)

    def long(self, d):
        return self.knobs["rho"] * d / d.norm()

    def of_norms(self):
        owner = {p: m for m in self.model.modules() for p in m.parameters(recurse=False)}
        return torch.cat([torch.full((p.numel(),), float(isinstance(owner[p], nn.BatchNorm2d))) for p in self.model.parameters()]).double()

    def sam_on(self, w, g):
        return self.long(g * self.of_norms())

    def asam_on(self, w, g):
        t = w.abs() + self.knobs["eta"]
        h = t * g * self.of_norms()
        return self.knobs["rho"] * t * h / h.norm()

    def fsam(self, w, g):
        d = g if self.m is None else g - self.knobs["sigma"] * self.m
        self.m = g if self.m is None else self.knobs["lam"] * self.m + (1 - self.knobs["lam"]) * g
        return self.long(d)

    def vasso(self, w, g):
        self.m = g if self.m is None else self.knobs["lam"] * self.m + (1 - self.knobs["lam"]) * g
        return self.long(self.m)

    def s2sam(self, w, g):
        return torch.zeros_like(w) if self.m is None else self.long(self.m)

    async_sam = s2sam

    def momentum_sam(self, w, g):
        return torch.zeros_like(w) if self.m is None else -self.long(self.m)

    def fisher_sam(self, w, g):
        inverse = 1 / (1 + self.knobs["eta"] * g**2)
        return self.knobs["rho"] * inverse * g / torch.sqrt(g @ (inverse * g))

    def unified_sam(self, w, g):
        t = self.t + 1
        lam = {"1/t": 1 / t, "1-1/t": 1 - 1 / t}.get(self.knobs["lambd"], self.knobs["lambd"])
        return self.knobs["rho"] * (1 - lam + lam / g.norm()) * g

    def zsharp(self, w, g):
        kept = []
        for part, p in zip(g.split([p.numel() for p in self.model.parameters()]), self.model.parameters(), strict=True):
            z = (part - part.mean()) / part.std()
            count = len(z) - math.floor(self.knobs["percentile"] * len(z)) if p.ndim > 1 else len(z)
            chosen = sorted(range(len(z)), key=lambda i, z=z: -abs(z[i]))[:count]
            kept.append(torch.zeros_like(part))
            kept[-1][chosen] = part[chosen]
        return self.long(torch.cat(kept))

    def uniform(self, number):
        return torch.rand(sum(p.numel() for p in self.model.parameters()), generator=torch.Generator().manual_seed(number))

    def best(self, scores, count):
        mask = torch.zeros(len(scores), dtype=torch.float64)
        mask[scores.argsort(descending=True)[:count]] = 1
        return mask

    def ssam_f(self, w, g):
        if self.mask is None:
            self.mask = self.best(self.uniform(0), len(w) - math.ceil(len(w) * self.knobs["sparsity"]))
        return self.long(g) * self.mask

    ssam_d = ssam_f

    def renew(self, g):
        live = len(g) - math.ceil(len(g) * self.knobs["sparsity"])
        if self.name == "ssam_f":
            self.mask = self.best(g**2, live)
            return
        epoch, epochs = self.t // PLAN["steps_per_epoch"], PLAN["total_steps"] // PLAN["steps_per_epoch"]
        count = min(int(self.knobs["drop"] * (1 + math.cos(math.pi * epoch / epochs)) / 2 * live), len(g) - live)
        lowest = sorted((i for i in range(len(g)) if self.mask[i]), key=lambda i: abs(g[i]))[:count]
        drawn = self.uniform(epoch // self.knobs["every_epochs"] + 1)
        grown = sorted((i for i in range(len(g)) if not self.mask[i]), key=lambda i: -drawn[i])[:count]
        self.mask[lowest], self.mask[grown] = 0, 1

    def random_sam(self, w, g):
        drawn = torch.randn(len(w), generator=torch.Generator().manual_seed(self.t)).double()
        noise = []
        for part, p in zip(drawn.split([p.numel() for p in self.model.parameters()]), self.model.parameters(), strict=True):
            part = part.view_as(p)
            filters = range(len(p)) if p.ndim > 1 else [slice(None)]
            for f in filters:
                part[f] *= self.knobs["std"] * p.detach()[f].norm()
            noise.append(part.flatten())
        return torch.cat(noise)
