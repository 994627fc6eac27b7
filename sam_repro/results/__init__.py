"""Runs as data frames; tables, figures and claims declared on them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .frames import Frames, load

__all__ = ["Frames", "load"]


def __getattr__(name: str) -> Any:
    """Both are imported when they are asked for: a command answers a wrong word before pandas is there."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import frames

    return getattr(frames, name)
