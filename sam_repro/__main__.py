"""``python -m sam_repro [overrides]``: train, or with ``-m`` sweep.

Exit status: 0 done, 1 an error, which is one sentence, 3 the training diverged, 130 stopped (Ctrl-C, SIGTERM).
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

from .command import command, leave, sentence
from .config import GROUPS, check_overrides, finish, identity
from .schema import CONF, Diverged, read
from .store import Run


def job(composed: DictConfig) -> None:
    """One run of what Hydra composed; in a sweep a failure is written down, and the next job goes on."""
    overrides = list(HydraConfig.get().overrides.task)
    try:
        launch(finish(composed, overrides), overrides)
    except Exception as error:
        said = sentence(error)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            print(f"sam_repro: {said or traceback.format_exc()}", file=sys.stderr)
        elif said is not None:
            leave("sam_repro", said, error)
        else:
            raise


app = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)


def launch(config: dict[str, Any], overrides: list[str]) -> None:
    """Run a configuration, unless the store has it already."""
    from .console import console
    from .device import resolve_device
    from .fingerprint import check_data, describe
    from .tracking.console import show_summary
    from .tracking.follow import show_finished

    config = resolve_device(config)
    if config["device"] == "mps":
        console.print("device=mps is untested: compare a short run with device=cpu.")
    run = Run(config["runs_dir"], identity(config))
    if config["dry_run"]:
        from .dry_run import dry_run  # imports torch, as does the training below: a run that is over needs none

        dry_run(config, run)
        return
    kept = not config["rerun"] and (run.state in ("done", "diverged") or run.checkpoint.exists())
    data = check_data(run, config) if kept else None
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
    from .train.loop import train

    verb = "resumes" if run.checkpoint.exists() and not config["rerun"] else "starts"
    with run.held(config, " ".join(["python -m sam_repro", *overrides])):
        console.print(f"Run {run.id} {verb}: {run.path}")
        summary = train(config, run)
    show_summary(summary, str(run.path))


def main() -> None:
    """The command ``sam-repro``; errors of the user's are one sentence."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing them
    with command("sam_repro", "stopped; the same command (without rerun=true) resumes after the last finished epoch."):
        check_overrides([word for word in sys.argv[1:] if not word.startswith("-")])
        if {"-m", "--multirun"} & set(sys.argv):
            sys.argv[1:] = spread(sys.argv[1:])
        app()


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
    main()
