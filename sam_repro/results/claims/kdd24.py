"""What the claims of KDD'24 (layer-wise SAM, Lee 2024) need of runs beyond the columns of the frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from .kdd24_checks import CHECKS

if TYPE_CHECKING:
    from ..frames import Frames

__all__ = ["CHECKS", "MEASURES", "METRICS"]

FEW = 4  # "a few layers" (section 3.4): the k of Table 1 on CIFAR-10 and CIFAR-100
SETTLED = 5  # epochs of a learning-rate phase that pass before its norms are those of the phase
MOST = 0.8  # of the layers: what holds of them holds of "the layers"
GRID = {"dimensions": 2, "points": 40, "distance": 1.0}  # appendix A.2


def speed(frames: Frames) -> pd.Series:
    """In SGD's, by steps timed in turns: Table 2's images per second without the machine."""
    return 1 / frames.runs.step_cost.astype(float)


def grad_norm_before_decay(frames: Frames) -> pd.Series:
    """Mean over the epochs before the first decay of the learning rate (Figure 4)."""
    epochs = _phased(frames)
    return epochs[epochs.phase == 0].groupby("run", observed=True).grad_norm.mean()


def grad_norm_after_decay(frames: Frames) -> pd.Series:
    """Mean over the epochs after the first decay of the learning rate."""
    epochs = _phased(frames)
    return epochs[epochs.phase > 0].groupby("run", observed=True).grad_norm.mean()


def log_loss_area(frames: Frames) -> pd.Series:
    """Area under the logarithm of the training loss over all epochs, per epoch: the higher, the slower it falls."""
    return np.log(frames.epochs.train_loss).groupby(frames.epochs.run, observed=True).mean()


def median_layer_perturbations(frames: Frames) -> pd.Series:
    """The share of all steps that perturb the median layer: half of the layers are perturbed as seldom, or more seldom."""
    counts = frames.layers.groupby(["run", "layer"], observed=True).perturbations.sum()
    return counts.groupby("run", observed=True).median() / frames.runs.steps


def depth_and_perturbations(frames: Frames) -> pd.Series:
    """Spearman's correlation over layers of depth and number of perturbations (Figure 5); no number where all layers have as many."""
    return _of_layers(frames, lambda layers: _spearman(layers.depth, layers.perturbations))


def depth_and_norm(frames: Frames) -> pd.Series:
    """Spearman's correlation over layers of depth and mean gradient norm (Figure 1)."""
    return _of_layers(frames, lambda layers: _spearman(layers.depth, layers.grad_norm))


def output_side_of_top(frames: Frames) -> pd.Series:
    """How many of the few layers with the largest mean norm lie in the half next to the output, as a share."""

    def share(layers: pd.DataFrame) -> float:
        return float((layers.nlargest(FEW, "grad_norm").depth >= len(layers) / 2).mean())

    return _of_layers(frames, share)


def top_share(frames: Frames) -> pd.Series:
    """The share of the squared norm of the whole gradient that the few largest layers hold, over all epochs."""

    def share(layers: pd.DataFrame) -> float:
        return float(layers.square.nlargest(FEW).sum() / layers.square.sum())

    return _of_layers(frames, share)


def top_stays(frames: Frames) -> pd.Series:
    """How many of the few largest layers of an epoch are the few largest of all training, as a share, in the mean over epochs."""

    def share(rows: pd.DataFrame) -> float:
        table = rows.pivot_table(index="layer", columns="epoch", values="grad_norm", observed=True)
        overall = table.mean(axis=1).nlargest(FEW).index
        return float(np.mean([norms.nlargest(FEW).index.isin(overall).mean() for _, norms in table.items()]))

    return pd.Series({run: share(rows) for run, rows in frames.layers.groupby("run", observed=True)}, dtype=float)


def smallest_over_largest(frames: Frames) -> pd.Series:
    """The smallest mean norm of a layer over the largest."""
    return _of_layers(frames, lambda layers: float(layers.grad_norm.min() / layers.grad_norm.max()))


