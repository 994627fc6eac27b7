"""``compile=stages``: each stage of a model compiled on its own."""

from __future__ import annotations

from torch import nn

from ..chain import Chain

BACKEND = "inductor"
# Of one stage: training with and without statistics that move, from an input that is cut from its graph or not, without a graph; in
# evaluation mode; each for whole batches, for the last one, and for what a method chooses of them. Torch's own limit is 8, and past
# it a stage would silently run uncompiled.
VARIANTS = 32


def compile_stages(model: nn.Module) -> None:
    """Compile in place: the names of parameters stay. A model that is no chain is one stage.

    As no stage knows of the others, a pass that starts or stops at another one than before compiles nothing anew.
    """
    from torch._dynamo import config as limits  # takes seconds

    stages = list(model) if isinstance(model, Chain) else [model]
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 2 * VARIANTS * len(stages))  # of all stages together
    for stage in stages:
        stage.compile(backend=BACKEND, dynamic=False, recompile_limit=VARIANTS, isolate_recompiles=True)
