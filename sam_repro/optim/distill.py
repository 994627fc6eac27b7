"""Sharpness without an ascent: SAF and MESA (Du et al. 2022) hold the model to what it, or its mean, said before.

    loss = CE + lam tau^2 KL(softmax(z_old / tau) || softmax(z / tau))        after epoch ``start``

SAF's teacher is a bank of the logits that each sample had ``delay`` epochs ago; MESA's is the moving mean of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..chain import Unperturbed, call
from ..schema import UserError
from .batches import MicroBatch
from .method import Method, Step
from .passes import Losses, Passes
from .structure import Plan, Structure, sharded


class Teacher:
    """Gives the logits to hold to."""

    name: ClassVar[str]
    forward_units: ClassVar[float]  # of asking it
    varies: ClassVar[str] = ""  # why no recorded step could serve another one
    lam: float
    tau: float
    start: int

    def setup(self, model: nn.Module, plan: Plan) -> None:
        """Learn the model and the training; UserError if the option needs more."""
        raise NotImplementedError

    def logits(self, batch: MicroBatch, indices: Tensor | None, epoch: int) -> tuple[Tensor, Tensor | None] | None:
        """The teacher's logits ``(batch, classes)``, and for which samples ``(batch,)`` they are any; None: for all, or for none."""
        raise NotImplementedError

    def follow(self, model: nn.Module) -> None:
        """The base optimizer has made a step."""

    def listen(self, indices: Tensor | None, outputs: Tensor, epoch: int) -> None:
        """Hear what the model said of a batch; after the last pass of the step, so that a step that fails leaves no trace."""

    def exchange(self, epoch: int, passes: Passes) -> None:
        """Of several processes: an epoch has ended, tell the others what its samples were."""

    def memory(self, model: nn.Module, classes: int) -> int:
        """Bytes."""
        raise NotImplementedError

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
    forward_units = 0.0
    varies = "every epoch writes its logits to another place"
    lam: float
    tau: float
    start: int
    delay: int

    def setup(self, model: nn.Module, plan: Plan) -> None:
        if plan.dataset_size is None:
            raise UserError("saf keeps the logits of every sample: give dataset_size=.")
        self.size, self.device = plan.dataset_size, next(model.parameters()).device
        self.bank: Tensor | None = None
        self.written: Tensor | None = None  # the epoch of every entry

    def logits(self, batch: MicroBatch, indices: Tensor | None, epoch: int) -> tuple[Tensor, Tensor | None] | None:
        if not isinstance(indices, Tensor) or indices.shape != (batch.samples,):
            raise UserError("saf needs the samples' places in the training set: call backward(..., indices=), one for each sample.")
        if self.bank is None or self.written is None or epoch <= self.start or epoch < self.delay:
            return None
        # A sample that was not seen then (by this replica) has no entry of that epoch.
        there = self.written[epoch % self.delay][indices] == epoch - self.delay
        return self.bank[epoch % self.delay][indices], there

    def listen(self, indices: Tensor | None, outputs: Tensor, epoch: int) -> None:
        if self.bank is None or self.written is None:
            self.bank = torch.zeros(self.delay, self.size, outputs.shape[1], dtype=torch.float16, device=outputs.device)
            self.written = torch.full((self.delay, self.size), -1, dtype=torch.int32, device=outputs.device)
        largest = torch.finfo(torch.float16).max
        self.bank[epoch % self.delay][indices] = outputs.detach().float().clamp(-largest, largest).half()
        self.written[epoch % self.delay][indices] = epoch

    def exchange(self, epoch: int, passes: Passes) -> None:
        """Afterwards the bank of every process has the samples of all: no two have had the same one."""
        if self.bank is None or self.written is None:
            return
        place, mine = epoch % self.delay, self.written[epoch % self.delay] == epoch
        passes.add_up(logits := self.bank[place].where(mine[:, None], 0.0))
        passes.add_up(seen := mine.to(self.written.dtype))
        self.bank[place] = logits
        self.written[place] = torch.where(seen > 0, epoch, -1)

    def memory(self, model: nn.Module, classes: int) -> int:
        return (2 * classes + 4) * self.size * self.delay

    def state_dict(self) -> dict[str, Any]:
        return {"bank": self.bank, "written": self.written}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bank, self.written = (None if t is None else t.to(self.device, copy=True) for t in (state["bank"], state["written"]))


@dataclass
class Mean(Teacher):
    """MESA: the exponential moving mean of weights and buffers, in evaluation mode."""

    name = "mean"
    forward_units = 1.0
    lam: float
    tau: float
    start: int
    decay: float

    def setup(self, model: nn.Module, plan: Plan) -> None:
        if any(isinstance(p, Unperturbed) for p in model.parameters()):
            raise UserError("The mean teacher does not go with learned step sizes, which begin at the first batch: set model.bits=0.")
        if sharded(model.parameters()):
            raise UserError("The mean teacher is a copy of the model, and a sharded one (FSDP2) has none: take another method than mesa.")
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval()

    def logits(self, batch: MicroBatch, indices: Tensor | None, epoch: int) -> tuple[Tensor, Tensor | None] | None:
        if epoch <= self.start:
            return None
        with torch.no_grad():
            return logits_of(call(self.teacher, batch.inputs)), None

    def follow(self, model: nn.Module) -> None:
        # Not torch's AveragedModel, which reads a counter from the device at every step.
        pairs = [(mean, new.detach()) for mean, new in zip(_state(self.teacher), _state(model), strict=True)]
        moving = [(mean, new) for mean, new in pairs if mean.is_floating_point() or mean.is_complex()]
        torch._foreach_lerp_([mean for mean, _ in moving], [new for _, new in moving], 1 - self.decay)
        counts = [(mean, new) for mean, new in pairs if not (mean.is_floating_point() or mean.is_complex())]
        if counts:
            torch._foreach_copy_([mean for mean, _ in counts], [new for _, new in counts])

    def memory(self, model: nn.Module, classes: int) -> int:
        return sum(t.numel() * t.element_size() for t in _state(model))

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        try:
            self.teacher.load_state_dict(state["teacher"])
        except RuntimeError as error:
            raise UserError("The state is one of another model: the mean teacher in it has other parameters than this one.") from error


