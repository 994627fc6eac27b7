"""The dashboard of W&B as code: what to look at first, grouped by table and method."""

from __future__ import annotations

from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from .keys import HEATMAPS, TIME

SCORES = ["test/score", "val/score"]


def workspace(entity: str, project: str) -> ws.Workspace:
    """The dashboard; ``save()`` creates it, online."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name="Sharpness-aware minimization",
        sections=[
            ws.Section(
                "Learning curves by method", panels=[curve("Score, %", *SCORES), curve("Training loss", "train/loss")], is_open=True
            ),
            ws.Section("Accuracy against speed", panels=[speed("final/score_last"), speed("final/score_best")], is_open=True),
            *(ws.Section(name, panels=panels, is_open=True) for name, panels in of_papers().items()),
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=100),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Metric("Group"), ws.Config("method")],
            pinned_columns=[f"summary:final/{key}" for key in ("score_last", "images_per_second", "sampling_rate", "scale", "hardware")],
        ),
    )


def of_papers() -> dict[str, list[Any]]:
    """What each paper looks at. A run has its paper among its tags, by which the list of runs is filtered there."""
    time = curve("Score over the seconds of training, %", *SCORES, x=TIME)
    norms, counts = ([wr.MediaBrowser(title=key, media_keys=[key], num_columns=2)] for key in HEATMAPS.values())
    ascents = curve("Steps with an ascent", "sam/sampling_number")
    return {
        "KDD'24: layers": [time, *norms, *counts, curve("Gradient norm", "sam/grad_norm")],
        "vSAM: when to sample": [time, curve("Sampling rate", "sam/sampling_rate"), ascents],
        "LookSAM: fewer ascents": [time, ascents, curve("Passes backward", "perf/backward_units")],
        "mSAM: micro-batches": [time, curve("Gradient norm", "sam/grad_norm"), curve("Weight norm", "sam/weight_norm")],
    }


def curve(title: str, *keys: str, x: str = "epoch") -> wr.LinePlot:
    """A line a method over the epochs: the mean over its runs, and their range."""
    return wr.LinePlot(title=title, x=x, y=list(keys), groupby=wr.Config("method"), groupby_aggfunc="mean", groupby_rangefunc="minmax")


def speed(score: str) -> wr.ScatterPlot:
    """A finished run a point."""
    return wr.ScatterPlot(
        title=f"{score} against images/s", x=wr.SummaryMetric("final/images_per_second"), y=wr.SummaryMetric(score),
        legend_template="${config:method} seed ${config:seed}",
    )  # fmt: skip
