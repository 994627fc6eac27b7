"""What Hydra complains of in the user's words: one sentence, with what was meant."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import OmegaConf

from . import plugins
from .schema import CONF, ENGINES, GROUPS, METADATA, PARTS, QUESTIONS, fields, is_group, keys_of, options, read, short, suggest

Config = dict[str, Any]


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's complaint as one sentence with a suggestion."""
    text = str(error)
    if isinstance(error, RecursionError):
        return "A value is nested too deeply to be read."
    if override := getattr(error, "override", None):  # its grammar
        return _unread(str(override))
    if match := re.search(r"Ambiguous value for argument '([^']*)'", text):
        return f"{match[1]!r} is several values: use -m for a run of each; a list is written with brackets, [a,b]."
    if match := re.search(r"Could not find '([\w/.-]+)'", text):
        group, _, option = match[1].rpartition("/")
        while group and not is_group(group):  # experiments are two deep: kdd24/cifar10
            group, _, head = group.rpartition("/")
            option = f"{head}/{option}"
        if group.startswith("hydra/"):
            return f"{group} has no option {option!r}.{suggest(option, ENGINES.get(group, ()))}"
        return f"{group} has no option {option!r}.{_options(group, option)}"
    match = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if match:
        composed = _what_composes(overrides)
        return no_such_knob(match[1].partition("@")[0], composed["optimizer"]["name"], composed)
    if not text.strip():  # of its own settings it may say nothing
        return f"Hydra cannot read {' '.join(str(short(word)) for word in overrides if 'hydra' in word) or 'these words'}."
    return text.strip().splitlines()[0]


def _unread(override: str) -> str:
    """Why Hydra's grammar has no place for it."""
    key, equals, value = str(short(override)).partition("=")
    if not equals:
        return f"{key!r} is no override: one is key=value, as in lr=0.1."
    if override.partition("=")[0].endswith(" ") or override.partition("=")[2].startswith(" "):
        return f"{str(short(override))!r} cannot be read: there is no space around =, as in {key.strip()}={value.strip()}."
    value = "".join(sign if sign.isprintable() else "?" for sign in value.strip("'\""))
    return f"{str(short(override))!r} cannot be read: quote a value with signs that mean something to Hydra, {key}=\"'{value}'\"."


def _options(group: str, option: str) -> str:
    found = suggest(option, options(group))
    return (
        found
        if "Did you mean" in found or group not in plugins.BRINGS
        else f"{found} One of your own needs plugins=, the module that has it."
    )


def no_such_knob(key: str, method: str, composed: Config) -> str:
    """That nobody reads a key, and why, where a method was chosen and all of this composed."""
    own = [name for name in read(f"optimizer/{method}") if name not in ("defaults", "methods", "optimizer")]
    owners = [name for name in options("optimizer") if key in read(f"optimizer/{name}")]
    known = [name for name in (*_dotted(composed), *GROUPS) if name != key]
    if key.startswith("optimizer/"):
        questions = ", ".join(f"optimizer/{question}" for question in QUESTIONS if question in composed["optimizer"])
        return f"optimizer={method} has no {key!r}{'; it has: ' + questions if questions else ': it makes no ascent'}."
    if owners and method not in owners:
        has = f" It has {', '.join(own)}." if own else ""
        return f"optimizer={method} has no knob {key!r}; the methods that have it: {', '.join(owners)}.{has}"
    if owners:
        return f"{key!r} is not read: the part of optimizer={method} that reads it was swapped for another."
    group, _, field = key.partition(".")
    if group == "optimizer" and field in own:
        return f"{key!r} is set without its group: {field}=..."
    if group in PARTS and (others := [one for one in options(group) if field in fields(group, one).defaults]):
        return f"{group}={composed[group]['name']} has no {field!r}; what has it: {', '.join(f'{group}={one}' for one in others)}."
    if key == "momentum":
        return "'momentum' belongs to base=sgd."
    return f"There is no key {key!r}.{_close(key, known)}"


def _close(key: str, known: list[str]) -> str:
    found = suggest(key, known)
    return found if "Did you mean" in found else " 'python -m sam_repro --cfg job' shows every key."


def _what_composes(overrides: Sequence[str]) -> Config:
    """The configuration that the group choices alone give: the keys there were to choose from."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), job_name="sam_repro", version_base="1.3"):
        choices = [o for o in overrides if next(keys_of([o])) in GROUPS]
        for attempt in (choices, [o for o in choices if not o.startswith("optimizer/")]):
            with contextlib.suppress(Exception):
                content: Any = OmegaConf.to_container(hydra.compose("config", attempt), resolve=False)
                return content
        return _what_composes([])


def _dotted(node: Config, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if key not in (*METADATA, "methods", "hydra"):
            yield prefix + key
            if isinstance(value, dict):
                yield from _dotted(value, f"{prefix}{key}.")
