"""``python -m sam_repro [overrides]``: train, or with ``-m`` sweep."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from .config import explain, finish, identity
from .schema import CONF, UserError
from .train.store import Run


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def app(composed: DictConfig) -> None:
    """One run of what Hydra composed; in a sweep a failure is written down, and the next job goes on."""
    overrides = list(HydraConfig.get().overrides.task)
    try:
        launch(finish(composed, overrides), overrides)
    except Exception as error:
        sentence = _sentence(error)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            print(f"sam_repro: {sentence or traceback.format_exc()}", file=sys.stderr)
        elif sentence is not None:
            sys.exit(f"sam_repro: {sentence}")
        else:
            raise


def launch(config: dict[str, Any], overrides: list[str]) -> None:
    """Run a configuration, unless the store has it already."""
    from .dry_run import dry_run  # these import torch: not before the configuration is known to be right
    from .tracking.console import console, show_summary
    from .train.job import resolve_device
    from .train.loop import train

    config = resolve_device(config)
    run = Run(config["runs_dir"], identity(config))
    if config["dry_run"]:
        dry_run(config, run)
        return
    if config["rerun"]:
        run.clear()
    if run.state == "done":
        console.print(f"Run {run.id} is done already; rerun=true runs it again.")
        show_summary(run.summary, str(run.path))
        return
    verb = "resumes" if run.checkpoint.exists() else "starts"
    with run.held(config, " ".join(["python -m sam_repro", *overrides])):
        console.print(f"Run {run.id} {verb}: {run.path}")
        summary = train(config, run)
    show_summary(summary, str(run.path))


def main() -> None:
    """The command ``sam-repro``: errors of the user's end in one sentence and exit status 1, Ctrl-C in 130."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing them
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit("\nsam_repro: stopped; the same command resumes after the last finished epoch.")
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        sys.exit(f"sam_repro: {sentence}")


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _sentence(error: Exception) -> str | None:
    """An error in the user's words, or None where it is ours."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return explain(error, [arg for arg in sys.argv[1:] if not arg.startswith("-")])
    if type(error).__name__ == "OutOfMemoryError":
        return "The device's memory is full: lower batch_size, or try precision=bf16."
    return None


if __name__ == "__main__":
    main()
