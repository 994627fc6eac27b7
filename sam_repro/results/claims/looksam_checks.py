"""The checks of LookSAM's claims (Liu et al. 2022, supplement): sizes counted, identities, and what a small network shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ... import models, optim
from ...chain import layers
from ...measure.contestants import per_sample_loss
from ...measure.objective import Objective
from ...optim.passes import perturbed
from ...optim.structure import norm_of
from ..declare import EXPERIMENTS, load
from ..recipe import agrees, recipe
from ..select import Request
from .toy import batches, contestant, digits, distance, method_gradient, passes, plain_gradient, smooth, trained, weights

SHAPES = {"patch", "sequence", "hidden", "heads", "layers"}
INTERVALS = (1, 2, 3, 5, 10)
ALPHA = 0.7  # Table 9

# -- the networks and recipes ----------------------------------------------------------------------------------------------


def million_parameters(model: str, **fields: Any) -> list[float]:
    """The parameters of a model for ImageNet, rounded to a million."""
    with torch.device("meta"):
        net: Any = models.create(model, 1000, image_size=224, **fields)
    return [float(round(sum(p.numel() for p in net.parameters()) / 1e6))]


def other_shapes() -> list[float]:
    """In how many numbers of Table 10, parameters apart, the models are others."""
    rows = recipe(load(EXPERIMENTS, "looksam/table10"), Request())
    return [float(sum(not agrees(row["mean"], row["paper"]) for row in rows if row["metric"] in SHAPES))]


def recipe_growth(setting: str, large: str = "65536") -> list[float]:
    """A setting of Look-LayerSAM's preset at the largest batch size of Table 9 in that at 4,096."""
    rows = {row["row"]: row for row in recipe(load(EXPERIMENTS, "looksam/table9"), Request()) if row["metric"] == setting}
    ends = [rows[f"ViT-B-16 + Look-LayerSAM, {batch}"] for batch in (large, "4096")]
    assert all(agrees(row["mean"], row["paper"]) for row in ends)
    return [float(ends[0]["mean"]) / float(ends[1]["mean"])]


def warmup_epochs_growth(large: str = "65536") -> list[float]:
    """The same of the epochs of warm-up: of its steps and of the samples in one."""
    return [recipe_growth("warmup_steps", large)[0] * int(large) / 4096]


# -- the algorithms ----------------------------------------------------------------------------------------------------------


def k1_difference(k: int = 1) -> list[float]:
    """The largest relative difference of the weights after 50 steps, of LookSAM and SAM, and of Look-LayerSAM and LayerSAM."""
    found = []
    for own, other, rho in (("looksam", "sam", 0.05), ("looklayersam", "layersam", 0.01)):
        found.append(distance(weights(trained(own, 50, rho=rho, k=k)), weights(trained(other, 50, rho=rho))))
    return [max(found)]


def reused_cosine(methods: Sequence[str] = ("looksam", "looklayersam")) -> list[float]:
    """The largest cosine of what is added to the plain gradient between ascents with the plain gradient of the last ascent."""
    return [max(cosine for method in methods for cosine, _ in _reused(method))]


def reused_length(alpha: float = ALPHA) -> list[float]:
    """By how much the length of what is added, over that of the plain gradient, differs from Table 9's alpha, relatively and at most."""
    return [max(abs(length / ALPHA - 1) for method in ("looksam", "looklayersam") for _, length in _reused(method, alpha=alpha))]


def _reused(method: str, **knobs: Any) -> Iterator[tuple[float, float]]:
    """Of every step between ascents, in 20 steps with k = 4: cosine and relative length."""
    net = smooth(0)
    one = contestant(method, net, k=4, rho=0.01, **knobs)
    for step, (inputs, targets) in enumerate(batches(20, 0)):
        plain = plain_gradient(net, inputs, targets)
        one.gradient.backward(inputs, targets, per_sample_loss)
        if step % 4 == 0:
            ascent = plain
        else:
            added = [p.grad - g for p, g in zip(net.parameters(), plain, strict=True) if p.grad is not None]
            yield abs(_dot(added, ascent) / (norm_of(added) * norm_of(ascent)).item()), (norm_of(added) / norm_of(plain)).item()
        one.base.step()
        one.base.zero_grad()


def _dot(own: list[Tensor], other: list[Tensor]) -> float:
    return sum((a * b).sum().item() for a, b in zip(own, other, strict=True))


def other_passes(method: str = "looksam", intervals: Sequence[int] = INTERVALS) -> list[float]:
    """By how much, at most, the passes of a step forward and backward differ from 1 + 1/k; counted over 30 steps."""
    counts = {k: passes(method, 30, **({} if method == "sam" else {"k": k})) for k in intervals}
    return [max(abs(count / (30 * 16) - (1 + 1 / k)) for k, both in counts.items() for count in both)]


