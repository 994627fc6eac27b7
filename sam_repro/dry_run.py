"""``dry_run=true``: what would run, how large it is and how long it would take; nothing is written."""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .chain import tree_map
from .console import clock, console
from .schema import METHOD_PARTS
from .store import Run
from .train.backends import backends
from .train.job import Config, Job
from .train.score import autocast, evaluate

STEPS = 5


def dry_run(config: Config, run: Run) -> None:
    """Print what the run consists of, after a few of its steps on its own data (none of which is kept)."""
    with backends(config):
        _dry_run(config, run)


def _dry_run(config: Config, run: Run) -> None:
    started = time.perf_counter()
    job = Job(config)
    layers = job.gradient.structure.layers
    size = job.size
    activations = _activations(job)
    timing = _timed(job)
    o = config["optimizer"]
    parts = ", ".join(f"{part}={o[part]['name']}" for part in METHOD_PARTS if part in o)
    held = {
        "weights": _bytes(job.parameters),
        "gradients": _bytes(job.parameters),
        "base optimizer": _bytes(t for state in job.base.state.values() for t in state.values() if isinstance(t, Tensor)),
        "activations of a batch": activations,
        "data set": job.parts.train.nbytes + job.batches.nbytes + job.parts.score.nbytes,
    }
    held["of the method"] = job.gradient.memory(job.dataset.classes)
    lines = [
        ("run", f"{run.id} ({run.state}) in {run.path}"),
        ("data", f"{config['dataset']['name']}: {len(job.parts.train):,} to train on, {len(job.parts.score):,} for the {job.split} score"),
        ("model", f"{config['model']['name']}: {size:,} parameters in {len(layers)} layers"),
        ("method", f"{o['name']} ({parts})"),
        ("training", f"{config['epochs']} epochs x {len(job.batches)} steps of {config['batch_size']} on {config['device']}"),
        ("memory", f"about {sum(held.values()) / 2**20:,.0f} MiB: " + ", ".join(f"{k} {v / 2**20:,.1f}" for k, v in held.items())),
        ("time", f"{_estimate(job, timing)} (a plain step {timing.plain * 1000:,.0f} ms, timed over {timing.steps})"),
    ]
    for name, value in lines:
        console.print(f"{name:<9} {value}")
    console.print(f"Nothing was run or written; this took {clock(time.perf_counter() - started)}.")


def _activations(job: Job) -> int:
    """Bytes that a forward pass over one batch keeps for its backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    samples = next(iter(job.batches.epoch(0)))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(job.device, job.config["precision"]):
        job.model(tree_map(lambda tensor: tensor.tensor_split(job.config["accumulate"])[0], samples.inputs))
    weights = {p.untyped_storage().data_ptr() for p in job.parameters}
    return sum(size for pointer, size in kept.items() if pointer not in weights)


class Timing(NamedTuple):
    """What some steps took."""

    plain: float  # seconds of a plain step (1 forward, 1 backward), by the passes that the steps made
    cost: float  # of the steps, in plain ones
    steps: int
    evaluation: float  # seconds


def _estimate(job: Job, timing: Timing) -> str:
    """The time of the training: a range where the method's steps differ in cost."""
    when = job.config["optimizer"].get("when", {}).get("name")
    steady = when in ("never", "always")
    low, high = (timing.cost, timing.cost) if steady else (1.0, 2.0 if when else 4 / 3)
    epochs, every = job.config["epochs"], job.config["score_every"]
    steps, evaluations = len(job.batches) * epochs, -(-epochs // every) * timing.evaluation
    ends = [clock(cost * timing.plain * steps + evaluations) for cost in (low, high)]
    if steady:
        return f"about {ends[0]}"
    return f"between {ends[0]} and {ends[1]}, as often as it makes more than a plain step"


def _timed(job: Job) -> Timing:
    """Time some steps (after one to warm up, where there are more) and an evaluation."""
    batches = iter(job.batches.epoch(0))
    times, costs = [], []
    for _, samples in zip(range(STEPS + 1), batches, strict=False):
        start = _now(job)
        report = job.backward(samples)
        job.step()
        costs.append((report.forward_units + 2 * report.backward_units) / 3)
        times.append((_now(job) - start) / costs[-1])
    start = _now(job)
    evaluate(job.model, job.scored_samples(), job.dataset.metrics, job.config["precision"])
    times, costs = times[1:] or times, costs[1:] or costs
    return Timing(statistics.median(times), statistics.fmean(costs), len(times), _now(job) - start)


def _now(job: Job) -> float:
    if job.device.type != "cpu":
        torch.accelerator.synchronize(job.device)
    return time.perf_counter()


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
