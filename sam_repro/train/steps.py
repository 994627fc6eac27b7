"""``steps.csv``: loss and gradient norms of every n-th step, for those who ask (``norms_every``).

The data of KDD'24, Fig. 1 and 4, and of vSAM, Fig. 2, step by step. The columns:

- ``step`` (from 0, over the whole run), ``epoch`` (from 1), ``sampling_rate`` (where the method sets one as it goes),
- ``loss`` (of the batch, at w), ``grad_norm`` (of the whole model, the last pass's gradient),
- ``plain_norm``, ``psf_norm``, ``curvature``: |g|, |g_s - g| and eps^T H eps / |eps|^2 over the perturbed parameters, in steps
  with an ascent,
- ``grad_norm.<layer>``: of every layer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data import Batch
from ..optim import Report
from ..schema import UserError
from ..store import Run
from .processes import total

if TYPE_CHECKING:
    from .job import Job

COLUMNS = ("step", "epoch", "sampling_rate", "loss", "grad_norm", "plain_norm", "psf_norm", "curvature")


class WatchedSteps:
    """The steps of an epoch that are written down; their numbers stay on the device until the epoch ends."""

    def __init__(self, job: Job) -> None:
        self.gradient, self.every = job.gradient, job.config["norms_every"]
        self.epoch = job.epoch + 1
        self.rates: list[tuple[int, float | None]] = []
        self.numbers: list[Tensor] = []

    def begin(self) -> None:
        """Have the method watch the step to come, if it is one of them."""
        self.gradient.watch = self.every > 0 and self.gradient.step % self.every == 0

    def add(self, report: Report, samples: Batch) -> None:
        """Take the step that was just made, if it is one of them."""
        if not self.gradient.watch:
            return
        norms, watched = report.layer_norms, report.watched
        nothing = torch.full_like(report.loss, math.nan)
        found = (watched.plain_norm, watched.psf_norm, watched.curvature) if watched else (None, None, None)
        part = report.loss * (len(samples.targets) / samples.whole)  # of the loss of all processes
        first = [part, norms.norm(), *(nothing if number is None else number for number in found)]
        self.numbers.append(torch.cat([torch.stack([number.to(norms.dtype) for number in first]), norms]))
        self.rates.append((self.gradient.step - 1, watched.sampling_rate if watched else None))

    def state(self) -> dict[str, Any]:
        """To go on from."""
        return {"rates": self.rates, "numbers": self.numbers}

    def take(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.rates, self.numbers = state["rates"], state["numbers"]

    def lines(self) -> list[str]:
        """The epoch's lines of the file; waits for the device."""
        if not self.numbers:
            return []
        numbers = torch.stack(self.numbers)
        numbers[:, 0] = total(numbers[:, 0])
        rows = numbers.tolist()
        return [_line(step, self.epoch, rate, *row) for (step, rate), row in zip(self.rates, rows, strict=True)]


def earlier_lines(run: Run, job: Job) -> list[str]:
    """The lines of the finished epochs, after that of the columns' names; none where nobody ever asked for any."""
    path = run.path / "steps.csv"
    lines = run.text(path.name).splitlines() if path.exists() else []
    if not lines and not job.config["norms_every"] and not job.kept.get("lines"):
        return []
    columns = [*COLUMNS, *(f"grad_norm.{layer.name}" for layer in job.gradient.structure.layers)]
    kept = [line for line in lines[1:] if _epoch(line, len(columns)) <= job.epoch]
    if any(_epoch(line, len(columns)) == math.inf for line in lines[1:-1]) or len(kept) + 1 < job.kept.get("lines", 0):
        raise UserError(f"{path} is damaged: rerun=true starts the run anew.")
    return [",".join(columns), *kept]


def _epoch(line: str, columns: int) -> float:
    """That a line is of; infinite where it is none, as the last one of a process that was killed."""
    cells = line.split(",")
    return int(cells[1]) if len(cells) == columns and cells[1].isdecimal() else math.inf


def _line(*cells: float | None) -> str:
    return ",".join("" if cell is None or math.isnan(cell) else f"{cell:.7g}" if isinstance(cell, float) else str(cell) for cell in cells)
