"""Numbers that each have their range, and make no sense together: refused in a sentence that says what does. Knows no torch."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from .schema import UserError, kind, read

Config = dict[str, Any]


def check_sense(config: Config, given: Set[str]) -> None:
    """UserError where a run of the whole configuration would be none, or nobody can mean it; ``given``: the keys that the user set."""
    _options(config)
    _steps(config)
    _batch(config, given)
    _images(config)
    _micro(config)


def _options(config: Config) -> None:
    """Refuse options that say nothing together."""
    mixed = next((key for key in ("mixup", "cutmix") if config[key]), None)
    if mixed and kind("dataset", config["dataset"]["name"]) != "images":
        raise UserError(f"{mixed}={config[mixed]} mixes images, and dataset={config['dataset']['name']} has none.")
    if mixed and config["model"].get("cache"):
        raise UserError(f"{mixed}={config[mixed]} shows other images in every epoch, and model.cache=true needs the same.")
    if mixed and config["optimizer"].get("teacher", {}).get("name") == "bank":
        raise UserError(
            f"{mixed}={config[mixed]} does not go with SAF, which compares what the model says of the same image in two epochs."
        )
    if config["ema"] and config["swa"]:
        raise UserError("ema= and swa= are two ways to average the weights: set one of them.")
    if config["early_stopping"] and not config["val_fraction"]:
        raise UserError(
            "early_stopping= goes by the score of a held-out part, never by the test set's: val_fraction=0.1 holds out a tenth."
        )
    if config["save_every"] and config["processes"] > 1:
        raise UserError("save_every= is for one process: several save where an epoch ends.")


def _steps(config: Config) -> None:
    """The base optimizer, and the schedule of its learning rate."""
    base, schedule, epochs = config["base"], config["schedule"], config["epochs"]
    if base.get("nesterov") and base["momentum"] <= 0:
        raise UserError("base.nesterov=true needs a momentum above 0.")
    if (shrinks := config["lr"] * config["weight_decay"]) >= 2:
        raise UserError(
            f"lr={config['lr']} times weight_decay={config['weight_decay']} is {shrinks:g}: from 2 on the decay alone makes the weights "
            f"larger at every step; with this lr weight_decay is below {2 / config['lr']:g}."
        )
    if schedule["name"] == "step" and schedule["first"] > schedule["second"]:
        raise UserError(f"schedule.first={schedule['first']} comes after schedule.second={schedule['second']}: first is 0 to second.")
    if (warmup := schedule.get("warmup", 0)) >= epochs:
        raise UserError(f"schedule.warmup={warmup} epochs leave nothing of a training of {epochs}: it is below {epochs}.")
    if schedule["name"] == "wsd" and warmup + schedule["decay"] * epochs > epochs * (1 + 1e-9):
        raise UserError(
            f"schedule.decay={schedule['decay']} begins after {epochs - schedule['decay'] * epochs:g} of {epochs} epochs, within a warm-up "
            f"of {warmup:g}: make schedule.warmup or schedule.decay smaller."
        )


def _batch(config: Config, given: Set[str]) -> None:
    """What a batch is made of. Where the user cut the data, and left the batch to a preset, or a scale did, it is as large as they are."""
    size, parts, processes = config["batch_size"], config["accumulate"], config["processes"]
    if size < processes:
        raise UserError(f"A batch of {size} samples is none for {processes} processes: batch_size is at least {processes}.")
    if parts > size and "accumulate" in given:
        raise UserError(f"accumulate={parts} makes more parts than a batch has samples: it is 1 to batch_size, here {size}.")
    whole = read(f"dataset/{config['dataset']['name']}").get("holds", {}).get("train")
    if not whole:  # a plug-in's; its batches are as large as the data
        return
    left = whole * (config["train_fraction"] if "train_fraction" in given else 1)
    left = max(1, round(left * (1 - config["val_fraction"] if "val_fraction" in given else 1)))
    left = min(left, config["max_samples"] or left) if "max_samples" in given else left
    if size > left and (left == whole or "batch_size" in given):
        raise UserError(f"batch_size={size} is more than the {left:,} samples to train on: it is 1 to {left}.")


def _images(config: Config) -> None:
    """What is cut off, or out of, an image of the data set."""
    dataset = config["dataset"]
    side = dataset.get("size") or read(f"dataset/{dataset['name']}").get("holds", {}).get("side", 0)
    for key, does in (("cutout", "hides the whole image"), ("crop", "leaves nothing of some images")) if side else ():
        if (value := dataset.get(key, 0)) >= side:
            raise UserError(f"dataset.{key}={value} {does}, of {side} pixels: it is 0 to {side - 1}.")


def _micro(config: Config) -> None:
    """The micro-batches of mSAM."""
    m = config["optimizer"].get("samples", {}).get("m")
    if m is not None and config["accumulate"] > 1:
        raise UserError(f"accumulate={config['accumulate']} does not go with mSAM: its m={m} micro-batches pass one by one already.")
    if m is not None and config["batch_size"] % m:
        raise UserError(f"m={m} does not divide batch_size={config['batch_size']}: the micro-batches of mSAM are equal.")
