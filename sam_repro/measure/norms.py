"""Gradient norms: over the training as the run wrote them down, and of the whole training loss at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..chain import layers
from ..optim.structure import norm_of
from ..store import Run
from .objective import Objective

Series = dict[str, tuple[list[float], list[float]]]


def layer_norms(objective: Objective) -> dict[str, float]:
    """The norm of the gradient of every layer, in forward order, over all samples of the objective."""
    gradient = dict(zip(objective.parameters, objective.gradient(), strict=True))
    return {layer.name: norm_of([gradient[p] for p in layer.parameters]).item() for layer in layers(objective.model)}


def draw_norms(run: Run, folder: Path) -> list[Path]:
    """The pictures of KDD'24, Fig. 1 and 4, and where the run has a ``steps.csv``, vSAM's Fig. 2."""
    from .figures import curves, save

    rows = run.layers()
    names = dict.fromkeys(row["layer"] for row in rows)
    by_layer: Series = {name: _column([row for row in rows if row["layer"] == name], "epoch", "grad_norm") for name in names}
    by_epoch: Series = {"whole model": _column(run.metrics(), "epoch", "grad_norm")}
    made = {
        "layers": curves(by_layer, "Gradient norm by layer", "epoch", "mean norm of the steps"),
        "model": curves(by_epoch, "Gradient norm of the whole model", "epoch", "mean norm of the steps"),
    }
    if recorded := run.steps():
        steps = [row for row in recorded if "psf_norm" in row]
        if steps:
            both: Series = {"‖∇L SGD‖": _column(steps, "step", "plain_norm"), "‖∇L PSF‖": _column(steps, "step", "psf_norm")}
            made["psf"] = curves(both, "Gradient and PSF", "step", "norm")
    for name, figure in made.items():
        save(figure, folder / name)
    return [folder / name for name in made]


def _column(rows: list[dict[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    return [row[x] for row in rows], [row[y] for row in rows]
