"""Weights of elsewhere in a model: all of them, or an error that lists those that do not fit. What is missing would stay random."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn

from ..schema import UserError

SHOWN = 8  # keys in a message
LOAD = nn.Module.load_state_dict


def load(model: nn.Module, weights: Mapping[str, Tensor], said: str, new: Collection[str] = ()) -> Any:
    """Give the model the weights, each of its keys; those of ``new`` may be missing. Returns what ``load_state_dict`` does.

    Raises UserError, which begins with ``said``, where a key has no place or no weights, or another shape.
    """
    own = model.state_dict()
    refuse([key for key in own if key in weights and shape(weights[key]) != shape(own[key])], said)
    found = LOAD(model, weights, strict=False)
    refuse([key for key in (*found.missing_keys, *found.unexpected_keys) if key not in new], said)
    return found


def refuse(keys: Iterable[str], said: str) -> None:
    """UserError with the keys, the first of them where they are many; nothing where there are none."""
    lost = sorted(keys)
    if lost:
        listed = ", ".join(lost[:SHOWN]) + (f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else "")
        raise UserError(f"{said}: {listed}.")


@contextmanager
def whole(said: str, heads: Collection[str]) -> Iterator[None]:
    """A library that loads weights loads all meanwhile, but for the head where the file has none that fits. timm is not strict
    with anything as soon as the classes are others, and it names in a log alone what it left at random.

    ``heads``: the names of the layers that make the classes. Raises UserError, as ``load`` does, also where nothing was loaded.
    """
    loaded = []

    def strictly(model: nn.Module, state: Mapping[str, Tensor], **_: Any) -> Any:
        head = {key for key in model.state_dict() if key.rpartition(".")[0] in heads}
        loaded.append(load(model, state, said, () if head & state.keys() else head))
        return loaded[-1]

    with patch.object(nn.Module, "load_state_dict", strictly):
        yield
    if not loaded:
        raise UserError(f"{said}: nothing was loaded.")


def shape(value: Any) -> Any:
    """Of a tensor; None of what else a state holds (LSQ: what its quantisers have seen)."""
    return getattr(value, "shape", None)
