"""What the claims of LookSAM (Liu et al. 2022, supplement) need of runs beyond the columns of the frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .looksam_checks import CHECKS

if TYPE_CHECKING:
    from ..frames import Frames

__all__ = ["CHECKS", "METRICS"]

DELTA = 0.05  # the bound holds with probability 1 - delta


def complexity_term(frames: Frames) -> pd.Series:
    """The root in Theorem 1 (Eq. 8) at the weights of the end, with rho' = rho and without its O(1): the least that it can be there."""
    runs = frames.runs
    weights = frames.epochs.sort_values("epoch").groupby("run", observed=True).weight_norm.last()
    k, n, rho = (runs[key].astype(float) for key in ("parameters", "train_samples", "config.optimizer.where.rho"))
    ratio = (weights.astype(float) / rho * (1 + np.sqrt(np.log(n) / k))) ** 2
    return np.sqrt((k * np.log1p(ratio) + 4 * np.log(n / DELTA)) / (n - 1))


METRICS: dict[str, Callable[[Frames], pd.Series]] = {"complexity_term": complexity_term}
