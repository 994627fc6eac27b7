"""Sweeps: every combination is checked before the first job starts, and one table ends it."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from .config import Config, finish, identity
from .fingerprint import fingerprint, other_data
from .schema import Diverged, UserError
from .store import OVER, Run


class Sweep(Callback):
    """Hydra's callback for ``-m``; the launcher, Hydra's own or another, does the work in between."""

    def __init__(self) -> None:
        self.jobs: list[tuple[list[str], Config]] = []

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Compose and check every combination; one that does not fit refuses the sweep, and is named."""
        for overrides in combinations(config):
            try:
                self.jobs.append((overrides, finish(hydra.compose("config", overrides), overrides)))
            except Exception as error:
                sys.exit(f"sam_repro: no job was started, for this one does not fit: {' '.join(overrides)}\n{reason(error, overrides)}")
        print(f"{len(self.jobs)} jobs")

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table of the sweep from the store; exit status 1 if a job did not end well, 3 if all that did not diverged."""
        try:
            self.report()
        except Exception:  # Hydra would make a warning of it, and exit status 0
            traceback.print_exc()
            sys.exit(1)

    def report(self) -> None:
        """The table, and the exit status."""
        from .device import resolve_device
        from .runs import row_of
        from .tracking.console import show_runs

        runs = []
        for _overrides, job in self.jobs:
            try:
                runs.append(Run(job["runs_dir"], identity(resolve_device(job))))
            except UserError:  # it asked for a GPU that is not there, and said so
                runs.append(Run(job["runs_dir"], "none"))
        rows = [row_of(run, job) for run, (_, job) in zip(runs, self.jobs, strict=True)]
        print()
        show_runs(rows)
        dry = all(job["dry_run"] for _, job in self.jobs)
        states = [_state(run, job) for run, (_, job) in zip(runs, self.jobs, strict=True)]
        diverged, unfinished = states.count("diverged"), sum(state not in OVER for state in states)
        if diverged and not dry:
            print(f"sam_repro: {diverged} of {len(runs)} jobs diverged; rerun=true runs them again.", file=sys.stderr)
        if unfinished and not dry:
            sys.exit(f"sam_repro: {unfinished} of {len(runs)} jobs did not finish; the same command runs what is missing.")
        if diverged and not dry:
            sys.exit(Diverged.exit_status)


def _state(run: Run, job: Config) -> str:
    """``refused`` where the job found other data than those that the run was trained on."""
    found = fingerprint(job["dataset"], job["data_dir"])
    return "refused" if other_data(run, found, job["data_dir"]) else run.state


def combinations(config: DictConfig) -> list[list[str]]:
    """The overrides of every job of a sweep, as Hydra's basic sweeper makes them."""
    hydra_config = config.hydra
    written = [f"{key}={value}" for key, value in (hydra_config.sweeper.get("params") or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = parser.parse_overrides([*written, *hydra_config.overrides.task])
    return BasicSweeper.split_arguments(parsed, None)[0]


def reason(error: Exception, overrides: list[str]) -> str:
    """The error in the user's words."""
    from .config import explain

    return str(error) if isinstance(error, UserError) else explain(error, overrides)