def norm_variation(frames: Frames) -> pd.Series:
    """The coefficient of variation of a layer's norm over the epochs of a learning-rate phase that most layers stay below.

    Of a layer it is the mean over its phases, each without its first epochs.
    """
    norms = frames.layers.merge(_phased(frames)[["run", "epoch", "phase"]], on=["run", "epoch"]).sort_values("epoch")
    phases = ["run", "layer", "phase"]
    settled = norms[norms.groupby(phases, observed=True).cumcount() >= SETTLED].groupby(phases, observed=True).grad_norm
    variation = (settled.std() / settled.mean()).groupby(["run", "layer"], observed=True).mean()
    return variation.groupby("run", observed=True).quantile(MOST)


def landscape_rise(frames: Frames) -> pd.Series:
    """How far the loss rises on the grid of appendix A.2, the median of its points, in the geometric mean of the layers measured."""
    return _of_landscapes(frames, lambda rises: float(np.exp(np.log(rises).mean())))


def landscape_spread(frames: Frames) -> pd.Series:
    """How many times the rise of the flattest layer measured has to be doubled to be that of the sharpest."""
    return _of_landscapes(frames, lambda rises: float(np.log2(rises.max() / rises.min())))


def norm_and_rise(frames: Frames) -> pd.Series:
    """Spearman's correlation, over the layers measured, of mean gradient norm and rise of the loss on the grid."""
    norms = _layers(frames).grad_norm
    return pd.Series({run: _spearman(norms[run].reindex(rises.index), rises) for run, rises in _rises(frames).items()}, dtype=float)


def _phased(frames: Frames) -> pd.DataFrame:
    """The epochs of runs whose rate is decayed in steps, with how often it has been decayed by then; a warm-up is no decay."""
    runs = frames.runs
    stepped = runs.index[runs["config.schedule.name"] == "step"]
    epochs = frames.epochs[frames.epochs.run.isin(stepped)].sort_values(["run", "epoch"])
    falls = epochs.groupby("run", observed=True).lr.pct_change() < -1e-6
    return epochs.assign(phase=falls.groupby(epochs.run, observed=True).cumsum())


def _layers(frames: Frames) -> pd.DataFrame:
    """A row a run and layer: depth, mean norm and mean squared norm over the epochs, and all perturbations."""
    frame = frames.layers.assign(square=frames.layers.grad_norm**2)
    how = {"depth": "first", "grad_norm": "mean", "square": "mean", "perturbations": "sum"}
    return frame.groupby(["run", "layer"], observed=True).agg(how)


def _of_layers(frames: Frames, number: Callable[[pd.DataFrame], float]) -> pd.Series:
    found = _layers(frames).groupby("run", observed=True)
    return pd.Series({run: number(layers) for run, layers in found}, dtype=float)


def _of_landscapes(frames: Frames, number: Callable[[pd.Series], float]) -> pd.Series:
    """Of the rises of a run in which several layers were measured, each of which the loss leaves upwards."""
    rises = {run: found for run, found in _rises(frames).items() if (found > 0).all()}
    return pd.Series({run: number(found) for run, found in rises.items()}, dtype=float)


def _rises(frames: Frames) -> dict[Any, pd.Series]:
    """For each run with landscapes of several layers on the paper's grid: the layers' rises, where a loss that is no number is infinite."""
    found = {}
    for run, path in frames.runs.path.items():
        files = [json.loads(file.read_text()) for file in sorted(Path(path, "landscape").glob("*.json"))]
        drawn = [file for file in files if file["layer"] != "all" and all(file[key] == value for key, value in GRID.items())]
        if len(drawn) > 1:
            found[run] = pd.Series({file["layer"]: _rise(file["loss"], file["center"]) for file in drawn})
    return found


def _rise(loss: list[list[float | None]], center: float) -> float:
    return float(np.median([np.inf if point is None else point for row in loss for point in row]) - center)


def _spearman(a: pd.Series, b: pd.Series) -> float:
    return float(spearmanr(a, b).statistic) if a.nunique() > 1 and b.nunique() > 1 else np.nan


METRICS: dict[str, Callable[[Frames], pd.Series]] = {
    metric.__name__: metric
    for metric in (
        speed, grad_norm_before_decay, grad_norm_after_decay, log_loss_area, median_layer_perturbations, depth_and_perturbations,
        depth_and_norm, output_side_of_top, top_share, top_stays, smallest_over_largest, norm_variation, landscape_rise,
        landscape_spread, norm_and_rise,
    )
}  # fmt: skip
MEASURES = {"speed": "cost steps=24"}  # as for the tables: whole intervals 2, 3 and 4 of LookSAM
