"""What plug-ins registered: the code behind their options. Imports of it are plain, so that a plug-in is imported fast."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from .schema import CONF, QUESTIONS, UserError

CODE = ("dataset", "model", *(f"optimizer/{question}" for question in QUESTIONS))  # groups whose options are made by code
OWN: dict[str, Callable[..., Any]] = {}  # by the option: "model/mine"
Thing = TypeVar("Thing", bound=Callable[..., Any])


def register(option: str) -> Callable[[Thing], Thing]:
    """Say that what follows makes an option: ``@register("dataset/photos")``, with its fields in ``conf/dataset/photos.yaml``.

    - ``model/NAME``: a function of ``num_classes``, for images ``in_channels`` and ``image_size``, and the fields, all by name; it returns
      the module.
    - ``dataset/NAME``: a function of ``data_dir`` and, by name, the fields; it returns a ``sam_repro.data.Dataset``.
    - ``optimizer/when/NAME``, ``where``, ``between`` or ``samples``: a subclass of that question's, made of the fields.

    Raises UserError where the name is taken, or the group has no options made by code.
    """
    group, _, name = option.rpartition("/")
    if group not in CODE or not name:
        raise UserError(f"register({option!r}): an option is one of {', '.join(f'{group}/NAME' for group in CODE)}.")
    if (CONF / f"{option}.yaml").is_file() or option in OWN:
        raise UserError(f"register({option!r}): there is {group}={name} already; choose another name.")

    def keep(thing: Thing) -> Thing:
        OWN[option] = thing
        return thing

    return keep


def make(option: str, *values: Any, **fields: Any) -> Any:
    """What the code registered for an option makes of the values; UserError, with the place, where it fails."""
    try:
        return OWN[option](*values, **fields)
    except (UserError, OSError):
        raise
    except Exception as error:
        raise UserError(f"{option.replace('/', '=')} fails: {said(error)}.") from error


def said(error: BaseException) -> str:
    """An error in somebody else's code, with its place: ``NameError: name 'x' is not defined (my_module.py, line 3)``."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:  # which says where
        return text
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
