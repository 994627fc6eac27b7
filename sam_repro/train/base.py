"""The base optimizer and the schedule of its learning rate: torch's own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from ..optim.falls import left
from ..schema import UserError


def base_optimizer(
    settings: dict[str, Any], parameters: Sequence[nn.Parameter], lr: float, weight_decay: float, decayed: str = "all"
) -> Optimizer:
    """``conf/base``: takes the step along the method's gradient; weight decay is its own, at w.

    ``decayed=weights`` leaves vectors and numbers (normalisations, biases, step sizes) undecayed. On a GPU torch's own are fused: one
    kernel for many tensors, which under fp16 also leaves out a step that overflowed, without making the host wait for that.
    """
    fused: Any = {"fused": True} if parameters[0].device.type == "cuda" else {}  # elsewhere the bits stay as they were
    groups: Any = parameters
    if decayed == "weights":
        flat = [p for p in parameters if p.ndim < 2]
        groups = [{"params": [p for p in parameters if p.ndim >= 2]}, {"params": flat, "weight_decay": 0.0}]
    if settings["name"] in ("adam", "adamw", "lamb"):
        betas = (settings["beta1"], settings["beta2"])
        kind, more = _lamb() if settings["name"] == "lamb" else ({"adam": Adam, "adamw": AdamW}[settings["name"]], fused)
        return eager(kind)(groups, lr=lr, betas=betas, eps=settings["eps"], weight_decay=weight_decay, **more)
    if settings["nesterov"] and settings["momentum"] <= 0:
        raise UserError("base.nesterov=true needs a momentum above 0.")
    return eager(SGD)(groups, lr, settings["momentum"], weight_decay=weight_decay, nesterov=settings["nesterov"], **fused)


def eager(kind: type[Optimizer]) -> Any:
    """The optimizer without what torch wraps its methods in for ``torch.compile``, which we do not hand it to.

    Those wrappers do nothing outside of it but to import the compiler, torch._dynamo, when the optimizer is made: four seconds at
    the start of every run. What is not wrapped, as another version of torch may have it, stays as it is.
    """
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict")}
    return type(kind.__name__, (kind,), {**plain, "step": torch.no_grad()(inspect.unwrap(kind.step))})


def _lamb() -> tuple[type[Optimizer], dict[str, Any]]:
    """Timm's LAMB, which would clip by itself."""
    try:
        from timm.optim.lamb import Lamb
    except ImportError as error:
        raise UserError("base=lamb needs the timm library: pip install 'sam-repro[timm]'.") from error
    return Lamb, {"max_grad_norm": None}


def schedule(settings: dict[str, Any], base: Optimizer, epochs: int, steps_per_epoch: int) -> LRScheduler:
    """``conf/schedule``: the learning rate, advanced after every step."""
    total = epochs * steps_per_epoch
    if settings["name"] == "onecycle":
        share = settings["warmup_share"]
        return OneCycleLR(
            base,
            base.param_groups[0]["lr"],
            total,
            pct_start=share if share * total != 1 else share * (1 + 1e-9),  # torch divides by share * total - 1
            cycle_momentum=False,
            div_factor=settings["start_factor"],
            final_div_factor=settings["final_factor"],
        )
    warmup = round(settings["warmup"] * steps_per_epoch)
    if warmup >= total:
        raise UserError(f"schedule.warmup={settings['warmup']} epochs leave nothing of a training of {epochs}.")

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if settings["name"] == "step":
            passed = (step >= round(settings["first"] * total)) + (step >= round(settings["second"] * total))
            return float(settings["factor"] ** passed)
        if settings["name"] == "cosine":
            if settings["per"] == "epoch":
                return 0.5 * (1 + math.cos(math.pi * (step // steps_per_epoch) / epochs))
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        if settings["name"] == "linear":
            return max(0.0, 1 - (step - warmup) / (total - warmup))
        if settings["name"] == "wsd":
            steps = max(1, round(settings["decay"] * total))  # as many as when=window has of this share; the first is a whole one
            return left(settings["shape"], (step - total + steps) / steps) if step >= total - steps else 1.0
        return 1.0

    return LambdaLR(base, factor)
