"""A Lightning module with a method's gradient in the place of the backward pass; the Trainer's flags work as they are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..optim import Report, settings
from ..optim.passes import Criterion
from ..optim.structure import Plan
from ..schema import UserError
from . import Carried

STATE = "sharpness"  # in a checkpoint
Base: Any = object  # LightningModule, of whichever of its two packages


class SharpnessAware(Base):
    """Stands before ``LightningModule`` among the bases; ``forward`` is the network::

        class Classifier(SharpnessAware, LightningModule):
            def __init__(self):
                super().__init__("looksam", k=5)
                self.network = ...

            def forward(self, inputs):
                return self.network(inputs)

            def training_step(self, batch, _):
                inputs, targets = batch
                return self.descend(inputs, targets, nn.CrossEntropyLoss(reduction="none"))

    Optimization stays automatic: ``accumulate_grad_batches`` (one step with one perturbation), ``gradient_clip_val``,
    ``precision``, schedules and strategies with ``DistributedDataParallel`` are the Trainer's. The state is in its checkpoints.

    Raises:
        UserError: a method or knob that does not exist.
    """

    def __init__(self, method: str, **knobs: Any) -> None:
        super().__init__()
        settings(method, **knobs)
        self._chosen = method, knobs
        self._loaded: dict[str, Any] | None = None
        self.sharpness: Carried | None = None

    def descend(self, inputs: Any, targets: Any, criterion: Criterion, *, indices: Tensor | None = None) -> Tensor:
        """What ``training_step`` returns: the loss at w, after the gradient was made; zero for a batch of a step to come.

        Logs ``train_loss``, ``sampling_number`` (steps with an ascent so far), ``forward_units`` and ``backward_units``.
        Arguments as of ``Method.backward``.
        """
        if self.sharpness is None or not self.automatic_optimization:
            raise UserError("Leave automatic_optimization on, and have an on_fit_start of your own call super().on_fit_start().")
        due = not self.trainer.fit_loop._should_accumulate()
        if due:
            self.zero_grad()
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        with _Synced(self.trainer.strategy.model):
            report = self.sharpness.backward(inputs, targets, criterion, due=due, indices=indices, scaler=scaler)
        if report is None:
            return torch.zeros((), device=self.device)
        self._log(report)
        return report.loss

    def _log(self, report: Report) -> None:
        assert self.sharpness is not None
        counts = {key: float(value) for key, value in self.sharpness.counts.items()}
        self.log_dict({"train_loss": report.loss, **counts}, on_step=True, on_epoch=False)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Nothing: the gradient is there."""

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Nothing: the Trainer calls it between ``training_step`` and ``backward``."""

    def on_fit_start(self) -> None:
        """Make the method, now that the model is wrapped as it will be trained."""
        super().on_fit_start()
        trainer, (name, knobs) = self.trainer, self._chosen
        total, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
        known = math.isfinite(batches)
        size = len(trainer.train_dataloader.dataset) if known and hasattr(trainer.train_dataloader, "dataset") else None
        plan = Plan(
            total_steps=int(total) if math.isfinite(total) and total > 0 else None,
            steps_per_epoch=math.ceil(batches / trainer.accumulate_grad_batches) if known else None,
            dataset_size=size,
        )
        self.sharpness = Carried(name, knobs, trainer.strategy.model, plan)
        if self._loaded is not None:
            self.sharpness.load_state_dict(self._loaded)
            self._loaded = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the method's state."""
        super().on_save_checkpoint(checkpoint)
        if self.sharpness is not None:
            checkpoint[STATE] = self.sharpness.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the method's state for ``on_fit_start``, where a training is resumed: weights alone can serve another one."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is None or self.trainer.state.fn != "fit":
            return
        if STATE not in checkpoint:
            raise UserError("The checkpoint holds no state of a method: give its weights alone to start from them.")
        self._loaded = checkpoint[STATE]


class _Synced:
    """Within ``training_step``, where ``DistributedDataParallel.forward`` is under way already, it is called once more.

    Only that inner call is to expect a backward pass: the outer one would wait for it forever, or reduce zeros.
    """

    def __init__(self, model: nn.Module) -> None:
        self.replica = model if isinstance(model, DistributedDataParallel) else None

    def __enter__(self) -> None:
        if self.replica is not None:
            self.replica.require_backward_grad_sync = self.replica.require_forward_param_sync = True

    def __exit__(self, *_: object) -> None:
        if self.replica is not None:
            self.replica.require_backward_grad_sync = False
