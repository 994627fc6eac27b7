"""A model as a chain of stages, and its layers.

Two passes of a sharpness-aware step differ only from the first perturbed stage on. A model that can be run from one
stage to another lets the engine compute what comes before once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map as pytree_map

WEIGHT_BEARING = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.MultiheadAttention,  # its input projection is a linear map that it holds itself
)


class Unperturbed(nn.Parameter):
    """A parameter that is trained but that an ascent leaves where it is, such as the step size of a quantiser."""


class Chain(nn.Sequential):
    """Named stages run one after the other: ``Chain(OrderedDict(stem=..., block1=..., head=...))``.

    The state handed from stage to stage is a tensor or a tuple of tensors. A stage does not write into its input.
    """

    def forward(self, x: Any, start: int = 0, stop: int | None = None) -> Any:
        """Run the stages ``start`` to ``stop - 1``; all of them by default."""
        for stage in islice(self._modules.values(), start, stop):
            x = stage(x)
        return x


class Layer(NamedTuple):
    """One weight-bearing module with the parameters that are counted to it."""

    name: str
    parameters: list[nn.Parameter]
    stage: int  # the first stage of the chain that uses any of them; 0 in a model that is no chain


def layers(model: nn.Module) -> list[Layer]:
    """The trainable layers of ``model`` in forward (registration) order: the units of KDD'24's k and LayerSAM's (i).

    A layer is a convolution, linear map or embedding with its bias. Any other parameter (normalisation, class token,
    step size) belongs to the last such module registered before it, else to the first one: a normalisation to the one that
    it follows. Where a normalisation stands before the one that it acts with, the order of registration cannot know it: the
    module that holds both says ``feeds = {"norm1": "attn", "norm2": "mlp"}``, and the normalisation belongs to the (first) layer
    in what it feeds. A layer with nothing trainable is left out. A tied parameter belongs to the layer where it is registered first.
    """
    first_stage = _first_stages(model)
    fed = _fed(model)
    groups: dict[nn.Module, tuple[str, list[nn.Parameter]]] = {
        module: (name, []) for name, module in model.named_modules() if isinstance(module, WEIGHT_BEARING)
    }
    holder = next(iter(groups), model)
    groups = groups or {model: ("model", [])}
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        holder = module if module in groups else holder
        for parameter in module.parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                groups[fed.get(module, holder)][1].append(parameter)
    found = ((name, [p for p in parameters if p.requires_grad]) for name, parameters in groups.values())
    return [Layer(name, ps, min(first_stage[p] for p in ps)) for name, ps in found if ps]


def _fed(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """The layer that each normalisation before one belongs to."""
    fed: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        feeds = getattr(module, "feeds", None)
        for source, target in feeds.items() if isinstance(feeds, dict) else ():
            layer = next((m for m in module.get_submodule(target).modules() if isinstance(m, WEIGHT_BEARING)), None)
            if layer is not None:
                fed[module.get_submodule(source)] = layer
    return fed


def _first_stages(model: nn.Module) -> dict[nn.Parameter, int]:
    if not isinstance(model, Chain):
        return dict.fromkeys(model.parameters(), 0)
    stages: dict[nn.Parameter, int] = {}
    for index, stage in enumerate(model):
        for parameter in stage.parameters():
            stages.setdefault(parameter, index)
    return stages


class FlopCounter(TorchDispatchMode):
    """The FLOPs of what runs inside, by the formulas of torch.utils.flop_counter.

    Its own FlopCounterMode imports torch.compile's compiler with the first operation, in every layer-wise run: for seconds.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry  # half a second, and most methods make no partial passes

        self.formulas, self.flops = flop_registry, 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch wraps what follows in the import

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, or what it is made of where that is what has formulas."""
        kwargs = kwargs or {}
        if func._overloadpacket not in self.formulas and func.namespace != "prim":  # prim::device is made of nothing
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        out = func(*args, **kwargs)
        if formula := self.formulas.get(func._overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


@torch.no_grad()
def stage_flops(model: nn.Module, inputs: Any) -> list[int]:
    """Forward FLOPs of every stage for ``inputs`` (a batch of any size), of the whole model where it is no chain.

    The model runs in evaluation mode and is left as it was found.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    flops = []
    try:
        for stage in model if isinstance(model, Chain) else [partial(call, model)]:
            with FlopCounter() as counter:
                inputs = stage(inputs)
            flops.append(counter.flops)
    finally:
        for module, training in modes.items():
            module.training = training
    return flops


def call(model: nn.Module, inputs: Any) -> Any:
    """``model(inputs)``: to a chain ``inputs`` is the first state, to any other model its arguments (tensor, tuple, mapping).

    The model gets containers of its own: what it puts into a cache of keys and values is not there in another pass.
    """
    if isinstance(model, Chain) or isinstance(inputs, Tensor):
        return model(inputs)
    inputs = tree_map(lambda tensor: tensor, inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) and not isinstance(inputs, PackedSequence) else model(inputs)


def tensors(state: Any) -> list[Tensor]:
    """Every tensor that ``tree_map`` finds."""
    found: list[Tensor] = []
    tree_map(found.append, state)
    return found


def tree_map(function: Callable[[Tensor], Any], state: Any, packed: Callable[[PackedSequence], Any] | None = None) -> Any:
    """Apply ``function`` to every tensor of a tensor or of nested tuples, lists, mappings, what is registered with torch, and objects.

    An object that holds tensors, such as a dataclass or a cache of keys and values, is copied with them. ``packed`` takes a
    PackedSequence whole; without it, ``function`` takes its data.
    """
    seen: dict[int, Any] = {}

    def mapped(tree: Any) -> Any:
        return pytree_map(leaf, tree, is_leaf=lambda node: isinstance(node, PackedSequence))

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        if isinstance(value, PackedSequence):
            return packed(value) if packed else value._replace(data=function(value.data))
        held = _held(value)
        if held is None:
            return {key: mapped(item) for key, item in value.items()} if isinstance(value, Mapping) else value
        if id(value) not in seen:
            seen[id(value)] = made = copy.copy(value)
            for name, item in held.items():
                object.__setattr__(made, name, mapped(item))
        return seen[id(value)]

    return mapped(state)


def _held(value: Any) -> dict[str, Any] | None:
    """The attributes of an object that may hold tensors; None of what is none."""
    if callable(value) or isinstance(value, Enum):  # modules and types among them
        return None
    if hasattr(value, "__dict__"):
        return dict(vars(value))
    return {field.name: getattr(value, field.name) for field in fields(value)} if is_dataclass(value) else None
