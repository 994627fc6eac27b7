"""Recipes: what a preset sets, and what its model consists of, beside what the paper prints. No run is needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

from ..config import Config
from ..schema import UserError, suggest
from .declare import Cell, Table, Words
from .select import Request, configuration

IMAGES = {"imagenet": 1_281_167}  # to train on: what steps of warm-up are counted with
BASES = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "lamb": "LAMB"}


def _warmup_steps(config: Config) -> int | None:
    """``schedule.warmup`` is in epochs."""
    images, warmup = IMAGES.get(config["dataset"]["name"]), config["schedule"].get("warmup")
    return None if images is None or warmup is None else round(warmup * math.ceil(images / config["batch_size"]))


SETTINGS: dict[str, Callable[[Config], Any]] = {
    "resolution": lambda c: c["dataset"]["size"],
    "batch_size": lambda c: c["batch_size"],
    "epochs": lambda c: c["epochs"],
    "warmup_steps": _warmup_steps,
    "lr": lambda c: c["lr"],
    "decay": lambda c: c["schedule"]["name"],
    "base": lambda c: BASES.get(c["base"]["name"], c["base"]["name"]),
    "rho": lambda c: c["optimizer"]["where"].get("rho") if c["optimizer"]["when"]["name"] != "never" else None,
    "alpha": lambda c: c["optimizer"]["between"].get("alpha"),
    "weight_decay": lambda c: c["weight_decay"],
    "clip": lambda c: c["clip"],
}
PARTS: dict[str, Callable[[Any], Any]] = {
    "parameters": lambda model: f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M",
    "patch": lambda model: "×".join(map(str, _embedding(model).kernel_size)),
    "sequence": lambda model: math.prod(224 // size for size in _embedding(model).kernel_size),
    "hidden": lambda model: _embedding(model).out_channels,
    "heads": lambda model: _attention(model)[0].num_heads,
    "layers": lambda model: len(_attention(model)),
}


def recipe(table: Table, request: Request) -> list[dict[str, Any]]:
    """A line for every cell of a recipe; ours is what the presets set and the models consist of."""
    return [_line(number, cell, request) for number, cell in enumerate(table.cells)]


def agrees(ours: str | None, paper: str) -> bool | None:
    """Whether ours is what the paper prints, to its digits; None where one of them says nothing."""
    if not paper or not ours:
        return None
    one, other = _plain(ours), _plain(paper)
    return one == other or (isinstance(one, float) and paper.endswith("M") and round(one) == other)


def _line(number: int, cell: Cell, request: Request) -> dict[str, Any]:
    config = configuration(cell, "paper", request)
    value = _value(cell, config)
    ours = None if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return {
        "row": cell.row, "column": cell.column, "metric": cell.metric,
        **{part: config[part]["name"] for part in ("dataset", "model", "optimizer")},
        "paper": cell.paper.value, "paper_std": "", "mean": ours, "n": 0, "scale": "", "device": "", "run_ids": "", "cell": number,
    }  # fmt: skip


def _value(cell: Cell, config: Config) -> Any:
    if cell.metric in SETTINGS:
        return SETTINGS[cell.metric](config)
    if cell.metric in PARTS:
        return PARTS[cell.metric](_model(tuple((key, value) for key, value in config["model"].items() if key != "pretrained")))
    raise UserError(f"There is no setting {cell.metric!r}.{suggest(cell.metric, [*SETTINGS, *PARTS])}")


@cache
def _model(fields: Words) -> Any:
    """The model for ImageNet's 1000 classes, without memory for its weights."""
    import torch

    from ..models import create

    with torch.device("meta"):
        return create(num_classes=1000, image_size=224, **dict(fields))  # type: ignore[arg-type]


def _embedding(model: Any) -> Any:
    """The convolution that cuts the image into patches."""
    return next(module for module in model.modules() if hasattr(module, "kernel_size"))


def _attention(model: Any) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "num_heads") and hasattr(module, "qkv")]


def _plain(text: str) -> float | str:
    try:
        return float(text.removesuffix("M"))
    except ValueError:
        return text.lower()
