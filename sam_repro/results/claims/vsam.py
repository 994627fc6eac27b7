"""What the claims of vSAM (Deng et al. 2024) need of runs beyond the columns of the frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, spearmanr

from .vsam_checks import CHECKS

if TYPE_CHECKING:
    from ..frames import Frames

__all__ = ["CHECKS", "MEASURES", "METRICS"]

FIRST = 5  # "the first few epochs" (section 4.1), as in the presets' start
SOON_AFTER = 50  # epochs: with the later ones comes the vanishing loss of the end
WINDOW = 50  # N of section 4.1, in recorded steps
LAST = 5  # "the last few layers" (section 3.2), as norm_layers
RIVALS: dict[str, dict[str, Any]] = {"sgd": {}, "sam": {}, "looksam": {"config.k": 5}, "esam": {"config.gamma": 0.5}, "saf": {}}  # Figure 1
BENCHMARK = ["dataset", "epochs", "scale", "device", "seed", "train_samples", "config.batch_size", "config.lr"]


def speed(frames: Frames) -> pd.Series:
    """In SGD's, by steps timed in turns: vSAM's AIS (Eq. 20) without the machine."""
    return 1 / frames.runs.step_cost.astype(float)


def sam_sharpness(frames: Frames) -> pd.Series:
    """L(w + eps) - L(w) over the whole training set, as ``measure sharpness`` found it."""
    found = frames.measurements[frames.measurements.measure == "sharpness"]
    table = found.pivot_table(index="run", columns="name", values="value").reindex(columns=["sam_sharpness", "samples", "of"])
    return table.sam_sharpness[table.samples == table.of]


def psf_trend(frames: Frames) -> pd.Series:
    """Kendall's tau of the mean norm of PSF in an epoch with the epoch (Mann and Kendall's test of a trend)."""
    return _of_runs(_recorded(frames, "psf_norm"), lambda run: _trend(run.groupby("epoch").psf_norm.mean()))


def psf_amplitude_trend(frames: Frames) -> pd.Series:
    """Kendall's tau of the variance of the norm of PSF in windows of N recorded steps with the window."""

    def trend(run: pd.DataFrame) -> float:
        norms = run.psf_norm.to_numpy()
        whole = len(norms) // WINDOW
        return _trend(norms[: whole * WINDOW].reshape(whole, WINDOW).var(axis=1))

    return _of_runs(_recorded(frames, "psf_norm"), trend)


def early_variation(frames: Frames) -> pd.Series:
    """How many times its later value the coefficient of variation of the norm of PSF within an epoch has in the first epochs."""

    def ratio(run: pd.DataFrame) -> float:
        norms = run.groupby("epoch").psf_norm
        variation = norms.std() / norms.mean()
        return float(variation.loc[:FIRST].mean() / variation.loc[FIRST + 1 : SOON_AFTER].mean())

    return _of_runs(_recorded(frames, "psf_norm"), ratio)


def course_alike(frames: Frames) -> pd.Series:
    """Spearman's correlation, over epochs, of the norms of PSF and of the plain gradient with those of ResNet-18's run: the lower one."""
    recorded = _recorded(frames, "psf_norm")
    curves = [recorded.pivot_table(index="epoch", columns="run", values=norm) for norm in ("psf_norm", "plain_norm")]
    runs = frames.runs.loc[curves[0].columns]

    def alike(own: pd.Series) -> float:
        others = _beside(runs[(runs.optimizer == own.optimizer) & (runs.model == "resnet18")], own).drop(own.name, errors="ignore")
        if others.empty:
            return np.nan
        return float(min(spearmanr(curve[[own.name, others.index[0]]].dropna()).statistic for curve in curves))

    return pd.Series({run: alike(own) for run, own in runs.iterrows()}, dtype=float)


def last_layers_follow(frames: Frames) -> pd.Series:
    """Spearman's correlation, over steps, of the norm of SAM's gradient in the last layers with that in all.

    Of logarithms less their means in the epoch, so that a common drift over the training counts nothing.
    """
    depths = frames.layers.groupby(["run", "layer"]).depth.first()

    def follow(run: pd.DataFrame) -> float:
        last = [f"grad_norm.{layer}" for layer in depths[str(run.run.iloc[0])].nlargest(LAST).index]
        logs = pd.DataFrame({"last": np.log((run[last] ** 2).sum(axis=1)) / 2, "all": np.log(run.grad_norm)})
        within = logs - logs.groupby(run.epoch).transform("mean")
        return float(spearmanr(within["last"], within["all"]).statistic)

    return _of_runs(_recorded(frames, "psf_norm"), follow)


def rate_jumps(frames: Frames) -> pd.Series:
    """How much the sampling rate changes from one N steps to the next: the root mean square of its logarithm's changes."""

    def jumps(run: pd.DataFrame) -> float:
        rates = run.groupby(run.step // frames.runs["config.optimizer.when.N"][run.run.iloc[0]]).sampling_rate.last()
        size = float((np.log(rates).diff() ** 2).mean() ** 0.5)
        return size or np.nan  # it was never set anew

    return _of_runs(_recorded(frames, "sampling_rate"), jumps)


def faster_and_more_accurate(frames: Frames) -> pd.Series:
    """Of a run of vSAM: how many of Figure 1's other methods are both, on the same benchmark with the same seed and rho."""
    runs = frames.runs.assign(speed=speed(frames)).dropna(subset=["speed", "score_last"])

    def better(own: pd.Series) -> float:
        count = 0
        for method, settings in RIVALS.items():
            rivals = _beside(runs[(runs.optimizer == method) & (runs.model == own.model)], own)
            rivals = rivals[rivals["config.rho"].isna() | (rivals["config.rho"] == own["config.rho"])]
            for key, value in settings.items():
                rivals = rivals[rivals[key] == value] if len(rivals) else rivals
            if rivals.empty:
                return np.nan
            count += bool(((rivals.speed > own.speed) & (rivals.score_last > own.score_last)).any())
        return float(count)

    return pd.Series({run: better(own) for run, own in runs[runs.optimizer == "vsam"].iterrows()}, dtype=float)


def _recorded(frames: Frames, number: str) -> pd.DataFrame:
    """The steps at which a run recorded this number, in order."""
    steps = frames.steps
    if number not in steps:
        return pd.DataFrame(columns=["run", "epoch", "psf_norm", "plain_norm"])
    return steps.dropna(subset=[number]).sort_values(["run", "step"])


def _of_runs(steps: pd.DataFrame, of: Callable[[pd.DataFrame], float]) -> pd.Series:
    return pd.Series({run: of(part) for run, part in steps.groupby("run")}, dtype=float)


def _trend(values: Any) -> float:
    return float(kendalltau(range(len(values)), values).statistic) if len(values) > 1 else np.nan


def _beside(runs: pd.DataFrame, own: pd.Series) -> pd.DataFrame:
    """The runs that have the benchmark and the seed of ``own``."""
    return runs[(runs[BENCHMARK] == own[BENCHMARK]).all(axis=1)]


METRICS: dict[str, Callable[[Frames], pd.Series]] = {
    metric.__name__: metric
    for metric in (
        *(speed, sam_sharpness, psf_trend, psf_amplitude_trend, early_variation, course_alike, last_layers_follow),
        *(rate_jumps, faster_and_more_accurate),
    )
}  # fmt: skip

COST = "cost steps=50"  # a whole interval of vSAM, N, as for its tables
MEASURES = {
    "speed": COST,
    "faster_and_more_accurate": COST,
    "sam_sharpness": "sharpness samples=all",
}  # what a metric has to be measured by
