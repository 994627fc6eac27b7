"""On which samples? One class an option of ``conf/optimizer/samples``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .batches import MicroBatch


class Samples:
    """Groups the samples of a step: each group makes an ascent of its own, the step takes the mean of their gradients."""

    name: ClassVar[str]

    @property
    def chooses(self) -> bool:
        """Whether ``choose`` is to be asked."""
        return False

    def groups(self, batches: Sequence[MicroBatch]) -> list[Sequence[MicroBatch]]:
        """The accumulated batches of a step, in groups."""
        return [batches]

    def choose(self, clean: Tensor, perturbed: Tensor) -> Tensor:
        """The places, ``(chosen,)``, of the samples that descend, by their losses ``(batch,)`` at w and at w + eps."""
        raise NotImplementedError


@dataclass
class Whole(Samples):
    """One ascent with all samples."""

    name = "batch"


@dataclass
class Micro(Samples):
    """mSAM: m micro-batches, an ascent each. A batch of n < m samples makes n of them, one that m does not divide uneven ones."""

    name = "micro"
    m: int

    def groups(self, batches: Sequence[MicroBatch]) -> list[Sequence[MicroBatch]]:
        return [[part] for batch in batches for part in split(batch, self.m)]


@dataclass
class Sharpest(Samples):
    """ESAM's SDS: the descent takes the share gamma of the samples whose loss rises most from w to w + eps.

    The official code keeps the samples strictly above the int(gamma n)-th, one fewer than the paper, and none at all where
    they tie; here int(gamma n) of them are kept, at least one. The losses at w + eps cost a forward pass.
    """

    name = "sharpest"
    gamma: float

    @property
    def chooses(self) -> bool:
        return self.gamma < 1

    def choose(self, clean: Tensor, perturbed: Tensor) -> Tensor:
        return (perturbed - clean).topk(max(1, int(self.gamma * len(clean)))).indices


def split(batch: MicroBatch, parts: int) -> list[MicroBatch]:
    """The batch in at most ``parts`` batches of nearly equal size."""
    n = batch.samples
    if min(parts, n) == 1:
        return [batch]
    result, start = [], 0
    for count in (n // min(parts, n) + (i < n % min(parts, n)) for i in range(min(parts, n))):
        result.append(batch.take(slice(start, start + count), count))
        start += count
    return result


OPTIONS: dict[str, type[Samples]] = {option.name: option for option in (Whole, Micro, Sharpest)}
