"""The forward and backward passes of one step: counted, and with the weights, statistics and masks as they must be.

Cost is counted in units: one forward pass of the whole model over the whole batch is one forward unit, its backward one
backward unit (SGD: 1 + 1). A partial pass counts the share of the forward FLOPs of the stages it ran, times its share of
the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..chain import Chain, call, stage_flops, tensors, tree_map
from ..schema import UserError
from .batches import MicroBatch, rows
from .buffers import Buffers
from .reentrant import Gradients
from .structure import own, real, sharded
from .where import ratio

Criterion = Callable[[Any, Any], Tensor | tuple[Tensor, Tensor]]
Weight = Tensor | float  # of a set of samples: a number where all count alike, else 0-dim and on the device


class Mean(NamedTuple):
    """A weighted mean in the making, ``value / weight``; divided once, when the weight of all samples it is over is known."""

    value: Tensor  # 0-dim
    weight: Weight

    def times(self, share: float) -> Mean:
        """The part of a larger mean that these samples, ``share`` of all, make."""
        return self if share == 1.0 else Mean(self.value * share, self.weight * share)


class Losses(NamedTuple):
    """The losses of the samples of a batch."""

    each: Tensor  # (batch,)
    weights: Tensor | None  # (batch,), constants; None: all count alike

    def mean(self) -> Mean:
        """Their mean; with weights, the means of weight * loss and of weight."""
        if self.weights is None:
            return Mean(self.each.mean(), 1.0)
        return Mean((self.weights * self.each).mean(), self.weights.mean())


class Passes:
    """Runs a model from one stage to another and counts what that costs."""

    def __init__(self, model: nn.Module, same_dropout: bool) -> None:
        # A replica of a data-parallel training: the last pass goes through the wrapper, which sums gradients over the
        # replicas as they are made; all others go past it.
        self.replica = model if isinstance(model, DistributedDataParallel) else None
        self.model: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
        # A model whose parameters are sharded (FSDP2) reduces the gradients of every pass, and runs as a whole alone.
        self.sharded = sharded(self.model.parameters())
        self.group = _group(self.replica, self.model)
        self.same_dropout = same_dropout
        self.is_chain = isinstance(self.model, Chain) and not self.sharded
        self.buffers = Buffers(self.model)
        self.gradients = Gradients(self.model, by_backward=self.sharded)
        self._suffix: list[float] | None = None
        self.begin(None, None, 0)

    def begin(self, criterion: Criterion | None, scaler: Any, samples: int, dim: int = 0) -> None:
        """Start the count of a step on so many samples."""
        self.criterion = criterion
        self.scaler = scaler
        self.forward_units = 0.0
        self.backward_units = 0.0
        self.samples, self.dim = samples, dim  # how many, and along which dimension of the inputs
        self._excess: Tensor | None = None  # this replica's samples over the mean of all replicas'
        self.weight: Weight = 0.0  # that ``.grad`` is still to be divided by

    def prefix(self, batch: MicroBatch, stop: int) -> Any:
        """The state before stage ``stop``, with its graph."""
        if stop == 0:
            return batch.inputs
        self.forward_units += batch.share * (1.0 - self.suffix(stop, batch))
        return self.model(batch.inputs, stop=stop)

    def cut(self, state: Any) -> Any:
        """The state as the begin of another graph.

        Under reentrant checkpointing, as long as there may be any, it asks for a gradient: a checkpointed stage that gets nothing
        that does makes no graph.
        """
        if self.gradients.by_backward is False:
            return detached(state)
        return tree_map(lambda t: t.detach().requires_grad_(t.requires_grad), state)

    def losses(self, state: Any, batch: MicroBatch, start: int, *, last: bool = False) -> tuple[Losses, Any]:
        """The samples' losses, from the state before stage ``start``, and the outputs.

        ``last``: the pass whose backward pass ``backward`` will make.
        """
        assert self.criterion is not None
        self.forward_units += batch.share * self.suffix(start, batch)
        outputs = self._run(self.replica if last and self.replica else self.model, state, start)
        losses = _per_sample(self.criterion(outputs, batch.targets), batch.samples)
        return losses._replace(weights=self._evened(losses.weights)), outputs

    def _evened(self, weights: Tensor | None) -> Tensor | None:
        """The weights, larger where this replica has more samples than the others, smaller where it has fewer.

        For each replica sums over its samples by taking a mean, and the wrapper then takes the mean of those.
        """
        if weights is None or self.group is None:
            return weights
        if self._excess is None:
            samples = weights.new_full((), self.samples)
            self._excess = samples / self._reduced([samples])[0]
        return weights * self._excess

    def _run(self, model: nn.Module, state: Any, start: int) -> Any:
        if start:
            return model(state, start=start)
        return model(state) if self.is_chain else call(model, state)

    def gradient(self, loss: Tensor, batch: MicroBatch, start: int, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradient of ``loss``, of these parameters alone; touches no ``.grad``. Scaled where there is a scaler."""
        self.backward_units += batch.share * self.suffix(start, batch)
        return self.gradients(self.scaled(loss), parameters)

    def backward(self, loss: Mean, batch: MicroBatch) -> None:
        """Add the gradient of all parameters to ``.grad``, back through whatever the loss was computed from.

        Where samples have weights, ``divide`` is to follow the last one.
        """
        self.backward_units += batch.share
        self.weight = self.weight + loss.weight
        self.scaled(loss.value).backward()

    def divide(self, gradients: Sequence[Tensor | None]) -> None:
        """Divide ``.grad``, which the replicas share by now, by the weight of all samples of its backward passes, in place."""
        present = [g for g in gradients if g is not None]
        if isinstance(self.weight, Tensor) and present:
            torch._foreach_mul_(present, ratio(1.0, self._reduced([self.weight])[0]))

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss times the GradScaler's factor."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def suffix(self, start: int, batch: MicroBatch) -> float:
        """The share of the forward FLOPs that the stages from ``start`` on take (measured once, on one sample)."""
        if start == 0:
            return 1.0
        if self._suffix is None:
            flops = stage_flops(self.model, rows(batch.inputs, slice(0, 1), batch.samples, batch.dim))
            total = sum(flops) or 1
            self._suffix = [sum(flops[index:]) / total for index in range(len(flops))]
        return self._suffix[start]

    def mean_over_replicas(self, sums: Sequence[Tensor | None], weight: Weight = 1.0) -> list[Tensor | None]:
        """The mean of each tensor over the replicas of a data-parallel training, divided by the mean of their weights.

        Without replicas, the tensors divided by the weight.
        """
        weights = [weight] if isinstance(weight, Tensor) else []
        if self.sharded:  # the sums are the mean already
            return divided(sums, self._reduced(weights)[0] if weights else weight)
        means = iter(self._reduced([*(t for t in sums if t is not None), *weights]))
        result = [None if t is None else next(means) for t in sums]
        return divided(result, next(means) if weights else weight)

    def _reduced(self, tensors: list[Tensor]) -> list[Tensor]:
        """The mean of each over the replicas, in one message."""
        if self.group is None or not tensors:
            return tensors
        as_real = real(tensors)
        flat = torch.cat([t.reshape(-1) for t in as_real])
        distributed.all_reduce(flat, group=self.group)
        flat /= distributed.get_world_size(self.group)
        parts = [part.view_as(t) for part, t in zip(flat.split([t.numel() for t in as_real]), as_real, strict=True)]
        means = [torch.empty_like(t) for t in tensors]  # in memory as they were, channels last or first
        torch._foreach_copy_(real(means), parts)
        return means

    def agreed(self, numbers: list[float]) -> list[float]:
        """The numbers as all replicas are to have them: their means, where each may have counted its own."""
        if self.group is None:
            return numbers
        device = next(self.model.parameters()).device
        found: list[float] = self._reduced([torch.tensor(numbers, dtype=torch.float64, device=device)])[0].tolist()
        return found

    def add_up(self, tensor: Tensor) -> None:
        """Replace the tensor by its sum over the replicas."""
        if self.group is not None:
            distributed.all_reduce(tensor, group=self.group)

    def unsummed(self, more_to_come: bool) -> AbstractContextManager[None]:
        """Where further backward passes follow, the replicas' gradients are summed in the last one only.

        A static graph is learned in the first pass through the wrapper, which therefore has to sum: each one does, to the same end.
        """
        if self.replica is None or self.replica.static_graph or not more_to_come:
            return nullcontext()
        return self.replica.no_sync()

    @property
    def shares_gradients(self) -> bool:
        """Whether ``.grad`` lies in the wrapper's buckets, which its next backward pass writes to."""
        return self.replica is not None and self.replica.gradient_as_bucket_view


