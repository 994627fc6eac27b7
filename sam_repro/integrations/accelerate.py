"""A method in a plain loop with Accelerate."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..optim import Report
from ..optim.passes import Criterion
from ..optim.structure import Plan
from . import Carried

try:
    from accelerate import Accelerator
except ImportError as error:
    raise ImportError("Accelerate is not installed: pip install 'sam-repro[accelerate]'.") from error


def create(
    name: str,
    accelerator: Accelerator,
    model: nn.Module,
    *,
    total_steps: int | None = None,
    steps_per_epoch: int | None = None,
    dataset_size: int | None = None,
    seed: int = 0,
    **knobs: Any,
) -> Accelerated:
    """The method ``name`` on ``model`` as ``accelerator.prepare`` returned it; its state joins ``save_state``.

    Other arguments, and errors, as of ``sam_repro.optim.create``; steps are the optimizer's::

        gradient = create("looksam", accelerator, model, k=5)
        for inputs, targets in batches:
            with accelerator.accumulate(model):
                gradient.backward(inputs, targets, nn.CrossEntropyLoss(reduction="none"))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                base.step()
                base.zero_grad()
    """
    gradient = Accelerated(accelerator, Carried(name, knobs, model, Plan(total_steps, steps_per_epoch, dataset_size, seed)))
    accelerator.register_for_checkpointing(gradient)
    return gradient


class Accelerated:
    """``backward`` takes the place of ``accelerator.backward(loss)``."""

    def __init__(self, accelerator: Accelerator, carried: Carried) -> None:
        self.accelerator, self.carried = accelerator, carried

    def backward(self, inputs: Any, targets: Any, criterion: Criterion, *, indices: Tensor | None = None) -> Report | None:
        """Add the gradient of all batches since the last step to ``.grad``; None while ``accumulate`` waits for more of them.

        Arguments as of ``Method.backward``. Scaled under fp16, as ``accelerator.backward`` does.
        """
        due, scaler = self.accelerator.sync_gradients, self.accelerator.scaler
        return self.carried.backward(inputs, targets, criterion, due=due, indices=indices, scaler=scaler)

    @property
    def counts(self) -> dict[str, float]:
        """So far: ``sampling_number`` (steps with an ascent), ``forward_units`` and ``backward_units`` (passes)."""
        return self.carried.counts

    def state_dict(self) -> dict[str, Any]:
        """As ``accelerator.save_state`` keeps it."""
        return self.carried.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As ``accelerator.load_state`` gives it back."""
        self.carried.load_state_dict(state)
