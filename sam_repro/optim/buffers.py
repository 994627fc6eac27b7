"""A pass that leaves every buffer of the model as it found it, whatever its modules move: statistics, power iterations, codebooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..chain import Chain

# Forwards known to leave the statistics alone where ``track_running_stats`` is off: then nothing has to be copied.
# InstanceNorm's moves them all the same, and a subclass with a forward of its own may.
HEEDFUL = (nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward)


class Buffers:
    """Those of a model. A BatchNorm is told not to track; what else has buffers is copied before the pass, and back after it.

    The copies are of all other buffers, whether a pass moves them or not: torch's version counters miss what is written
    through ``.data`` or by a kernel. A model that has none pays nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._modules: tuple[list[Any], list[nn.Module]] | None = None
        self._stand_ins: dict[nn.Module, dict[str, Tensor | None]] = {}

    @property
    def modules(self) -> tuple[list[Any], list[nn.Module]]:
        """Those that are told, and those that are copied; found after a first pass, which may have made buffers."""
        if self._modules is None:
            told = [m for m in self.model.modules() if type(m).forward in HEEDFUL and m.track_running_stats]
            self._modules = told, [m for m in self.model.modules() if m._buffers and m not in told]
        return self._modules

    @contextmanager
    def kept(self, start: int = 0) -> Iterator[None]:
        """Inside, the model makes one pass, forward from stage ``start`` and backward through all."""
        told, others = self.modules
        moving = [module for module in told if module.training]
        before = {m for stage in self.model[:start] for m in stage.modules()} if isinstance(self.model, Chain) and start else set()
        spared = [module for module in moving if module in before]
        copies, own = _Copies(others), [dict(module._buffers) for module in spared]

        def arrived(*_: Any) -> None:
            copies.take()
            for module in spared:
                module._buffers.update(self._stand_in(module))

        # At the model's own door: a wrapper in front of it has by then given all replicas the buffers of the first.
        hook = self.model.register_forward_pre_hook(arrived) if others or spared else None
        try:
            # Not by a momentum of zero: 0 times an overflow is NaN, and would stay in the statistics for good.
            _track(moving, before, on=False)
            yield
        finally:
            _track(moving, before, on=True)
            if hook is not None:
                hook.remove()
            for module, buffers in zip(spared, own, strict=True):
                module._buffers.update(buffers)
            copies.put_back()

    def _stand_in(self, module: nn.Module) -> dict[str, Tensor | None]:
        """What is moved in place of the statistics where checkpointing runs a stage again for its backward pass.

        It wants that run to be like the first one, with tracking.
        """
        if not self._stand_ins:
            told, _ = self.modules
            self._stand_ins = {m: {name: t if t is None else torch.zeros_like(t) for name, t in m._buffers.items()} for m in told}
        return self._stand_ins[module]


def _track(moving: list[Any], but: set[nn.Module], *, on: bool) -> None:
    for module in moving:
        if module not in but:
            module.track_running_stats = on


class _Copies:
    """Of the buffers of some modules, taken once and put back in place: a recorded step finds them where they were."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules
        self.held: list[dict[str, Tensor | None]] = []
        self.pairs: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def take(self) -> None:
        """Remember what is there."""
        if not self.held:
            self.held = [dict(module._buffers) for module in self.modules]
            tensors = [t for buffers in self.held for t in buffers.values() if t is not None]
            self.pairs = [(t, torch.empty_like(t)) for t in tensors]
            _copy([(copy, t) for t, copy in self.pairs])

    @torch.no_grad()
    def put_back(self) -> None:
        """Also where the pass has put another tensor in a buffer's place."""
        for module, buffers in zip(self.modules, self.held, strict=False):
            module._buffers.clear()
            module._buffers.update(buffers)
        _copy(self.pairs)


def _copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Into the first of each pair; those of a type and device at once."""
    kinds: dict[tuple[Any, ...], list[tuple[Tensor, Tensor]]] = {}
    for pair in pairs:
        kinds.setdefault((pair[0].dtype, pair[0].device), []).append(pair)
    for alike in kinds.values():
        torch._foreach_copy_([to for to, _ in alike], [source for _, source in alike])