class Masks:
    """Where the random number generators stood, so that a second pass draws the same dropout masks."""

    def __init__(self, model: nn.Module, active: bool) -> None:
        self.active = active
        if active:
            device = next((p.device for p in model.parameters()), torch.device("cpu"))
            self.device = device
            self._host_state = torch.get_rng_state()
            self._cuda_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def replay(self) -> None:
        """Set the generators back."""
        if self.active:
            torch.set_rng_state(self._host_state)
            if self._cuda_state is not None:
                torch.cuda.set_rng_state(self._cuda_state, self.device)


@contextmanager
def perturbed(parameters: list[Tensor], perturbation: list[Tensor] | tuple[Tensor, ...]) -> Iterator[None]:
    """The parameters moved by ``perturbation`` in place; on leaving, also by an exception, exactly what they were."""
    with torch.no_grad():
        parameters, perturbation = own(parameters), own(perturbation)
        weights = [torch.empty_like(p) for p in parameters]
        torch._foreach_copy_(weights, parameters)
    try:
        with torch.no_grad():
            torch._foreach_add_(parameters, perturbation)
        torch.clear_autocast_cache()  # or the next pass would use low-precision copies of the weights before
        yield
    finally:
        with torch.no_grad():
            # By copy: subtracting would leave a NaN where the perturbation overflowed.
            torch._foreach_copy_(parameters, weights)
        torch.clear_autocast_cache()


