"""Everything a training consists of, built from a configuration, and as one state to save."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import data, models, optim
from ..chain import call, tree_map
from ..data import Batch, Batches, FullBatches
from ..data.cached import cached
from ..device import resolve_device as resolve_device
from ..optim import Report
from ..schema import UserError
from ..store import write
from .base import base_optimizer, schedule
from .score import autocast

Config = dict[str, Any]


class Job:
    """Data, model, method, base optimizer and schedule on their device."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = torch.device(config["device"])
        torch.manual_seed(config["seed"])
        self.parts = data.to(
            data.load(
                config["dataset"],
                config["data_dir"],
                train_fraction=config["train_fraction"],
                val_fraction=config["val_fraction"],
                max_samples=config["max_samples"],
            ),
            self.device,
            config["workers"],
        )
        self.dataset = self.parts.dataset
        self.model = models.create(**config["model"], num_classes=self.dataset.classes, **self.dataset.shape)
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.size = sum(p.numel() for p in self.model.parameters())
        if config["model"].get("cache"):
            self.parts, self.model = cached(self.parts, self.model, 64, autocast(self.device, config["precision"]))
            self.dataset = self.parts.dataset
        # A mask of infinities is no sign that a training diverged.
        self.endless = {name for name, buffer in self.model.named_buffers() if not buffer.isfinite().all()}
        self.batches = self._batches()
        steps = len(self.batches)
        plan = optim.Plan(steps * config["epochs"], steps, len(self.parts.train), config["seed"])
        self.gradient = optim.build(config["optimizer"], self.model, plan)
        self.stepper = optim.StaticStep(self.gradient) if config["graphs"] else self.gradient
        self.parameters = self.gradient.structure.parameters
        at_w = 0.0 if config["decay_in_loss"] else config["weight_decay"]
        self.base = base_optimizer(config["base"], self.parameters, config["lr"], at_w, config["decayed"])
        self.decayed = [p for p in self.parameters if config["decayed"] == "all" or p.ndim > 1]
        self.schedule = schedule(config["schedule"], self.base, config["epochs"], steps)
        self.epoch = 0  # epochs done
        self._try()

    def _batches(self) -> Batches:
        config, train = self.config, self.parts.train
        batches: Batches = self.dataset.batches(train, config["batch_size"], config["seed"])
        if not config["drop_last"]:
            return batches
        if len(train) < config["batch_size"]:
            raise UserError(
                f"drop_last=true leaves nothing of {len(train)} samples in batches of {config['batch_size']}: lower batch_size."
            )
        return FullBatches(batches, config["batch_size"], len(train))

    def backward(self, samples: Batch) -> Report:
        """The method's gradient of a batch, added to ``.grad``; the batch passes the model in ``accumulate`` parts."""
        count = min(self.config["accumulate"], len(samples.targets))
        with autocast(self.device, self.config["precision"]):
            if count == 1:
                report = self.stepper.backward(samples.inputs, samples.targets, self.objective, indices=samples.indices)
            else:
                inputs: list[Any] = [tree_map(partial(_part, index, count), samples.inputs) for index in range(count)]
                targets, indices = (list(t.tensor_split(count)) for t in (samples.targets, samples.indices))
                report = self.stepper.backward(inputs, targets, self.objective, indices=indices)
                report = replace(report, outputs=torch.cat(report.outputs))
        if self.config["decay_in_loss"]:  # what is reported is the loss of the samples
            with torch.no_grad():
                report = replace(report, loss=report.loss - self._decay())
        return report

    @torch.no_grad()
    def _try(self) -> None:
        """Pass one sample through the model; UserError where it does not take such inputs."""
        samples = next(self.dataset.on(self.device, 0).in_order(self.parts.train[torch.tensor([0])], 1))
        self.model.eval()
        try:
            call(self.model, samples.inputs)
        except (RuntimeError, AssertionError, ValueError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            name, reason = self.config["model"]["name"], (str(error).splitlines() or ["no reason given"])[0]
            raise UserError(f"model={name} does not take the inputs of dataset={self.config['dataset']['name']}: {reason}") from error

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each sample, with label smoothing; ``(batch,)``. What is reported and measured."""
        return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=self.config["label_smoothing"])

    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What both passes of a step take the gradient of; ``(batch,)``: the criterion, with ``decay_in_loss`` the decay as well."""
        losses = self.criterion(outputs, targets)
        return losses + self._decay() if self.config["decay_in_loss"] else losses

    def _decay(self) -> Tensor:
        """weight_decay/2 |w|^2. The ascent sees it, and the descent that of the perturbed weights, as in the code of KDD'24's author."""
        return self.config["weight_decay"] / 2 * torch.stack([p.square().sum() for p in self.decayed]).sum()

    def scored_samples(self) -> Iterator[Batch]:
        """The batches that the score is measured on: of the test set, or of the part held out."""
        return self.in_order(self.parts.score, min(4 * self.config["batch_size"], 512))

    def in_order(self, split: Any, batch_size: int) -> Iterator[Batch]:
        """The batches of any split of the data set, as they are."""
        return self.dataset.in_order(split, batch_size)

    @property
    def split(self) -> str:
        """What the score is measured on: ``test`` or ``val``."""
        return "val" if self.config["val_fraction"] else "test"

    def save(self, path: Path) -> None:
        """Write all that the rest of the training depends on."""
        state = {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "base": self.base.state_dict(),
            "schedule": self.schedule.state_dict(),
            "gradient": self.gradient.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write(path, buffer.getvalue())

    def resume(self, path: Path) -> None:
        """Take up where ``save`` left off."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:
            raise UserError(f"{path} cannot be read ({type(error).__name__}): rerun=true starts the run anew.") from error
        self.epoch = state["epoch"]
        self.model.load_state_dict(state["model"])
        for one in state["base"]["state"].values():
            if isinstance(step := one.get("step"), Tensor):  # on a device the host would wait for every tensor's, at every step
                one["step"] = step.cpu()
        self.base.load_state_dict(state["base"])
        self.schedule.load_state_dict(state["schedule"])
        self.gradient.load_state_dict(_on_host(state["gradient"]))
        torch.set_rng_state(state["random"].cpu())
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"].cpu(), self.device)


def _part(index: int, count: int, tensor: Tensor) -> Tensor:
    return tensor.tensor_split(count)[index]


def _on_host(state: Any) -> Any:
    """Generator states must lie on the host."""
    if isinstance(state, Tensor) and state.dtype == torch.uint8:
        return state.cpu()
    return {key: _on_host(value) for key, value in state.items()} if isinstance(state, dict) else state
