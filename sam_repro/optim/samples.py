"""On which samples? One class an option of ``conf/optimizer/samples``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .passes import Batch


class Samples:
    """Groups the samples of a step: each group makes an ascent of its own, the step takes the mean of their gradients."""

    name: ClassVar[str]

    def groups(self, batches: Sequence[Batch]) -> list[Sequence[Batch]]:
        """The accumulated batches of a step, in groups."""
        raise NotImplementedError


@dataclass
class Whole(Samples):
    """One ascent with all samples."""

    name = "batch"

    def groups(self, batches: Sequence[Batch]) -> list[Sequence[Batch]]:
        return [batches]


OPTIONS: dict[str, type[Samples]] = {option.name: option for option in (Whole,)}
