"""What the claims of mSAM (Behdin et al. 2023) need of runs beyond the columns of the frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .msam_checks import CHECKS

if TYPE_CHECKING:
    from ..frames import Frames

__all__ = ["CHECKS", "MEASURES", "METRICS"]

SETTING = ["scale", "device", "precision", "seed", "epochs", "train_samples", "config.batch_size"]
RECIPE = ["dataset", "model", "config.lr", "config.optimizer.where.rho"]
M = "config.optimizer.samples.m"
LARGE = ("glue_sst2", "glue_qqp")  # tasks that section 4.2 calls large


def log_lambda_max(frames: Frames) -> pd.Series:
    """The natural logarithm of the largest eigenvalue."""
    return frames.runs.lambda_max.astype(float).map(np.log)


def gain_over_cifar10(frames: Frames) -> pd.Series:
    """What mSAM gains over SAM on CIFAR-100 less what it gains on CIFAR-10, by the same network, recipe and seed; in points."""
    gains = _gains(frames)
    return _beside(gains[gains.dataset == "cifar100"], gains[gains.dataset == "cifar10"], [*SETTING, "model", "config.lr", M])


def gain_over_resnet50(frames: Frames) -> pd.Series:
    """What mSAM gains over SAM less what it gains with ResNet-50 on the same data with the same seed; in points."""
    gains = _gains(frames)
    return _beside(gains[gains.model != "resnet50"], gains[gains.model == "resnet50"], [*SETTING, "dataset", M])


def deviation_beside_large(frames: Frames) -> pd.Series:
    """How far a GLUE score is from the median over seeds, less the mean of the same on SST-2 and QQP (Brown and Forsythe's test)."""
    runs = _runs(frames)
    runs = runs[runs.dataset.astype(str).str.startswith("glue_")]
    without_seed = [key for key in (*SETTING, *RECIPE, "optimizer", M) if key != "seed"]
    runs = runs.assign(deviation=(runs.score_last - runs.groupby(without_seed, dropna=False).score_last.transform("median")).abs())
    same = ["scale", "device", "precision", "seed", "model", "optimizer", M]
    found = runs[runs.dataset.isin(LARGE)].groupby(same, dropna=False).deviation.agg(["mean", "count"])
    large = found["mean"].where(found["count"] == len(LARGE)).rename("large").reset_index()
    small = runs[~runs.dataset.isin(LARGE)].rename_axis("run").reset_index().merge(large, on=same).set_index("run")
    return (small.deviation - small.large).dropna()


def _runs(frames: Frames) -> pd.DataFrame:
    """With all columns that are asked for: of a part that no run has there is none."""
    return frames.runs.reindex(columns=frames.runs.columns.union([*SETTING, *RECIPE, M, "config.optimizer.when.name"], sort=False))


def _gains(frames: Frames) -> pd.DataFrame:
    """The runs of mSAM throughout that have a run of SAM beside them, with the column ``gain``."""
    runs = _runs(frames).dropna(subset=["score_last"])
    msam = runs[(runs.optimizer == "msam") & (runs["config.optimizer.when.name"] == "always")]
    gain = _beside(msam.assign(gain=msam.score_last), runs[runs.optimizer == "sam"].assign(gain=runs.score_last), [*SETTING, *RECIPE])
    return msam.loc[gain.index].assign(gain=gain)


def _beside(own: pd.DataFrame, other: pd.DataFrame, same: list[str]) -> pd.Series:
    """``gain`` less that of the others that have the same values; of runs that have such others."""
    others = other.groupby(same).gain.mean().rename("others").reset_index()
    both = own.rename_axis("run").reset_index().merge(others, on=same).set_index("run")
    return (both.gain - both.others).astype(float)


METRICS: dict[str, Callable[[Frames], pd.Series]] = {
    metric.__name__: metric for metric in (log_lambda_max, gain_over_cifar10, gain_over_resnet50, deviation_beside_large)
}
MEASURES = {"log_lambda_max": "sharpness samples=all"}  # what a metric has to be measured by
