"""``python -m sam_repro.claims [paper] [list | show ID | run ID | report]``: what the papers claim, and what our runs say of it."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from . import plugins
from .command import command
from .config import check_device
from .results.declare import EXPERIMENTS
from .results.own_place import check_own_place
from .results.select import Request
from .results.work import number_of_jobs
from .schema import UserError, options, read, suggest

USAGE = """python -m sam_repro.claims [PAPER] [list]     every claim with its verdict
    show ID      one claim: its parts, the runs that decide it, what is missing
    run ID ...   train and measure what is missing, or compute its checks   [jobs=N processes at a time]
    report       write results/claims.md and results/claims.csv, of all papers
  [file=mine.yaml: your own claims] [scale=small] [device=...] [precision=...] [runs_dir=runs] [results_dir=results] [data_dir=...]
  [plugins=...]"""
VERBS = {"list": (0, 0), "show": (1, 1), "run": (1, math.inf), "report": (0, 0)}  # of how many claims, at least and at most
KEYS = {
    "file": "",
    "scale": "",
    "device": "",
    "precision": "",
    "runs_dir": "runs",
    "results_dir": "results",
    "data_dir": "",
    "jobs": "",
    "plugins": "",
}


def main() -> None:
    """The command line."""
    with command("sam_repro.claims", "the same command goes on", USAGE):
        dispatch(sys.argv[1:])


def dispatch(arguments: list[str]) -> None:
    """Do what the words say; UserError where they say nothing."""
    plugins.load(arguments)
    settings = {**KEYS, **dict(word.split("=", 1) for word in arguments if "=" in word)}
    words = [word for word in arguments if "=" not in word]
    request = _request(settings)
    names = [Path(settings["file"]).stem] if settings["file"] else [path.parent.name for path in sorted(EXPERIMENTS.glob("*/claims.yaml"))]
    paper = ""
    if words and words[0] not in VERBS:
        if words[0] not in names:
            raise UserError(f"There is no command or paper {words[0]!r}.{suggest(words[0], (*VERBS, *names))}")
        paper, words = words[0], words[1:]
    verb, *wanted = words or ["list"]
    if verb not in VERBS or not VERBS[verb][0] <= len(wanted) <= VERBS[verb][1]:
        raise UserError(f"usage: {USAGE}")
    jobs = number_of_jobs(settings["jobs"])
    if verb == "report" and settings["file"]:
        check_own_place(request.results_dir, f"file={settings['file']}")
    from .results.claims import commands  # imports pandas and scipy: not before the words are known to be right

    declared = commands.declared(settings["file"])
    chosen = [one for one in declared if paper in ("", one.paper)]
    match verb:
        case "list":
            commands.show_list([commands.judged(one, request) for one in chosen])
        case "show":
            commands.show(*commands.judged_of(chosen, wanted[0], request))
        case "run":
            commands.run([commands.claim_of(chosen, name) for name in wanted], request, jobs)
        case "report":
            commands.report(declared, request, Path(request.results_dir) / (Path(settings["file"]).stem or "claims"))


def _request(settings: dict[str, str]) -> Request:
    for key in settings.keys() - KEYS.keys():
        raise UserError(f"There is no key {key!r}.{suggest(key, KEYS)}")
    for key, known in (("scale", options("scale")), ("precision", read("config")["choices"]["precision"])):
        if settings[key] and settings[key] not in known:
            raise UserError(f"{key} has no option {settings[key]!r}.{suggest(settings[key], known)}")
    check_device(settings["device"] or "auto")
    overrides = tuple(f"{key}={settings[key]}" for key in ("data_dir", "plugins") if settings[key])
    scale, device, precision, runs_dir, results_dir = (settings[key] for key in ("scale", "device", "precision", "runs_dir", "results_dir"))
    return Request(overrides, scale, device, precision, runs_dir=runs_dir, results_dir=results_dir)


if __name__ == "__main__":
    main()
