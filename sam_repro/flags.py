"""The flags of the command line are Hydra's. They may stand anywhere: its parser wants them before the words, and so they are put there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .schema import UserError, suggest

SHORT = {
    "-h": "--help", "-m": "--multirun", "-c": "--cfg", "-p": "--package", "-r": "--run", "-i": "--info", "-sc": "--shell-completion",
    "-cp": "--config-path", "-cn": "--config-name", "-cd": "--config-dir",
}  # fmt: skip
PLAIN = ("--help", "--hydra-help", "--version", "--resolve", "--run", "--multirun", "--shell-completion")
VALUED = {
    "--cfg": ("job", "hydra", "all"), "--package": (), "--config-path": (), "--config-name": (), "--config-dir": (),
    "--experimental-rerun": (), "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}  # fmt: skip
COMPLETION = ("install=", "uninstall=", "query=")
ALONE = ("--run", "--multirun", "--cfg", "--info", "--shell-completion")  # each says what is done, and one thing is


def in_order(words: Sequence[str]) -> list[str]:
    """The flags by their long names, with their values, and then the other words; UserError for a flag that there is not."""
    flags: list[str] = []
    others: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("-"):
            flags.append(_flag(word, rest))
        else:
            others.append(word)
    names = [flag.partition("=")[0] for flag in flags]
    asked = [name for name in dict.fromkeys(names) if name in ALONE]
    if len(asked) > 1:
        raise UserError(f"{asked[0]} and {asked[1]} are two things to do: give one of them.")
    if "--shell-completion" in names and not any(word.startswith(COMPLETION) for word in others):
        raise UserError("--shell-completion wants install=bash (or zsh, fish) behind it; --help has the line to type.")
    for flag in (flag for flag in flags if flag.startswith("--experimental-rerun=")):
        if not Path(flag.partition("=")[2]).is_file():
            raise UserError(f"{flag}: there is no such file.")
    return [*flags, *others]


def _flag(word: str, rest: list[str]) -> str:
    """A flag as ``--name`` or ``--name=value``, whose value may be the next word."""
    name, equals, value = word.partition("=")
    name = SHORT.get(name, name)
    if name not in (*PLAIN, *VALUED):
        raise UserError(f"There is no flag {name!r}.{suggest(name, (*PLAIN, *VALUED))} 'python -m sam_repro --help' says what there is.")
    if name in PLAIN:
        if equals:
            raise UserError(f"{name} takes no value; an override has no dashes, as in lr=0.1.")
        return name
    if not equals:
        value = rest.pop(0) if rest and (rest[0] in VALUED[name] or name != "--info") else "all" if name == "--info" else ""
    if not value or (VALUED[name] and value not in VALUED[name]):
        raise UserError(
            f"{name} wants {'one of ' + ', '.join(VALUED[name]) if VALUED[name] else 'a value'}, as in {name} {_example(name)}."
        )
    return f"{name}={value}"


def _example(name: str) -> str:
    return VALUED[name][0] if VALUED[name] else "NAME"
