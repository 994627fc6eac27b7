"""A bar for long measurements, on a terminal; nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from ..console import console


class Bar:
    """Shows how far the work at hand is, and a few words on what it is."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def work(self, words: str, total: int) -> Callable[[int], None]:
        """Begin a piece of work; call what is returned with how much of ``total`` is done."""
        self._progress.reset(self._task, total=total, description=words)
        return lambda done: self._progress.update(self._task, completed=done)

    def say(self, words: str) -> None:
        """Change the words."""
        self._progress.update(self._task, description=words)


@contextmanager
def bar() -> Iterator[Bar]:
    """A bar while this lasts."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield Bar(progress)
