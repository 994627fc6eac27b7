"""Draws on the host: where a generator stands, as a checkpoint has it, and generators that need not be kept."""

from __future__ import annotations

import random
from typing import Any

import torch


def state_of(coin: random.Random) -> list[Any]:
    """Where a generator stands, as lists and numbers."""
    version, numbers, gauss = coin.getstate()
    return [version, list(numbers), gauss]


def put_back(coin: random.Random, state: list[Any]) -> None:
    """Have it stand there again."""
    version, numbers, gauss = state
    coin.setstate((version, tuple(numbers), gauss))


def numbered(seed: int, number: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one draw, by its number: the same in all processes, and after a resume."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + number)
