"""When is the ascent computed? One class an option of ``conf/optimizer/when``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


class When:
    """Decides for every step whether it makes an ascent."""

    name: ClassVar[str]

    def ascends(self, step: int) -> bool:
        """Whether step ``step`` (from 0) makes one."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What the option has learned so far."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where ``state_dict`` left off."""


@dataclass
class Never(When):
    """The base optimizer's own gradient."""

    name = "never"

    def ascends(self, step: int) -> bool:
        return False


@dataclass
class Always(When):
    """SAM: at every step."""

    name = "always"

    def ascends(self, step: int) -> bool:
        return True


OPTIONS: dict[str, type[When]] = {option.name: option for option in (Never, Always)}
