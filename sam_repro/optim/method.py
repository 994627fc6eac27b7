"""What every gradient method has in common: what it reports, and that ``.grad`` is added to, or left alone if it fails."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import kept
from .batches import MicroBatch, batches_of, joined
from .passes import Criterion, Mean, Passes, Weight, detached, divided
from .structure import Structure
from .watched import Watched
from .where import Parts

Gradients = list[Tensor | None]


@dataclass
class Report:
    """What a step did. Tensors stay on the device; reading one makes the host wait."""

    loss: Tensor  # mean loss of this process's samples, 0-dim: the clean one (at w), at w + eps where that is a step's only pass
    outputs: Any  # of the same pass, detached; a list for a list of micro-batches
    ascended: bool
    layers: list[str]  # the layers perturbed, in forward order
    layer_norms: Tensor  # (layers,) norms of the last pass's gradient, before the mix
    forward_units: float
    backward_units: float
    watched: Watched | None = None  # where ``Method.watch`` is on
    reused: Mapping[str, Tensor] = field(default_factory=dict)  # 0-dim: sizes of what an ascent leaves to later steps, in steps with one


@dataclass
class Step:
    """What one call of ``backward`` finds: running sums and results, on the device."""

    selected: Sequence[int] = ()  # the parameters that were perturbed
    mask: Tensor | None = None  # (layers,): 0 for those that are among them but were to stay
    clean: Gradients = field(default_factory=list)  # of the selected parameters
    seen: Parts = field(
        default_factory=lambda: Parts([], [])
    )  # what their perturbation is of, or the next step's, where that is remembered
    loss: Tensor | None = None  # to be divided by
    weight: Weight = 0.0  # of the samples seen
    outputs: dict[int, list[tuple[Any, float]]] = field(default_factory=dict)  # each with its share of the samples
    norms: Tensor = field(init=False)  # of the layers' gradient
    measured: Tensor | None = None  # for what decides about later steps
    watched: Watched | None = None
    reused: Mapping[str, Tensor] = field(default_factory=dict)

    def saw(self, loss: Mean, outputs: Any, batch: MicroBatch) -> None:
        """The outputs of a pass at w, and their part of the step's loss."""
        part = loss.value.detach()
        self.loss = part if self.loss is None else self.loss + part
        self.weight = self.weight + loss.weight
        self.outputs.setdefault(batch.place, []).append((detached(outputs), batch.share))