def layersam_error(trust: str = "printed") -> list[float]:
    """The largest relative difference, over layers, of LayerSAM's perturbation from the one of Algorithm 2 with rho = 1."""
    net, plain, moved = _perturbation("layersam", rho=1.0, trust=trust)
    whole = norm_of(plain)
    found = []
    for w, g, eps in zip(*(_by_layer(net, parts) for parts in (weights(net), plain, moved)), strict=True):
        found.append(distance(eps, list(torch._foreach_mul(g, norm_of(w) / norm_of(g) / whole))))
    return [max(found)]


def layersam_spread(methods: Sequence[tuple[str, dict[str, Any]]] = (("layersam", {}), ("layersam", {"trust": "local"}))) -> list[float]:
    """The largest step of a layer in its weights over the smallest, less 1; of both readings of Algorithm 2."""
    found = []
    for method, knobs in methods:
        net, _, moved = _perturbation(method, rho=0.05, **knobs)
        sizes = [(norm_of(eps) / norm_of(w)).item() for w, eps in zip(_by_layer(net, weights(net)), _by_layer(net, moved), strict=True)]
        found.append(max(sizes) / min(sizes) - 1)
    return [max(found)]


def _perturbation(method: str, **knobs: Any) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    """A network, its gradient, and how far its weights are moved for the second pass."""
    net = trained("sgd", 10)
    ((inputs, targets),) = batches(1, 1)
    seen: list[list[Tensor]] = []

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(weights(net))
        return per_sample_loss(outputs, targets)

    optim.create(method, net, **knobs).backward(inputs, targets, criterion)
    return net, plain_gradient(net, inputs, targets), list(torch._foreach_sub(seen[1], seen[0]))


def _by_layer(net: nn.Module, parts: list[Tensor]) -> list[list[Tensor]]:
    by_parameter = dict(zip(net.parameters(), parts, strict=True))
    return [[by_parameter[p] for p in layer.parameters] for layer in layers(net)]


# -- the premises of the bound -------------------------------------------------------------------------------------------------


def imitation_error_slope(alpha: float = ALPHA) -> list[float]:
    """How much the distance of LookSAM's gradient from SAM's, between ascents and in SAM's norm, grows when k doubles, of five networks."""
    ks = [k for k in INTERVALS if k > 1]
    return [float(np.polyfit(np.log2(ks), [_imitation_error(k, alpha, seed) for k in ks], 1)[0]) for seed in range(5)]


def _imitation_error(k: int, alpha: float, seed: int) -> float:
    net = smooth(seed)
    one, sam = contestant("looksam", net, k=k, alpha=alpha), optim.create("sam", net)
    errors = []
    for step, (inputs, targets) in enumerate(batches(120, seed)):
        wanted = method_gradient(sam, inputs, targets)
        one.gradient.backward(inputs, targets, per_sample_loss)
        if step % k:
            errors.append(distance([p.grad for p in net.parameters() if p.grad is not None], wanted))
        one.base.step()
        one.base.zero_grad()
    return float(np.mean(errors))


def noise_rise(rho: float) -> list[float]:
    """By how much, relatively, the test loss rises under Gaussian noise of length rho on the weights that LookSAM found, of five networks.

    Each draw is taken with its opposite, so that a slope of the loss counts nothing.
    """
    inputs, targets = (whole[1000:] for whole in digits())
    found = []
    for seed in range(5):
        net = trained("looksam", 300, seed)
        objective = Objective(net, per_sample_loss, [(inputs, targets)])
        generator = torch.Generator().manual_seed(seed)
        sigma = rho / sum(p.numel() for p in net.parameters()) ** 0.5
        before, after = objective.value().item(), []
        for _ in range(50):
            draw = [sigma * torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in net.parameters()]
            for direction in (1, -1):
                with perturbed(list(net.parameters()), list(torch._foreach_mul(draw, direction))):
                    after.append(objective.value().item())
        found.append(float(np.mean(after)) / before - 1)
    return found


CHECKS: dict[str, Callable[[], list[float]]] = {
    check.__name__: check
    for check in (
        *(other_shapes, warmup_epochs_growth, k1_difference, reused_cosine, reused_length, other_passes),
        *(layersam_error, layersam_spread, imitation_error_slope),
    )
} | {
    **{f"million_parameters_{size}": partial(million_parameters, f"vit_{size}") for size in ("b16", "b32", "s16", "s32")},
    **{f"{setting}_growth": partial(recipe_growth, setting) for setting in ("lr", "warmup_steps")},
    **{f"noise_rise_{rho}": partial(noise_rise, rho) for rho in (0.05, 0.18, 1.0)},
}  # fmt: skip
