"""What starts the jobs of a sweep in Hydra's place: joblib, submitit, Ray, and Optuna, which chooses them. Each is an extra.

A job of theirs is a process of the ordinary command: one that is killed takes none of the others with it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from . import world
from .command import sentence
from .config import Config, identity
from .device import resolve_device
from .places import a_free_one, cores, gpus, shares
from .schema import ENGINES, UserError
from .store import Run

BUILT_IN = "basic"
MODULES = {  # of each extra: what it installs
    BUILT_IN: (),
    "joblib": ("hydra_plugins.hydra_joblib_launcher",),
    "submitit": ("hydra_plugins.hydra_submitit_launcher",),
    "ray": ("ray", "hydra_plugins.sam_repro_ray"),
    "optuna": ("hydra_plugins.hydra_optuna_sweeper",),
}
reports: list[Callable[[], None]] = []  # what ends the sweep that this process has begun
# Our files have the names of the plug-ins' own, whose types they then get: what is meant here.
warnings.filterwarnings("ignore", r"\s*'hydra/(launcher|sweeper)/\w+' is validated against ConfigStore schema")


def asked_for(words: Sequence[str]) -> bool:
    """Whether another launcher than Hydra's own is to start the jobs."""
    return any(word.startswith("hydra/launcher=") and not word.endswith(f"={BUILT_IN}") for word in words)


def with_engines(words: Sequence[str]) -> list[str]:
    """The words of a command, with our settings of Optuna; UserError where they ask for an engine that is not installed."""
    if asked_for(words) and world.count() > 1:
        raise UserError("A launcher starts the processes of each job itself: leave torchrun out, and say processes=N.")
    for word in words:
        group, _, option = word.partition("=")
        extra = option.partition("_")[0]
        if option in ENGINES.get(group, ()) and (missing := [name for name in MODULES[extra] if not _is_there(name)]):
            raise UserError(f'{word} needs {missing[0]}: pip install "sam-repro[{extra}]".')
    return ["hydra/sweeper=optuna_score" if word == "hydra/sweeper=optuna" else word for word in words]


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor what it is a part of
        return False


def ended_early(error: Exception) -> None:
    """Say that a sweep ended before its jobs did, as joblib's does when one of its own processes is killed. The user's errors pass."""
    if sentence(error) is not None:
        raise error
    said = str(error).strip().partition("\n")[0] or type(error).__name__
    print(f"sam_repro: the sweep ended early: {said}", file=sys.stderr)


def launcher() -> str:
    """The option of ``hydra/launcher`` that this job was started by."""
    return str(HydraConfig.get().runtime.choices["hydra/launcher"])


def run(config: Config, overrides: Sequence[str]) -> None:
    """A job of a sweep as a process of its own, at a place of its own where the launcher leaves that to us; it says what it has to say."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        raise UserError(f"hydra/launcher={launcher()} starts the jobs of a sweep: add -m.")
    command = [sys.executable, "-m", "sam_repro", *overrides]
    at_a_time = several(launcher(), hydra.launcher, cores())
    if not at_a_time:
        subprocess.run(command, cwd=hydra.runtime.cwd)
        return
    with a_free_one(_places(config, at_a_time), Path(hydra.sweep.dir).absolute() / ".places") as place:
        subprocess.run(command, cwd=hydra.runtime.cwd, env={**os.environ, **place})


def _places(config: Config, at_a_time: int) -> list[dict[str, str]]:
    """Those of this machine: one for each GPU; one in all for jobs that have several processes, and so all GPUs."""
    if config["processes"] > 1:
        return [{}]
    there = gpus(config["device"])
    return shares(len(there) or at_a_time, there, cores())


def several(name: str, keys: Mapping[str, Any], cores: int) -> int:
    """How many jobs a launcher runs at a time on this machine, without GPUs; 0 where it places its jobs itself."""
    if name == "joblib":
        return int(keys["n_jobs"]) if keys["n_jobs"] > 0 else max(1, cores + 1 + keys["n_jobs"])
    if name == "submitit_local":
        return max(1, cores // int(keys["cpus_per_task"] or 1))
    return 0


def id_of(config: Config) -> str:
    """The id of a job's run; the machine that looks for it need not have the GPU that was asked for."""
    return identity(config if config["device"] != "auto" else resolve_device(config))


def validation_score(config: Config) -> float | None:
    """The last score of a finished run on the part that was held out; None where there is none."""
    if not config["val_fraction"] or config["dry_run"]:
        return None
    run = Run(config["runs_dir"], id_of(config))
    return float(run.summary["score_last"]) if run.state == "done" else None