class Method:
    """``backward`` takes the place of ``loss.backward()``; the step is the base optimizer's."""

    name: str = ""  # as in ``conf/optimizer``
    structure: Structure
    passes: Passes
    step: int
    watch: bool = False  # report how the gradients at w and at w + eps differ; changes no number of the step

    def backward(
        self, inputs: Any, targets: Any, criterion: Criterion, *, indices: Any = None, scaler: Any = None, batch_dim: int = 0
    ) -> Report:
        """Add the method's gradient of the mean loss to ``.grad`` of the model's parameters.

        Args:
            inputs: what the model takes, samples along dim 0: a tensor, a tuple of arguments, a mapping of named ones (a
                tokenizer's BatchEncoding too), a PackedSequence. A list of such is a batch accumulated in micro-batches: one
                perturbation for all of them. Where samples are taken apart (msam, esam), a tensor without that dimension, or
                with 1 there, belongs to all.
            targets: what the criterion takes; a list where ``inputs`` is one.
            criterion: ``criterion(outputs, targets)`` returns the loss of each sample, shape ``(batch,)``, or
                ``(losses, weights)``, both ``(batch,)``: the loss of the step is then sum(weights * losses) / sum(weights)
                over all micro-batches and replicas, and zero where that weight is. Weights may be a mask, and are constants.
            indices: the samples' places in the training set, for methods that keep something for each sample; a list
                where ``inputs`` is one.
            scaler: torch's GradScaler under fp16 autocast. ``.grad`` is then scaled: unscale, clip and step as usual.
            batch_dim: the dimension of samples in inputs and targets, 1 for ``batch_first=False``; of tensors with fewer
                dimensions, as class labels, it is the last. The losses are ``(batch,)`` all the same.

        Raises:
            ValueError: the criterion does not return one loss per sample.

        Torch's ``reduction="mean"`` is a weighted mean where there are class weights or an ``ignore_index``. Its
        ``reduction="none"`` has them in each loss already, so that they are taken out again where they become weights::

            def criterion(outputs, targets):
                losses = F.cross_entropy(outputs, targets, class_weights, ignore_index=ignored, label_smoothing=smoothing, reduction="none")
                weights = class_weights[targets.where(targets != ignored, 0)] * (targets != ignored)
                return losses / weights.where(weights != 0, 1), weights
        """
        return self.take(self.decide(), inputs, targets, criterion, indices, scaler, batch_dim)

    def take(self, decision: Any, inputs: Any, targets: Any, criterion: Criterion, indices: Any, scaler: Any, dim: int) -> Report:
        """The step that was decided; arguments as of ``backward``."""
        batches = self.begin(inputs, targets, criterion, scaler, dim)
        with self.alone():
            step = self.differentiate(batches, indices, decision)
            self.hear(step)
            self.combine(step)
        self.step += 1
        return self.report(step)

    def begin(self, inputs: Any, targets: Any, criterion: Criterion, scaler: Any, dim: int) -> list[MicroBatch]:
        """Start to count what the step costs; its batches."""
        batches = batches_of(inputs, targets, dim)
        self.passes.begin(criterion, scaler, sum(batch.samples for batch in batches), dim)
        return batches

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Here the method's gradient alone is in ``.grad``; afterwards what was accumulated before is added, also if it fails."""
        parameters = self.structure.parameters
        before = self.structure.gradients()
        if self.passes.shares_gradients:
            before = [g if g is None else g.clone() for g in before]
        for p in parameters:
            p.grad = None
        try:
            yield
        except BaseException:
            for p in parameters:
                p.grad = None
            raise
        finally:
            _add(parameters, before)

    # A step in its parts. What changes from step to step is decided on the host, first; from then on nothing but numbers does.

    def decide(self) -> Any:
        """What the step to come does."""
        raise NotImplementedError

    @property
    def varies(self) -> str:
        """Why no recorded step could serve another one, as half a sentence; empty where one can."""
        raise NotImplementedError

    def recorded(self, decision: Any) -> tuple[Hashable, Any]:
        """Which recorded step serves, where one can, and what that one does in place of what was decided."""
        raise NotImplementedError

    def differentiate(self, batches: Sequence[MicroBatch], indices: Any, decision: Any) -> Step:
        """The passes of the step, on the device: the gradient of the last one in ``.grad``."""
        raise NotImplementedError

    def hear(self, step: Step) -> None:
        """See on the host what the passes found; without waiting for it."""

    def combine(self, step: Step) -> None:
        """Make the method's gradient of it, in ``.grad``, on the device."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on beside weights, base optimizer and random number generators; and whose it is."""
        return {"method": self.name, "version": kept.VERSION, **self.parts_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state_dict`` left off; UserError where another method, or another model's, did."""
        kept.check(state, self.name, self.parts_state())
        self.load_parts(state)

    def parts_state(self) -> dict[str, Any]:
        """The step, and what each part has learned."""
        raise NotImplementedError

    def load_parts(self, state: Mapping[str, Any]) -> None:
        """The same back, out of a state that is one of this method's."""
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

    def report(self, step: Step) -> Report:
        """What to tell of the step."""
        outputs = [joined(parts, self.passes.dim) for parts in step.outputs.values()]
        (loss,) = divided([step.loss], step.weight)
        assert loss is not None
        return Report(
            loss=loss,
            outputs=outputs[0] if len(outputs) == 1 else outputs,
            ascended=bool(step.selected),
            layers=[self.structure.layers[index].name for index in sorted({self.structure.layer_of[i] for i in step.selected})],
            layer_norms=step.norms,
            forward_units=self.passes.forward_units,
            backward_units=self.passes.backward_units,
            watched=step.watched,
            reused=step.reused,
        )

    def _norms(self, gradients: Gradients) -> Tensor:
        scale = self._scale()
        norms = self.structure.layer_norms(gradients)
        return norms if scale is None else norms / scale


def weighted(value: Tensor, share: float) -> Tensor:
    """``value * share``, and ``value`` itself for the usual share of one."""
    return value if share == 1.0 else value * share


def _add(parameters: Sequence[nn.Parameter], earlier: Gradients) -> None:
    """Add the gradients that were there before."""
    for p, before in zip(parameters, earlier, strict=True):
        if before is not None:
            if p.grad is None or not before.is_sparse or p.grad.is_sparse:
                p.grad = before if p.grad is None else before.add_(p.grad)
            else:
                p.grad.add_(before)
