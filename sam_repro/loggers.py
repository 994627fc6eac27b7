"""Which trackers there are, whether they are installed, and what W&B takes. Imports none of them: asking for one costs nothing here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from .schema import UserError, suggest

PACKAGES = {"wandb": ("wandb", "matplotlib"), "tensorboard": ("tensorboard", "matplotlib")}
MODES = ("offline", "online", "disabled")


def check(logger: Sequence[Any], settings: dict[str, Any]) -> None:
    """Raise UserError for a tracker that is not known or not installed, and for settings of W&B that it would not take."""
    for name in logger:
        if name not in PACKAGES:
            raise UserError(f"logger has no tracker {name!r}.{suggest(str(name), PACKAGES)}")
        if missing := [package for package in PACKAGES[name] if find_spec(package) is None]:
            raise UserError(f"logger=[{name}] needs {' and '.join(missing)}: pip install 'sam-repro[{name}]'.")
    if len(set(logger)) < len(logger):
        raise UserError(f"logger=[{','.join(logger)}] names a tracker twice.")
    for key, value in settings.items():
        if not isinstance(value, str):
            raise UserError(f"wandb.{key} is a word, not {value!r}: wandb.{key}=\"'{value}'\".")
    if "wandb" in logger and settings["mode"] not in MODES:
        raise UserError(f"wandb.mode is one of {', '.join(MODES)}, not {settings['mode']!r}.{suggest(settings['mode'], MODES)}")
