"""Hugging Face's Trainer with a method's gradient in the place of ``loss.backward()``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..optim import settings
from ..optim.structure import Plan
from ..schema import UserError
from . import Carried

try:
    from transformers import Trainer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
except ImportError as error:
    raise ImportError("Hugging Face's Trainer is not installed: pip install 'sam-repro[hf]'.") from error

STATE = "sharpness.pt"  # in a checkpoint's folder


class SAMTrainer(Trainer):
    """``SAMTrainer(model, args, train_dataset=..., method="looksam", knobs={"k": 5})``; all else is the Trainer's.

    The loss is what ``compute_loss`` makes of the model's outputs: the model's own, ``compute_loss_func``, label smoothing,
    or an override of it that calls the model once, by keywords. Accumulated batches are one step with one perturbation,
    each batch weighted by its labels that count, as the Trainer does. Logs hold ``sampling_number`` (steps with an ascent so
    far), ``forward_units`` and ``backward_units`` (passes so far); checkpoints hold the method's state.

    Raises:
        UserError: a method or knob that does not exist, or a method that asks for more than the loss of a batch.
    """

    def __init__(self, *args: Any, method: str, knobs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self.chosen, self.knobs = method, dict(knobs or {})
        parts = settings(method, **self.knobs)
        if "teacher" in parts or parts["samples"]["name"] == "sharpest":
            raise UserError(f"{method} looks at every sample, and a Trainer has the loss of a batch: use it in a loop of your own.")
        super().__init__(*args, **kwargs)
        self.sharpness: Carried | None = None

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:  # noqa: ARG002
        """The gradient of the batches of a step, when its last one comes. Returns the loss that the batch adds to the step's."""
        model.train()
        optimizer: Any = self.optimizer
        if hasattr(optimizer, "train"):
            optimizer.train()  # one without a schedule
        assert self.sharpness is not None
        batch = dict(self._prepare_inputs(inputs))
        due = self.accelerator.sync_gradients
        report = self.sharpness.backward(self._asked(batch), batch, self._losses, due=due, scaler=self.accelerator.scaler)
        return torch.zeros((), device=self.args.device) if report is None else report.loss

    def _asked(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What ``compute_loss`` gives to the model."""
        try:
            self.compute_loss(_stand_in(self.model), dict(batch))
        except _Asked as asked:
            return asked.inputs
        raise UserError("compute_loss does not call the model that it is given: have it call that one, once.")

    def _losses(self, outputs: Any, batch: dict[str, Any]) -> Any:
        """The loss of a batch as that of each of its samples, and their weights: the labels that count."""
        loss: Any = self.compute_loss(_stand_in(self.model, [outputs]), dict(batch))
        n = next(len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim)
        labels = batch.get("labels")
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            return loss.expand(n)
        counted = (labels[..., 1:] if self._shifts else labels).ne(-100).sum()
        return loss.expand(n), (counted / n).expand(n)

    @property
    def _shifts(self) -> bool:
        """Whether the first label of a row is of no token: also where the model does not say what its loss is, as GPT-2."""
        model = getattr(self.model, "get_base_model", lambda: self.model)()  # of PEFT
        return self._loss_shifts_labels or type(model).__name__ in CAUSAL.values()

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> tuple[nn.Module, Any]:
        prepare: Any = super()._prepare_for_training
        model, train_dataloader = prepare(max_steps, train_dataloader, resume_from_checkpoint)
        try:
            per_epoch = math.ceil(len(train_dataloader) / self.args.gradient_accumulation_steps)
            plan = Plan(max_steps, per_epoch, self.num_examples(train_dataloader), self.args.seed)
        except TypeError:  # a stream
            plan = Plan(max_steps, seed=self.args.seed)
        self.sharpness = Carried(self.chosen, self.knobs, model, plan)
        if resume_from_checkpoint is not None:
            path = Path(resume_from_checkpoint, STATE)
            if not path.exists():
                raise UserError(f"{path.parent} holds no {STATE}: it is not a SAMTrainer's, or was saved with save_only_model.")
            self.sharpness.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return model, train_dataloader

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self.sharpness is not None:
            torch.save(self.sharpness.state_dict(), Path(output_dir, STATE))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's logs of the training, with what the method did so far."""
        if self.sharpness is not None and ("loss" in logs or "train_loss" in logs):
            logs |= self.sharpness.counts
        super().log(logs, start_time)


class _Asked(BaseException):
    """The model was called with these inputs."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self.inputs = inputs


class _Model:
    """What it is given in place of the model: it tells what it is asked, or gives the outputs that the model had.

    The method calls the model itself, as often and at such weights as it needs to.
    """

    def __init__(self, model: Any, outputs: list[Any] | None) -> None:
        self._model, self._outputs = model, outputs

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        if args:
            raise UserError("compute_loss gives the model its inputs by position: name them.")
        if self._outputs is None:
            raise _Asked(inputs)
        if not self._outputs:
            raise UserError("compute_loss calls the model more than once: that needs a loop of your own.")
        return self._outputs.pop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _stand_in(model: Any, outputs: list[Any] | None = None) -> Any:
    """One that also says it is of the model's class: the Trainer asks."""
    return type("_Model", (_Model,), {"__class__": property(lambda _: type(model))})(model, outputs)
