"""The front of the command line: ``--help``, a page for people, and the way to the other commands. Loads nothing heavy.

What an option is stands in the first sentence of its own file, so that this page cannot say anything else.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from . import plugins, schema
from .plain import say
from .schema import CONF, ENGINES, UserError, option_file, options, suggest

COMMANDS = {  # beside training: the module, and what it is for
    "runs": ("runs", "the runs there are: list, show, diff, rm, archive, export, a page in HTML"),
    "evaluate": ("evaluate", "a finished run's weights on its test set"),
    "tables": ("tables", "the papers' tables and figures: what fills them, run what is missing, render"),
    "claims": ("claims", "what the papers claim, and what the runs say of it"),
    "study": ("study", "a long list of runs, one after the other; stopped at any time, it goes on"),
    "search": ("search", "which answers to the four questions go together: successive halving on a held-out part"),
    "measure": ("measure.__main__", "a finished run's sharpness, loss landscape, gradient norms, cost"),
    "measure.bench": ("measure.bench", "the time of a step of every method beside SGD's"),
    "tracking": ("tracking.__main__", "send runs to Weights & Biases, create the dashboard there"),
}
GROUPS = {
    "optimizer": "the gradient method; base= makes the step of it",
    "dataset": "what it is trained on",
    "model": "the network",
    "base": "the optimizer that takes the step",
    "schedule": "of the learning rate",
    "scale": "how much of the paper's training is done",
}
EXAMPLES = (
    ("python -m sam_repro", "layer-wise SAM on real data that is installed, a minute"),
    ("python -m sam_repro optimizer=sam rho=0.1 epochs=5", "another method and its own key"),
    ("python -m sam_repro -m optimizer=sgd,sam seed=0,1,2", "six runs and a table of them; the same command goes on"),
    ("python -m sam_repro experiment=kdd24/cifar10 optimizer=layerwise", "the settings of a paper's benchmark"),
    ("python -m sam_repro dry_run=true", "what would run, its memory and its time"),
    ("python -m sam_repro tables show kdd24/table1", "a paper's table, and what is missing of it"),
)
HEAD = """sam-repro trains a network with a sharpness-aware method of your choice, keeps what came of it in runs/,
and sets it beside the papers' tables.

usage: python -m sam_repro [key=value ...]        train; with -m a run of every combination of values, as in seed=0,1,2
       python -m sam_repro COMMAND [...]          where sam-repro is installed, 'sam-repro' is the same as 'python -m sam_repro'
"""
MORE = """More help
  --help optimizer=sam   the keys of an option, with what they mean; of any group below
  --help keys            the keys that every run has: lr, epochs, batch_size, ...
  COMMAND --help         what a command does
  --cfg job [...]        print all that the words stand for, and run nothing
  --version, --hydra-help
  eval "$(sam-repro -sc install=bash)"   completes keys and options with the Tab key (fish: sam-repro -sc install=fish | source)

Exit status: 0 done, 1 an error, 3 the training diverged, 128 + n stopped by signal n (130: Ctrl-C).
"""
SENTENCE = re.compile(r"(?<=[.?!])\s+(?=[A-Z])")  # "et al. 2023" is no end of one
WIDTH = min(140, shutil.get_terminal_size((140, 24)).columns)


def go_to_command(words: Sequence[str]) -> bool:
    """Do what ``words[0]`` is the name of, ``runs list`` as ``python -m sam_repro.runs list``; False where it is no command's."""
    first = words[0] if words else ""
    if words[:1] == ["help"] and words[1:2] and words[1] in COMMANDS:
        first, words = words[1], [words[1], "--help"]
    if first not in COMMANDS:
        return False
    sys.argv[:] = [f"sam_repro.{first}", *words[1:]]
    import_module(f"sam_repro.{COMMANDS[first][0]}").main()
    return True


