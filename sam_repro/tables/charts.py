"""The numbers that the report's script draws."""

from __future__ import annotations

import math
from typing import Any

from ..train.store import Run
from .compare import Benchmark

Row = dict[str, Any]


def chart_data(benchmark: Benchmark) -> Row:
    """Curves, points and layers of a benchmark, in few digits: they are drawn."""
    order = [setting.label for setting in benchmark.settings]
    return {
        "settings": order,
        "split": benchmark.split,
        "runs": [curves(run) | {"setting": i} for i, setting in enumerate(benchmark.settings) for run in setting.runs],
        "means": [
            {"setting": i, "x": few(setting.mean("images_per_second")), "y": few(setting.mean("score_last")), "n": len(setting.done)}
            for i, setting in enumerate(benchmark.settings)
            if setting.done
        ],
        "front": [order.index(setting.label) for setting in benchmark.front],
        "hardware": benchmark.hardware,
    }


def curves(run: Run) -> Row:
    """A run's metrics by epoch, its point among the others if it is done, and what happened to its layers."""
    rows, summary = run.metrics(), run.summary if run.state == "done" else {}
    columns: Row = {key: [few(row[key]) for row in rows] for key in ("epoch", "score", "train_loss", "grad_norm")}
    rate = [few(100 * row["sampling_number"] / row["steps"]) for row in rows]
    point = {"x": few(summary["images_per_second"]), "y": few(summary["score_last"])} if summary else {}
    return {"id": run.id, "seed": run.config["seed"], "state": run.state, **columns, "rate": rate, **point, "layers": layers(run)}


def layers(run: Run) -> Row:
    """``layers.csv`` as a matrix each of norms and perturbations: a list of epochs for every layer, None where a row is missing."""
    rows = run.layers()
    names, epochs = list(dict.fromkeys(row["layer"] for row in rows)), sorted({row["epoch"] for row in rows})
    at = {(row["layer"], row["epoch"]): row for row in rows}

    def matrix(key: str) -> list[list[float | None]]:
        return [[few(at[name, epoch][key]) if (name, epoch) in at else None for epoch in epochs] for name in names]

    return {"names": names, "epochs": epochs, "grad_norm": matrix("grad_norm"), "perturbations": matrix("perturbations")}


def few(value: float | None) -> float | None:
    """Five digits; None for what is no number."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")
