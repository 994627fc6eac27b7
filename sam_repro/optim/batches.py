"""Samples that pass the model together, in whatever container they come."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ..chain import tensors, tree_map
from ..schema import UserError


class MicroBatch(NamedTuple):
    """Samples that pass the model together."""

    inputs: Any
    targets: Any
    share: float  # of the step's samples
    place: int  # which of the accumulated batches they are from
    dim: int = 0  # the dimension along which the samples lie

    @property
    def samples(self) -> int:
        """How many."""
        return size(self.inputs, self.dim)

    def take(self, places: slice | Tensor, count: int) -> MicroBatch:
        """Those at ``places``, so many."""
        n = self.samples
        inputs, targets = (rows(tree, places, n, self.dim) for tree in (self.inputs, self.targets))
        return self._replace(inputs=inputs, targets=targets, share=self.share * count / n)


def batches_of(inputs: Any, targets: Any, dim: int) -> list[MicroBatch]:
    """The accumulated batches of a step, from what ``backward`` got."""
    if not isinstance(inputs, list):
        return [MicroBatch(inputs, targets, 1.0, 0, dim)]
    if not isinstance(targets, list) or len(targets) != len(inputs) or not inputs:
        raise ValueError("A list of micro-batches needs a list of as many targets, at least one.")
    sizes = [size(part, dim) for part in inputs]
    parts = zip(inputs, targets, sizes, strict=True)
    return [MicroBatch(x, y, n / sum(sizes), place, dim) for place, (x, y, n) in enumerate(parts)]


def size(inputs: Any, dim: int = 0) -> int:
    """The number of samples: of the first tensor in ``inputs`` that has dimensions."""
    if isinstance(inputs, Tensor) and inputs.ndim:
        return inputs.shape[_along(inputs, dim)]
    found: list[int] = []
    tree_map(
        lambda t: found.append(t.shape[_along(t, dim)]) if t.ndim else None, inputs, lambda packed: found.append(int(packed.batch_sizes[0]))
    )
    if not found:
        raise UserError(f"The inputs hold no tensor with a dimension of samples: they are {type(inputs).__name__}.")
    return found[0]


def rows(tree: Any, places: slice | Tensor, n: int, dim: int = 0) -> Any:
    """The samples at ``places`` of n, from every tensor; one without a dimension of them, or with 1 there, is of all."""

    def taken(t: Tensor) -> Tensor:
        along = _along(t, dim)
        if t.ndim == 0 or t.shape[along] == 1 != n:
            return t
        if t.shape[along] != n:
            wrong = f"A tensor of shape {tuple(t.shape)} does not have the {n} samples of its batch along dimension {along}"
            raise UserError(f"{wrong}, by which the method takes the batch apart: say batch_dim=, or transpose it.")
        return t[(*[slice(None)] * along, places)]

    def repacked(packed: PackedSequence) -> PackedSequence:
        padded, lengths = pad_packed_sequence(packed, batch_first=True)
        lengths = lengths[places.cpu() if isinstance(places, Tensor) else places]
        return pack_padded_sequence(padded[places], lengths, batch_first=True, enforce_sorted=False)

    return tree_map(taken, tree, repacked)


def _along(tensor: Tensor, dim: int) -> int:
    """Where the samples are; in a tensor that has fewer dimensions, as class labels, the last."""
    return min(dim, max(0, tensor.ndim - 1))


def joined(parts: list[tuple[Any, float]], dim: int) -> Any:
    """The outputs of micro-batches, each with its share of the samples, as those of their batch; a list where that cannot be.

    A number of a micro-batch, such as its mean loss, becomes the mean over the samples.
    """
    trees = [tree for tree, _ in parts]
    if len(trees) == 1:
        return trees[0]
    packed: list[Any] = []
    tree_map(lambda t: t, trees[0], packed.append)
    found = [tensors(tree) for tree in trees]
    alike = all([t.shape[1:] for t in one] == [t.shape[1:] for t in found[0]] for one in found)
    if dim or packed or not alike:
        return trees
    whole = sum(share for _, share in parts)
    columns = iter(
        torch.cat(column)
        if column[0].ndim
        else torch.stack([t * (share / whole) for t, (_, share) in zip(column, parts, strict=True)]).sum()
        for column in zip(*found, strict=True)
    )
    return tree_map(lambda _: next(columns), trees[0])
