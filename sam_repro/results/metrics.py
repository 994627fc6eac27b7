"""What a cell can show of a finished run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..schema import UserError, suggest

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Metric:
    """A number of a run, from the frame of runs; ``derived`` names what is shown beside it: percent of a reference, or of all steps."""

    of: str | Callable[[pd.DataFrame], pd.Series]  # a column, or what is computed from columns
    digits: int
    derived: str = ""
    best: bool = False  # the best epoch's is shown beside the last
    relative: bool = False  # of the machine or of the training's length: only the derived number compares with the paper's
    clock: int = 0  # the power of it that is a time: 1, or -1 of a speed; 0 where no clock is in it


METRICS = {
    "accuracy": Metric("score_last", 2, best=True),
    "matthews": Metric("score_last", 2, best=True),
    "train_loss": Metric("train_loss", 4),
    "images_per_second": Metric("images_per_second", 1, "images_per_second_ratio", relative=True, clock=-1),
    "seconds": Metric("seconds", 0, "seconds_ratio", relative=True, clock=1),
    "hours": Metric(lambda runs: runs.seconds / 3600, 2, "hours_ratio", relative=True, clock=1),
    "sampling_number": Metric("sampling_number", 0, "sampling_rate", relative=True),
    "grad_norm": Metric("grad_norm", 4),
    "perturbations": Metric("perturbations", 0),
    "lambda_max": Metric("lambda_max", 2),
    # Equations 8 and 9 of KDD'24 in passes: SGD's step costs a forward pass and a backward pass, which is two forward passes.
    "predicted_speed": Metric(lambda runs: 300 * runs.steps / (runs.forward_units + 2 * runs.backward_units), 1),
}


def metric_of(name: str) -> Metric:
    """The metric of this name; UserError if there is none."""
    if name not in METRICS:
        raise UserError(f"There is no metric {name!r}.{suggest(name, METRICS)}")
    return METRICS[name]
