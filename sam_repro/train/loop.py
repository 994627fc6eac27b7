"""The training loop."""

from __future__ import annotations

import gc
import platform

import torch

from .. import world
from ..checkpoints import rename
from ..console import console
from ..fingerprint import check_data, fingerprint
from ..provenance import versions
from ..schema import UserError
from ..store import Row, Run
from ..tracking.console import Display
from ..tracking.follow import follow
from .backends import backends, in_force
from .job import Config, Job
from .keeper import Keeper
from .processes import together
from .record import EpochRecord, check_finite
from .score import evaluate
from .steps import earlier_lines


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
    if not config["rerun"] and run.begun:
        check_data(run, config)  # once more, for it may have been downloaded just now
        _resume(job, run)
    else:
        run.note(data=fingerprint(config["dataset"], config["data_dir"]))
    if job.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(job.device)
    return job


def _resume(job: Job, run: Run) -> None:
    """From the last checkpoint, or where that is damaged from the one before it."""
    try:
        job.resume(run.checkpoint)
    except (UserError, OSError) as error:
        if not run.previous.exists():
            raise
        job.resume(run.previous)
        reason = str(error).removesuffix(": rerun=true starts the run anew.").removesuffix(".")
        console.print(f"{reason}: it goes on from the checkpoint before that, of epoch {job.epoch}.")


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
    step_lines = earlier_lines(run, job)
    keeper = Keeper(job, run)

    with follow(config, run) as show:
        with keeper.listening(), Display(steps * config["epochs"], steps * job.epoch, config["epochs"]) as display:
            while not is_over(job, metrics):
                epoch = EpochRecord(job)
                epoch.take(job.kept.pop("record", {}))
                keeper.lines = len(step_lines)
                train_epoch(job, epoch, display, keeper)
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
                job.save(run.checkpoint, {"lines": len(step_lines)})
                if config["early_stopping"] and row["score"] is not None and _best(metrics)["epoch"] == job.epoch:
                    job.save(run.best, previous=False)
                display.epoch(metrics[-1], left=row["seconds"] * (config["epochs"] - job.epoch))
                show()
                if not is_over(job, metrics):
                    keeper.after_epoch()
        summary = summarise(run.id, job, metrics, layers)
        if world.rank() == 0:
            if config["early_stopping"] and run.best.exists():
                rename(run.best, run.checkpoint)  # from which the training would come to the same end
            run.previous.unlink(missing_ok=True)
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


def train_epoch(job: Job, record: EpochRecord, display: Display | None = None, keeper: Keeper | None = None) -> None:
    """One pass over the training set, or what ``record`` has not seen of it.

    Nothing in it makes the host wait for the device, but the method's own decision.
    """
    job.model.train()
    for samples in job.batches.epoch(job.epoch, record.steps):
        record.watched.begin()
        report = job.backward(samples)
        lr = job.base.param_groups[0]["lr"]
        taken = job.step()
        record.step(report, samples, lr, taken)
        if display is not None and display.live:
            record.show(display)
        record.check()
        if keeper is not None:
            keeper.after_step(record)
    job.epoch += 1
    if job.averaged:
        job.averaged.after_epoch(job.model, job.epoch / job.config["epochs"])


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
