"""The training loop."""

from __future__ import annotations

import gc
import math
import platform
import time
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..data import Batch
from ..fingerprint import check_data, fingerprint
from ..optim import HostCopy, Report
from ..provenance import versions
from ..schema import Diverged, UserError
from ..store import Row, Run
from ..tracking.console import Display
from ..tracking.follow import follow
from .backends import backends, in_force
from .job import Config, Job
from .processes import gathered, together, total
from .score import METRICS, accuracy, evaluate, widest
from .steps import WatchedSteps, earlier_lines


def train(config: Config, run: Run) -> Row:
    """Train ``config`` from the run's last checkpoint, or with ``rerun`` from the beginning, to its end; returns the summary.

    Raises UserError where the configuration does not fit the data or the model, and Diverged where something is no longer finite.
    """
    gc.collect()  # the job before this one in a sweep: its schedule and its optimizer refer to each other
    with backends(config), together(config["device"], run.checkpoint):
        return _trained(_begun(config, run), run)


def _begun(config: Config, run: Run) -> Job:
    """The training where the run stands."""
    job = Job(config)
    if config["rerun"]:
        run.forget()  # not before all that the run needs is there
    if not config["rerun"] and run.checkpoint.exists():
        check_data(run, config)  # once more, for it may have been downloaded just now
        job.resume(run.checkpoint)
    else:
        run.note(data=fingerprint(config["dataset"], config["data_dir"]))
    if job.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(job.device)
    return job


def _trained(job: Job, run: Run) -> Row:
    """From there to its end."""
    config = job.config
    metrics = [row for row in run.metrics() if row["epoch"] <= job.epoch]
    layers = [row for row in run.layers() if row["epoch"] <= job.epoch]
    if len(metrics) != job.epoch or len(layers) != job.epoch * len(job.gradient.structure.layers):
        raise UserError(
            f"metrics.jsonl and layers.csv in {run.path} do not hold the {job.epoch} epochs of the checkpoint: "
            "rerun=true starts the run anew."
        )
    steps = len(job.batches)
    step_lines = earlier_lines(run.path / "steps.csv", job)

    with follow(config, run) as show:
        with Display(steps * config["epochs"], steps * job.epoch, config["epochs"]) as display:
            while not is_over(job, metrics):
                epoch = EpochRecord(job)
                train_epoch(job, epoch, display)
                row, layer_rows = epoch.close()
                scores: dict[str, float] = {}
                if job.epoch % config["score_every"] == 0 or job.epoch == config["epochs"]:
                    scores = evaluate(job.to_score(), job.scored_samples(), job.dataset.metrics, config["precision"])
                    row["score"] = scores.pop(job.dataset.metrics[0])
                    check_finite(epoch.number, {"score": row["score"]})
                metrics.append({**row, **scores, "split": job.split})
                layers += layer_rows
                step_lines += epoch.watched.lines()
                run.record(metrics, layers, step_lines)
                job.save(run.checkpoint)
                if config["early_stopping"] and row["score"] is not None and _best(metrics)["epoch"] == job.epoch:
                    job.save(run.best)
                display.epoch(metrics[-1], left=row["seconds"] * (config["epochs"] - job.epoch))
                show()
        summary = summarise(run.id, job, metrics, layers)
        if config["early_stopping"]:
            run.take_best()
        run.finish(summary)
    return summary


def is_over(job: Job, metrics: list[Row]) -> bool:
    """Whether all epochs are done, or so many without a better score as ``early_stopping`` says."""
    patience = job.config["early_stopping"]
    scored = patience > 0 and bool(metrics) and metrics[-1]["score"] is not None
    return job.epoch >= job.config["epochs"] or (scored and job.epoch - _best(metrics)["epoch"] >= patience)


def _best(metrics: list[Row]) -> Row:
    """The row of the best score, the earliest of equal ones."""
    return max((row for row in metrics if row["score"] is not None), key=lambda row: row["score"])


def train_epoch(job: Job, record: EpochRecord, display: Display | None = None) -> None:
    """One pass over the training set. Nothing in it makes the host wait for the device, but the method's own decision."""
    job.model.train()
    for samples in job.batches.epoch(job.epoch):
        record.watched.begin()
        report = job.backward(samples)
        lr = job.base.param_groups[0]["lr"]
        taken = job.step()
        record.step(report, samples, lr, taken)
        if display is not None and display.live:
            record.show(display)
    job.epoch += 1
    if job.averaged:
        job.averaged.after_epoch(job.model, job.epoch / job.config["epochs"])


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
        self.norm += norms.norm()
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
        check_finite(self.number, {"loss": loss, "gradient norm": norm, "weights": weights, "buffers": buffers})
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


def summarise(run_id: str, job: Job, metrics: list[Row], layers: list[Row]) -> Row:
    """The summary of a finished run: derived from its rows."""
    config = job.config
    total = {key: sum(row[key] for row in metrics) for key in ("steps", "sampling_number", "forward_units", "backward_units", "seconds")}
    scored = [row for row in metrics if row["score"] is not None]
    best = _best(metrics)
    perturbations = {layer.name: 0 for layer in job.gradient.structure.layers}
    for row in layers:
        perturbations[row["layer"]] += row["perturbations"]
    return {
        "run_id": run_id,
        "dataset": config["dataset"]["name"],
        "model": config["model"]["name"] if config["model"]["name"] != "timm" else config["model"]["arch"],
        "optimizer": config["optimizer"]["name"],
        "seed": config["seed"],
        "epochs": len(metrics),  # fewer than was asked for where early_stopping ended the training
        "metric": job.dataset.metrics[0],
        "split": job.split,
        "score_last": metrics[-1]["score"],
        "score_best": best["score"],
        "best_epoch": best["epoch"],
        "scored_epochs": len(scored),
        **{name: metrics[-1][name] for name in job.dataset.metrics[1:]},
        "train_loss": metrics[-1]["train_loss"],
        "images_per_second": min(len(job.parts.train), len(job.batches) * config["batch_size"]) * len(metrics) / total["seconds"],
        **total,
        "perturbations": perturbations,
        "grad_norm": metrics[-1]["grad_norm"],
        "parameters": job.size,
        "processes": config["processes"],
        "train_samples": len(job.parts.train),
        "device": config["device"].partition(":")[0],
        "hardware": hardware(job.device),
        "precision": config["precision"],
        **in_force(config),
        **({"skipped_steps": sum(row["skipped_steps"] for row in metrics)} if job.scaler.is_enabled() else {}),
        "peak_memory": torch.cuda.max_memory_allocated(job.device) if job.device.type == "cuda" else None,
        "versions": versions(),
        "scale": config["scale"],
        **({"plugins": config["plugins"]} if config["plugins"] else {}),
        "note": job.dataset.note,
    }


def hardware(device: torch.device) -> str:
    """What the device is, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU ({platform.machine()})"
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
