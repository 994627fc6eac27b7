"""The loss around a model's weights, along random directions of one layer or of all (KDD'24, appendix A.2; Li et al. 2018).

As in A.2: a random vector of the layer's size and a second one orthogonal to it, each of norm 1, times alpha and beta of
{-20, ..., 19} each, are added to the layer; the loss is that of the same samples at all points. The vectors are Gaussian, and not
filter-normalised. A layer is ``sam_repro.chain.layers()``'s: its normalisation belongs to it. BatchNorm is in evaluation mode.

For any model, without a run::

    landscape(model, nn.CrossEntropyLoss(reduction="none"), [(inputs, targets)], layer="head.linear")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..chain import Chain, Unperturbed, call, layers
from ..optim.passes import perturbed, written
from ..optim.structure import norm_of
from ..schema import UserError, suggest
from .objective import Batches, Loss, undisturbed

ALL = "all"  # in place of a layer: the whole model


class Landscape(NamedTuple):
    """``loss[j][i]`` is the mean loss at ``x[i]`` along the first direction and ``y[j]`` along the second, if there is one."""

    layer: str
    x: list[float]
    y: list[float]
    loss: list[list[float]]


def landscape(
    model: nn.Module,
    loss: Loss,
    batches: Batches,
    layer: str = ALL,
    *,
    dimensions: int = 2,
    points: int = 40,
    distance: float = 1.0,
    seed: int = 0,
    tick: Callable[[int], None] | None = None,
) -> Landscape:
    """The mean loss at ``points`` x ``points`` weights; the model is left as it was found.

    Args:
        model: any module; in a ``Chain`` the stages before the layer's are run once, not at every point.
        loss: ``loss(outputs, targets)`` returns the loss of each sample, ``(batch,)``.
        batches: ``(inputs, targets)``, all held in memory.
        layer: a layer's name, or ``all``.
        dimensions: 2, or 1 for a line.
        points: of each direction, from -points // 2 on, so that 0 is among them: 40 are -20 to 19.
        distance: between two points, in the weights' own units; 1 in the paper.
        seed: of the directions.
        tick: called with the number of points done.

    Raises:
        UserError: there is no such layer.
    """
    parameters, stage = _found(model, layer)
    directions = orthonormal(parameters, dimensions, seed)
    x = [distance * (index - points // 2) for index in range(points)]
    y = x if dimensions == 2 else [0.0]
    rows: list[list[Tensor]] = []
    with undisturbed(model), torch.no_grad():
        suffix = _Suffix(model, loss, batches, stage)
        for b in y:
            rows.append([])
            for a in x:
                with perturbed(parameters, _sum((a, b), directions)):
                    rows[-1].append(suffix.loss())
                if tick is not None:
                    tick((len(rows) - 1) * points + len(rows[-1]))
    return Landscape(layer, x, y, [torch.stack(row).tolist() for row in rows])


def orthonormal(like: Sequence[Tensor], count: int, seed: int) -> list[list[Tensor]]:
    """Gaussian vectors in parts like the tensors of ``like``, made orthogonal to each other and of norm 1."""
    generator = torch.Generator().manual_seed(seed)
    found: list[list[Tensor]] = []
    for _ in range(count):
        vector = [torch.randn(t.shape, generator=generator).to(t) for t in like]
        for other in found:
            along = sum((a * b).sum() for a, b in zip(vector, other, strict=True))
            vector = [a - along * b for a, b in zip(vector, other, strict=True)]
        found.append(list(torch._foreach_div(vector, norm_of(vector))))
    return found


class _Suffix:
    """The loss over all samples from the stage of the layer on; what comes before is computed here, once."""

    def __init__(self, model: nn.Module, loss: Loss, batches: Batches, stage: int) -> None:
        self.model, self.stage, self._loss = model, stage, loss
        self.states = [(self._prefix(inputs), targets) for inputs, targets in batches]

    def _prefix(self, inputs: Any) -> Any:
        return self.model(inputs, stop=self.stage) if self.stage else inputs

    def loss(self) -> Tensor:
        """The mean over samples, 0-dim."""
        losses = torch.cat([self._loss(self._outputs(state), targets) for state, targets in self.states])
        return losses.mean()

    def _outputs(self, state: Any) -> Any:
        before = written(state)
        outputs = self.model(state, start=self.stage) if self.stage else call(self.model, state)
        if written(state) != before:
            raise RuntimeError(f"Stage {self.stage} of the model writes into its input, which all points need: make it out of place.")
        return outputs


def _found(model: nn.Module, name: str) -> tuple[list[Tensor], int]:
    """The parameters to move, and the first stage that they are part of."""
    known = {layer.name: layer for layer in layers(model)}
    if name != ALL and name not in known:
        raise UserError(f"There is no layer {name!r}.{suggest(name, [*known, ALL])}")
    chosen = list(known.values()) if name == ALL else [known[name]]
    parameters: list[Tensor] = [p for layer in chosen for p in layer.parameters if not isinstance(p, Unperturbed)]
    return parameters, min(layer.stage for layer in chosen) if isinstance(model, Chain) else 0


def _sum(factors: Sequence[float], directions: Sequence[list[Tensor]]) -> list[Tensor]:
    """The directions times their factors."""
    total = list(torch._foreach_mul(directions[0], factors[0]))
    for factor, direction in zip(factors[1:], directions[1:], strict=False):
        torch._foreach_add_(total, direction, alpha=factor)
    return total
