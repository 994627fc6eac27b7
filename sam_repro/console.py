"""What all of the program says goes through here: plain lines, bars that only a terminal shows."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import rich.console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from . import world
from .plain import plain


class Console(rich.console.Console):
    """What is printed is shown, and does nothing to the terminal."""

    def print(self, *objects: Any, **style: Any) -> None:
        """As rich's."""
        super().print(*(plain(one) if isinstance(one, str) else one for one in objects), **style)


console = Console(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty(), quiet=world.rank() > 0)


def track(items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
    """``items`` with a progress bar on a terminal, and nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        yield from bar.track(items, total=total, description=what)


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
