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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from ..chain import tree_map
from ..schema import UserError
from .between import Between
from .passes import Batch, Criterion, Masks, Passes, detached, perturbed, size, written
from .samples import Samples
from .structure import Plan, Structure
from .when import When
from .where import Where

Gradients = list[Tensor | None]


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


class _First(NamedTuple):
    """What the second pass over a batch needs of the first."""

    state: Any  # before the first perturbed stage, with its graph
    masks: Masks
    losses: Tensor


@dataclass
class Step:
    """The running sums of one call of ``backward``."""

    clean: Gradients = field(default_factory=list)  # of the selected parameters
    loss: Tensor | None = None
    outputs: dict[int, list[Any]] = field(default_factory=dict)

    def saw(self, loss: Tensor, outputs: Any, batch: Batch) -> None:
        part = weighted(loss.detach(), batch.share)
        self.loss = part if self.loss is None else self.loss + part
        self.outputs.setdefault(batch.place, []).append(detached(outputs))


class Method:
    """What every gradient method has in common: ``.grad`` is added to, and left alone if the step fails."""

    model: nn.Module
    structure: Structure
    passes: Passes
    step: int

    def backward(self, inputs: Any, targets: Any, criterion: Criterion, *, indices: Tensor | None = None, scaler: Any = None) -> Report:
        """Add the method's gradient of the mean loss to ``.grad`` of the model's parameters.

        Args:
            inputs: what the model takes, a tensor, tuple or dict, samples along dim 0. A list of such is a batch
                accumulated in micro-batches: one perturbation for all of them.
            targets: what the criterion takes; a list where ``inputs`` is one.
            criterion: ``criterion(outputs, targets)`` returns the loss of each sample, shape ``(batch,)``.
            indices: the samples' places in the training set, for methods that keep something for each sample; a list
                where ``inputs`` is one.
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
            report = self._compute(batches, indices)
        except BaseException:
            for p in parameters:
                p.grad = None
            raise
        finally:
            _add(parameters, kept)
        self.step += 1
        return report

    def _compute(self, batches: Sequence[Batch], indices: Any) -> Report:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on beside weights, base optimizer and random number generators."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where ``state_dict`` left off."""
        raise NotImplementedError

    def memory(self, classes: int) -> int:
        """Bytes that the method holds beside weights and gradients, at most; ``classes`` outputs."""
        raise NotImplementedError

    def _scale(self) -> Tensor | None:
        """The GradScaler's factor, on the device: reading it there makes nobody wait."""
        if self.passes.scaler is None:
            return None
        scale: Tensor = self.passes.scaler.scale(torch.ones((), device=self.structure.parameters[0].device))
        return scale

    def _report(self, step: Step, norms: Tensor, selected: Sequence[int]) -> Report:
        outputs = [parts[0] if len(parts) == 1 else _joined(parts) for parts in step.outputs.values()]
        assert step.loss is not None
        return Report(
            loss=step.loss,
            outputs=outputs[0] if len(outputs) == 1 else outputs,
            ascended=bool(selected),
            layers=[self.structure.layers[index].name for index in sorted({self.structure.layer_of[i] for i in selected})],
            layer_norms=norms,
            forward_units=self.passes.forward_units,
            backward_units=self.passes.backward_units,
        )

    def _norms(self, gradients: Gradients) -> Tensor:
        scale = self._scale()
        norms = self.structure.layer_norms(gradients)
        return norms if scale is None else norms / scale


