"""Hydra's launcher for Ray: a job is a task. (hydra-ray-launcher 1.2 asks for cloudpickle < 3, and scikit-learn for a later one.)

Hydra looks for launchers in packages of this name alone. Ray is imported where it is used.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class RayLauncher(Launcher):
    """``conf/hydra/launcher/ray.yaml`` has the keys."""

    def __init__(self, address: str | None, num_cpus: float, num_gpus: float | None) -> None:
        self.address, self.num_cpus, self.num_gpus = address, num_cpus, num_gpus

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What Hydra has to say before it launches."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """All jobs, and their ends; one whose process was killed has failed, and stops no other."""
        import ray

        if not ray.is_initialized():
            dashboard = False if self.address is None else None  # a cluster's is not ours to turn off
            ray.init(address=self.address, logging_level=logging.WARNING, log_to_driver=False, include_dashboard=dashboard)
        num_gpus = self.num_gpus if self.num_gpus is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
        task = ray.remote(num_cpus=self.num_cpus, num_gpus=num_gpus, max_retries=0)(_job)
        shared = (self.hydra_context, self.task_function, self.config, Singleton.get_state())
        jobs = [task.remote(*shared, list(words), initial_job_idx + index) for index, words in enumerate(job_overrides)]
        return [_end(job) for job in jobs]


def _job(
    context: HydraContext, function: TaskFunction, config: DictConfig, state: dict[Any, Any], words: list[str], number: int
) -> JobReturn:
    """One job, in a process of Ray's."""
    setup_globals()
    Singleton.set_state(state)
    composed = context.config_loader.load_sweep_config(config, words)
    with open_dict(composed):
        composed.hydra.job.id, composed.hydra.job.num = f"{composed.hydra.job.name}_{number}", number
    HydraConfig.instance().set_config(composed)
    return run_job(
        hydra_context=context, task_function=function, config=composed,
        job_dir_key="hydra.sweep.dir", job_subdir_key="hydra.sweep.subdir",
    )  # fmt: skip


def _end(job: Any) -> JobReturn:
    import ray

    try:
        return ray.get(job)
    except ray.exceptions.RayError as error:
        return JobReturn(status=JobStatus.FAILED, _return_value=error)