def divided(sums: Sequence[Tensor | None], weight: Weight) -> list[Tensor | None]:
    """The sums over samples as means; those of samples that count alike are means already, and those of no weight zero."""
    present = [t for t in sums if t is not None]
    if not isinstance(weight, Tensor) or not present:
        return list(sums)
    means = iter(torch._foreach_mul(present, ratio(1.0, weight)))
    return [None if t is None else next(means) for t in sums]


def _group(replica: DistributedDataParallel | None, model: nn.Module) -> Any:
    """The processes that share a step, None where there is one; UserError where not all of them have samples of their own."""
    if replica is not None:
        return replica.process_group
    shards: list[Any] = [p for p in model.parameters() if sharded([p])]
    if any(p.device_mesh.ndim > 1 for p in shards):
        raise UserError("A model may be sharded over one dimension of processes, as fully_shard(model) does by itself, not over more.")
    return shards[0].device_mesh.get_group() if shards else None


def _per_sample(found: Tensor | tuple[Tensor, Tensor], n: int) -> Losses:
    """What the criterion returned for n samples; ValueError if it is something else."""
    parts = found if isinstance(found, tuple) else (found,)
    shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
    if shapes not in ([(n,)], [(n,), (n,)]):
        raise ValueError(
            f"The criterion must return one loss per sample, shape ({n},), or such losses and as many weights, "
            f"not {' and '.join(map(str, shapes)) or '()'}: pass {_advice(shapes, n)}."
        )
    if len(parts) == 1:
        return Losses(parts[0], None)
    # A mask is a weight too, and half precision could not hold the sum of many.
    return Losses(parts[0], parts[1].detach().to(torch.promote_types(parts[0].dtype, torch.float32)))


def _advice(shapes: list[Any], n: int) -> str:
    """What to return instead."""
    if any(isinstance(shape, tuple) and len(shape) > 1 and shape[0] == n for shape in shapes):
        return "the mean of each sample's places, losses.flatten(1).mean(1); of those not ignored, with their number as weight"
    if shapes == [()]:
        return "reduction='none', or compute the losses from the outputs where the model itself returns a mean; the method takes the mean"
    return "reduction='none', and batch_dim= where samples are not along dimension 0; the method takes the mean"


def detached(state: Any) -> Any:
    """The state cut from its graph."""
    return tree_map(Tensor.detach, state)


def written(state: Any) -> list[int]:
    """How often each tensor of the state has been written to, views included."""
    return [tensor._version for tensor in tensors(state)]
