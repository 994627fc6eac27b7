"""Where a run is shown besides the terminal and its own directory. Imports no tracker: asking for one costs nothing here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from ..schema import UserError, suggest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Row = dict[str, Any]
PACKAGES = {"wandb": ("wandb", "matplotlib"), "tensorboard": ("tensorboard", "matplotlib")}
MODES = ("offline", "online", "disabled")


class Tracker(Protocol):
    """What a run is shown to. Any of these may raise: the run goes on without the tracker."""

    def config(self, values: Row) -> None:
        """What the run is: its configuration, id, command and commit."""

    def log(self, epoch: int, values: dict[str, float]) -> None:
        """The numbers of an epoch, under the names of ``keys.py``."""

    def table(self, name: str, rows: list[Row]) -> None:
        """Rows with the same columns."""

    def image(self, name: str, pixels: NDArray[np.uint8]) -> None:
        """A picture, ``(height, width, 3)``."""

    def close(self, state: str, final: Row) -> None:
        """The run is done, diverged, failed or stopped; ``final`` is its summary, empty unless it is done."""


def check(logger: Sequence[Any], settings: Row) -> None:
    """Raise UserError for a tracker that is not known or not installed, and for settings of W&B that it would not take."""
    for name in logger:
        if name not in PACKAGES:
            raise UserError(f"logger has no tracker {name!r}.{suggest(str(name), PACKAGES)}")
        if missing := [package for package in PACKAGES[name] if find_spec(package) is None]:
            raise UserError(f"logger=[{name}] needs {' and '.join(missing)}: pip install 'sam-repro[{name}]'.")
    if len(set(logger)) < len(logger):
        raise UserError(f"logger=[{','.join(logger)}] names a tracker twice.")
    if "wandb" in logger:
        if settings["mode"] not in MODES:
            raise UserError(f"wandb.mode is one of {', '.join(MODES)}, not {settings['mode']!r}.{suggest(str(settings['mode']), MODES)}")
        for key, value in settings.items():
            if not isinstance(value, str):
                raise UserError(f"wandb.{key} is a word, not {value!r}: wandb.{key}=\"'{value}'\".")
