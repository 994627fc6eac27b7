"""Sharpness-aware minimization as a gradient: the engine that all methods share.

A step, for a method that answers *when*, *where*, *between* and on which *samples*:

    if it ascends (when):
        for every group of samples (samples):
            h   = the stages before the first perturbed one, computed once
            g   = gradient at w of the selected parameters (where), from h
            eps = the perturbation (where)
            g'  = gradient at w + eps of all parameters, through h
        remember what later steps reuse (between)
        gradient = (1 - alpha) g + alpha g' on the selected parameters, g' elsewhere
    else:
        gradient = the plain one, and what is reused (between)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .between import Between
from .passes import Batch, Criterion, Masks, Passes, detached, is_chain, perturbed, size, written
from .samples import Samples
from .structure import Plan, Structure
from .when import When
from .where import Where


@dataclass
class Report:
    """What a step did. Tensors stay on the device; reading one makes the host wait."""

    loss: Tensor  # mean loss, 0-dim: the clean one (at w)
    outputs: Any  # of the same pass, detached; a list for a list of micro-batches
    ascended: bool
    layers: list[str]  # the layers perturbed, in forward order
    layer_norms: Tensor  # (layers,) norms of the last pass's gradient, before the mix
    forward_units: float
    backward_units: float


@dataclass
class _Step:
    """The running sums of one call of ``backward``."""

    clean: list[Tensor | None] = field(default_factory=list)  # of the selected parameters
    losses: list[Tensor] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    def saw(self, loss: Tensor, outputs: Any, batch: Batch) -> None:
        self.losses.append(_share(loss.detach(), batch.share))
        self.outputs.append(detached(outputs))


class Gradient:
    """A gradient method on a model. ``backward`` takes the place of ``loss.backward()``; the step is the base optimizer's."""

    def __init__(
        self,
        model: nn.Module,
        when: When,
        where: Where,
        between: Between,
        samples: Samples,
        *,
        mix: float = 1.0,
        bn: str = "clean",
        same_dropout: bool = True,
        plan: Plan,
    ) -> None:
        self.model = model
        self.when, self.where, self.between, self.samples = when, where, between, samples
        self.mix, self.bn = mix, bn
        self.step = 0
        self.structure = Structure(model)
        self.where.setup(self.structure, plan)
        self.passes = Passes(model, same_dropout)

    def backward(self, inputs: Any, targets: Any, criterion: Criterion, *, indices: Tensor | None = None, scaler: Any = None) -> Report:
        """Add the method's gradient of the mean loss to ``.grad`` of the model's parameters.

        Args:
            inputs: what the model takes, a tensor, tuple or dict, samples along dim 0. A list of such is a batch
                accumulated in micro-batches: one perturbation for all of them.
            targets: what the criterion takes; a list where ``inputs`` is one.
            criterion: ``criterion(outputs, targets)`` returns the loss of each sample, shape ``(batch,)``.
            indices: the samples' places in the training set, for methods that keep something for each sample.
            scaler: torch's GradScaler under fp16 autocast. ``.grad`` is then scaled: unscale, clip and step as usual.

        Raises:
            ValueError: the criterion does not return one loss per sample.
        """
        batches = _batches(inputs, targets)
        parameters = self.structure.parameters
        self.passes.begin(criterion, scaler)
        kept = self.structure.gradients()  # what was accumulated before; the method needs its own gradient alone
        for p in parameters:
            p.grad = None
        try:
            report = self._compute(batches)
        except BaseException:
            for p in parameters:
                p.grad = None
            raise
        finally:
            _add(parameters, kept)
        self.step += 1
        return report

    def _compute(self, batches: Sequence[Batch]) -> Report:
        step = _Step()
        selected = self.where.select() if self.when.ascends(self.step) else []
        if selected:
            step.clean = [None] * len(selected)
            for group in self.samples.groups(batches):
                self._ascend_and_descend(group, selected, step)
        else:
            for batch in batches:
                self._descend(batch, step)

        gradients = self.structure.gradients()
        norms = self.structure.layer_norms(gradients)
        if self.passes.scaler is not None:
            norms = norms / self._scale(norms)
        self.where.observe(norms)
        if selected:
            sam = [gradients[index] for index in selected]
            self.between.remember(selected, step.clean, sam)
            if self.mix != 1.0:
                _mix(sam, step.clean, self.mix)
        else:
            self.between.reuse(gradients)

        return Report(
            loss=step.losses[0] if len(step.losses) == 1 else torch.stack(step.losses).sum(),
            outputs=step.outputs[0] if len(step.outputs) == 1 else step.outputs,
            ascended=bool(selected),
            layers=self._names(selected),
            layer_norms=norms,
            forward_units=self.passes.forward_units,
            backward_units=self.passes.backward_units,
        )

    def _descend(self, batch: Batch, step: _Step) -> None:
        """The plain gradient."""
        loss, outputs = self.passes.loss(batch.inputs, batch, 0)
        self.passes.backward(_share(loss, batch.share), batch)
        step.saw(loss, outputs, batch)

    def _ascend_and_descend(self, group: Sequence[Batch], selected: list[int], step: _Step) -> None:
        """The gradient at w of the selected parameters, then the gradient at w + eps of all of them."""
        passes = self.passes
        parameters = [self.structure.parameters[index] for index in selected]
        # What comes before the first perturbed stage is the same in both passes: once is enough. Not for accumulated
        # micro-batches, whose graphs would all have to be held at once, nor where both passes move the statistics.
        reuse = len(group) == 1 and self.bn == "clean" and is_chain(self.model)
        start = self.structure.first_stage(selected) if reuse else 0
        in_group = sum(batch.share for batch in group)

        ascent: list[Tensor | None] = [None] * len(selected)
        states, masks = [], []
        for batch in group:
            state = passes.prefix(batch, start)
            masks.append(Masks(self.model, passes.same_dropout))
            before = written(state)
            loss, outputs = passes.loss(detached(state) if start else state, batch, start)
            if start and written(state) != before:
                raise RuntimeError(f"Stage {start} writes into its input, which the second pass needs too: make it out of place.")
            share = batch.share / in_group
            ascent = _sum(ascent, passes.gradient(_share(loss, share), batch, start, parameters))
            step.saw(loss, outputs, batch)
            states.append(state)

        with self._perturbed(parameters, ascent):
            for batch, state, mask in zip(group, states, masks, strict=True):
                mask.replay()
                with passes.statistics_kept() if self.bn == "clean" else nullcontext():
                    loss, _ = passes.loss(state, batch, start)
                passes.backward(_share(loss, batch.share), batch)

        if self.mix != 1.0 or self.between.needs_clean:
            step.clean = _sum(step.clean, [g if g is None else _share(g, in_group) for g in ascent])

    def _perturbed(self, parameters: list[nn.Parameter], ascent: Sequence[Tensor | None]) -> AbstractContextManager[None]:
        """The weights at w + eps; a parameter that the first pass did not use stays where it is."""
        moved = [(p, g) for p, g in zip(parameters, ascent, strict=True) if g is not None]
        if not moved:
            return nullcontext()
        chosen: list[Tensor] = [p for p, _ in moved]
        gradients = [g for _, g in moved]
        return perturbed(chosen, self.where.perturbation(chosen, self._unscaled(gradients)))

    def _unscaled(self, gradients: list[Tensor]) -> list[Tensor]:
        """The ascent gradient without the GradScaler's factor, which is read on the device."""
        if self.passes.scaler is None:
            return gradients
        return list(torch._foreach_div(gradients, self._scale(gradients[0])))

    def _scale(self, like: Tensor) -> Tensor:
        scale: Tensor = self.passes.scaler.scale(torch.ones((), device=like.device))
        return scale

    def _names(self, selected: list[int]) -> list[str]:
        chosen = sorted({self.structure.layer_of[index] for index in selected})
        return [self.structure.layers[index].name for index in chosen]

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on beside weights, base optimizer and random number generators."""
        return {
            "step": self.step,
            "when": self.when.state_dict(),
            "where": self.where.state_dict(),
            "between": self.between.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where ``state_dict`` left off."""
        self.step = state["step"]
        self.when.load_state_dict(state["when"])
        self.where.load_state_dict(state["where"])
        self.between.load_state_dict(state["between"])


