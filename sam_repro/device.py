"""Where a run computes: ``device=auto`` decided, and what was asked for checked. Imports torch only where it alone can tell."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

from . import world
from .config import check_device
from .schema import UserError


def resolve_device(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with ``device=auto`` decided; UserError where the GPU that was asked for is not there."""
    name = config["device"]
    check_device(name)
    if name == "auto":
        name = "cuda" if may_have_gpu() and gpus() else "cpu"
    if name == "cuda" and world.count() > 1:
        name = f"cuda:{world.local_rank()}"
    if name.startswith("cuda") and int(name.partition(":")[2] or 0) >= (count := gpus()):
        raise UserError(f"device={name} was asked for, but PyTorch sees {count or 'no'} GPU{'s' * (count != 1)}: use device=cpu.")
    if name == "mps":
        import torch

        if not torch.backends.mps.is_available():
            raise UserError("device=mps was asked for, but PyTorch sees no GPU of Apple's: use device=cpu.")
    return {**config, "device": name}


def device_type(name: str) -> str:
    """``cpu``, ``cuda`` or ``mps``, of ``auto`` or nothing as well."""
    return str(resolve_device({"device": name or "auto"})["device"]).partition(":")[0]


def may_have_gpu() -> bool:
    """False where there can be none that PyTorch's CUDA would see; else only PyTorch knows, which may be built without it.

    Asks NVIDIA's driver, which knows of CUDA_VISIBLE_DEVICES, in a millisecond; importing torch takes seconds.
    """
    if sys.platform == "darwin":
        return False
    if sys.platform != "linux" or Path("/dev/kfd").exists():  # AMD's GPUs are CUDA to PyTorch as well
        return True
    try:
        return bool(ctypes.CDLL("libcuda.so.1").cuInit(0) == 0)  # an error where it sees no device
    except (OSError, AttributeError):  # there is no driver
        return False


def gpus() -> int:
    """How many PyTorch sees; imports it."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
