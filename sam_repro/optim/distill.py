"""Sharpness without an ascent: SAF and MESA (Du et al. 2022) hold the model to what it, or its mean, said before.

    loss = CE + lam tau^2 KL(softmax(z_old / tau) || softmax(z / tau))        after epoch ``start``

SAF's teacher is a bank of the logits that each sample had ``delay`` epochs ago; MESA's is the moving mean of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..chain import call
from ..schema import UserError
from .method import Method, Step, weighted
from .passes import Batch, Passes
from .structure import Plan, Structure


class Teacher:
    """Gives the logits to hold to."""

    name: ClassVar[str]
    lam: float
    tau: float
    start: int

    def setup(self, model: nn.Module, plan: Plan) -> None:
        """Learn the model and the training; UserError if the option needs more."""
        raise NotImplementedError

    def logits(self, batch: Batch, indices: Tensor | None, outputs: Tensor, epoch: int) -> Tensor | None:
        """The teacher's logits ``(batch, classes)`` for a batch with these ``outputs``; None where it has none."""
        raise NotImplementedError

    def follow(self, model: nn.Module) -> None:
        """The base optimizer has made a step."""

    def memory(self, model: nn.Module, classes: int) -> int:
        """Bytes."""
        raise NotImplementedError

    def extra_forward(self, active: bool) -> float:
        """Forward passes of the teacher."""
        return 0.0

    def state_dict(self) -> dict[str, Any]:
        """What the teacher knows."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where ``state_dict`` left off."""
        raise NotImplementedError


@dataclass
class Bank(Teacher):
    """SAF: the logits of each sample, as augmented ``delay`` epochs ago; half precision, on the outputs' device.

    Memory: ``dataset_size * delay * classes * 2`` bytes, 30 MB for CIFAR-100 with a delay of 3, 7.7 GB for ImageNet.
    """

    name = "bank"
    lam: float
    tau: float
    start: int
    delay: int

    def setup(self, model: nn.Module, plan: Plan) -> None:
        if plan.dataset_size is None:
            raise UserError("saf keeps the logits of every sample: give dataset_size=.")
        self.size = plan.dataset_size
        self.bank: Tensor | None = None

    def logits(self, batch: Batch, indices: Tensor | None, outputs: Tensor, epoch: int) -> Tensor | None:
        if indices is None:
            raise UserError("saf needs the samples' places in the training set: call backward(..., indices=...).")
        if self.bank is None:
            self.bank = torch.zeros(self.delay, self.size, outputs.shape[1], dtype=torch.float16, device=outputs.device)
        slot = self.bank[epoch % self.delay]
        before = slot[indices].to(outputs.dtype)  # written delay epochs ago
        slot[indices] = outputs.detach().half()
        return before if epoch >= self.delay else None

    def memory(self, model: nn.Module, classes: int) -> int:
        return 2 * self.size * self.delay * classes

    def state_dict(self) -> dict[str, Any]:
        return {"bank": self.bank}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bank = None if state["bank"] is None else state["bank"].clone()


@dataclass
class Mean(Teacher):
    """MESA: the exponential moving mean of weights and buffers, in evaluation mode."""

    name = "mean"
    lam: float
    tau: float
    start: int
    decay: float

    def setup(self, model: nn.Module, plan: Plan) -> None:
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval()

    def logits(self, batch: Batch, indices: Tensor | None, outputs: Tensor, epoch: int) -> Tensor | None:
        if epoch <= self.start:
            return None
        with torch.no_grad():
            said: Tensor = call(self.teacher, batch.inputs)
        return said

    def follow(self, model: nn.Module) -> None:
        # Not torch's AveragedModel, which reads a counter from the device at every step.
        pairs = [(mean, new.detach()) for mean, new in zip(_state(self.teacher), _state(model), strict=True)]
        moving = [(mean, new) for mean, new in pairs if mean.is_floating_point()]
        torch._foreach_lerp_([mean for mean, _ in moving], [new for _, new in moving], 1 - self.decay)
        for mean, new in pairs:
            if not mean.is_floating_point():
                mean.copy_(new)

    def memory(self, model: nn.Module, classes: int) -> int:
        return sum(t.numel() * t.element_size() for t in _state(model))

    def extra_forward(self, active: bool) -> float:
        return 1.0 if active else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.teacher.load_state_dict(state["teacher"])


def _state(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


class Distillation(Method):
    """The gradient of the loss above: one pass of the model, and none at w + eps."""

    def __init__(self, model: nn.Module, teacher: Teacher, *, plan: Plan) -> None:
        if plan.steps_per_epoch is None:
            raise UserError("saf and mesa begin after an epoch: give steps_per_epoch=.")
        self.model, self.teacher = model, teacher
        self.steps_per_epoch = plan.steps_per_epoch
        self.step = 0
        self.passes = Passes(model, same_dropout=False)
        self.structure = Structure(self.passes.model)
        teacher.setup(self.passes.model, plan)

    def _compute(self, batches: Sequence[Batch], indices: Any) -> Any:
        step = Step()
        epoch = self.step // self.steps_per_epoch
        if self.step:
            self.teacher.follow(self.passes.model)
        for batch in batches:
            places = indices[batch.place] if isinstance(indices, list) else indices
            with self.passes.unsummed(more_to_come=batch is not batches[-1]):
                losses, outputs = self.passes.losses(batch.inputs, batch, 0, last=True)
                clean = losses.mean()
                said = self.teacher.logits(batch, places, outputs, epoch)
                active = said is not None and epoch > self.teacher.start
                loss = clean + self._trajectory(outputs, said) if said is not None and active else clean
                self.passes.backward(weighted(loss, batch.share), batch)
            self.passes.forward_units += batch.share * self.teacher.extra_forward(active)
            step.saw(clean, outputs, batch)
        norms = self._norms(self.structure.gradients())
        return self._report(step, norms, [])

    def _trajectory(self, outputs: Tensor, said: Tensor) -> Tensor:
        """The second term: lam tau^2 KL(softmax(said / tau) || softmax(outputs / tau)), the mean over the batch."""
        tau = self.teacher.tau
        old, new = F.log_softmax(said / tau, 1), F.log_softmax(outputs / tau, 1)
        return self.teacher.lam * tau**2 * F.kl_div(new, old, reduction="batchmean", log_target=True)

    def memory(self, classes: int) -> int:
        return self.teacher.memory(self.passes.model, classes)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.teacher.load_state_dict(state["teacher"])


OPTIONS: dict[str, type[Teacher]] = {option.name: option for option in (Bank, Mean)}
