"""What the numbers of a run are called in a tracker."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
# Columns of metrics.jsonl; what is not named here stands under sam/. Scores stand under the split they were measured on.
NAMES = {
    "train_loss": "train/loss",
    "train_score": "train/score",
    "lr": "train/lr",
    "images_per_second": "perf/images_per_second",
    "seconds": "perf/seconds",
    "steps": "perf/steps",
    "forward_units": "perf/forward_units",
    "backward_units": "perf/backward_units",
}
TIME = "perf/time"  # seconds of training so far
LAYERS = "sam/layers"
HEATMAPS = {"grad_norm": "sam/layers_grad_norm", "perturbations": "sam/layers_perturbations"}


def of_epoch(row: Row) -> dict[str, float]:
    """A row of ``metrics.jsonl``, and the sampling rate: the share of its steps that made an ascent."""
    names = {**NAMES, **{name: f"{row['split']}/{name}" for name in ("score", "accuracy", "f1")}}
    numbers = {key: value for key, value in row.items() if key != "epoch" and isinstance(value, (int, float))}
    values = {names.get(key, f"sam/{key}"): value for key, value in numbers.items()}
    return {**values, "sam/sampling_rate": row["sampling_number"] / row["steps"]}


def of_summary(summary: Row) -> Row:
    """The numbers and words of ``summary.json``, for comparison of finished runs."""
    if not summary:
        return {}
    plain = {f"final/{key}": value for key, value in summary.items() if isinstance(value, (int, float, str)) and key != "run_id"}
    return {**plain, "final/sampling_rate": summary["sampling_number"] / summary["steps"]}
