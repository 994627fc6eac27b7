"""What a method writes into a checkpoint says whose it is, so that another one does not take it up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..schema import UserError

VERSION = 1  # of what a state holds; raised where an older one cannot be read any more
LATER = {"arriving"}  # what states have had since, with a default


def check(state: Mapping[str, Any], name: str, own: Mapping[str, Any]) -> None:
    """Whether a state can be one of the method ``name``, whose state is like ``own``.

    States written before they had a name are judged by their keys alone.

    Raises:
        UserError: it is another method's, or a later version's.
    """
    theirs = state.get("method", "")
    if theirs and name and theirs != name:
        raise UserError(
            f"The state is one of {theirs!r} and the method is {name!r}: go on with {theirs!r}, or begin {name!r} without a state."
        )
    if state.get("version", VERSION) > VERSION:
        raise UserError(
            f"The state of {theirs!r} is of version {state['version']}, this sam-repro reads up to {VERSION}: install a newer one."
        )
    if wrong := _misfits(state, own):
        raise UserError(
            f"The state is not one of {name or 'this method'!r} with these parts: {wrong} does not fit; load it where it was taken."
        )


def _misfits(state: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The first part of a state with other keys than one's own; empty where there is none."""
    for part in {key: None for key in (*own, *state) if key not in ("method", "version")}:
        if part not in own or part not in state:
            return part
        mine, theirs = own[part], state[part]
        if isinstance(mine, Mapping) and (not isinstance(theirs, Mapping) or (mine.keys() ^ theirs.keys()) - LATER):
            return part
    return ""
