"""Where a run is shown besides the terminal and its own directory. Imports no tracker: asking for one costs nothing here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Row = dict[str, Any]


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
