"""What a step costs, counted and measured (KDD'24, section 4.3).

Eq. 8, the cost of perturbing the layers w', and Eq. 9, LookSAM's with its interval k::

    B_min(w') + sum over i in w' of |grad L(w_i)| + C            (1/k) (B_1 + sum over all i of |grad L(w_i)|) + C

- B_i, "the error propagation cost from the output layer to the layer i": the FLOPs of the gradient of the loss with regard to
  the output of layer i, counted. ``min(w')`` is the layer of w' that the errors reach last.
- |grad L(w_i)|, "the number of elements": here the FLOPs that computing these elements takes, counted, as an element of a
  convolution's gradient costs more than one of a linear map's.
- C, "a constant computational cost": what a step does in any case, that is the forward pass, F, and the backward pass of the
  descent, B_1 + sum over all i; and the forward pass of the ascent, of which a chain runs a part alone.

All FLOPs are of one sample: normalisations, activations and the update count nothing, which is why time does not follow exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..chain import Layer, call, layers, tree_map
from ..optim import Method, Report
from .objective import undisturbed


class LayerCost(NamedTuple):
    """FLOPs for one sample."""

    layer: str
    stage: int
    forward: int
    propagation: int  # B_i
    gradient: int  # |grad L(w_i)|


class Costs:
    """The costs of a model's layers, in forward order.

    Args:
        model: any module; it is left as it was found.
        inputs: a batch of any size; the first sample of it is used.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        sample = tree_map(lambda t: t[:1], inputs)
        found = layers(model)
        with undisturbed(model), torch.enable_grad(), _outputs_of(model, found) as outputs:
            with FlopCounterMode(display=False) as counter:
                result = call(model, sample)
            loss = torch.stack([leaf.sum() for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.requires_grad]).sum()
            self.forward = counter.get_total_flops()
            modules = dict(model.named_modules())
            self.layers = [
                _cost(layer, modules.get(layer.name, model), loss, outputs[layer.name], _forward(counter, model, layer)) for layer in found
            ]
        self._of = {cost.layer: cost for cost in self.layers}

    @property
    def backward(self) -> int:
        """B_1 and the gradients of all layers."""
        return self.ascent(self._of)

    @property
    def sgd(self) -> int:
        """A plain step: one forward, one backward pass."""
        return self.forward + self.backward

    def ascent(self, chosen: Iterable[str]) -> int:
        """The backward pass that the gradients of the layers ``chosen`` (names) take: Eq. 8 without C."""
        costs = [self._of[name] for name in chosen]
        return max((cost.propagation for cost in costs), default=0) + sum(cost.gradient for cost in costs)

    def looksam(self, k: int) -> float:
        """The mean ascent of LookSAM with interval ``k``: Eq. 9 without C."""
        return self.backward / k

    def step(self, method: Method, report: Report) -> float:
        """A step that ``method`` made, C included: the passes forward that it reports, its ascent and its descent."""
        samples = getattr(method, "samples", None)
        descent = samples.gamma if samples is not None and samples.chooses and report.ascended else 1.0  # ESAM: of some samples
        return self.forward * report.forward_units + self.backward * descent + self.ascent(report.layers)


@contextmanager
def _outputs_of(model: nn.Module, found: Iterable[Layer]) -> Iterator[dict[str, list[Tensor]]]:
    """What every layer puts out while this lasts; a layer that stands for a model without any has no output of its own."""
    modules = dict(model.named_modules())
    outputs: dict[str, list[Tensor]] = {layer.name: [] for layer in found}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: outputs[name].extend(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))

    hooks = [modules[name].register_forward_hook(keep(name)) for name in outputs if name in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _cost(layer: Layer, module: nn.Module, loss: Tensor, outputs: list[Tensor], forward: int) -> LayerCost:
    propagation = _backward_flops(loss, [output for output in outputs if output.requires_grad])
    # A convolution's is what its forward pass takes, as each product of an input and a weight becomes one of an input and an
    # error; torch counts it as if there were one group only.
    convolves = isinstance(module, nn.modules.conv._ConvNd)
    gradient = forward if convolves else _backward_flops(loss, layer.parameters) - propagation
    return LayerCost(layer.name, layer.stage, forward, propagation, gradient)


def _backward_flops(loss: Tensor, towards: list[Any]) -> int:
    if not towards:
        return 0
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(loss, towards, retain_graph=True, allow_unused=True)
    return counter.get_total_flops()


def _forward(counter: FlopCounterMode, model: nn.Module, layer: Layer) -> int:
    root = type(model).__name__
    name = f"{root}.{layer.name}" if layer.name in dict(model.named_modules()) and layer.name else root
    return sum(counter.get_flop_counts().get(name, {}).values())
