"""What stands between two ascents? One class an option of ``conf/optimizer/between``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor


class Between:
    """May remember something of an ascent and add it to the gradient of the steps that make none."""

    name: ClassVar[str]
    needs_clean: ClassVar[bool]  # whether ``remember`` wants the gradient at w

    def remember(self, selected: Sequence[int], clean: Sequence[Tensor | None], sam: Sequence[Tensor | None]) -> None:
        """See, for the perturbed parameters, the gradients at w and at w + eps."""

    def reuse(self, gradients: Sequence[Tensor | None]) -> None:
        """Change the gradient (all parameters) of a step without an ascent, in place."""

    def state_dict(self) -> dict[str, Any]:
        """What the option has learned so far."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where ``state_dict`` left off."""


@dataclass
class Gradient(Between):
    """Nothing: such a step takes the plain gradient."""

    name = "gradient"
    needs_clean = False


OPTIONS: dict[str, type[Between]] = {option.name: option for option in (Gradient,)}
