"""The parameters of a model in the order of its layers, with the layer and the stage that each belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..chain import layers
from ..schema import UserError

NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
HALF = (torch.float16, torch.bfloat16)


def norms_of(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The norm of each tensor, at least in float32: the square of a norm soon passes what half precision can hold."""
    return tuple(map(whole, torch._foreach_norm([t.float() if t.dtype in HALF else t for t in map(dense_of, tensors)])))


def whole(number: Tensor) -> Tensor:
    """A number computed of sharded tensors (DTensors), as every process then has it; others as they are."""
    full: Any = getattr(number, "full_tensor", None)
    return number if full is None else full()


def dense_of(tensor: Tensor) -> Tensor:
    """The tensor, a sparse one (an embedding's gradient) with all its rows: those that it names twice are one."""
    return tensor.to_dense() if tensor.is_sparse else tensor


def real(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, complex numbers as pairs: as a vector, which is what has a direction."""
    return [torch.view_as_real(t) if t.is_complex() else t for t in tensors]


def unreal(pairs: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """What ``real`` made of tensors ``like`` these, or was computed of that, as such tensors again."""
    return [torch.view_as_complex(t) if kind.is_complex() else t for t, kind in zip(pairs, like, strict=True)]


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of a vector given in parts."""
    return torch.stack(norms_of(tensors)).norm()


@dataclass(frozen=True)
class Plan:
    """What a method may need to know of the training to come."""

    total_steps: int | None = None
    steps_per_epoch: int | None = None
    dataset_size: int | None = None
    seed: int = 0  # of the method's own draws


class Structure:
    """What a method knows of a model. ``parameters`` are the trainable ones, layer by layer, forward."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = layers(model)
        self.parameters = [p for layer in self.layers for p in layer.parameters]
        if not self.layers:
            raise UserError("The model has nothing to train: no parameter requires a gradient.")
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.names = [names[p] for p in self.parameters]
        self.layer_of = [index for index, layer in enumerate(self.layers) for _ in layer.parameters]
        self._parameters_of_layer = tuple(len(layer.parameters) for layer in self.layers)
        normalising = {p for module in model.modules() if normalises(module) for p in module.parameters(recurse=False)}
        self.of_norms = {index for index, p in enumerate(self.parameters) if p in normalising}
        self._on_device: dict[tuple[int, ...], Tensor] = {}
        self._kept(self._parameters_of_layer, self.parameters[0].device)

    def parameters_of(self, chosen: Iterable[int]) -> list[int]:
        """The indices of the parameters of the layers ``chosen`` (layer indices)."""
        chosen = set(chosen)
        return [index for index, layer in enumerate(self.layer_of) if layer in chosen]

    def first_stage(self, parameters: Iterable[int]) -> int:
        """The first stage of the chain that a change of these parameters (indices, at least one) reaches."""
        return min(self.layers[self.layer_of[index]].stage for index in parameters)

    def gradients(self) -> list[Tensor | None]:
        """``.grad`` of every parameter."""
        return [p.grad for p in self.parameters]

    def number(self) -> Tensor:
        """A real number on the device, 0-dim, zero; at least in float32. For what a recorded step has to read there."""
        (first,) = real(self.parameters[:1])
        return torch.zeros((), dtype=torch.promote_types(first.dtype, torch.float32), device=first.device)

    def densify(self) -> None:
        """Have no sparse ``.grad``."""
        for p in self.parameters:
            if p.grad is not None and p.grad.is_sparse:
                p.grad = p.grad.to_dense()

    def layer_norms(self, gradients: list[Tensor | None]) -> Tensor:
        """The norm of the gradient of every layer, shape ``(layers,)``, on the device; a missing gradient counts zero."""
        present = [g for g in gradients if g is not None]
        if not present:
            return torch.zeros(len(self.layers), device=self.parameters[0].device)
        norms: Any = iter(norms_of(present))
        zero = torch.zeros((), dtype=torch.float64 if present[0].dtype == torch.float64 else torch.float32, device=present[0].device)
        squares = torch.stack([zero if g is None else next(norms) for g in gradients]).square()
        lengths = self._kept(self._parameters_of_layer, squares.device)
        return torch.segment_reduce(squares, "sum", lengths=lengths, unsafe=True).sqrt()  # the check would read the lengths

    def spread(self, per_layer: Tensor, selected: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
        """A number of every layer, ``(layers,)``, at each place of tensors ``like`` the parameters ``selected``.

        All in one operation, where a product with one number after the other would be as many as there are tensors.
        """
        if sharded(like):
            return [torch.ones_like(t) * per_layer[self.layer_of[index]] for index, t in zip(selected, like, strict=True)]
        counts = [0] * len(self.layers)
        for index, tensor in zip(selected, like, strict=True):
            counts[self.layer_of[index]] += tensor.numel()
        flat = per_layer.repeat_interleave(self._kept(tuple(counts), per_layer.device), output_size=sum(counts))
        parts = flat.split([tensor.numel() for tensor in like])
        # Within a tensor all are equal: in whatever order it lies in memory, they may lie in the same.
        return [part.as_strided(t.shape, t.stride()) if dense(t) else part.view(t.shape) for part, t in zip(parts, like, strict=True)]

    def _kept(self, numbers: tuple[int, ...], device: torch.device) -> Tensor:
        """The numbers on the device: brought there once, as the host waits for that."""
        if numbers not in self._on_device or self._on_device[numbers].device != device:
            self._on_device[numbers] = torch.tensor(numbers, device=device)
        return self._on_device[numbers]


def normalises(module: nn.Module) -> bool:
    """Whether the module's own parameters are those of a normalisation: by its type, never by the name that it has in the model.

    One that is none of PyTorch's says so by the name of its class, and has vectors alone.
    """
    if isinstance(module, NORMALISATIONS):
        return True
    return "norm" in type(module).__name__.lower() and all(p.ndim < 2 for p in module.parameters(recurse=False))


def sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether each process has a part of them alone, as FSDP2 leaves a model's parameters (DTensors)."""
    return any(hasattr(tensor, "full_tensor") for tensor in tensors)


def own(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Of sharded tensors the part that this process has, in the same memory; others as they are."""
    found: list[Any] = list(tensors)
    return [t.to_local() if sharded([t]) else t for t in found]


def dense(tensor: Tensor) -> bool:
    """Whether the tensor fills a stretch of memory, in whatever order of its dimensions."""
    return sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1 == tensor.numel()
