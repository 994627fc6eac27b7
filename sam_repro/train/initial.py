"""Beginning with the weights of another run (``init_from``)."""

from __future__ import annotations

import torch
from torch import nn

from ..checkpoints import readable
from ..models.weights import load, shape
from ..schema import UserError
from ..store import find


def begin_from(model: nn.Module, run: str, runs_dir: str, device: torch.device) -> str:
    """Give the model the weights that the run ``run`` ended with, the averaged ones where it was scored by those; "" leaves it alone.

    The last stage begins anew where its shapes are others, as for other classes. Returns what was done, in words.

    Raises UserError, which lists what does not fit anywhere else.
    """
    if not run:
        return ""
    found = find(runs_dir, run)
    if not found.checkpoint.exists():
        raise UserError(
            f"init_from={run}: {found.checkpoint} is not there any more: 'rerun=true' with the command of that run makes it anew."
        )
    with readable(found.checkpoint):
        state = torch.load(found.checkpoint, map_location=device, weights_only=True)
        averaged = state.get("averaged", {"seen": 0})
        weights = averaged["model"] if averaged["seen"] else state["model"]
        own = model.state_dict()
        *_, (last, _) = model.named_children()
        anew = [key for key in own if key.startswith(f"{last}.") and key in weights and shape(weights[key]) != shape(own[key])]
    said = f"init_from={run}: the weights of that run ({found.summary['model']}) do not fit this model"
    load(model, {**weights, **{key: own[key] for key in anew}}, said)
    return f"begins with the weights of run {found.id}{', but for ' + ', '.join(anew) if anew else ''}"
