"""Everything a training consists of, built from a configuration, and as one state to save."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from .. import data, models, optim, world
from ..chain import call, tree_map
from ..checkpoints import readable, writing
from ..command import undivided
from ..console import console
from ..data import Batch, Batches, Sampling
from ..data.cached import cached
from ..data.mixed import Mixed
from ..models.sync import synchronise
from ..models.weights import load
from ..optim import Report
from ..schema import UserError
from .averaged import Averaged
from .base import base_optimizer, schedule
from .compiled import compile_stages
from .initial import begin_from
from .processes import average, of_all, wrapped
from .score import autocast

Config = dict[str, Any]


class Job:
    """Data, model, method, base optimizer and schedule on their device."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = torch.device(config["device"])
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device.index or 0)  # or what names no index would take memory on the first GPU as well
        torch.manual_seed(config["seed"])
        self.layout = torch.channels_last if config["channels_last"] else torch.contiguous_format
        self.parts = data.to(
            data.load(
                config["dataset"],
                config["data_dir"],
                train_fraction=config["train_fraction"],
                val_fraction=config["val_fraction"],
                max_samples=config["max_samples"],
                label_noise=config["label_noise"],
                seed=config["seed"],
            ),
            self.device,
            config["workers"],
            self.layout,
        )
        self.dataset = self.parts.dataset
        self.model = models.create(**config["model"], num_classes=self.dataset.classes, **self.dataset.shape)
        self.model.to(self.device, memory_format=self.layout)  # type: ignore[call-overload]
        self.size = sum(p.numel() for p in self.model.parameters())
        if config["model"].get("cache"):
            self.parts, self.model = cached(self.parts, self.model, 64, autocast(self.device, config["precision"]))
            self.dataset = self.parts.dataset
        if said := begin_from(self.model, config["init_from"], config["runs_dir"], self.device):
            console.print(said)
        # A mask of infinities is no sign that a training diverged.
        self.endless = {name for name, buffer in self.model.named_buffers() if not buffer.isfinite().all()}
        places = torch.arange(len(self.parts.score)).tensor_split(world.count())[world.rank()]
        self.scored = self.parts.score if world.count() == 1 else self.parts.score[places]
        self.batches = self._batches()
        steps = len(self.batches)
        plan = optim.Plan(steps * config["epochs"], steps, len(self.parts.train), config["seed"])
        if config["sync_bn"]:
            synchronise(self.model)
        self.averaged = Averaged(self.model, ema=config["ema"], swa=config["swa"]) if config["ema"] or config["swa"] else None
        self.gradient = optim.build(config["optimizer"], wrapped(self.model, self.device), plan)
        self.stepper = optim.StaticStep(self.gradient) if config["graphs"] else self.gradient
        self.parameters = self.gradient.structure.parameters
        at_w = 0.0 if config["decay_in_loss"] else config["weight_decay"]
        self.base = base_optimizer(config["base"], self.parameters, config["lr"], at_w, config["decayed"])
        self.decayed = [p for p in self.parameters if config["decayed"] == "all" or p.ndim > 1]
        self.schedule = schedule(config["schedule"], self.base, config["epochs"], steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config["precision"] == "fp16")
        if self.scaler.is_enabled():  # the very first step may overflow, and is none then
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        self.epoch = 0  # epochs done
        self.kept: dict[str, Any] = {}  # what was kept beside the state that was resumed
        self._try()
        if world.rank():  # masks of its own
            torch.manual_seed(config["seed"] + 1_000_003 * world.rank())
        if config["compile"] == "stages":
            compile_stages(self.model)

    def _batches(self) -> Batches:
        config, train = self.config, self.parts.train
        size, processes = config["batch_size"], world.count()
        if config["drop_last"] and len(train) < size:
            raise UserError(f"drop_last=true leaves nothing of {len(train)} samples in batches of {size}: lower batch_size.")
        last = size if config["drop_last"] else len(train) % size or size
        if min(size, last) < processes:
            raise UserError(
                f"A batch of {min(size, last)} samples is none for {processes} processes: set another batch_size, or drop_last=true "
                "where it is the last of an epoch."
            )
        sampling = Sampling(size, config["seed"], config["drop_last"], world.rank(), processes)
        batches: Batches = self.dataset.batches(train, sampling)
        if not config["mixup"] and not config["cutmix"]:
            return batches
        return Mixed(batches, sampling, self.dataset.classes, mixup=config["mixup"], cutmix=config["cutmix"], layout=self.layout)

    def backward(self, samples: Batch) -> Report:
        """The method's gradient of a batch, added to ``.grad``; the batch passes the model in ``accumulate`` parts."""
        count = min(self.config["accumulate"], samples.whole // world.count())
        scaler = self.scaler if self.scaler.is_enabled() else None
        objective = self.weighted if samples.whole % world.count() else self.objective
        with autocast(self.device, self.config["precision"]):
            if count == 1:
                report = self.stepper.backward(samples.inputs, samples.targets, objective, indices=samples.indices, scaler=scaler)
            else:
                inputs: list[Any] = [tree_map(partial(_part, index, count), samples.inputs) for index in range(count)]
                targets, indices = (list(t.tensor_split(count)) for t in (samples.targets, samples.indices))
                report = self.stepper.backward(inputs, targets, objective, indices=indices, scaler=scaler)
                report = replace(report, outputs=torch.cat(report.outputs))
        if self.config["decay_in_loss"]:  # what is reported is the loss of the samples
            with torch.no_grad():
                report = replace(report, loss=report.loss - self._decay())
        return report

    def step(self) -> Tensor | None:
        """Clip the gradient, take the base optimizer's step along it, and advance the schedule.

        Under fp16 no step is taken along a gradient that overflowed, and the loss is scaled less from then on. Returns whether it was
        taken, 0-dim and on the device; None where it always is. The schedule goes on in any case: its length is that of the training.
        """
        before = self._scale()
        self.scaler.unscale_(self.base)
        if self.config["clip"]:
            clip_grad_norm_(self.parameters, self.config["clip"])
        self.scaler.step(self.base)
        self.scaler.update()
        self.schedule.step()
        self.base.zero_grad()
        if self.averaged:
            self.averaged.after_step(self.model)
        after = self._scale()
        return None if before is None or after is None else after >= before

    def _scale(self) -> Tensor | None:
        """What the loss is scaled by, on the device."""
        return self.scaler.scale(torch.ones((), device=self.device)) if self.scaler.is_enabled() else None

    @torch.no_grad()
    def _try(self) -> None:
        """Pass one sample through the model; UserError where it does not take such inputs."""
        samples = next(self.dataset.on(self.device, 0, self.layout).in_order(self.parts.train[torch.tensor([0])], 1))
        self.model.eval()
        try:
            outputs = call(self.model, samples.inputs)
        except (RuntimeError, AssertionError, ValueError, LookupError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            name, reason = self.config["model"]["name"], (str(error).splitlines() or ["no reason given"])[0]
            raise UserError(f"model={name} does not take the inputs of dataset={self.config['dataset']['name']}: {reason}") from error
        finally:
            self.model.train()
        if (shape := getattr(outputs, "shape", None)) != (1, self.dataset.classes):
            made = tuple(shape) if shape is not None else type(outputs).__name__
            raise UserError(
                f"model={self.config['model']['name']} makes {made} of a sample; it should be (1, {self.dataset.classes}), a logit a class."
            )

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each sample, with label smoothing; ``(batch,)``. What is reported and measured."""
        return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=self.config["label_smoothing"])

    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What both passes of a step take the gradient of; ``(batch,)``: the criterion, with ``decay_in_loss`` the decay as well."""
        losses = self.criterion(outputs, targets)
        return losses + self._decay() if self.config["decay_in_loss"] else losses

    def weighted(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The objective, and that every sample counts the same: where not all processes have as many."""
        losses = self.objective(outputs, targets)
        return losses, torch.ones_like(losses)

    def _decay(self) -> Tensor:
        """weight_decay/2 |w|^2. The ascent sees it, and the descent that of the perturbed weights, as in the code of KDD'24's author."""
        return self.config["weight_decay"] / 2 * torch.stack([p.square().sum() for p in self.decayed]).sum()

    def scored_samples(self) -> Iterator[Batch]:
        """The batches of this process that the score is measured on: of the test set, or of the part held out."""
        return self.in_order(self.scored, min(4 * self.config["batch_size"], 512))

    def average(self) -> None:
        """Make the running statistics the same on all processes: their mean. A method's teacher and averaged weights have their own."""
        teacher = getattr(getattr(self.gradient, "teacher", None), "teacher", None)
        others = [teacher, self.averaged and self.averaged.model]
        average([*self.model.buffers(), *(b for other in others if isinstance(other, torch.nn.Module) for b in other.buffers())])

    def to_score(self) -> torch.nn.Module:
        """The model that the score is of: with averaged weights, where there are some by now, and then with statistics of their own."""
        if not (self.averaged and self.averaged.seen):
            return self.model
        if self.averaged.swa:
            with autocast(self.device, self.config["precision"]):
                self.averaged.renew_statistics((samples.inputs for samples in self.batches.epoch(self.epoch)), self.device)
            average(self.averaged.model.buffers())
        return self.averaged.model

    def take_average(self) -> None:
        """Give the model the averaged weights, if the run has any: what it was scored by is what is measured."""
        if self.averaged and self.averaged.seen:
            self.model.load_state_dict(self.averaged.model.state_dict())

    def in_order(self, split: Any, batch_size: int) -> Iterator[Batch]:
        """The batches of any split of the data set, as they are."""
        return self.dataset.in_order(split, batch_size)

    @property
    def split(self) -> str:
        """What the score is measured on: ``test`` or ``val``."""
        return "val" if self.config["val_fraction"] else "test"

    def save(self, path: Path, kept: dict[str, Any] | None = None, previous: bool = True) -> None:
        """Write all that the rest of the training depends on, and what else is to be ``kept``; process 0 does, for all.

        ``previous``: the checkpoint that lay there stays, as ``previous.pt``.
        """
        random = of_all((torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None))
        if world.rank():
            return
        state = {
            "epoch": self.epoch,
            "kept": kept or {},
            "model": self.model.state_dict(),
            "base": self.base.state_dict(),
            "schedule": self.schedule.state_dict(),
            "gradient": self.gradient.state_dict(),
            "scaler": self.scaler.state_dict(),
            **({"averaged": self.averaged.state_dict()} if self.averaged else {}),
            "random": random[0][0],
            "random_cuda": random[0][1],
            "random_of_others": random[1:],
            **({"random_mps": torch.mps.get_rng_state()} if self.device.type == "mps" else {}),
        }
        with undivided(), writing(path, previous) as file:
            torch.save(state, cast(IO[bytes], file))

    def resume(self, path: Path) -> None:
        """Take up where ``save`` left off. Raises UserError where the file is damaged."""
        with readable(path):
            self._take(torch.load(path, map_location=self.device, weights_only=True), path)

    def _take(self, state: dict[str, Any], path: Path) -> None:
        self.epoch, self.kept = operator.index(state["epoch"]), dict(state.get("kept", {}))
        load(self.model, state["model"], f"{path} does not hold the weights of this model, and rerun=true starts the run anew")
        for one in state["base"]["state"].values():
            if isinstance(step := one.get("step"), Tensor):  # on a device the host would wait for every tensor's, at every step
                one["step"] = step.cpu()
        self.base.load_state_dict(state["base"])
        if self.averaged:
            self.averaged.load_state_dict(state["averaged"])
        self.schedule.load_state_dict(state["schedule"])
        self.gradient.load_state_dict(_on_host(state["gradient"]))
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        others = state.get("random_of_others", [])
        if 0 < world.rank() <= len(others):
            state["random"], state["random_cuda"] = others[world.rank() - 1]
        torch.set_rng_state(state["random"].cpu())
        if (apple := state.get("random_mps")) is not None:
            torch.mps.set_rng_state(apple.cpu())
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"].cpu(), self.device)


def _part(index: int, count: int, tensor: Tensor) -> Tensor:
    return tensor.tensor_split(count)[index]


def _on_host(state: Any) -> Any:
    """Generator states must lie on the host."""
    if isinstance(state, Tensor) and state.dtype == torch.uint8:
        return state.cpu()
    return {key: _on_host(value) for key, value in state.items()} if isinstance(state, dict) else state
