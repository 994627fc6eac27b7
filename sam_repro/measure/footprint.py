"""What a step takes beside time: bytes of memory, and launches."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations that launch no kernel, beside views.
SILENT = {"_local_scalar_dense", "_unsafe_view", "alias", "detach", "lift", "lift_fresh", "record_stream", "set_"}
SILENT |= {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


def launches(func: Any, args: Any) -> tuple[str, int]:
    """The name of a dispatched operation, and what it would launch on a GPU; operations, not kernels.

    A ``_foreach_`` one on the fast path counts one, on the slow path as many as there are tensors.
    """
    name = func._schema.name.partition("::")[2]
    if func.is_view or name in SILENT:
        return name, 0
    lists = [a for a in args if isinstance(a, list | tuple) and a and isinstance(a[0], Tensor)]
    if not name.startswith("_foreach_") or not lists:
        return name, 1
    alike = all(len({(t.shape, t.stride()) for t in row}) == 1 for row in zip(*lists, strict=True))
    fast = alike and all(len({t.dtype for t in some}) == 1 for some in lists)
    return (name, 1) if fast else (f"{name} one by one", len(lists[0]))


class Footprint(TorchDispatchMode):
    """Counts launches while it lasts, and the bytes of the tensors that are made and still alive, at their peak.

    On a GPU the bytes are the allocator's. On the CPU, which has no such counter, they are those of the storages that
    operations return: what an operation needs for itself while it runs is not among them.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.launches = 0
        self._alive: dict[int, int] = {}  # bytes of every storage; none for those that were there before
        self._now = self._peak = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)

    @property
    def peak(self) -> int:
        """Bytes beyond what was there before."""
        return torch.cuda.max_memory_allocated(self.device) - self._before if self.device.type == "cuda" else self._peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.launches += launches(func, args)[1]
        self._see((args, kwargs), new=False)
        result = func(*args, **(kwargs or {}))
        self._see(result, new=True)
        return result

    def _see(self, values: Any, *, new: bool) -> None:
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self._alive:
                self._alive[id(storage)] = storage.nbytes() if new else 0
                self._now += self._alive[id(storage)]
                self._peak = max(self._peak, self._now)
                weakref.finalize(storage, self._free, id(storage)).atexit = False

    def _free(self, storage: int) -> None:
        self._now -= self._alive.pop(storage)
