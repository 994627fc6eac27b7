"""Sweeps: every combination is checked before the first job starts, and one table ends it."""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from . import engines
from .config import Config, finish
from .engines import BUILT_IN, id_of
from .fingerprint import fingerprint, other_data
from .plain import say
from .provide import provide_all
from .schema import Diverged, UserError, parse
from .store import OVER, Run
from .trial import Trial

SAID = {"done": "done already", "new": "to run", "stopped": "to go on", "failed": "to try again", "diverged": "diverged"}


class Sweep(Callback):
    """Hydra's callback for ``-m``; the launcher, Hydra's own or another, does the work in between."""

    def __init__(self) -> None:
        self.jobs: list[tuple[list[str], Config]] = []
        self.best: Path | None = None  # where a sweeper that chooses the jobs itself writes what came of them

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Compose and check every combination; one that does not fit refuses the sweep, and is named."""
        chooses = config.hydra.runtime.choices["hydra/sweeper"] != BUILT_IN
        trial = Trial()
        for overrides in [an_example(config)] if chooses else combinations(config):
            try:
                job = finish(hydra.compose("config", overrides), overrides)
                if chooses and not job["val_fraction"]:
                    raise UserError("A sweeper tunes on a held-out part, never on the test set: val_fraction=0.1 holds out a tenth.")
                if Run(job["runs_dir"], id_of(job)).state not in OVER:
                    trial.check(job)
                self.jobs.append((overrides, job))
            except Exception as error:
                sys.exit(f"sam_repro: no job was started, for this one does not fit: {' '.join(overrides)}\n{reason(error, overrides)}")
        engines.reports[:] = [self.report]
        if chooses:
            self.best = Path(config.hydra.sweep.dir) / "optimization_results.yaml"
            self.best.unlink(missing_ok=True)
        else:
            if config.hydra.runtime.choices["hydra/launcher"] == BUILT_IN:  # another may start them where other data are
                self._provide()
            states = Counter(Run(job["runs_dir"], id_of(job)).state for _, job in self.jobs)
            print(
                "\n".join([f"{len(self.jobs)} jobs", *(f"  {count} {SAID.get(state, state)}" for state, count in states.items())]),
                flush=True,
            )

    def _provide(self) -> None:
        """Fetch the data that are not here; where they cannot be had no job is started."""
        todo = [(words, job) for words, job in self.jobs if not job["dry_run"] and Run(job["runs_dir"], id_of(job)).state not in OVER]
        try:
            provide_all(todo)
        except UserError as error:
            sys.exit(f"sam_repro: no job was started, {error}")

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table of the sweep from the store; exit status 1 if a job did not end well, 3 if all that did not diverged."""
        try:
            self.report()
        except Exception:  # Hydra would make a warning of it, and exit status 0
            traceback.print_exc()
            sys.exit(1)

    def report(self) -> None:
        """The table, and the exit status; of a sweeper that chose the jobs, the best."""
        if self.best is not None:
            _show_best(self.best)
            return
        from .runs import rows_of
        from .tracking.console import show_runs

        runs = [Run(job["runs_dir"], id_of(job)) for _overrides, job in self.jobs]
        print()
        show_runs(rows_of(runs, [job for _, job in self.jobs]))
        dry = all(job["dry_run"] for _, job in self.jobs)
        states = [_state(run, job) for run, (_, job) in zip(runs, self.jobs, strict=True)]
        diverged, unfinished = states.count("diverged"), sum(state not in OVER for state in states)
        if diverged and not dry:
            print(f"sam_repro: {diverged} of {len(runs)} jobs diverged; rerun=true runs them again.", file=sys.stderr)
        if unfinished and not dry:
            sys.exit(f"sam_repro: {unfinished} of {len(runs)} jobs did not finish; the same command runs what is missing.")
        if diverged and not dry:
            sys.exit(Diverged.exit_status)


def _show_best(path: Path) -> None:
    """What Optuna found; exit status 1 where no run finished."""
    if not path.exists():
        sys.exit("sam_repro: none of the runs came to an end with a score.")
    found = parse(path.read_text())
    words = " ".join(f"{key}={value}" for key, value in found["best_params"].items())
    say(f"\nbest: {words}, with {found['best_value']:.2f} on the held-out part ({path}).")


def _state(run: Run, job: Config) -> str:
    """``refused`` where the job found other data than those that the run was trained on."""
    found = fingerprint(job["dataset"], job["data_dir"])
    return "refused" if other_data(run, found, job["data_dir"]) else run.state


def combinations(config: DictConfig) -> list[list[str]]:
    """The overrides of every job of a sweep, as Hydra's basic sweeper makes them."""
    return BasicSweeper.split_arguments(_parsed(config), None)[0]


def an_example(config: DictConfig) -> list[str]:
    """The overrides of a job that a sweeper might choose: of each choice the first, of each interval the lower end."""
    return [f"{one.get_key_element()}={_first(one)}" for one in _parsed(config)]


def _first(one: Override) -> Any:
    if not one.is_sweep_override():
        return one.get_value_element_as_str()
    value = one.value()
    return value.start if isinstance(value, IntervalSweep) else next(iter(one.sweep_string_iterator()))


def _parsed(config: DictConfig) -> list[Override]:
    hydra_config = config.hydra
    written = [f"{key}={value}" for key, value in (hydra_config.sweeper.get("params") or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    return parser.parse_overrides([*written, *hydra_config.overrides.task])


def reason(error: Exception, overrides: list[str]) -> str:
    """The error in the user's words."""
    from .complaints import explain

    return str(error) if isinstance(error, UserError) else explain(error, overrides)
