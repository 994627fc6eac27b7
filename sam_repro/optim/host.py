"""Values on their way between device and host, without making the host wait for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class HostCopy:
    """A copy that is started now and read later, when the device has long passed the point."""

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.detach().to("cpu", non_blocking=True)
        self._event = None
        if tensor.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))

    def ready(self) -> bool:
        """Whether ``value`` would return at once."""
        return self._event is None or self._event.query()

    def value(self) -> Tensor:
        """The tensor on the host; waits until the device has come to where the copy was started."""
        if self._event is not None and not self._event.query():
            self._event.synchronize()
        return self._copy


def values(copies: Sequence[HostCopy]) -> list[Tensor]:
    """Those of copies started one after the other: a stream keeps their order, so only the last has to be waited for."""
    if copies:
        copies[-1].value()
    return [copy._copy for copy in copies]


def send(numbers: Sequence[float], to: Tensor) -> None:
    """Write the numbers into a tensor on the device; out of pinned memory, so that the host does not wait."""
    to.copy_(_pinned(torch.tensor(numbers, dtype=to.dtype), to.device), non_blocking=True)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device, likewise."""
    return _pinned(tensor, device).to(device, non_blocking=True)


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory() if device.type == "cuda" else tensor
