"""Learned step size quantization (LSQ, Esser et al. 2020): training with weights and activations of a few bits.

    v_hat = round(clip(v / s, low, high)) * s                                                          (Eq. 1 and 2)

The step size s is learned. Rounding counts as the identity in the backward pass, which gives s the gradient of Eq. 3, and
that is scaled by 1 / sqrt(numbers * high) (section 2.2). s starts at 2 mean|v| / sqrt(high), for activations on the first
batch (section 2.1). The first and the last layer have 8 bits whatever the others have (section 2.3).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..chain import Unperturbed


def quantise(v: Tensor, step: Tensor, low: int, high: int, numbers: int) -> Tensor:
    """``v`` on the grid ``step * {low, ..., high}``; ``numbers``: how many the step size serves."""
    scale = 1.0 / math.sqrt(numbers * high)
    s = step * scale + (step - step * scale).detach()
    clipped = (v / s).clamp(low, high)
    return (clipped + (clipped.round() - clipped).detach()) * s


class Quantised(nn.Module):
    """What a quantised layer has beside its weights. Step sizes are not perturbed: they are no weights."""

    weight: Tensor
    weight_step: nn.Parameter
    input_step: nn.Parameter
    bits: int
    signed: bool | None  # whether the inputs can be negative; None before the first batch

    def prepare(self, bits: int) -> None:
        """Become a layer of ``bits`` bits."""
        self.bits, self.signed = bits, None
        high = 2 ** (bits - 1) - 1
        self.weight_step = Unperturbed(2 * self.weight.detach().abs().mean() / math.sqrt(high))
        self.input_step = Unperturbed(torch.ones(()))

    def quantised_weight(self) -> Tensor:
        """The weights, signed."""
        high = 2 ** (self.bits - 1) - 1
        return quantise(self.weight, self.weight_step, -high - 1, high, self.weight.numel())

    def quantised_input(self, x: Tensor) -> Tensor:
        """The activations: unsigned unless the first training batch had a negative one."""
        if self.signed is None and self.training:
            self.signed = bool((x < 0).any())
            with torch.no_grad():
                self.input_step.copy_(2 * x.abs().mean() / math.sqrt(self._input_high()))
        low = -self._input_high() - 1 if self.signed else 0
        return quantise(x, self.input_step, low, self._input_high(), x[0].numel())

    def _input_high(self) -> int:
        return int(2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1)

    def get_extra_state(self) -> dict[str, Any]:
        """Part of the state, with the step sizes."""
        return {"signed": self.signed}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """As it was saved."""
        self.signed = state["signed"]


class QuantisedConv2d(Quantised, nn.Conv2d):
    """A convolution of quantised weights and activations."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(self.quantised_input(x), self.quantised_weight(), self.bias)


class QuantisedLinear(Quantised, nn.Linear):
    """A linear map of quantised weights and activations."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.quantised_input(x), self.quantised_weight(), self.bias)


def lsq(model: nn.Module, bits: int) -> None:
    """Quantise every convolution and linear map of ``model`` in place; ``bits`` of 0 leaves it as it is."""
    if not bits:
        return
    found = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for index, module in enumerate(found):
        # The class is changed, not the module replaced: its name, its place and its weights stay.
        module.__class__ = QuantisedConv2d if isinstance(module, nn.Conv2d) else QuantisedLinear
        module.prepare(8 if index in (0, len(found) - 1) else bits)  # type: ignore[operator]
