"""What happened to each layer over training, as a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

Row = dict[str, Any]
LABELS = {"grad_norm": "gradient norm, mean over the epoch's steps", "perturbations": "perturbations in the epoch"}


def matrix(rows: list[Row], key: str) -> tuple[list[str], list[int], NDArray[np.float64]]:
    """``layers.csv`` as layers in forward order, epochs, and ``key`` of each, ``(layers, epochs)``; nan where there is none."""
    layers, epochs = list(dict.fromkeys(row["layer"] for row in rows)), sorted({row["epoch"] for row in rows})
    down, across = {name: i for i, name in enumerate(layers)}, {epoch: j for j, epoch in enumerate(epochs)}
    values = np.full((len(layers), len(epochs)), np.nan)
    for row in rows:
        values[down[row["layer"]], across[row["epoch"]]] = row[key]
    return layers, epochs, values


def heatmap(rows: list[Row], key: str, title: str) -> NDArray[np.uint8]:
    """Layers downwards, epochs to the right; ``(height, width, 3)``."""
    layers, epochs, values = matrix(rows, key)
    figure = Figure(figsize=(8, 1.4 + 0.19 * len(layers)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    span = (epochs[0] - 0.5, epochs[-1] + 0.5, len(layers) - 0.5, -0.5)
    logarithmic = key == "grad_norm" and np.nanmin(values) > 0  # the first epoch's norms are many times the others
    norm = LogNorm() if logarithmic else Normalize(vmin=0)
    image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis", extent=span, norm=norm)
    axes.set_yticks(range(len(layers)), layers, fontsize=7)
    axes.set_xlabel("epoch")
    axes.set_title(title, fontsize=9)
    figure.colorbar(image, label=LABELS[key])
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
