"""The methods in other people's training loops, a module for each: ``huggingface``, ``lightning``, ``accelerate``.

What they have in common is here: a loop hands over a batch at a time, says when a step is due, and keeps the state.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..optim import Report, build, settings
from ..optim.passes import Criterion
from ..optim.structure import Plan
from ..schema import UserError

FOREIGN = ("DataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")


class Carried:
    """A method in a loop that calls for the gradient of one batch at a time.

    Batches are held until a step is due, so that an accumulated step is one step of the method with one perturbation: an
    ascent for every batch would be another method, and k, windows and schedules would count batches.

    Args:
        name, knobs: as of ``sam_repro.optim.create``.
        model: as the loop calls it, ``DistributedDataParallel`` where several processes train.
        plan: of the training to come.

    Raises:
        UserError: a knob that the method does not have, or a model that is wrapped in what cannot be reached through.
    """

    def __init__(self, name: str, knobs: dict[str, Any], model: nn.Module, plan: Plan) -> None:
        self.method = build(settings(name, **knobs), reachable(model), plan)
        self.counts = {"sampling_number": 0, "forward_units": 0.0, "backward_units": 0.0}
        self._held: list[tuple[Any, Any, Any]] = []

    def backward(
        self, inputs: Any, targets: Any, criterion: Criterion, *, due: bool, indices: Tensor | None = None, scaler: Any = None
    ) -> Report | None:
        """The gradient of all batches since the last step, in ``.grad``; None, and nothing done, before one is due."""
        self._held.append((inputs, targets, indices))
        if not due:
            return None
        held, self._held = self._held, []
        xs, ys, places = held[0] if len(held) == 1 else map(list, zip(*held, strict=True))
        if isinstance(places, list) and places[0] is None:
            places = None
        report = self.method.backward(xs, ys, criterion, indices=places, scaler=scaler)
        done = {"sampling_number": report.ascended, "forward_units": report.forward_units, "backward_units": report.backward_units}
        self.counts = {key: self.counts[key] + value for key, value in done.items()}
        return report

    def state_dict(self) -> dict[str, Any]:
        """The method's state and the counts; the same in every process, but for what SAF keeps of its own samples."""
        return {"method": self.method.state_dict(), "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where ``state_dict`` left off."""
        self.method.load_state_dict(state["method"])
        self.counts = dict(state["counts"])


def reachable(model: nn.Module) -> nn.Module:
    """The model, if a method can make local passes and passes whose gradients are summed; UserError otherwise.

    One of several processes whose model is not wrapped would train by itself, and nobody would notice.
    """
    inner = getattr(model, "_orig_mod", model)  # of torch.compile
    kind = type(inner).__name__
    if kind in FOREIGN:
        raise UserError(f"The methods do not reach through {kind}: train with DistributedDataParallel, as torchrun with one process a GPU.")
    if isinstance(inner, DistributedDataParallel):
        if inner is not model:
            raise UserError("The methods do not reach through torch.compile around DistributedDataParallel: call model.compile() before.")
        return model
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1 and not _sharded(inner):
        raise UserError(f"{distributed.get_world_size()} processes train, and the model is not DistributedDataParallel: prepare it first.")
    return model


def _sharded(model: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())
