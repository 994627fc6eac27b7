"""The processes that one training has, as torchrun starts them: who this one is. Knows no torch."""

from __future__ import annotations

import os


def count() -> int:
    """How many there are, on all machines; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Which one this is, from 0; that one decides, writes and prints."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Which one of its machine, and so which GPU it takes."""
    return int(os.environ.get("LOCAL_RANK", 0))