class Gradient(Method):
    """A gradient method on a model. ``backward`` takes the place of ``loss.backward()``; the step is the base optimizer's."""

    def __init__(
        self,
        model: nn.Module,
        when: When,
        where: Where,
        between: Between,
        samples: Samples,
        *,
        mix: float,
        bn: str,
        same_dropout: bool,
        scope: str,
        plan: Plan,
    ) -> None:
        self.model = model
        self.when, self.where, self.between, self.samples = when, where, between, samples
        self.mix, self.bn, self.scope = mix, bn, scope
        self.step = 0
        self.passes = Passes(model, same_dropout)
        self.structure = Structure(self.passes.model)
        self.when.setup(self.structure, plan)
        self.where.setup(self.structure, plan)
        if when.needs_gradient and samples.name == "micro":
            raise UserError("when=gradient_norm decides by the gradient of the whole batch: it does not go with samples=micro.")

    def _compute(self, batches: Sequence[Batch], indices: Any) -> Report:
        step = Step()
        selected = self._ascend(batches, step)
        if step.loss is None:  # else it is there already, at w + eps or at w
            self._descend(batches, step)
        gradients = self.structure.gradients()
        norms = self._norms(gradients)
        self.where.observe(norms)
        if selected:
            self._combine(selected, step.clean, [gradients[index] for index in selected])
        else:
            self.between.reuse(gradients, self._scale())
        return self._report(step, norms, selected)

    # -- the passes ----------------------------------------------------------------------------------------------------

    def _descend(self, batches: Sequence[Batch], step: Step) -> None:
        """The plain gradient."""
        for batch in batches:
            with self.passes.unsummed(more_to_come=batch is not batches[-1]):
                losses, outputs = self.passes.losses(batch.inputs, batch, 0, last=True)
                loss = losses.mean()
                self.passes.backward(weighted(loss, batch.share), batch)
            step.saw(loss, outputs, batch)

    def _ascend(self, batches: Sequence[Batch], step: Step) -> list[int]:
        """The gradient at w + eps, where this step makes an ascent: the parameters that were perturbed, or none."""
        if self.when.needs_gradient:
            return self._ascend_if_decided(batches, step)
        selected = self._selected() if self.when.ascends(self.step) else []
        groups = self.samples.groups(batches) if selected else []
        step.clean = [None] * len(selected)
        for group in groups:
            start = self._start(group, selected)
            ascent, firsts = self._first_pass(group, selected, start, step)
            if self._needs_clean:
                share = sum(batch.share for batch in group)
                step.clean = _sum(step.clean, [g if g is None else weighted(g, share) for g in ascent])
            if self._one_scope:
                ascent = self.passes.mean_over_replicas(ascent)
            self._second_pass(group, firsts, selected, ascent, start, last=group is groups[-1])
        if self._needs_clean:
            # What enters the update must be the same on all replicas, like the gradients that the wrapper sums.
            step.clean = ascent if self._one_scope and len(groups) == 1 else self.passes.mean_over_replicas(step.clean)
        return selected

    def _ascend_if_decided(self, batches: Sequence[Batch], step: Step) -> list[int]:
        """The same where the gradient at w decides: if there is to be no ascent, that gradient is the step's own."""
        everything = [index for index, p in enumerate(self.structure.parameters) if p.requires_grad]
        found, firsts = self._first_pass(batches, everything, 0, step)
        local = dict(zip(everything, found, strict=True))
        ascent = dict(zip(everything, self.passes.mean_over_replicas(found), strict=True))
        selected = [index for index in self._selected() if ascent[index] is not None]
        present = self._unscaled([g for index in selected if (g := ascent[index]) is not None])
        if not selected or not self.when.decides(self.step, present):
            for index, g in ascent.items():
                self.structure.parameters[index].grad = g
            return []
        step.clean = [ascent[index] for index in selected]
        moving = step.clean if self._one_scope else [local[index] for index in selected]
        self._second_pass(batches, firsts, selected, moving, 0, last=True)
        return selected

    def _first_pass(self, group: Sequence[Batch], selected: list[int], start: int, step: Step) -> tuple[Gradients, list[_First]]:
        """The gradient of the group's mean loss at w, of the selected parameters alone."""
        parameters = [self.structure.parameters[index] for index in selected]
        in_group = sum(batch.share for batch in group)
        ascent: Gradients = [None] * len(selected)
        firsts = []
        for batch in group:
            state = self.passes.prefix(batch, start)
            masks = Masks(self.passes.model, self.passes.same_dropout)
            before = written(state)
            losses, outputs = self.passes.losses(detached(state) if start else state, batch, start)
            if written(state) != before:
                where = f"Stage {start}" if self.passes.is_chain else "The model"
                raise RuntimeError(f"{where} writes into its input, which the second pass needs too: make it out of place.")
            loss = losses.mean()
            ascent = _sum(ascent, self.passes.gradient(weighted(loss, batch.share / in_group), batch, start, parameters))
            step.saw(loss, outputs, batch)
            firsts.append(_First(state, masks, losses.detach()))
        return ascent, firsts

    def _second_pass(
        self, group: Sequence[Batch], firsts: list[_First], selected: list[int], ascent: Gradients, start: int, *, last: bool
    ) -> None:
        """The gradient of all parameters at w + eps, added to ``.grad``."""
        passes = self.passes
        with self._perturbed(selected, ascent):
            for batch, first in zip(group, firsts, strict=True):
                state, descending = first.state, batch
                if self.samples.chooses:
                    state, descending = self._chosen(batch, first)
                first.masks.replay()
                more_to_come = not last or batch is not group[-1]
                with passes.unsummed(more_to_come), self._statistics():  # also where a backward pass computes anew
                    losses, _ = passes.losses(state, descending, start, last=True)
                    passes.backward(weighted(losses.mean(), batch.share), descending)

    def _chosen(self, batch: Batch, first: _First) -> tuple[Any, Batch]:
        """The samples that descend, by how their losses rise from w to w + eps."""
        first.masks.replay()
        with torch.no_grad(), self._statistics():
            losses, _ = self.passes.losses(batch.inputs, batch, 0)
        places = self.samples.choose(first.losses, losses)
        inputs, targets = (tree_map(lambda t: t[places], tree) for tree in (batch.inputs, batch.targets))
        return inputs, batch._replace(inputs=inputs, targets=targets, share=batch.share * len(places) / len(losses))

    # -- their settings ------------------------------------------------------------------------------------------------

    def _start(self, group: Sequence[Batch], selected: list[int]) -> int:
        """The first stage that both passes have to run.

        What comes before the first perturbed stage is the same in both: once is enough. Not for accumulated micro-batches,
        whose graphs would all have to be held at once, nor where the second pass takes other samples, nor where both
        passes move the statistics.
        """
        reuse = self.passes.is_chain and len(group) == 1 and self.bn == "clean" and not self.samples.chooses
        return self.structure.first_stage(selected) if reuse else 0

    def _selected(self) -> list[int]:
        """The parameters to perturb, less those that were frozen in the meantime."""
        return [index for index in self.where.select() if self.structure.parameters[index].requires_grad]

    def _perturbed(self, selected: list[int], ascent: Gradients) -> AbstractContextManager[None]:
        """The weights at w + eps; a parameter that the first pass did not use stays where it is."""
        moved = [(index, g) for index, g in zip(selected, ascent, strict=True) if g is not None]
        if not moved:
            return nullcontext()
        chosen = [index for index, _ in moved]
        perturbation = self.where.perturbation(chosen, self._unscaled([g for _, g in moved]))
        return perturbed([self.structure.parameters[index] for index in chosen], perturbation)

    def _statistics(self) -> AbstractContextManager[None]:
        return self.passes.statistics_kept() if self.bn == "clean" else nullcontext()

    @property
    def _one_scope(self) -> bool:
        """Whether all replicas share one perturbation; micro-batches have their own in any case."""
        return self.scope == "batch" and self.samples.name != "micro"

    @property
    def _needs_clean(self) -> bool:
        return self.mix != 1.0 or self.between.needs_clean or self.when.needs_clean

    # -- the gradient --------------------------------------------------------------------------------------------------

    def _combine(self, selected: list[int], clean: Gradients, sam: Gradients) -> None:
        """What is remembered of both gradients; then (1 - alpha) g + alpha g' in place of g' (KDD'24, Eq. 2).

        Where one of the two is missing, g' stays.
        """
        if not self._needs_clean:
            return
        self.when.observe(selected, clean, sam)
        both = [(i, c, s) for i, c, s in zip(selected, clean, sam, strict=True) if c is not None and s is not None]
        if not both:
            return
        kept, cleans, sams = [i for i, _, _ in both], [c for _, c, _ in both], [s for _, _, s in both]
        self.between.remember(kept, cleans, sams, self._scale())
        if self.mix != 1.0:
            torch._foreach_lerp_(sams, cleans, 1.0 - self.mix)

    def _unscaled(self, gradients: list[Tensor]) -> list[Tensor]:
        scale = self._scale()
        return gradients if scale is None or not gradients else list(torch._foreach_div(gradients, scale))

    def memory(self, classes: int) -> int:
        """The weights at w, the gradient at w, the perturbation, and what is carried over between ascents."""
        size = sum(p.numel() * p.element_size() for p in self.structure.parameters)
        return size * (3 + self.between.needs_clean) if self.when.name != "never" else 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "when": self.when.state_dict(),
            "where": self.where.state_dict(),
            "between": self.between.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.when.load_state_dict(state["when"])
        self.where.load_state_dict(state["where"])
        self.between.load_state_dict(state["between"])


