"""What is taken down of an epoch: sums on the device, and a row when it ends."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import world
from ..data import Batch
from ..optim import HostCopy, Report
from ..schema import Diverged
from ..store import Row
from ..tracking.console import Display
from .job import Job
from .processes import gathered, total
from .score import METRICS, accuracy, widest
from .steps import WatchedSteps

SUMS = ("loss", "layer_norms", "norm", "skipped")  # on the device
COUNTS = ("steps", "ascents", "forward_units", "backward_units", "whole", "lr")


class EpochRecord:
    """The sums of an epoch, on the device until it ends."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.number = job.epoch + 1
        self.started = time.perf_counter()
        self.steps = self.ascents = 0
        self.forward_units = self.backward_units = 0.0
        self.perturbed: Counter[str] = Counter()
        self.loss = torch.zeros((), device=job.device)
        self.layer_norms = torch.zeros(len(job.gradient.structure.layers), device=job.device)
        self.norm = torch.zeros((), device=job.device)
        self.skipped = torch.zeros((), device=job.device)  # steps, under fp16
        self.predictions: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.whole = 0  # samples of all processes
        self.lr = 0.0
        self.reused: dict[str, list[Tensor]] = {}
        self.watched = WatchedSteps(job)
        self._recent: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # loss, norm, layers' norms, batch of the last steps
        self._all_finite: HostCopy | None = None
        self._shown = 0.0
        self._on_its_way: HostCopy | None = None

    def step(self, report: Report, samples: Batch, lr: float, taken: Tensor | None) -> None:
        """Add what a step reports; the norms of one that was not taken, which overflowed, are left out."""
        norms = report.layer_norms
        if taken is not None:
            norms = norms.where(taken, 0.0)
            self.skipped += ~taken
        self.steps += 1
        self.ascents += report.ascended
        self.forward_units += report.forward_units
        self.backward_units += report.backward_units
        self.perturbed.update(report.layers)
        self.loss += report.loss * len(samples.targets)
        self.layer_norms += norms
        norm = norms.norm()
        self.norm += norm
        self._recent.append((report.loss, norm, norms, samples.indices))
        self.predictions.append(report.outputs.argmax(1))
        self.targets.append(samples.labels)
        self.whole += samples.whole
        self.lr = lr
        for name, number in report.reused.items():
            self.reused.setdefault(name, []).append(number)
        self.watched.add(report, samples)

    @property
    def samples(self) -> int:
        """Seen so far, by this process."""
        return sum(map(len, self.targets))

    def show(self, display: Display) -> None:
        """Twice a second: send for the numbers, and show those that have arrived."""
        now = time.perf_counter()
        if self._on_its_way is not None and self._on_its_way.ready():
            loss, score = self._on_its_way.value().tolist()
            done = self.steps + (self.number - 1) * len(self.job.batches)
            display.step(self.number, done, loss, score, self.whole / (now - self.started))
            self._on_its_way = None
        elif self._on_its_way is None and now - self._shown > 0.5:
            self._shown = now
            running = accuracy(torch.cat(self.predictions), torch.cat(self.targets))  # on the device, whatever the metric
            self._on_its_way = HostCopy(torch.stack([self.loss / self.samples, running.to(self.loss.dtype)]))

    def check(self) -> None:
        """Every ``check_every`` steps: send for whether all is finite; Diverged, which names the step, where word has come that it is not.

        Several processes look where the epoch ends, for all of them have to come to the same conclusion.
        """
        if self._all_finite is not None and self._all_finite.ready():
            if not self._all_finite.value():
                self._diverge({"loss": self.loss.item(), "gradient norm": self.norm.item()})
            self._all_finite = None
        every = self.job.config["check_every"]
        if self.steps % every:
            return
        self._recent = self._recent[-every:]
        if world.count() == 1 and self._all_finite is None:
            self._all_finite = HostCopy((self.loss + self.norm).isfinite())

    def _diverge(self, numbers: dict[str, float]) -> None:
        """Diverged, with what is known of the step, where a number is not finite."""
        try:
            check_finite(self.number, numbers)
        except Diverged as error:
            error.found = self._first_lost()
            raise

    def _first_lost(self) -> dict[str, Any]:
        """Of the first of the recent steps whose loss or norm is not finite: its number, its batch, and the numbers of the one before."""
        finite = torch.stack([(loss + norm).isfinite() for loss, norm, _, _ in self._recent]).tolist() if self._recent else [True]
        if all(finite):
            return {}
        place = finite.index(False)
        step = self.steps - len(self._recent) + place + 1
        found: dict[str, Any] = {"step": step, "batch": self._recent[place][3].tolist()}
        if place:
            loss, norm, layers, _ = self._recent[place - 1]
            names = [layer.name for layer in self.job.gradient.structure.layers]
            found["step_before"] = {"loss": loss.item(), "grad_norm": norm.item(), "layers": dict(zip(names, layers.tolist(), strict=True))}
        return found

    def state(self) -> dict[str, Any]:
        """To go on from, within the epoch."""
        sums = {name: getattr(self, name) for name in (*SUMS, *COUNTS)}
        seen = {name: torch.cat(getattr(self, name)) for name in ("predictions", "targets")}
        reused = {name: torch.stack(numbers) for name, numbers in self.reused.items()}
        seconds = time.perf_counter() - self.started
        return {**sums, **seen, "reused": reused, "perturbed": dict(self.perturbed), "seconds": seconds, "watched": self.watched.state()}

    def take(self, state: dict[str, Any]) -> None:
        """Go on from there; of an epoch that has not begun the state is empty."""
        if not state:
            return
        for name in (*SUMS, *COUNTS):
            setattr(self, name, state[name])
        self.predictions, self.targets = [state["predictions"]], [state["targets"]]
        self.reused = {name: list(numbers) for name, numbers in state["reused"].items()}
        self.perturbed = Counter(state["perturbed"])
        self.started -= state["seconds"]
        self.watched.take(state["watched"])

    def close(self) -> tuple[Row, list[Row]]:
        """The epoch's row of metrics (without the score) and its rows of layers.

        Raises Diverged where the loss, the gradient's norm or the model is no longer finite.
        """
        self.job.average()
        model = self.job.model
        moving = [buffer for name, buffer in model.named_buffers() if name not in self.job.endless]
        sums = [
            total(self.loss),
            self.norm,
            self.skipped,
            *(norm_of(tensors, self.loss.device) for tensors in (model.parameters(), moving)),
        ]
        # Waits for the device: the work is done.
        loss, norm, skipped, weights, buffers = torch.stack([number.to(widest(self.loss.device)) for number in sums]).tolist()
        seconds = time.perf_counter() - self.started
        taken = self.steps - int(skipped)
        norm = norm / taken if taken else math.nan
        self._diverge({"loss": loss, "gradient norm": norm, "weights": weights, "buffers": buffers})
        row = {
            "epoch": self.number,
            "train_loss": loss / self.whole,
            "train_score": self._score().item(),
            "score": None,
            "lr": self.lr,
            "images_per_second": self.whole / seconds,
            "sampling_number": self.ascents,
            "grad_norm": norm,
            "weight_norm": weights,
            "seconds": seconds,
            "steps": self.steps,
            "forward_units": self.forward_units,
            "backward_units": self.backward_units,
            **({"skipped_steps": self.steps - taken} if self.job.scaler.is_enabled() else {}),
            **{name: finite_mean(numbers) for name, numbers in self.reused.items()},
        }
        names = [layer.name for layer in self.job.gradient.structure.layers]
        norms = (self.layer_norms / taken).tolist()
        return row, [
            {"epoch": self.number, "layer": name, "grad_norm": norm, "perturbations": self.perturbed[name]}
            for name, norm in zip(names, norms, strict=True)
        ]

    def _score(self) -> Tensor:
        said, true = gathered(torch.cat(self.predictions)), gathered(torch.cat(self.targets))
        return METRICS[self.job.dataset.metrics[0]](said, true)


def finite_mean(numbers: list[Tensor]) -> float:
    """Of those that are finite: under fp16 an ascent may overflow."""
    found = torch.stack(numbers)
    return found[found.isfinite()].mean().item()


def norm_of(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """Of all floating ones together; in float64, where there is one, it overflows for no finite float32."""
    norms = [torch.linalg.vector_norm(tensor.detach(), dtype=widest(device)) for tensor in tensors if tensor.is_floating_point()]
    return torch.stack(norms).norm() if norms else torch.zeros((), device=device)


def check_finite(epoch: int, numbers: Mapping[str, float]) -> None:
    """Diverged, which names them, where numbers of an epoch are not finite."""
    if lost := [name for name, number in numbers.items() if not math.isfinite(number)]:
        raise Diverged(
            f"The training diverged in epoch {epoch}: not finite any more: {', '.join(lost)}. Lower lr or the perturbation "
            "(rho, r), warm up (schedule.warmup=1), or clip the gradient (clip=1).",
            epoch,
            lost,
        )