def _batches(inputs: Any, targets: Any) -> list[Batch]:
    if not isinstance(inputs, list):
        return [Batch(inputs, targets, 1.0)]
    if not isinstance(targets, list) or len(targets) != len(inputs) or not inputs:
        raise ValueError("A list of micro-batches needs a list of as many targets, at least one.")
    sizes = [size(part) for part in inputs]
    return [Batch(x, y, n / sum(sizes)) for x, y, n in zip(inputs, targets, sizes, strict=True)]


def _share(value: Tensor, share: float) -> Tensor:
    """``value * share``, and ``value`` itself for the usual share of one."""
    return value if share == 1.0 else value * share


def _sum(total: list[Tensor | None], terms: list[Tensor | None]) -> list[Tensor | None]:
    return [b if a is None else a if b is None else a + b for a, b in zip(total, terms, strict=True)]


def _mix(sam: Sequence[Tensor | None], clean: Sequence[Tensor | None], alpha: float) -> None:
    """(1 - alpha) g + alpha g', in place of g' (KDD'24, Eq. 2); where one of them is missing g' stays."""
    both = [(s, c) for s, c in zip(sam, clean, strict=True) if s is not None and c is not None]
    if both:
        with torch.no_grad():
            torch._foreach_lerp_([s for s, _ in both], [c for _, c in both], 1.0 - alpha)


def _add(parameters: Sequence[nn.Parameter], kept: Sequence[Tensor | None]) -> None:
    """Add the gradients that were there before."""
    for p, before in zip(parameters, kept, strict=True):
        if before is not None:
            p.grad = before if p.grad is None else before.add_(p.grad)
