"""Wrong labels, on purpose: what a method makes of them is asked of SAM more often than anything else (Foret et al. 2021, section 3.3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch


def with_noise(split: Any, share: float, classes: int, seed: int) -> Any:
    """The split with ``share`` of its labels, rounded to whole samples, replaced: each by one of the other classes, all as likely.

    Symmetric noise. Which samples, and which classes, follows from the seed. (Where a paper draws the new label from all classes,
    the true one among them, its share p is p * (1 - 1 / classes) here.)
    """
    count = round(share * len(split))
    if not count:
        return split
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(split), generator=generator)[:count]
    moved = torch.randint(1, classes, (count,), generator=generator)
    targets = split.targets.clone()
    targets[chosen] = (targets[chosen] + moved) % classes
    return replace(split, targets=targets)
