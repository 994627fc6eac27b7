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

from ..chain import Chain, call, stage_flops, tree_map

Criterion = Callable[[Any, Any], Tensor]


class Batch(NamedTuple):
    """Samples that pass the model together."""

    inputs: Any
    targets: Any
    share: float  # of the step's samples
    place: int  # which of the accumulated batches they are from


class Passes:
    """Runs a model from one stage to another and counts what that costs."""

    def __init__(self, model: nn.Module, same_dropout: bool) -> None:
        # A replica of a data-parallel training: the last pass goes through the wrapper, which sums gradients over the
        # replicas as they are made; all others go past it.
        self.replica = model if isinstance(model, DistributedDataParallel) else None
        self.model: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
        self.same_dropout = same_dropout
        self.is_chain = isinstance(self.model, Chain)
        self.norms: list[Any] = [m for m in model.modules() if getattr(m, "track_running_stats", False)]
        self._suffix: list[float] | None = None
        self.begin(None, None)

    def begin(self, criterion: Criterion | None, scaler: Any) -> None:
        """Start the count of a step."""
        self.criterion = criterion
        self.scaler = scaler
        self.forward_units = 0.0
        self.backward_units = 0.0

    def prefix(self, batch: Batch, stop: int) -> Any:
        """The state before stage ``stop``, with its graph."""
        if stop == 0:
            return batch.inputs
        self.forward_units += batch.share * (1.0 - self.suffix(stop, batch.inputs))
        return self.model(batch.inputs, stop=stop)

    def losses(self, state: Any, batch: Batch, start: int, *, last: bool = False) -> tuple[Tensor, Any]:
        """The loss of each sample, ``(batch,)``, from the state before stage ``start``, and the outputs.

        ``last``: the pass whose backward pass ``backward`` will make.
        """
        assert self.criterion is not None
        self.forward_units += batch.share * self.suffix(start, batch.inputs)
        outputs = self._run(self.replica if last and self.replica else self.model, state, start)
        losses = self.criterion(outputs, batch.targets)
        if losses.shape[:1] != (size(batch.inputs),) or losses.ndim != 1:
            raise ValueError(
                f"The criterion must return one loss per sample, shape ({size(batch.inputs)},), not {tuple(losses.shape)}: "
                "pass reduction='none'; the method takes the mean."
            )
        return losses, outputs

    def _run(self, model: nn.Module, state: Any, start: int) -> Any:
        if start:
            return model(state, start=start)
        return model(state) if self.is_chain else call(model, state)

    def gradient(self, loss: Tensor, batch: Batch, start: int, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradient of ``loss``, of these parameters alone; touches no ``.grad``. Scaled where there is a scaler."""
        self.backward_units += batch.share * self.suffix(start, batch.inputs)
        return list(torch.autograd.grad(self.scaled(loss), parameters, allow_unused=True))

    def backward(self, loss: Tensor, batch: Batch) -> None:
        """Add the gradient of all parameters to ``.grad``, back through whatever the loss was computed from."""
        self.backward_units += batch.share
        self.scaled(loss).backward()

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss times the GradScaler's factor."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def suffix(self, start: int, inputs: Any) -> float:
        """The share of the forward FLOPs that the stages from ``start`` on take (measured once, on one sample)."""
        if start == 0:
            return 1.0
        if self._suffix is None:
            flops = stage_flops(self.model, tree_map(lambda t: t[:1], inputs))
            total = sum(flops) or 1
            self._suffix = [sum(flops[index:]) / total for index in range(len(flops))]
        return self._suffix[start]

    def mean_over_replicas(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The mean of each tensor over the replicas of a data-parallel training; without one, the tensors."""
        present = [t for t in tensors if t is not None]
        if self.replica is None or not present:
            return list(tensors)
        group = self.replica.process_group
        flat = torch.cat([t.reshape(-1) for t in present])
        distributed.all_reduce(flat, group=group)
        flat /= distributed.get_world_size(group)
        parts = iter(flat.split([t.numel() for t in present]))
        return [None if t is None else next(parts).view_as(t) for t in tensors]

    def unsummed(self, more_to_come: bool) -> AbstractContextManager[None]:
        """Where further backward passes follow, the replicas' gradients are summed in the last one only."""
        return self.replica.no_sync() if self.replica is not None and more_to_come else nullcontext()

    @contextmanager
    def statistics_kept(self) -> Iterator[None]:
        """BatchNorm normalises by the batch, and its running statistics stay.

        Not by a momentum of zero: 0 times an overflow is NaN, and would stay in the statistics for good.
        """
        moving = [module for module in self.norms if module.training]
        for module in moving:
            module.track_running_stats = False
        try:
            yield
        finally:
            for module in moving:
                module.track_running_stats = True


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


def detached(state: Any) -> Any:
    """The state cut from its graph."""
    return tree_map(Tensor.detach, state)


def written(state: Any) -> list[int]:
    """How often each tensor of the state has been written to, views included."""
    versions: list[int] = []
    tree_map(lambda tensor: versions.append(tensor._version), state)
    return versions


def size(inputs: Any) -> int:
    """The number of samples."""
    if isinstance(inputs, Tensor):
        return len(inputs)
    return size(next(iter(inputs.values() if isinstance(inputs, dict) else inputs)))
