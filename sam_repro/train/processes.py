"""One training by several processes, on one machine or many: PyTorch's DistributedDataParallel, started by torchrun.

    torchrun --nproc-per-node 2 -m sam_repro optimizer=layerwise

Each has a part of every batch, and all of them the same weights: the wrapper sums their gradients. Process 0 writes and prints.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from .. import world
from ..ranks import answering, undisturbed

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process has terminated", "Socket closed")


@contextmanager
def together(device: str, checkpoint: Path) -> Iterator[None]:
    """The processes know each other from here on; where one of them is gone, an interruption that says what the checkpoint holds.

    They stay together for the trainings to come, as in a sweep: a group that forms anew could find what is left of the old one.
    """
    if world.count() == 1:
        yield
        return
    try:
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
            atexit.register(distributed.destroy_process_group)
        with answering():
            yield
        distributed.barrier()  # what process 0 writes at the end is there for all of them
    except (RuntimeError, KeyboardInterrupt) as error:
        known = isinstance(error, (distributed.DistError, KeyboardInterrupt)) or any(sign in str(error) for sign in LOST)
        if not known:
            raise
        undisturbed()
        # Whether one is gone, or torchrun was told to stop, is found out when the command ends.
        raise KeyboardInterrupt(_resumes(checkpoint)) from None


def _resumes(checkpoint: Path) -> str:
    if not checkpoint.exists():
        return "the same command starts the run anew"
    epoch = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["epoch"]
    return f"the same command (without rerun=true) resumes after epoch {epoch}"


def wrapped(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as the method gets it: where there are several processes, with the sum of their gradients."""
    if not distributed.is_initialized():
        return model
    # Buffers are left alone: they are averaged when an epoch ends, and the first of the passes moves them, not the wrapper's.
    ddp: Any = nn.parallel.DistributedDataParallel
    alone = {"forward_sync_buffers" if "forward_sync_buffers" in signature(ddp).parameters else "broadcast_buffers": False}
    return ddp(model, device_ids=[device] if device.type == "cuda" else None, **alone)


def total(numbers: Tensor) -> Tensor:
    """The sum over the processes."""
    if distributed.is_initialized():
        numbers = numbers.clone()
        distributed.all_reduce(numbers)
    return numbers


def gathered(mine: Tensor) -> Tensor:
    """What all processes have, along dim 0, one after the other; waits for the device."""
    if not distributed.is_initialized():
        return mine
    sizes = total(torch.eye(world.count(), dtype=torch.int64, device=mine.device)[world.rank()] * len(mine)).tolist()
    padded = mine.new_zeros(max(sizes), *mine.shape[1:])
    padded[: len(mine)] = mine
    found = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(found, padded)
    return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])


@torch.no_grad()
def average(buffers: Iterable[Tensor]) -> None:
    """Replace buffers, as BatchNorm's running statistics, by their mean over the processes; counters are the same on all."""
    if not distributed.is_initialized():
        return
    moving = [buffer for buffer in buffers if buffer.is_floating_point()]
    if moving:
        flat = total(torch.cat([buffer.reshape(-1).double() for buffer in moving])) / world.count()
        for buffer, mean in zip(moving, flat.split([buffer.numel() for buffer in moving]), strict=True):
            buffer.copy_(mean.view_as(buffer))


def of_all(mine: Any) -> list[Any]:
    """What every process has, in their order: of anything that can be pickled."""
    if not distributed.is_initialized():
        return [mine]
    found: list[Any] = [None] * world.count()
    distributed.all_gather_object(found, mine)
    return found
