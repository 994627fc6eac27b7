"""How a number falls from 1 to 0 over a share of the training: learning rates, and radii that follow them."""

from __future__ import annotations

import math
from collections.abc import Callable

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda share: 1 - share,
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    "1-sqrt": lambda share: 1 - math.sqrt(share),
}


def left(shape: str, share: float) -> float:
    """What is left of 1 after ``share``, 0 to 1, of the way; nothing after all of it."""
    return SHAPES[shape](min(share, 1.0))