def logits_of(outputs: Any) -> Tensor:
    """The logits ``(batch, classes)`` among what a model returned: all of it, or what it calls so."""
    logits = getattr(outputs, "logits", outputs)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UserError(
            "saf and mesa compare logits: the model is to return a tensor (batch, classes), or an object that has one as .logits."
        )
    return logits


def _state(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


class Lesson(NamedTuple):
    """What of a step is known before it."""

    epoch: int
    follows: bool  # whether the teacher is to follow the model first
    selected: Sequence[int] = ()  # nothing is perturbed


class Distillation(Method):
    """The gradient of the loss above: one pass of the model, and none at w + eps."""

    def __init__(self, model: nn.Module, teacher: Teacher, *, plan: Plan) -> None:
        if plan.steps_per_epoch is None:
            raise UserError("saf and mesa begin after an epoch: give steps_per_epoch=.")
        self.teacher = teacher
        self.steps_per_epoch = plan.steps_per_epoch
        self.step = self.followed = 0
        self.passes = Passes(model, same_dropout=False)
        self.structure = Structure(self.passes.model)
        teacher.setup(self.passes.model, plan)

    def decide(self) -> Lesson:
        """What the teacher does in the step to come."""
        if self.step and self.step % self.steps_per_epoch == 0 and self.passes.group is not None:
            self.teacher.exchange(self.step // self.steps_per_epoch - 1, self.passes)
        follows = self.step > self.followed  # the base optimizer has moved the weights since
        self.followed = self.step
        return Lesson(self.step // self.steps_per_epoch, follows)

    @property
    def varies(self) -> str:
        return "several processes take part in a step" if self.passes.group is not None else self.teacher.varies

    def recorded(self, decision: Lesson) -> tuple[Hashable, Lesson]:
        return (decision.follows, decision.epoch > self.teacher.start), decision

    def differentiate(self, batches: Sequence[MicroBatch], indices: Any, decision: Lesson) -> Step:
        step, epoch = Step(), decision.epoch
        places = indices if isinstance(indices, list) else [indices]
        if len(places) != len(batches):
            raise UserError(f"{len(batches)} micro-batches need as many indices=, a list, not {len(places)}.")
        if decision.follows:
            self.teacher.follow(self.passes.model)
        for batch, place in zip(batches, places, strict=True):
            with self.passes.unsummed(more_to_come=batch is not batches[-1]):
                said = self.teacher.logits(batch, place, epoch)  # first: what the model keeps for its backward pass is not there yet
                losses, outputs = self.passes.losses(batch.inputs, batch, 0, last=True)
                clean = losses.mean()
                loss = clean
                if said is not None:
                    loss = clean._replace(value=clean.value + self._trajectory(logits_of(outputs), losses.weights, *said))
                    self.passes.forward_units += batch.share * self.teacher.forward_units
                self.passes.backward(loss.times(batch.share), batch)
            step.saw(clean.times(batch.share), outputs, batch)
        for batch, place in zip(batches, places, strict=True):
            self.teacher.listen(place, logits_of(step.outputs[batch.place][0][0]), epoch)
        gradients = self.structure.gradients()
        self.passes.divide(gradients)
        step.norms = self._norms(gradients)
        return step

    def _trajectory(self, outputs: Tensor, weights: Tensor | None, said: Tensor, there: Tensor | None) -> Tensor:
        """The second term: lam tau^2 KL(softmax(said / tau) || softmax(outputs / tau)), the mean over the batch.

        Samples with ``weights`` have the same in both terms.
        """
        tau = self.teacher.tau
        old, new = F.log_softmax(said.to(outputs.dtype) / tau, 1), F.log_softmax(outputs / tau, 1)
        divergence = F.kl_div(new, old, reduction="none", log_target=True).sum(1)
        return self.teacher.lam * tau**2 * Losses(divergence if there is None else divergence * there, weights).mean().value

    def memory(self, classes: int) -> int:
        return self.teacher.memory(self.passes.model, classes)

    def parts_state(self) -> dict[str, Any]:
        return {"step": self.step, "teacher": self.teacher.state_dict()}

    def load_parts(self, state: Mapping[str, Any]) -> None:
        self.step, self.followed = state["step"], max(0, state["step"] - 1)
        self.teacher.load_state_dict(state["teacher"])


OPTIONS: dict[str, type[Teacher]] = {option.name: option for option in (Bank, Mean)}
