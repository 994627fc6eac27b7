"""A recording of the operations of a step, as a CUDA graph is one, on the CPU: replayed, no line of Python runs again.

Every operation is run again with the very tensors, numbers and sizes of the first time, and what it returns is copied to where
its first result lies. What a step must not do while it is recorded, to read a value, raises.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sam_repro.optim.static import Recording

EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class _Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.lines = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]
        if name in ("_local_scalar_dense", "equal", "nonzero"):
            raise RuntimeError(f"{name} reads a value while the step is recorded")
        result = func(*args, **(kwargs or {}))
        if name not in EMPTY:
            self.lines.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, result in self.lines:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # else it was in place, or a view
                    old.copy_(new)


class Tapes:
    """A recorder. A capture does not compute, so what the recording has moved is put back: the tensors ``moved()``."""

    def __init__(self, moved):
        self.moved, self.count = moved, 0

    def __call__(self, function):
        self.count += 1
        before = [(t, t.detach().clone()) for t in self.moved()]
        with _Tape() as tape:
            step = function()
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
        return Recording(tape.replay, step)
