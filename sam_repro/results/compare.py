"""Which runs can be compared with one another, what to call them, and what they came to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from ..differences import apart, in_words
from ..schema import fields, options
from ..store import Row
from .frames import Frames

SHOWN = ("score_last", "score_best", "images_per_second", "sampling_rate", "forward_per_step", "backward_per_step")


@dataclass(frozen=True)
class Benchmark:
    """Runs that were trained on the same data, at the same scale, on the same kind of device: they can be compared."""

    name: str
    scale: str
    where: str
    split: str
    runs: pd.DataFrame  # the frame's rows, and ``setting``: what those that differ in the seed alone are called

    @property
    def done(self) -> pd.DataFrame:
        """The finished runs."""
        return self.runs[self.runs.state == "done"]

    @property
    def means(self) -> pd.DataFrame:
        """A row a setting: over its finished runs the mean and ``<name>_std`` of what is shown, and n."""
        groups = self.done.groupby("setting", sort=False)
        numbers = groups[list(SHOWN)]
        parts = [numbers.mean(), numbers.std().add_suffix("_std"), groups.size().rename("n"), groups.optimizer.first()]
        return pd.concat(parts, axis=1).reindex(self.runs.setting.unique()).fillna({"n": 0})

    @property
    def hardware(self) -> list[str]:
        """What the finished runs were trained on."""
        return sorted(self.done.hardware.unique()) if len(self.done) else []

    @property
    def front(self) -> pd.DataFrame:
        """The means that no other setting beats in both the score and the speed, fastest first; none across hardware."""
        means = self.means.dropna(subset=["score_last"]).sort_values(["images_per_second", "score_last"], ascending=False)
        best = means.score_last.cummax()
        return means[(best > best.shift(fill_value=float("-inf")))] if len(self.hardware) == 1 else means[:0]


def benchmarks(frames: Frames, ids: Iterable[str]) -> list[Benchmark]:
    """The runs by benchmark, in the order given; one that is damaged is in none."""
    runs = frames.runs.loc[list(ids)]
    runs = runs[runs.state != "damaged"]
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for run in runs.index:
        groups.setdefault(_benchmark(frames.found[run].config), []).append(run)
    return [Benchmark(*key, _settings(runs.loc[members], frames)) for key, members in groups.items()]


def _benchmark(config: Row) -> tuple[str, str, str, str]:
    name = " · ".join(_named(group, config[group]) for group in ("dataset", "model"))
    share = "" if config["train_fraction"] == 1 else f", {config['train_fraction']:.3g} of the training set"
    share += f", at most {config['max_samples']:,} samples" if config.get("max_samples") else ""
    share += f", {config['label_noise']:g} of the labels wrong" if config.get("label_noise") else ""
    held_out = config["val_fraction"]
    split = f"held-out part ({held_out:g}) of the training set" if held_out else "test set"
    return name, f"{config['scale']}{share}", f"{config['device'].partition(':')[0]} {config['precision']}", split


def _named(group: str, node: Row) -> str:
    """An option with the fields that are not as in its file: ``resnet18 (bits=4)``."""
    usual = fields(group, node["name"]).defaults if node["name"] in options(group) else node  # a plug-in's, which needs none to be shown
    other = [f"{key}={value}" for key, value in node.items() if key != "arch" and usual.get(key) != value]
    said = f" ({', '.join(other)})" if other else ""
    return f"{node.get('arch') or node['name']}{said}"


def _settings(runs: pd.DataFrame, frames: Frames) -> pd.DataFrame:
    keys = apart([frames.found[run].config for run in runs.index], usual=False)
    own = [in_words({key: value for key, value in one.items() if key.partition(".")[0] != "device"}) for one in keys]
    return runs.assign(setting=[f"{method} {words}".strip() for method, words in zip(runs.optimizer, own, strict=True)])
