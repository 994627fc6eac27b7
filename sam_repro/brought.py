"""What a plug-in brings, checked before anything is computed: that every option has a file, and that the file and the code fit."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from .own import OWN, said
from .schema import FOLDERS, QUESTIONS, UserError, fields, kind, parse

BRINGS = ("dataset", "model", "optimizer", *(f"optimizer/{question}" for question in QUESTIONS), "experiment")
NOT = ("base", "schedule", "scale", "optimizer/combine", "optimizer/teacher")  # groups of ours that are made by code of ours alone
IMAGES = {"in_channels": 3, "image_size": 32}


def options_in(folder: Path) -> list[str]:
    """The options that have a file in the folder: ``model/mine``; other files are nobody's concern."""
    paths = [
        path for group in (*BRINGS, *NOT) for path in sorted((folder / group).glob("**/*.yaml" if group == "experiment" else "*.yaml"))
    ]
    return [path.relative_to(folder).with_suffix("").as_posix() for path in paths]


def check_files(word: str, folder: Path) -> None:
    """UserError where a file has a name that is taken, is of a group that plug-ins have no part in, or is not named as it should be."""
    for option in options_in(folder):
        path = folder / f"{option}.yaml"
        if any((other / f"{option}.yaml").exists() for other in FOLDERS):
            raise UserError(f"plugins={word}: {path} has the name of an option that exists already; choose another.")
        if option.rpartition("/")[0] in NOT:
            raise UserError(f"plugins={word}: {path} is of no group that a plug-in can add to; those are {', '.join(BRINGS)}.")
        try:
            content = parse(path.read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}.") from error
        if not isinstance(content, dict):
            raise UserError(f"{path} is no list of keys and values.")
        node, name = content.get("optimizer") if _is_method(option) else content, option.rpartition("/")[2]
        if not option.startswith("experiment/") and (not isinstance(node, dict) or node.get("name") != name):
            where = "optimizer: {name: ...}" if _is_method(option) else "name:"
            raise UserError(f"{path} is named after its option: {where} is {name} in it.")


def _is_method(option: str) -> bool:
    return option.rpartition("/")[0] == "optimizer"


def check(word: str, folder: Path, before: Collection[str]) -> None:
    """UserError where a plug-in brings nothing, or its code and files do not fit. ``before``: what was registered before it."""
    found = options_in(folder)
    for option in [option for option in OWN if option not in before and option not in found]:
        raise UserError(f"plugins={word} registers {option}, and {folder / option}.yaml, which has its name and its fields, is not there.")
    if not found:
        raise UserError(
            f'plugins={word} brings nothing: it has no option, as {folder}/model/mine.yaml with @register("model/mine") is one.'
        )
    for option in found:
        try:
            _fits(option)
        except UserError as error:
            raise UserError(f"{folder / option}.yaml: {error}") from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{folder / option}.yaml is not as an option is written ({said(error)}): see docs/plugins.md.") from error


def _fits(option: str) -> None:
    """Whether the defaults are of their own types and limits, and the code takes them."""
    group, _, name = option.rpartition("/")
    if option.startswith("experiment/"):
        return
    if _is_method(option):
        from .optim import settings

        settings(name)
        return
    known = fields(group, name)
    for key, value in known.defaults.items():
        if value != "???":  # to be given
            known.checked(key, key, value)
    if option in OWN:
        _takes(option, {key: value for key, value in known.defaults.items() if key != "name"})


def _takes(option: str, values: dict[str, Any]) -> None:
    """UserError where the code registered for an option cannot be called with its fields."""
    thing, (group, _, name) = OWN[option], option.rpartition("/")
    given: tuple[Any, ...] = ()
    if group == "dataset":
        given = ("data",)
    elif group == "model":
        values = {"num_classes": 10, **(IMAGES if kind(group, name) == "images" else {}), **values}
    else:
        _is_answer(option, thing)
    try:
        inspect.signature(thing).bind(*given, **values)
    except TypeError as error:
        raise UserError(f"{getattr(thing, '__name__', thing)}() does not take {', '.join([*given, *values])}: {error}.") from error


def _is_answer(option: str, thing: Any) -> None:
    """UserError where what was registered is no answer to its question."""
    question = option.split("/")[1]
    base = getattr(_module(question), question.capitalize())
    if not (isinstance(thing, type) and issubclass(thing, base)):
        raise UserError(f"{getattr(thing, '__name__', thing)} is no subclass of sam_repro.optim.{question}.{base.__name__}.")


def _module(question: str) -> Any:
    from .optim import between, samples, when, where

    return dict(zip(QUESTIONS, (when, where, between, samples), strict=True))[question]


def add_answers(options: Collection[str]) -> None:
    """Let a method find the classes that were registered for its questions."""
    for group, question, name in [option.split("/") for option in options if option.startswith("optimizer/")]:
        _module(question).OPTIONS[name] = OWN[f"{group}/{question}/{name}"]
