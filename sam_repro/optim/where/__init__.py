"""Where, and how far, are the weights moved? One class an option of ``conf/optimizer/where``, in a file an idea."""

from __future__ import annotations

from .base import Tensors, Where, along, ratio
from .drawn import RandomTensors
from .layers import Layers
from .model import Model
from .scaled import Adaptive, TrustRatio

__all__ = ["OPTIONS", "Adaptive", "Layers", "Model", "RandomTensors", "Tensors", "TrustRatio", "Where", "along", "ratio"]

OPTIONS: dict[str, type[Where]] = {option.name: option for option in (Model, Adaptive, TrustRatio, Layers, RandomTensors)}
