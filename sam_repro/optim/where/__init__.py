"""Where, and how far, are the weights moved? One class an option of ``conf/optimizer/where``, in a file an idea."""

from __future__ import annotations

from .base import Parts, Tensors, Where, along, ratio
from .budget import Budget
from .drawn import Noise, RandomTensors
from .filtered import Sparse, ZScore
from .layers import Layers
from .model import Annealed, Model, Unified
from .moving import Momentum, Smoothed, Stale
from .scaled import Adaptive, Fisher, TrustRatio

__all__ = ["OPTIONS", "Layers", "Parts", "Tensors", "Where", "along", "ratio"]

_ALL: tuple[type[Where], ...] = (
    *(Model, Annealed, Unified, Adaptive, Fisher, TrustRatio, Layers, Budget, RandomTensors),
    *(Smoothed, Stale, Momentum, Noise, Sparse, ZScore),
)
OPTIONS = {option.name: option for option in _ALL}
