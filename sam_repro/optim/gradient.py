"""Sharpness-aware minimization as a gradient: the engine that all methods share.

A step, for a method that answers *when*, *where*, *between* and on which *samples*:

    if it ascends (when):
        for every group of samples (samples):
            h   = the stages before the first perturbed one, computed once
            g   = gradient at w of the selected parameters (where), from h
            eps = the perturbation (where)
            g'  = gradient at w + eps of all parameters, through h
        remember what later steps reuse (between)
        gradient = what is made of g and g' on the selected parameters (combine), g' elsewhere
    else:
        gradient = the plain one, and what is reused (between)

Where the perturbation comes of earlier steps alone (where), an ascent is one pass, at w + eps.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..chain import Unperturbed
from ..schema import UserError
from . import fits
from .batches import MicroBatch
from .between import Between
from .combine import Combine
from .method import Gradients, Method, Report, Step, weighted
from .passes import Criterion, Losses, Masks, Passes, Weight, divided, perturbed, written
from .samples import Samples
from .structure import Plan, Structure, dense_of
from .watched import Watched, watched
from .when import When
from .where import Parts, Where


class _First(NamedTuple):
    """What the second pass over a batch needs of the first."""

    state: Any  # before the first perturbed stage, with its graph
    masks: Masks
    losses: Tensor


class Decision(NamedTuple):
    """What of a step the host decides."""

    selected: list[int]  # the parameters that the ascent perturbs; none: there is no ascent
    candidates: list[int]  # those that one would perturb
    undecided: bool = False  # the gradient at w is to decide about the ascent
    mask: Tensor | None = None  # (layers,), in a recorded step: 0 for those that are selected for the sake of other steps alone


class Gradient(Method):
    """The method that its answers to the four questions make, on a model."""

    def __init__(
        self,
        model: nn.Module,
        when: When,
        where: Where,
        between: Between,
        samples: Samples,
        combine: Combine,
        *,
        mix: float,
        bn: str,
        same_dropout: bool,
        scope: str,
        plan: Plan,
    ) -> None:
        self.when, self.where, self.between, self.samples = when, where, between, samples
        self.combination = combine
        self.bn, self.scope = bn, scope
        self.step = 0
        self.passes = Passes(model, same_dropout)
        self.structure = Structure(self.passes.model)
        if scope == "replica" and self.passes.sharded:
            raise UserError("scope=replica: of a sharded model (FSDP2) no process has a gradient of its own; use scope=batch, or msam.")
        self.when.setup(self.structure, plan)
        self.where.setup(self.structure, plan)
        self.between.setup(self.structure)
        self.combination.setup(self.structure, mix)
        fits.check(when, where, between, samples, self.combination, scope)

    def begin(self, inputs: Any, targets: Any, criterion: Criterion, scaler: Any, dim: int) -> list[MicroBatch]:
        batches = super().begin(inputs, targets, criterion, scaler, dim)
        self.where.price(lambda stages: self._costs(stages, batches))
        return batches

    def decide(self) -> Decision:
        """Whether the step makes an ascent, and on which parameters."""
        self.where.begin(self.step)
        if self.when.needs_gradient:
            return Decision([], self._everything, undecided=True)
        ascends = self.when.ascends(self.step)
        selected = self._selected() if ascends or self.when.weighs else []
        ascends = ascends and bool(selected)
        self.between.count(ascends)
        return Decision(selected if ascends else [], selected or self._everything)

    @property
    def varies(self) -> str:
        if self.passes.group is not None:
            return "several processes take part in a step"
        if self.when.needs_gradient:
            return "a step's own gradient decides whether it makes an ascent (lag=1 decides before it)"
        chooses = self.where.name in ("layers", "budget")
        if chooses and (self.between.needs_clean or self.when.needs_clean):
            return "what it remembers is of other layers in each step"
        if chooses and self.combination.whole:
            return f"combine={self.combination.name} takes norms of other layers in each step"
        return self.where.varies

    def recorded(self, decision: Decision) -> tuple[Hashable, Decision]:
        if not decision.selected:
            return "plain", decision
        selected, mask = self.where.recorded(decision.selected)
        return self.structure.first_stage(selected), decision._replace(selected=self._perturbable(selected), mask=mask)

    def differentiate(self, batches: Sequence[MicroBatch], indices: Any, decision: Decision) -> Step:
        step = Step(decision.selected, decision.mask)
        if decision.undecided:
            self._ascend_if_decided(batches, step)
        elif step.selected:
            (self._ascend if self.where.needs_first_pass else self._leap)(batches, step)
        if step.loss is None:  # else it is there already, at w + eps or at w
            self._descend(batches, step)
        if self._needs_clean:  # and what is made of both gradients, or of what was remembered, has all rows of a sparse one
            self.structure.densify()
        gradients = self.structure.gradients()
        self.passes.divide(gradients)
        step.norms = self._norms(gradients)
        if self.when.weighs:
            clean = step.clean if step.selected else [gradients[index] for index in decision.candidates]
            step.measured = self.when.weigh(self._unscaled([g for g in clean if g is not None]))
        if self.watch:
            step.watched = self._watched(step.selected, step.clean, gradients)
        return step

    def hear(self, step: Step) -> None:
        self.where.observe(step.norms)

    def combine(self, step: Step) -> None:
        gradients = self.structure.gradients()
        if self.where.vectors:
            found = [(index, dense_of(g)) for index, g in enumerate(gradients) if g is not None]
            self.where.commit(step.seen, self._parts(found), torch.isfinite(step.norms).all())
            step.seen = Parts([], [])  # its memory may serve others
        if step.selected:
            self._combine(step, [gradients[index] for index in step.selected])
        else:
            self.between.reuse(gradients, self._scale())

    def report(self, step: Step) -> Report:
        if step.measured is not None:
            self.when.observe(step.measured)
        return super().report(step)

    # -- the passes ----------------------------------------------------------------------------------------------------

    def _descend(self, batches: Sequence[MicroBatch], step: Step) -> None:
        """The plain gradient."""
        for batch in batches:
            with self.passes.unsummed(more_to_come=batch is not batches[-1]):
                losses, outputs = self.passes.losses(batch.inputs, batch, 0, last=True)
                loss = losses.mean().times(batch.share)
                self.passes.backward(loss, batch)
            step.saw(loss, outputs, batch)

    def _ascend(self, batches: Sequence[MicroBatch], step: Step) -> None:
        """The gradient at w + eps."""
        groups = self.samples.groups(batches)
        step.clean = [None] * len(step.selected)
        for group in groups:
            start = self._start(group, step.selected)
            found, weight, firsts = self._first_pass(group, step.selected, start, step)
            if self._needs_clean:
                share = sum(batch.share for batch in group)
                step.clean = _sum(step.clean, [g if g is None else weighted(g, share) for g in found])
            ascent = self.passes.mean_over_replicas(found, weight) if self._one_scope else divided(found, weight)
            self._second_pass(group, firsts, step, ascent, start, last=group is groups[-1])
        if self._needs_clean:
            # What enters the update must be the same on all replicas, like the gradients that the wrapper sums.
            step.clean = ascent if self._one_scope and len(groups) == 1 else self.passes.mean_over_replicas(step.clean, step.weight)

    def _leap(self, batches: Sequence[MicroBatch], step: Step) -> None:
        """The gradient at a w + eps that is known before; and at w of some samples, where the next step's eps is made of that."""
        step.clean = [None] * len(step.selected)
        ahead = self._of_some(batches, step.selected) if self.where.share else []
        with self._perturbed(step, []):
            self._descend(batches, step)
        step.seen = self._parts([(index, g) for index, g in zip(step.selected, ahead, strict=False) if g is not None])

    def _of_some(self, batches: Sequence[MicroBatch], selected: Sequence[int]) -> Gradients:
        """The gradient at w of the first samples of each batch, the share that ``where`` asks for; moves no buffers."""
        counts = [max(1, round(self.where.share * batch.samples)) for batch in batches]
        some = [batch.take(slice(0, count), count) for batch, count in zip(batches, counts, strict=True)]
        with self._buffers():
            found, weight, _ = self._first_pass(some, selected, 0, Step())
        return self.passes.mean_over_replicas(found, weight)

    def _ascend_if_decided(self, batches: Sequence[MicroBatch], step: Step) -> None:
        """The same where the gradient at w decides: if there is to be no ascent, that gradient is the step's own."""
        everything = self._everything
        found, weight, firsts = self._first_pass(batches, everything, 0, step)
        ascent = dict(zip(everything, self.passes.mean_over_replicas(found, weight), strict=True))
        selected = [index for index in self._selected() if ascent[index] is not None]
        present = self._unscaled([g for index in selected if (g := ascent[index]) is not None])
        ascends = bool(selected) and self.when.decides(self.step, present)
        self.between.count(ascends)
        if not ascends:
            for index, g in ascent.items():
                self.structure.parameters[index].grad = g
            return
        step.selected, step.clean = selected, [ascent[index] for index in selected]
        if not self._one_scope:
            ascent = dict(zip(everything, divided(found, weight), strict=True))
        self._second_pass(batches, firsts, step, [ascent[index] for index in selected], 0, last=True)

    def _first_pass(
        self, group: Sequence[MicroBatch], selected: Sequence[int], start: int, step: Step
    ) -> tuple[Gradients, Weight, list[_First]]:
        """The gradient of the group's mean loss at w, of the selected parameters alone, and the weight to divide it by."""
        parameters = [self.structure.parameters[index] for index in selected]
        in_group = sum(batch.share for batch in group)
        ascent: Gradients = [None] * len(selected)
        weight: Weight = 0.0
        firsts = []
        for batch in group:
            state = self.passes.prefix(batch, start)
            masks = Masks(self.passes.model, self.passes.same_dropout)
            losses, outputs = self._first_losses(state, batch, start)
            loss = losses.mean()
            part = loss.times(batch.share / in_group)
            ascent = _sum(ascent, self.passes.gradient(part.value, batch, start, parameters))
            weight = weight + part.weight
            step.saw(loss.times(batch.share), outputs, batch)
            firsts.append(_First(state, masks, losses.each.detach()))
        return ascent, weight, firsts

    def _first_losses(self, state: Any, batch: MicroBatch, start: int) -> tuple[Losses, Any]:
        """Those at w, from the state before stage ``start``, which the second pass needs as it is."""
        before = written(state)
        try:
            losses, outputs = self.passes.losses(self.passes.cut(state) if start else state, batch, start)
            overwritten = written(state) != before
        except RuntimeError as error:
            if not start or "a leaf Variable that requires grad is being used in an in-place operation" not in str(error):
                raise
            overwritten = True  # autograd was the first to see it
        if overwritten:
            where = f"Stage {start}" if self.passes.is_chain else "The model"
            raise RuntimeError(f"{where} writes into its input, which the second pass needs too: make it out of place.") from None
        return losses, outputs

    def _second_pass(
        self, group: Sequence[MicroBatch], firsts: list[_First], step: Step, ascent: Gradients, start: int, *, last: bool
    ) -> None:
        """The gradient of all parameters at w + eps, added to ``.grad``."""
        passes = self.passes
        with self._perturbed(step, ascent):
            for batch, first in zip(group, firsts, strict=True):
                state, descending = first.state, batch
                if self.samples.chooses:
                    state, descending = self._chosen(batch, first)
                first.masks.replay()
                more_to_come = not last or batch is not group[-1]
                with passes.unsummed(more_to_come), self._buffers(start):  # also where a backward pass computes anew
                    losses, _ = passes.losses(state, descending, start, last=True)
                    passes.backward(losses.mean().times(batch.share), descending)

    def _chosen(self, batch: MicroBatch, first: _First) -> tuple[Any, MicroBatch]:
        """The samples that descend, by how their losses rise from w to w + eps."""
        first.masks.replay()
        with torch.no_grad(), self._buffers():
            losses, _ = self.passes.losses(batch.inputs, batch, 0)
        places = self.samples.choose(first.losses, losses.each)
        chosen = batch.take(places, len(places))
        return chosen.inputs, chosen

    # -- their settings ------------------------------------------------------------------------------------------------

    def _start(self, group: Sequence[MicroBatch], selected: Sequence[int]) -> int:
        """The first stage that both passes have to run.

        What comes before the first perturbed stage is the same in both: once is enough. Not for accumulated micro-batches,
        whose graphs would all have to be held at once, nor where the second pass takes other samples, nor where both
        passes move the buffers.
        """
        return self.structure.first_stage(selected) if self._reuses(group) else 0

    def _reuses(self, group: Sequence[MicroBatch]) -> bool:
        return self.passes.is_chain and len(group) == 1 and self.bn == "clean" and not self.samples.chooses

    def _costs(self, stages: Sequence[int], batches: Sequence[MicroBatch]) -> list[float]:
        """What an ascent behind each of the stages with layers costs, in steps of SGD: by FLOPs, a pass backward twice one forward.

        SGD's pass backward ends at the first of them. Without reuse the ascent's pass forward is one of the whole model.
        """
        if self.passes.sharded or self.when.needs_gradient:  # the gradient at w is that of all parameters
            return [1.0] * len(stages)
        shares = [self.passes.suffix(stage, batches[0]) for stage in stages]
        forward = shares if self._reuses(batches) else [1.0 + self.samples.chooses] * len(shares)
        return self.passes.agreed([(f + 2 * b) / (1 + 2 * shares[0]) for f, b in zip(forward, shares, strict=True)])

    def _selected(self) -> list[int]:
        return self._perturbable(self.where.select())

    def _perturbable(self, indices: Sequence[int]) -> list[int]:
        """The parameters to perturb, less those that were frozen in the meantime."""
        parameters = self.structure.parameters
        return [i for i in indices if parameters[i].requires_grad and not isinstance(parameters[i], Unperturbed)]

    def _perturbed(self, step: Step, ascent: Gradients) -> AbstractContextManager[None]:
        """The weights at w + eps; a parameter that the first pass did not use stays where it is."""
        moved = Parts(list(step.selected), [])
        if self.where.needs_first_pass:
            moved = self._parts([(index, g) for index, g in zip(step.selected, ascent, strict=True) if g is not None])
            step.seen = moved if self.where.vectors else step.seen
        chosen, gradients = moved
        if not chosen:
            return nullcontext()
        perturbation = self.where.perturbation(chosen, gradients)
        if step.mask is not None:
            perturbation = torch._foreach_mul(perturbation, self.structure.spread(step.mask, chosen, perturbation))
        return perturbed([self.structure.parameters[index] for index in chosen], perturbation)

    def _buffers(self, start: int = 0) -> AbstractContextManager[None]:
        return self.passes.buffers.kept(start) if self.bn == "clean" else nullcontext()

    @property
    def _everything(self) -> list[int]:
        return [index for index, p in enumerate(self.structure.parameters) if p.requires_grad]

    @property
    def _one_scope(self) -> bool:
        """Whether all replicas share one perturbation; micro-batches have their own in any case."""
        return self.passes.sharded or (self.scope == "batch" and self.samples.name != "micro")

    @property
    def _needs_clean(self) -> bool:
        return self.combination.needs_clean or self.between.needs_clean or self.when.needs_clean or self.watch

    # -- the gradient --------------------------------------------------------------------------------------------------

    def _combine(self, step: Step, sam: Gradients) -> None:
        """What is remembered of both gradients; then what is made of them, in place of g'.

        Where one of the two is missing, g' stays.
        """
        if not self._needs_clean:
            return
        both = [(i, c, s) for i, c, s in zip(step.selected, step.clean, sam, strict=True) if c is not None and s is not None]
        if not both:
            return
        kept, cleans, sams = [i for i, _, _ in both], [c for _, c, _ in both], [s for _, _, s in both]
        scale = self._scale()
        if not self.when.weighs:
            step.measured = self.when.measure(kept, cleans, sams, scale)
        step.reused = self.between.remember(kept, cleans, sams, scale)
        if self.combination.needs_clean:
            self.combination.combine(kept, cleans, sams, step.mask)

    def _watched(self, selected: Sequence[int], clean: Gradients, gradients: Gradients) -> Watched:
        """What the gradients of this step say of it. Micro-batches have a perturbation each, so there is no one curvature."""
        both = [(i, c, s) for i, c in zip(selected, clean, strict=True) if c is not None and (s := gradients[i]) is not None]
        if not both:
            return Watched(self.when.rate)
        cleans, sams = self._unscaled([c for _, c, _ in both]), self._unscaled([s for _, _, s in both])
        one = self.samples.name == "batch"
        perturbation = self.where.perturbation([i for i, _, _ in both], cleans) if one else None
        return watched(self.when.rate, perturbation, cleans, sams)

    def _parts(self, pairs: Sequence[tuple[int, Tensor]]) -> Parts:
        return Parts([index for index, _ in pairs], self._unscaled([g for _, g in pairs]))

    def _unscaled(self, gradients: list[Tensor]) -> list[Tensor]:
        scale = self._scale()
        return gradients if scale is None or not gradients else list(torch._foreach_div(gradients, scale))

    def memory(self, classes: int) -> int:
        """The weights at w, the gradient at w, the perturbation, and what is carried over from step to step."""
        size = sum(p.numel() * p.element_size() for p in self.structure.parameters)
        at_w = self.where.needs_first_pass or self.where.share > 0
        return size * (2 + at_w + self.between.needs_clean + self.where.vectors) if self.when.name != "never" else 0

    def parts_state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "when": self.when.state_dict(),
            "where": self.where.state_dict(),
            "between": self.between.state_dict(),
        }

    def load_parts(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        self.when.load_state_dict(state["when"])
        self.where.load_state_dict(state["where"])
        self.between.load_state_dict(state["between"])


def _sum(total: Gradients, terms: Gradients) -> Gradients:
    return [b if a is None else a if b is None else a + b for a, b in zip(total, terms, strict=True)]