def shown(words: Sequence[str]) -> bool:
    """Whether the words asked for help or the version, which is printed then; flags are in order (``flags.in_order``)."""
    if "--version" in words:
        say(f"sam-repro {_version('sam-repro')} (PyTorch {_version('torch')}, Hydra {_version('hydra-core')})")
        return True
    if "--help" not in words and words[:1] != ["help"]:
        if words and words[0].replace(".", "").isalpha():
            raise UserError(
                f"{words[0]!r} is no override: one is key=value, as in lr=0.1. As a command there is: {', '.join(COMMANDS)}."
                f"{_meant(words[0])}"
            )
        return False
    asked = [word for word in words if word not in ("--help", "help", "--multirun")]
    plugins.load(asked)
    texts = [text for word in asked if (text := _about(word))]
    if asked and not texts:
        where = "there is --help for an option (optimizer=sam), for 'keys', and of every command"
        raise UserError(f"There is no help on {asked[0]!r}: {where}.{_meant(asked[0])}")
    say("\n".join(texts or [page()]))
    return True


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that nobody installed
        return "of this checkout"


def _meant(word: str) -> str:
    found = suggest(word, COMMANDS)
    return found if "Did you mean" in found else ""


def _about(word: str) -> str:
    """What is said of an option, of a group or of the keys of every run; empty for another word. UserError for no option."""
    group, _, option = word.partition("=")
    if word == "keys":
        return keys_of_every_run()
    if word in GROUPS:
        return _listed(f"{word}=   {GROUPS[word]}", [(one, first_sentence(word, one)) for one in options(word)]).rstrip()
    if group in schema.GROUPS and option:
        if option not in options(group):
            raise UserError(f"{group} has no option {option!r}.{suggest(option, options(group))}")
        return option_file(f"{group}/{option}").read_text().removeprefix("# @package _global_\n")
    return ""


def keys_of_every_run() -> str:
    """The part of ``conf/config.yaml`` that says what can be set whatever is chosen."""
    text = (CONF / "config.yaml").read_text()
    return text[text.index("\nseed:") + 1 : text.index("\nneutral:")]


def page() -> str:
    """The whole page."""
    commands = [(name, line) for name, (_, line) in COMMANDS.items()]
    parts = [HEAD, _listed("Commands", commands), _listed("Examples", EXAMPLES)]
    parts += [
        _listed(f"{group}=   {what}", [(one, first_sentence(group, one)) for one in options(group)]) for group, what in GROUPS.items()
    ]
    parts.append(_listed("experiment=   a benchmark of a paper, with the numbers of each method in it", _experiments()))
    engines = [(group + "=", ", ".join(names)) for group, names in ENGINES.items()]
    parts.append(_listed("With -m   what starts the runs of a sweep, or chooses them", engines))
    return "\n".join([*parts, MORE.rstrip()])


def first_sentence(group: str, option: str) -> str:
    """What an option is: the first sentence of the comment at the head of its file; empty where it has none."""
    lines = option_file(f"{group}/{option}").read_text().removeprefix("# @package _global_\n").splitlines()
    head = next((index for index, line in enumerate(lines) if not line.startswith("#")), len(lines))
    text = " ".join(line.lstrip("# ") for line in lines[:head])
    return SENTENCE.split(" ".join(text.split()))[0]


def _experiments() -> list[tuple[str, str]]:
    papers: dict[str, list[str]] = {}
    for name in options("experiment"):
        paper, _, benchmark = name.partition("/")
        papers.setdefault(f"{paper}/", []).append(benchmark or paper)
    wrapped = ((paper, textwrap.wrap(" ".join(names), WIDTH - 15)) for paper, names in papers.items())
    return [(paper if line is lines[0] else "", line) for paper, lines in wrapped for line in lines]


def _listed(title: str, lines: Sequence[tuple[str, str]]) -> str:
    """A heading, and below it a line each: the name, and what it is."""
    left = max((len(name) for name, _ in lines), default=0) + 4
    texts = [f"  {name:<{left - 2}}{textwrap.shorten(what, WIDTH - left, placeholder=' ...')}".rstrip() for name, what in lines]
    return "\n".join([title, *texts, ""])
