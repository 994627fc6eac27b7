"""Where ``torch.autograd.grad`` finds no gradient and ``backward`` does: checkpointing with ``use_reentrant=True``, and FSDP2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..schema import UserError
from .structure import dense_of

LATE = (
    "Activation checkpointing with use_reentrant=True was switched on after the first ascent: create the method anew, or checkpoint with "
    "use_reentrant=False."
)


def checkpoints(loss: Tensor) -> bool:
    """Whether the loss was computed with it: by torch's own function, or one by the name of those made after it."""
    seen, nodes = set(), [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            if node.name() == "CheckpointFunctionBackward":
                return True
            seen.add(node)
            nodes.extend(after for after, _ in node.next_functions)
    return False


class Gradients:
    """The gradient of a loss, of chosen parameters of a model, that touches no ``.grad``.

    Under reentrant checkpointing it costs the backward pass of the whole graph; that is found out at the first one. ``by_backward``: of
    sharded parameters it is known: FSDP2 brings their gradients from a backward pass, into ``.grad``, and the graph has none.
    """

    def __init__(self, model: nn.Module, *, by_backward: bool = False) -> None:
        self.model = model
        self.by_backward: bool | None = by_backward or None  # not known

    def __call__(self, loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """Tensor by tensor, dense; None of one that the loss does not depend on.

        Raises:
            UserError: the checkpointing began later.
        """
        if self.by_backward is None:
            self.by_backward = checkpoints(loss)
        found = self._by_backward(loss, parameters) if self.by_backward else self._by_grad(loss, parameters)
        return [g if g is None else dense_of(g) for g in found]

    def _by_grad(self, loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        try:
            found: list[Tensor | None] = list(torch.autograd.grad(loss, parameters, allow_unused=True))
        except RuntimeError as error:
            if "use_reentrant" in str(error):
                raise UserError(LATE) from None
            raise
        if any(g is None for g in found):  # what is in there has got none
            if checkpoints(loss):
                raise UserError(LATE)
            self.by_backward = None  # nor has what is unused
        return found

    def _by_backward(self, loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        everything = list(self.model.parameters())
        kept = [p.grad for p in everything]
        try:
            for p in everything:
                p.grad = None
            loss.backward()
            return [p.grad for p in parameters]
        finally:
            for p, before in zip(everything, kept, strict=True):
                p.grad = before
