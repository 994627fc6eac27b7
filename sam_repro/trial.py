"""What cannot run, told before anything does: each method is built once on each model, without data, weights or memory for them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .config import Config
from .own import OWN
from .schema import UserError, kind, read

if TYPE_CHECKING:
    from torch import nn


class Trial:
    """For many configurations, as those of a sweep or a table are: what they have in common is built once. Imports torch when asked."""

    def __init__(self) -> None:
        self._models: dict[str, nn.Module | None] = {}
        self._passed: set[str] = set()

    def check(self, config: Config) -> None:
        """UserError where the method does not fit the model, or either cannot be made; what torch must have data to tell is not found."""
        one = json.dumps([parts := _parts(config), config["optimizer"], config["graphs"]], sort_keys=True)
        if one in self._passed:
            return
        if (model := self._model(json.dumps(parts, sort_keys=True), **parts)) is not None:
            from . import optim

            method = optim.build(config["optimizer"], model, optim.Plan(1000, 10, 100, config["seed"]))
            if config["graphs"] and config["processes"] == 1:
                optim.StaticStep(method)
        self._passed.add(one)

    def check_beginning(self, config: Config) -> None:
        """UserError where the weights of ``init_from`` are not there, or are of another model."""
        parts = _parts(config)
        if config["init_from"] and (model := self._model(json.dumps(parts, sort_keys=True), **parts)) is not None:
            import torch

            from .train.initial import begin_from

            begin_from(model, config["init_from"], config["runs_dir"], torch.device("cpu"))

    def _model(self, key: str, model: dict[str, Any], dataset: dict[str, Any]) -> nn.Module | None:
        if key not in self._models:
            self._models[key] = _on_meta(model, dataset)
        return self._models[key]


def _parts(config: Config) -> dict[str, Any]:
    return {"model": config["model"], "dataset": config["dataset"]}


def _on_meta(settings: dict[str, Any], dataset: dict[str, Any]) -> nn.Module | None:
    """The model on torch's meta device, where tensors have shapes and no numbers; None where it is none for that."""
    import torch
    from torch.overrides import TorchFunctionMode

    from . import models

    holds = read(f"dataset/{dataset['name']}").get("holds", {})
    shape: dict[str, Any] = {"num_classes": holds.get("classes", 10)}
    if kind("dataset", dataset["name"]) == "images":
        shape |= {"in_channels": holds.get("channels", 3), "image_size": dataset.get("size") or holds.get("side", 224)}

    class Unfilled(TorchFunctionMode):
        """Random numbers for tensors that have none make torch load its compiler, which takes seconds."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0] if func in (torch.Tensor.normal_, torch.Tensor.uniform_) else func(*args, **(kwargs or {}))

    unread: dict[str, Any] = {key: type(settings[key])() for key in ("pretrained", "weights") if key in settings}
    try:
        with torch.device("meta"), Unfilled():
            return models.create(**{**settings, **unread}, **shape)
    except UserError:
        if holds and f"model/{settings['name']}" not in OWN:
            raise
    except Exception:  # it reads a number, as a plug-in's may; the run itself will say what is wrong, if anything is
        pass
    return None
