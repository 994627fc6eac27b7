"""Runs as data frames; tables, figures and claims declared on them."""

from .frames import Frames, load

__all__ = ["Frames", "load"]