def _batches(inputs: Any, targets: Any) -> list[Batch]:
    if not isinstance(inputs, list):
        return [Batch(inputs, targets, 1.0, 0)]
    if not isinstance(targets, list) or len(targets) != len(inputs) or not inputs:
        raise ValueError("A list of micro-batches needs a list of as many targets, at least one.")
    sizes = [size(part) for part in inputs]
    return [Batch(x, y, n / sum(sizes), place) for place, (x, y, n) in enumerate(zip(inputs, targets, sizes, strict=True))]


def weighted(value: Tensor, share: float) -> Tensor:
    """``value * share``, and ``value`` itself for the usual share of one."""
    return value if share == 1.0 else value * share


def _sum(total: Gradients, terms: Gradients) -> Gradients:
    return [b if a is None else a if b is None else a + b for a, b in zip(total, terms, strict=True)]


def _joined(parts: list[Any]) -> Any:
    """The outputs of micro-batches as those of their batch."""
    leaves = zip(*(tree_leaves(part) for part in parts), strict=True)
    joined = [torch.cat(column) if isinstance(column[0], Tensor) else column[0] for column in leaves]
    return tree_unflatten(joined, tree_structure(parts[0]))


def _add(parameters: Sequence[nn.Parameter], kept: Gradients) -> None:
    """Add the gradients that were there before."""
    for p, before in zip(parameters, kept, strict=True):
        if before is not None:
            p.grad = before if p.grad is None else before.add_(p.grad)
