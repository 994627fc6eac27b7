"""What sets runs apart: the keys in which their configurations differ, and their values. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml

from .config import OUTSIDE, compose
from .schema import METADATA, PARTS, UserError, flat, read

Config = dict[str, Any]
CHOICES = ("dataset", "model", "optimizer", "base", "schedule")
SHOWN = ("dataset.name", "model.name", "model.arch", "optimizer.name", "seed")  # a list of runs has a column for each


def words_of(config: Config) -> Config:
    """The keys of a configuration as the command line has them, but for those that do not change a run.

    A knob (``k``, ``rho``) is named once, not again in the part that reads it.
    """
    inside = {key: value for key, value in in_order(config).items() if key not in (*OUTSIDE, *METADATA)}
    knobs = {key: value for key, value in inside.items() if not isinstance(value, dict)}
    return {key: value for key, value in flat(inside) if not _a_knobs(key, value, knobs)}


def in_order(config: Config) -> Config:
    """The choices and the method's own knobs, and then the keys that every run has as ``conf/config.yaml`` has them."""
    common = [key for key in read("config") if key in config and key != "optimizer"]
    return {key: config[key] for key in (*(key for key in config if key not in common), *common)}


def _a_knobs(key: str, value: Any, knobs: Config) -> bool:
    *owner, last = key.split(".")
    return bool(owner) and last in knobs and knobs[last] == value


def apart(configs: Sequence[Config], *, usual: bool = True) -> list[Config]:
    """Of each run the keys that tell it from those of the same data, model and method, beside the seed.

    A run that is older than a key had its default. Without ``usual`` the keys that have their default are left out.
    """
    words = [words_of(config) for config in configs]
    kinds: dict[tuple[str, ...], list[Config]] = {}
    for one in words:
        kinds.setdefault(_kind(one), []).append(one)
    defaults = {kind: _defaults(alike[0]) for kind, alike in kinds.items()}
    differing = {
        kind: {key for key in _keys(alike) if len({str(one.get(key, defaults[kind].get(key))) for one in alike}) > 1}
        for kind, alike in kinds.items()
    }
    return [
        {
            key: value
            for key, value in one.items()
            if key in differing[_kind(one)] and key not in SHOWN and (usual or value != defaults[_kind(one)].get(key))
        }
        for one in words
    ]


def _defaults(words: Config) -> Config:
    """Those of the same data, model and method; empty where they are not to be had, as of a plug-in that is not loaded."""
    try:
        chosen = [f"{group}={words[f'{group}.name']}" for group in (*PARTS, "optimizer")]
        arch = [f"model.arch={words['model.arch']}"] if words["model.name"] == "timm" else []
        return words_of(compose([*chosen, *arch]))
    except (UserError, LookupError):
        return {}


def _kind(words: Config) -> tuple[str, ...]:
    return tuple(str(words.get(key)) for key in SHOWN if key != "seed")


def _keys(alike: Iterable[Config]) -> list[str]:
    return list(dict.fromkeys(key for one in alike for key in one))


def from_defaults(config: Config) -> dict[str, tuple[Any, Any]]:
    """The keys of a run whose values are not the defaults of its data, model, method and the rest, with both."""
    mine = words_of(config)
    usual = _defaults(mine)
    return {key: (mine[key], usual.get(key)) for key in mine if usual and mine[key] != usual.get(key) and key != "device"}


def described(config: Config) -> Iterator[str]:
    """A configuration as lines to read: what was chosen, what differs from the defaults of that, and then the whole."""
    yield "config   " + " ".join(f"{group}={config[group]['name']}" for group in CHOICES if group in config)
    own = from_defaults(config)
    yield from (f"  {line}" for line in columns([(key, value(mine), f"(default {value(usual)})") for key, (mine, usual) in own.items()]))
    yield "  the whole of it:"
    for line in yaml.safe_dump(in_order(config), sort_keys=False, default_flow_style=None, width=130).splitlines():
        yield f"    {line}"


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as lines, each column as wide as its widest word."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    return ["  ".join(f"{word:<{width}}" for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def between(one: Config, other: Config) -> Iterator[tuple[str, Any, Any]]:
    """The keys in which two runs differ, with both values; None where a run has no such key."""
    first, second = words_of(one), words_of(other)
    for key in _keys([first, second]):
        if first.get(key) != second.get(key):
            yield key, first.get(key), second.get(key)


def value(item: Any) -> str:
    """A value as the command line has it: ``0.05``, ``true``, ``[a,b]``."""
    if isinstance(item, bool):
        return str(item).lower()
    if isinstance(item, float):
        return f"{item:g}"
    if isinstance(item, list):
        return f"[{','.join(map(value, item))}]"
    return "-" if item is None else str(item)


def in_words(keys: Config) -> str:
    """``lr=0.05 k=2``."""
    return " ".join(f"{key}={value(item)}" for key, item in keys.items())
