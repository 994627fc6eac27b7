"""Answers to the four questions that say nothing together."""

from __future__ import annotations

from ..schema import UserError
from .between import Between
from .combine import Combine
from .samples import Samples
from .when import When
from .where import Where


def check(when: When, where: Where, between: Between, samples: Samples, combine: Combine, scope: str) -> None:
    """UserError where a method of these answers would be none."""
    if when.needs_gradient and samples.name == "micro":
        raise UserError("when=gradient_norm decides by the gradient of the whole batch: it does not go with samples=micro.")
    if (where.vectors or not where.needs_first_pass) and (samples.name == "micro" or scope == "replica"):
        wrong = "samples=micro" if samples.name == "micro" else "scope=replica"
        raise UserError(f"where={where.name} has one perturbation a step, the same everywhere: it does not go with {wrong}.")
    if where.needs_first_pass:
        return
    at_w = {
        "a mix other than 1" if combine.name == "mix" else f"combine={combine.name}": combine.needs_clean,
        f"between={between.name}": between.needs_clean,
        f"when={when.name}": when.needs_clean,
        f"samples={samples.name}": samples.chooses,
    }
    for wrong, needed in at_w.items():
        if needed:
            raise UserError(f"{wrong} needs the gradient or the losses at w, where where={where.name} makes no pass: choose another.")
