"""``python -m sam_repro [overrides]``: train, or with ``-m`` sweep.

Exit status: 0 done, 1 an error, which is one sentence, 3 the training diverged, 128 + n stopped by signal n (130: Ctrl-C).
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from . import engines, flags, front, plugins, world
from .command import command, leave, sentence
from .config import check_named_after, check_overrides, finish, identity
from .console import console
from .device import gpus, resolve_device
from .plain import plain
from .schema import CONF, GROUPS, Diverged, UserError, read
from .store import Run, Watched


def job(composed: DictConfig) -> float | None:
    """One run of what Hydra composed; in a sweep a failure is written down, and the next job goes on.

    Returns the score of the held-out part, which is what a sweeper may tune; None where there is no such score.
    """
    overrides = list(HydraConfig.get().overrides.task)
    try:
        plugins.load(overrides)  # in a launcher's process nobody has
        config = finish(composed, overrides)
        if engines.launcher() == engines.BUILT_IN:
            launch(config, overrides, brief=HydraConfig.get().mode == RunMode.MULTIRUN)
        else:
            engines.run(config, overrides)
        return engines.validation_score(config)
    except Exception as error:
        said = sentence(error)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            print(f"sam_repro: {plain(said or traceback.format_exc())}", file=sys.stderr)
        elif said is not None:
            leave("sam_repro", said, error)
        else:
            raise
    return None


app = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)


def launch(config: dict[str, Any], overrides: list[str], *, brief: bool = False) -> None:
    """Run a configuration, unless the store has it already, which is said; not where ``brief``: the table of a sweep says it."""
    from .fingerprint import check_data, describe
    from .tracking.console import show_summary
    from .tracking.follow import show_finished

    config = resolve_device(of_this_process(config))
    _say_what_is_unused(config)
    run = (Run if world.rank() == 0 else Watched)(config["runs_dir"], identity(config))
    if config["dry_run"]:
        if world.count() > 1:
            raise UserError("dry_run=true is for one process: leave torchrun out.")
        from .dry_run import dry_run  # imports torch, as does the training below: a run that is over needs none

        dry_run(config, run)
        return
    kept = not config["rerun"] and (run.state in ("done", "diverged") or run.begun)
    if kept and (run.path / "config.yaml").exists():
        check_named_after(run)
    data = check_data(run, config) if kept else None
    if not config["rerun"] and run.state == "done" and brief:
        show_finished(config, run)
        return
    if not config["rerun"] and run.state == "done":
        console.print(f"Run {run.id} is done already; rerun=true runs it again.")
        if not data and (known := run.status.get("data")):
            console.print(f"Its data, {describe(known)}, are not at hand (data_dir={config['data_dir']}): nothing was compared.")
        show_summary(run.summary, str(run.path))
        show_finished(config, run)
        return
    if not config["rerun"] and run.state == "diverged":
        show_finished(config, run)
        raise Diverged(run.verdict)  # again the same numbers would come of it
    from .provide import provide
    from .train.loop import train
    from .trial import Trial

    trial = Trial()
    trial.check(config)  # before data are fetched, and before there is a directory of a run that cannot be
    if not run.begun or config["rerun"]:
        trial.check_beginning(config)
    provide(config)
    verb = "resumes" if run.begun and not config["rerun"] else "starts"
    with run.held(config, " ".join(["python -m sam_repro", *overrides])):
        console.print(f"Run {run.id} {verb}: {run.path}")
        summary = train(config, run)
    show_summary(summary, str(run.path))


def of_this_process(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the number of processes that there are; UserError where another one was asked for."""
    if config["processes"] not in (1, world.count()):
        raise UserError(f"processes={config['processes']} was asked for, and torchrun has started {world.count()}.")
    return {**config, "processes": world.count(), "logger": config["logger"] if world.rank() == 0 else []}


def _say_what_is_unused(config: dict[str, Any]) -> None:
    if config["device"] == "mps":
        console.print("device=mps is untested: compare a short run with device=cpu.")
    if config["device"].startswith("cuda") and world.count() == 1 and (there := gpus()) > 1:
        console.print(f"This takes one GPU of {there}: processes={there} takes all of them, each with a part of every batch.")


def main() -> None:
    """The command ``sam-repro``; errors of the user's are one sentence."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing them
    if front.go_to_command(sys.argv[1:]):
        return
    with command("sam_repro", "the same command (without rerun=true) resumes after the last finished epoch"):
        sys.argv[1:] = flags.in_order(sys.argv[1:])
        if front.shown(sys.argv[1:]):
            return
        check_overrides([word for word in sys.argv[1:] if not word.startswith("-")])
        plugins.load(sys.argv[1:])
        sys.argv[1:] = engines.with_engines(sys.argv[1:])
        if "--multirun" in sys.argv:
            sys.argv[1:] = spread(sys.argv[1:])
        if world.count() == 1 and not engines.asked_for(sys.argv[1:]) and (wanted := asked_for(sys.argv[1:])) > 1:
            from .ranks import start

            sys.exit(start(wanted, sys.argv[1:]))
        try:
            app()
        except Exception as error:
            if not engines.reports:
                raise
            engines.ended_early(error)
            engines.reports[0]()


def asked_for(words: list[str]) -> int:
    """The number of processes that the words want; of a wrong one the configuration will say so."""
    found = [word.partition("=")[2] for word in words if word.startswith("processes=")]
    return int(found[-1]) if found and found[-1].isdecimal() else 1


def spread(words: list[str]) -> list[str]:
    """``seed=3`` as ``seed=choice(3)``, in a sweep.

    Hydra composes a configuration of its own for a sweep, from the defaults and the plain overrides. Those that belong to
    an option swept over (``model=wrn16_2,wrn28_10 model.dropout=0.3``) would not fit it.
    """
    parser, core = OverridesParser.create(), read("config")
    result = []
    for word in words:
        key, _, value = word.partition("=")
        everywhere = not value or key.startswith(("-", "hydra")) or key in GROUPS or key in core
        sweep = everywhere or parser.parse_override(word).is_sweep_override()
        result.append(word if sweep else f"{key}=choice({value})")
    return result


if __name__ == "__main__":
    from sam_repro.__main__ import main  # under the name by which the processes of a launcher find the job

    main()
