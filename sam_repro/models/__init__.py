"""The models, as chains of named stages where they are ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from ..chain import Chain, Layer, layers
from ..own import OWN, make
from ..schema import UserError, fields, kind, options, suggest, typed
from .mobilenet import mobilenet
from .pyramidnet import pyramidnet110
from .resnet import resnet18, resnet20, resnet34, resnet50
from .roberta import roberta
from .vit import timm_model
from .wrn import wide_resnet

__all__ = ["Chain", "Layer", "create", "layers"]

CONVOLUTIONAL: dict[str, Callable[..., nn.Module]] = {
    "resnet20": resnet20,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": partial(resnet50, 64),
    "wrn50_2": partial(resnet50, 128),
    "wrn16_2": partial(wide_resnet, 16, 2),
    "wrn28_10": partial(wide_resnet, 28, 10),
    "pyramidnet110": pyramidnet110,
    "mobilenet": mobilenet,
}


def create(name: str, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, **values: Any) -> nn.Module:
    """The model ``name``, freshly initialised from torch's global generator.

    Args:
        name: an option of ``conf/model``.
        num_classes: outputs.
        in_channels: of the images, which are ``(batch, in_channels, height, width)``.
        image_size: their side in pixels, for models with an embedding of positions. Models of text need neither: they take
            ids and a mask, both ``(batch, tokens)``.
        values: the option's other fields (``shortcut="B"``); those not given are as in its file.

    Raises:
        UserError: an unknown model or field, or a value that it cannot have.
    """
    if name not in options("model"):
        raise UserError(f"There is no model {name!r}.{suggest(name, options('model'))}")
    known = fields("model", name).defaults
    for key in values.keys() - known.keys():
        raise UserError(f"model={name} has no field {key!r}.{suggest(key, known)}")
    values = typed("model", name, values, {})
    del values["name"]
    if f"model/{name}" in OWN:
        images = {"in_channels": in_channels, "image_size": image_size} if kind("model", name) == "images" else {}
        return _module(name, make(f"model/{name}", num_classes=num_classes, **images, **values))
    if kind("model", name) == "text":
        return roberta(num_classes, **values)
    if name in CONVOLUTIONAL:
        return CONVOLUTIONAL[name](num_classes, in_channels, **values)
    return timm_model(num_classes, in_channels, image_size, **values)


def _module(name: str, made: Any) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise UserError(f"model={name} makes {made!r}, which is no torch.nn.Module.")
    return made
