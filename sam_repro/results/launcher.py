"""The runs of a table through one of Hydra's launchers: the queue of a cluster, a pool of processes, another machine.

``python -m sam_repro.tables run kdd24/table1 hydra/launcher=submitit_slurm hydra.launcher.timeout_min=600``
"""

from __future__ import annotations

from typing import Any

from ..complaints import explain
from ..engines import ended_early, with_engines
from ..schema import CONF, UserError
from ..store import OVER
from .declare import Words
from .select import Request
from .work import Task

MODE = ("hydra.mode=MULTIRUN",)  # of every job as well: what fails is written down, and the next goes on
PREFIXES = ("hydra/launcher=", "hydra.launcher.")


def launch(todo: list[Task], request: Request, words: Words) -> list[Task]:
    """Hand all runs to the launcher that ``words`` choose and wait for it; returns what neither finished nor diverged.

    Hydra's sweeps launch products of options, the runs of a table are none: the launcher is asked directly, for every run the
    overrides of its ordinary command. UserError if there is no such launcher.
    """
    import hydra
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.errors import HydraException
    from hydra.types import HydraContext, RunMode

    from ..__main__ import job

    words = tuple(with_engines(words))
    with hydra.initialize_config_dir(str(CONF), job_name="sam_repro", version_base="1.3"):
        engine: Any = GlobalHydra.instance().hydra
        try:
            config = engine.compose_config("config", [*words, *MODE, f"runs_dir={request.runs_dir}"], RunMode.MULTIRUN, False)
            context = HydraContext(config_loader=engine.config_loader, callbacks=Callbacks())
            launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=job, config=config)
        except (HydraException, RuntimeError, ImportError) as error:  # no such option, no launcher, not installed
            raise UserError(explain(error, words)) from error
        try:
            launcher.launch([task.overrides(request) for task in todo], initial_job_idx=0)
        except Exception as error:
            ended_early(error)
    return [task for task in todo if task.run.state not in OVER]
