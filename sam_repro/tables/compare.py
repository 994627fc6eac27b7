"""Which runs can be compared with one another, what to call them, and what they came to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from ..config import OUTSIDE
from ..schema import fields, flat
from ..train.store import Run

Row = dict[str, Any]
APART = (*OUTSIDE, "seed", "device")  # what runs of one setting may differ in


@dataclass(frozen=True)
class Setting:
    """The runs that differ in the seed alone."""

    label: str
    method: str
    runs: list[Run]

    @property
    def done(self) -> list[Row]:
        """The summaries of the finished runs."""
        return [run.summary for run in self.runs if run.state == "done"]

    def mean(self, key: str) -> float | None:
        """Over the finished runs; None without any."""
        return fmean(summary[key] for summary in self.done) if self.done else None

    def std(self, key: str) -> float | None:
        """The sample standard deviation; None of fewer than two runs."""
        return stdev(summary[key] for summary in self.done) if len(self.done) > 1 else None


@dataclass(frozen=True)
class Benchmark:
    """Settings that were trained on the same data, at the same scale, on the same kind of device: they can be compared."""

    name: str
    scale: str
    where: str
    split: str
    settings: list[Setting]

    @property
    def runs(self) -> list[Run]:
        """Of all settings."""
        return [run for setting in self.settings for run in setting.runs]

    @property
    def hardware(self) -> list[str]:
        """What the finished runs were trained on."""
        return sorted({summary["hardware"] for setting in self.settings for summary in setting.done})

    @property
    def front(self) -> list[Setting]:
        """Those that no other setting beats in both the mean score and the mean speed, fastest first; none across hardware."""
        best, front = -math.inf, []
        for setting in sorted((one for one in self.settings if one.done), key=_speed, reverse=True):
            if setting.mean("score_last") > best:  # type: ignore[operator]
                best = setting.mean("score_last")  # type: ignore[assignment]
                front.append(setting)
        return front if len(self.hardware) == 1 else []


def _speed(setting: Setting) -> tuple[float, float]:
    return setting.mean("images_per_second") or 0.0, setting.mean("score_last") or 0.0


def benchmarks(runs: Iterable[Run]) -> list[Benchmark]:
    """The runs by benchmark, and in it by setting, in the order given."""
    groups: dict[tuple[str, str, str, str], list[tuple[Run, Row]]] = {}
    for run in runs:
        config = run.config
        groups.setdefault(_benchmark(config), []).append((run, config))
    return [Benchmark(*key, _settings(members)) for key, members in groups.items()]


def _benchmark(config: Row) -> tuple[str, str, str, str]:
    name = " · ".join(_named(group, config[group]) for group in ("dataset", "model"))
    share = "" if config["train_fraction"] == 1 else f", {config['train_fraction']:.3g} of the training set"
    share += f", at most {config['max_samples']:,} samples" if config.get("max_samples") else ""
    held_out = config["val_fraction"]
    split = f"held-out part ({held_out:g}) of the training set" if held_out else "test set"
    return name, f"{config['scale']}{share}", f"{config['device'].partition(':')[0]} {config['precision']}", split


def _named(group: str, node: Row) -> str:
    """An option with the fields that are not as in its file: ``resnet18 (bits=4)``."""
    usual = fields(group, node["name"]).defaults
    other = [f"{key}={value}" for key, value in node.items() if key != "arch" and usual.get(key) != value]
    said = f" ({', '.join(other)})" if other else ""
    return f"{node.get('arch') or node['name']}{said}"


def _settings(members: Sequence[tuple[Run, Row]]) -> list[Setting]:
    found: dict[str, tuple[str, Row, list[Run]]] = {}
    for run, config in members:
        plain = {key: value for key, value in config.items() if key not in APART}
        _, _, runs = found.setdefault(json.dumps(plain, sort_keys=True), (config["optimizer"]["name"], plain, []))
        runs.append(run)
    return [
        Setting(" ".join([method, *differences(config, [other for name, other, _ in found.values() if name == method])]), method, runs)
        for method, config, runs in found.values()
    ]


def differences(config: Row, others: Sequence[Row]) -> list[str]:
    """``["k=4"]``: what sets a configuration apart from others of its method, a knob by its short name."""
    mine, theirs = dict(flat(config)), [dict(flat(other)) for other in others]
    keys = [key for key in mine if any(other.get(key) != mine[key] for other in theirs)]
    short = [key for key in keys if "." in key and key.rpartition(".")[2] in keys]
    return [f"{key}={mine[key]}" for key in keys if key not in short]
