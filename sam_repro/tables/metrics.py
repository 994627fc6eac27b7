"""What a cell can show of a finished run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..schema import UserError, suggest
from ..train.store import Run


@dataclass(frozen=True)
class Metric:
    """A number of a run; ``derived`` names what is shown beside it: the percent of a reference, or of all steps."""

    of: Callable[[Run, dict[str, Any]], float | None]  # of the run and its summary
    digits: int
    derived: str = ""
    best: bool = False  # the best epoch's is shown beside the last
    relative: bool = False  # of the machine or of the training's length: only the derived number compares with the paper's
    clock: int = 0  # the power of it that is a time: 1, or -1 of a speed; 0 where no clock is in it


METRICS = {
    "accuracy": Metric(lambda _, s: s["score_last"], 2, best=True),
    "matthews": Metric(lambda _, s: s["score_last"], 2, best=True),
    "train_loss": Metric(lambda _, s: s["train_loss"], 4),
    "images_per_second": Metric(lambda _, s: s["images_per_second"], 1, "images_per_second_ratio", relative=True, clock=-1),
    "seconds": Metric(lambda _, s: s["seconds"], 0, "seconds_ratio", relative=True, clock=1),
    "hours": Metric(lambda _, s: s["seconds"] / 3600, 2, "hours_ratio", relative=True, clock=1),
    "sampling_number": Metric(lambda _, s: s["sampling_number"], 0, "sampling_rate", relative=True),
    "grad_norm": Metric(lambda _, s: s["grad_norm"], 4),
    "perturbations": Metric(lambda _, s: sum(s["perturbations"].values()), 0),
    "lambda_max": Metric(lambda run, _: _lambda_max(run.measurement("sharpness")), 2),
    # Equations 8 and 9 of KDD'24 in passes: SGD's step costs a forward pass and a backward pass, which is two forward passes.
    "predicted_speed": Metric(lambda _, s: 300 * s["steps"] / (s["forward_units"] + 2 * s["backward_units"]), 1),
}


def _lambda_max(found: dict[str, Any]) -> float | None:
    """Of the whole training set: that of a part of it is another number."""
    return found["lambda_max"] if found and found["samples"] == found["of"] else None


def metric_of(name: str) -> Metric:
    """The metric of this name; UserError if there is none."""
    if name not in METRICS:
        raise UserError(f"There is no metric {name!r}.{suggest(name, METRICS)}")
    return METRICS[name]
