"""``python -m sam_repro.measure sharpness | landscape | norms | cost  run=ID [key=value ...]``: measure a finished run."""

from __future__ import annotations

import contextlib
import math
import sys
from typing import Any

import yaml

from .. import plugins
from ..command import command
from ..schema import NOT_NEGATIVE, UserError, checked, parse, suggest
from ..store import Run
from .finished import find_finished

COMMON: dict[str, Any] = {"run": "", "runs_dir": "runs", "data_dir": "", "device": "auto", "plugins": ""}
SUBSET: dict[str, Any] = {"samples": 0, "batch_size": 128}  # of the training set, for one pass
COMMANDS: dict[str, dict[str, Any]] = {
    "sharpness": {
        **COMMON, **SUBSET, "samples": "all", "top": 1, "tolerance": 1e-3, "iterations": 100,
        "rho": 0.05, "trace": False, "probes": 32, "seed": 0,
    },
    "landscape": {**COMMON, **SUBSET, "layer": "", "samples": 1024, "dimensions": 2, "points": 40, "distance": 1.0, "seed": 0},
    "norms": {**COMMON, **SUBSET, "samples": "all"},
    "cost": {**COMMON, "model": "", "batch_size": 128, "steps": 30, "stages": False},
}  # fmt: skip
WORDS = {"samples": ["all"]}
LIMITS = {
    **dict.fromkeys(("samples", "batch_size", "top", "iterations", "probes", "steps"), (1, math.inf)),
    "probes": (2, math.inf),  # of one there is no standard error
    "points": (2, 1000),
    "dimensions": (1, 2),
    "tolerance": (1e-12, 1),
}
USAGE = """python -m sam_repro.measure COMMAND run=ID [key=value ...]
  sharpness  the largest eigenvalues of the Hessian, its trace, the rise of the loss within rho
  landscape  the loss around a layer's weights: layer=NAME, or layer=all for the whole model
  norms      gradient norms, of each layer and of the whole model
  cost       FLOPs and time of a step beside SGD's; also without a run: model=NAME; stages=true: costs= of optimizer=budget"""


def main() -> None:
    """The command line."""
    with command("sam_repro.measure", "nothing was written", USAGE):
        run(sys.argv[1:])


def run(words: list[str]) -> None:
    """Do what the words say; UserError where they say nothing."""
    if not words or "=" in words[0] or words[0].startswith("-"):
        raise UserError(f"usage: {USAGE}")
    command, settings = words[0], parsed(words[0], words[1:])
    plugins.load(words)
    subject = None if command == "cost" and settings["model"] else _subject(command, settings)
    from . import commands  # imports torch: not before the words are known to be right

    if command == "cost":
        (commands.stages if settings["stages"] else commands.cost)(subject, settings)
    elif subject is not None:
        {"sharpness": commands.sharpness, "landscape": commands.draw, "norms": commands.norms}[command](subject, settings)


def parsed(command: str, words: list[str]) -> dict[str, Any]:
    """The settings of a command, its defaults where the words are silent; UserError where they do not fit."""
    if command not in COMMANDS:
        raise UserError(f"There is no command {command!r}.{suggest(command, COMMANDS)}")
    defaults = COMMANDS[command]
    settings = dict(defaults)
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in defaults:
            raise UserError(f"{command} has no key {key!r}.{suggest(key, defaults)}")
        settings[key] = text if isinstance(defaults[key], str) and key != "samples" else _checked(key, text, defaults[key])
    return settings


def _checked(key: str, text: str, default: Any) -> Any:
    try:
        value = parse(text)
    except yaml.YAMLError:
        value = text
    if isinstance(value, str):  # YAML 1.1 does not take 1e-3 for a number
        with contextlib.suppress(ValueError):
            value = float(value)
    return checked(key, value, 0 if key == "samples" else default, WORDS.get(key, ()), LIMITS.get(key, NOT_NEGATIVE))


def _subject(command: str, settings: dict[str, Any]) -> Run:
    """The finished run that is to be measured, with a layer that it has."""
    if not settings["run"]:
        raise UserError(f"{command} needs a run, run=ID{' or model=NAME' if command == 'cost' else ''}: 'python -m sam_repro.runs list'.")
    if command == "cost" and settings["batch_size"] != COMMANDS["cost"]["batch_size"]:
        raise UserError("batch_size= goes with model=: a run has its own.")
    found = find_finished(settings["run"], settings["runs_dir"])
    if command == "landscape":
        layers = [*found.summary["perturbations"], "all"]
        if settings["layer"] not in layers:
            missing = f"There is no layer {settings['layer']!r}." if settings["layer"] else "landscape needs a layer, layer=NAME."
            raise UserError(f"{missing}{suggest(settings['layer'], layers)}")
    if command == "sharpness" and settings["top"] > min(settings["iterations"], found.summary["parameters"]):
        raise UserError(
            f"top={settings['top']} does not fit: at most as many eigenvalues are found as there are iterations "
            f"(iterations={settings['iterations']}) and parameters ({found.summary['parameters']:,})."
        )
    return found


if __name__ == "__main__":
    main()
