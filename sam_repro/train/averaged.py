"""Averages of the weights (``ema``, ``swa``): the updates are those of ``torch.optim.swa_utils``.

Its ``AveragedModel`` itself would have the host wait for the device at every step, for the number of models that it has seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn


class Averaged:
    """A model whose weights are an average of another's; what is scored, once it has seen one."""

    def __init__(self, model: nn.Module, *, ema: float, swa: float) -> None:
        self.ema, self.swa = ema, swa
        self.model = deepcopy(model).requires_grad_(False)
        self.seen = 0
        self._update: Any = get_ema_multi_avg_fn(ema) if ema else get_swa_multi_avg_fn()

    def after_step(self, model: nn.Module) -> None:
        """The exponential mean takes every step in, and BatchNorm's running statistics with the weights."""
        if self.ema:
            self._take([*model.parameters(), *model.buffers()], [*self.model.parameters(), *self.model.buffers()])

    def after_epoch(self, model: nn.Module, done: float) -> None:
        """SWA takes in the weights that an epoch ends with (Izmailov et al. 2018, algorithm 1); ``done``: the share of the training."""
        if self.swa and done > self.swa:
            self._take(list(model.parameters()), list(self.model.parameters()))
            for mine, its in zip(self.model.buffers(), model.buffers(), strict=True):
                mine.copy_(its)

    @torch.no_grad()
    def _take(self, current: list[Tensor], averaged: list[Tensor]) -> None:
        pairs = list(zip(averaged, current, strict=True))
        moving = [pair for pair in pairs if self.seen and pair[0].is_floating_point()]
        for dtype in {mine.dtype for mine, _ in moving}:
            of_it = [pair for pair in moving if pair[0].dtype == dtype]
            self._update([mine for mine, _ in of_it], [its for _, its in of_it], self.seen)
        for mine, its in pairs:
            if not self.seen or not mine.is_floating_point():  # the first, and counters
                mine.copy_(its)
        self.seen += 1

    def renew_statistics(self, inputs: Iterable[Any], device: torch.device) -> None:
        """BatchNorm's running statistics of SWA's weights, which are of none of the models that were averaged: one pass over ``inputs``.

        As ``swa_utils.update_bn``, in which the host waits for the device at every normalisation of every batch.
        """
        norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
        self.model.train()
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ):  # dropout draws: not from the training's
            for before, batch in enumerate(inputs):
                for norm in norms:
                    norm.momentum = 1 / (before + 1)  # the mean of all batches so far
                self.model(batch)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.model.eval()

    def state_dict(self) -> dict[str, Any]:
        """To go on from."""
        return {"seen": self.seen, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.seen = state["seen"]
        self.model.load_state_dict(state["model"])
