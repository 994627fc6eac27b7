"""What Hydra composes of a run's overrides, by its rules but without it: of the project's files and of plain words, fifty times as fast.

A table has hundreds of runs, and Hydra takes a tenth of a second for each. It remains the definition, and has the word where this has
none: ``plainly`` gives None for whatever is not as plain as the files of ``conf/`` are, and for every mistake.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .schema import FOLDERS, is_group, merged, option_file, parse

Node = dict[str, Any]
Choices = dict[str, str]  # of groups: "optimizer/when" -> "every"
GLOBAL = "# @package _global_"


def plainly(overrides: Sequence[str]) -> DictConfig | None:
    """The composed configuration, as ``hydra.compose("config", overrides)`` gives it; None where that is Hydra's to say."""
    try:
        parsed = [_parsed(word) for word in overrides]
        if any(one.type != OverrideType.CHANGE or one.is_sweep_override() or one.is_hydra_override() for one in parsed):
            return None
        chosen: dict[str, Any] = {one.key_or_group: one.value() for one in parsed if is_group(one.key_or_group)}
        if not all(isinstance(option, str) for option in chosen.values()):
            return None
        choices = {**_overridden("experiment", chosen["experiment"]), **chosen} if "experiment" in chosen else chosen
        choices = {**_overridden("optimizer", choices.get("optimizer", _usual("optimizer"))), **choices}
        content: Node = {}
        unused = set(choices)
        for package, node in _laid("", "config", "", choices, unused):
            for key in reversed(package.split(".") if package else []):
                node = {key: node}
            content = merged(content, node)
        if unused:
            return None
        composed = OmegaConf.create(content)
        OmegaConf.set_struct(composed, True)
        for one in parsed:
            if one.key_or_group not in chosen:
                OmegaConf.update(composed, one.key_or_group, one.value())
        return composed
    except (HydraException, OmegaConfBaseException, OSError):
        return None


@cache
def _parsed(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def _file(path: str) -> tuple[bool, list[Any], Node]:
    return _content(option_file(path))


@cache
def _content(path: Path) -> tuple[bool, list[Any], Node]:
    """Of a file: whether its keys are those of the whole configuration, its defaults, and what else it has."""
    text = path.read_text()
    content = parse(text) or {}
    defaults = content.pop("defaults", [])
    content.pop("hydra", None)
    return text.startswith(GLOBAL), defaults if "_self_" in defaults else [*defaults, "_self_"], content


def _overridden(group: str, option: str) -> Choices:
    """What ``override /group: option`` in an option's defaults chooses; its own before those of the files that it builds on."""
    defaults = _file(f"{group}/{option}")[1]
    found: Choices = {}
    for below in [entry for entry in defaults if isinstance(entry, str) and entry != "_self_"]:
        found |= _overridden(group, below)
    for own in [entry for entry in defaults if isinstance(entry, dict)]:
        found |= {key.removeprefix("override /"): value for key, value in own.items() if key.startswith("override /")}
    return found


def _usual(group: str) -> str:
    """The option of a group that nobody chose."""
    return next(option for entry in _file("config")[1] if isinstance(entry, dict) for key, option in entry.items() if key == group)


def _laid(group: str, option: str, package: str, choices: Choices, unused: set[str]) -> Iterator[tuple[str, Node]]:
    """The contents of an option and of all that its defaults name, each with its place, in the order in which they are laid down."""
    everywhere, defaults, content = _file(f"{group}/{option}".lstrip("/"))
    package = "" if everywhere else package
    for entry in defaults:
        if entry == "_self_":
            yield package, content
        elif isinstance(entry, str):  # of the same group, "base/glue@_here_" or "kdd24/cifar10"
            yield from _laid(group, entry.removesuffix("@_here_"), package, choices, unused)
        else:
            ((key, usual),) = entry.items()
            other = key.lstrip("/")
            chosen = choices.get(other, usual)
            unused.discard(other)
            if chosen is not None and not key.startswith("override "):
                yield from _laid(other, chosen, other.replace("/", "."), choices, unused)


class Folders(SearchPathPlugin):
    """What lets Hydra find the options of the plug-ins that were named, behind the project's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add their folders, as far as they are known when Hydra begins."""
        for folder in FOLDERS[1:]:
            search_path.append("sam_repro.plugins", f"file://{folder}")


def show_hydra_the_folders() -> None:
    """In this process alone: an application of somebody else's sees nothing of them."""
    Plugins.instance().register(Folders)
