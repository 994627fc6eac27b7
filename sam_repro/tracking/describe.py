"""What a run is called in a tracker, and which runs it stands beside."""

from __future__ import annotations

import os
from typing import Any

from ..config import OUTSIDE
from ..schema import keys_of
from ..store import Run

Row = dict[str, Any]
SAID = ("dataset", "model", "model.arch", "optimizer", "experiment", "scale", "seed", "device", "plugins")


def identity_of(config: Row, run: Run) -> Row:
    """The configuration without paths and the like, with the run's id and method, and its command and commit."""
    return {
        "run_id": run.id,
        "method": config["optimizer"]["name"],
        "command": command_of(run),
        "commit": run.status.get("commit"),
        **{key: value for key, value in config.items() if key not in OUTSIDE},
    }


def command_of(run: Run) -> str:
    """The command that made the run, without what is true of its machine only."""
    words = run.status.get("command", "").split()
    return " ".join(word for word in words if next(keys_of([word])) not in OUTSIDE)


def experiment_of(run: Run) -> str:
    """The experiment that the run's command chose, ``kdd24/cifar10``; empty where it chose none."""
    words = [word.partition("=")[2] for word in run.status.get("command", "").split() if word.startswith("experiment=")]
    return words[-1] if words and words[-1] != "null" else ""


def model_of(config: Row) -> str:
    """The model's name; timm's own for timm's."""
    return str(config["model"].get("arch", config["model"]["name"]))


def title(config: Row, run: Run) -> str:
    """A run in words, with the keys that its command set, so that the runs of a sweep are told apart; a reduced one says so."""
    reduced = "" if config["scale"] == "paper" else f", scale {config['scale']}"
    known = f"{config['optimizer']['name']} {config['dataset']['name']} {model_of(config)}"
    return " ".join([known, *set_by_hand(run), f"seed {config['seed']}{reduced}"])


def set_by_hand(run: Run) -> list[str]:
    """Of the run's command the keys that the rest of a title does not say: ``lr=0.05``, ``k=2``."""
    words = [word for word in command_of(run).split() if "=" in word]
    return [word for word in words if next(keys_of([word])) not in SAID and not word.startswith("wandb.")]


def group_of(config: Row, run: Run) -> str:
    """The runs to compare this one with: those of its table or sweep, else of its experiment, else of its dataset and model.

    The first is ``wandb.group=`` or, where that is not given, ``WANDB_RUN_GROUP``.
    """
    return (
        config["wandb"]["group"]
        or os.environ.get("WANDB_RUN_GROUP")
        or experiment_of(run)
        or f"{config['dataset']['name']}/{model_of(config)}"
    )


def tags(config: Row, run: Run) -> list[str]:
    """Paper, dataset, model, method; the scale of a reduced run; and those of ``WANDB_TAGS``."""
    paper, scale = experiment_of(run).partition("/")[0], config["scale"]
    reduced = ["" if scale == "paper" else f"scale {scale}", f"{config['max_samples']} samples" if config["max_samples"] else ""]
    words = [paper, config["dataset"]["name"], model_of(config), config["optimizer"]["name"], *reduced]
    given = os.environ.get("WANDB_TAGS", "").split(",")
    return list(dict.fromkeys(word.strip() for word in (*words, *given) if word.strip()))
