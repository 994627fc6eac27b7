"""The dashboard of W&B as code: what to look at first, grouped by table and method."""

from __future__ import annotations

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from .keys import HEATMAPS

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
            ws.Section(
                "Sharpness", panels=[curve("Sampling rate", "sam/sampling_rate"), curve("Gradient norm", "sam/grad_norm")], is_open=True
            ),
            ws.Section(
                "Layers", panels=[wr.MediaBrowser(title=key, media_keys=[key], num_columns=2) for key in HEATMAPS.values()], is_open=True
            ),
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=100),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Metric("Group"), ws.Config("method")],
            pinned_columns=[f"summary:final/{key}" for key in ("score_last", "images_per_second", "sampling_rate", "scale", "hardware")],
        ),
    )


def curve(title: str, *keys: str) -> wr.LinePlot:
    """Over the epochs, a line a method: the mean over its runs, and their range."""
    return wr.LinePlot(
        title=title, x="epoch", y=list(keys), groupby=wr.Config("method"), groupby_aggfunc="mean", groupby_rangefunc="minmax"
    )


def speed(score: str) -> wr.ScatterPlot:
    """A finished run a point."""
    return wr.ScatterPlot(
        title=f"{score} against images/s", x=wr.SummaryMetric("final/images_per_second"), y=wr.SummaryMetric(score),
        legend_template="${config:method} seed ${config:seed}",
    )  # fmt: skip
