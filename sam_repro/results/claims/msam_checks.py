"""The checks of mSAM's claims (Behdin et al. 2023) on what a step computes, takes and holds."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from ... import optim
from ...measure.compare import WARM_UP
from ...measure.contestants import contestant as timed
from ...measure.contestants import per_sample_loss
from ...optim.structure import norm_of
from . import msam_edge, msam_theory
from .toy import batches, contestant, distance, passes, plain_gradient, smooth, trained, weights

# -- what a step computes ----------------------------------------------------------------------------------------------------


def m1_difference(m: int = 1) -> list[float]:
    """The relative difference of the weights after 50 steps of mSAM and of SAM."""
    return [distance(weights(trained("msam", 50, m=m, rho=0.05)), weights(trained("sam", 50, rho=0.05)))]


def passes_ratio(other: str = "sam") -> list[float]:
    """Samples that pass the network forward, and backward, in mSAM's steps over those in SAM's."""
    own = passes("msam", 10, m=8)
    return [a / b for a, b in zip(own, passes(other, 10), strict=True)]


def microbatch_cosine_slope(repeat: bool = False) -> list[float]:
    """The change of the cosine of micro-batch and batch gradient when m doubles, 4 to 64, in SAM's training; a replicate a network.

    With ``repeat`` every micro-batch is one and the same.
    """
    counts = (4, 8, 16, 32, 64)
    return [float(np.polyfit(np.log2(counts), [_cosine(m, seed, repeat) for m in counts], 1)[0]) for seed in range(5)]


def _cosine(m: int, seed: int, repeat: bool) -> float:
    """The mean over micro-batches, batches and checkpoints."""
    net = smooth(seed)
    one = contestant("sam", net, rho=0.05)
    found = []
    for step, (inputs, targets) in enumerate(batches(100, seed, 512)):
        if step % 25 == 0:
            size = len(inputs) // m
            if repeat:
                inputs, targets = inputs[:size].repeat(m, 1), targets[:size].repeat(m)
            whole = plain_gradient(net, inputs, targets)
            for part, labels in zip(inputs.split(size), targets.split(size), strict=True):
                gradient = plain_gradient(net, part, labels)
                dot = sum((a * b).sum() for a, b in zip(gradient, whole, strict=True))
                found.append(float(dot / norm_of(gradient) / norm_of(whole)))
        one.step(inputs, targets)
    return float(np.mean(found))


# -- several processes -----------------------------------------------------------------------------------------------------------


def replicas_difference(m: int = 8, of_each: int = 4) -> list[float]:
    """The relative difference of the weights after 20 steps of mSAM, with m in one process and with m / 2 in each of two."""
    alone = _convolutional()
    _train(optim.create("msam", alone, m=m, rho=0.05), 0, 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        spawn(_replica, (port, of_each, folder), nprocs=2)
        found = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]
    return [max(distance(one, weights(alone)) for one in found)]


def _replica(rank: int, port: int, m: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    net = DistributedDataParallel(_convolutional())
    _train(optim.create("msam", net, m=m, rho=0.05, scope="replica"), rank, 2)
    torch.save(weights(net.module), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def _train(method: optim.Method, rank: int, of: int) -> None:
    base = torch.optim.SGD(method.structure.parameters, 0.1, 0.9)
    for inputs, targets in batches(20, 0, 32):
        rows = slice(rank * 32 // of, (rank + 1) * 32 // of)
        method.backward(inputs[rows].view(-1, 1, 8, 8), targets[rows], per_sample_loss)
        base.step()
        base.zero_grad()


def _convolutional() -> nn.Module:
    """With BatchNorm, whose statistics are those of a micro-batch."""
    torch.manual_seed(0)
    features = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*features, nn.Linear(32, 10)).double()


# -- what a step holds and takes -------------------------------------------------------------------------------------------------


def memory_slope(method: str = "msam") -> list[float]:
    """The power of m with which the most that a step of ResNet-20 holds for its backward passes changes, at a batch size of 32."""
    counts = (1, 2, 4, 8, 16)
    return [float(np.polyfit(np.log(counts), [np.log(_held(method, {"m": m} if method == "msam" else {})) for m in counts], 1)[0])]


class _Held:
    """A tensor saved for a backward pass, counted while it is."""

    now = most = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.bytes = tensor, tensor.numel() * tensor.element_size()
        _Held.now += self.bytes
        _Held.most = max(_Held.most, _Held.now)

    def __del__(self) -> None:
        _Held.now -= self.bytes


def _held(method: str, knobs: dict[str, Any]) -> int:
    """The most bytes at a time, without the network's own."""
    one = timed(method, "resnet20", method, torch.device("cpu"), **knobs)
    of_the_model = {t.data_ptr() for t in one.gradient.passes.model.state_dict().values()}
    _Held.now = _Held.most = 0

    def pack(tensor: Tensor) -> Tensor | _Held:
        return tensor if tensor.data_ptr() in of_the_model else _Held(tensor)

    with saved_tensors_hooks(pack, lambda saved: saved.tensor if isinstance(saved, _Held) else saved):
        one.gradient.backward(torch.randn(32, 3, 32, 32), torch.randint(10, (32,)), per_sample_loss)
    return _Held.most


def overhead_slope() -> list[float]:
    """The change of mSAM's time in SAM's when a network has ten times the weights; a replicate for a step of each network and method."""
    sizes, times = zip(*_in_turns(), strict=True)
    return [float(np.polyfit(np.log10(sizes), [msam / sam for sam, msam in row], 1)[0]) for row in zip(*times, strict=True)]


def extra_time_ratio() -> list[float]:
    """What a step of mSAM takes beyond SAM's with the largest of the networks, in what it takes with the smallest."""
    (_, small), *_, (_, large) = _in_turns()
    return [(b[1] - b[0]) / (a[1] - a[0]) for a, b in zip(small, large, strict=True)]


@cache
def _in_turns(rounds: int = 5) -> list[tuple[int, list[tuple[float, float]]]]:
    """Of networks of growing size: their weights, and the seconds of steps of SAM and of mSAM (m = 4), in turns on one batch."""
    cuda = torch.cuda.is_available()
    device, size = torch.device("cuda" if cuda else "cpu"), 512 if cuda else 16
    found = []
    for name in ("resnet18", "resnet50", "wrn28_10") if cuda else ("resnet20", "wrn16_2", "resnet18"):
        sam, msam = timed("sam", name, "sam", device), timed("msam", name, "msam", device, m=4)
        inputs = torch.randn(size, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
        targets = torch.randint(10, (size,), device=device)
        times = [(sam.step(inputs, targets)[0], msam.step(inputs, targets)[0]) for _ in range(WARM_UP + rounds)]
        found.append((sum(p.numel() for p in sam.gradient.structure.parameters), times[WARM_UP:]))
    return found


CHECKS: dict[str, Callable[[], list[float]]] = {
    check.__name__: check
    for check in (
        *(m1_difference, passes_ratio, microbatch_cosine_slope, replicas_difference, memory_slope),
        *(overhead_slope, extra_time_ratio),
    )
} | msam_theory.CHECKS | msam_edge.CHECKS  # fmt: skip
