"""A step with nothing left to decide, so that a GPU can do it by itself: recorded once as a CUDA graph, then replayed.

    decide, on the host                          whether there is an ascent, and behind which stage
    copy the batch to where the recording reads it
    replay the recording for what was decided    both passes, what stands between them, the mix
    observe, on the host                         what the next decisions need

A recording is of fixed shapes, fixed addresses and fixed control flow. Each decision has one: a plain step, a step with an
ascent, one for every cut of the chain where layers are chosen. The method itself, run as it is, stays the definition; on the
CPU this does nothing else, in the same order, on the same tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from ..chain import tensors, tree_map
from ..schema import UserError
from .batches import MicroBatch
from .method import Gradients, Method, Report, Step
from .passes import Criterion

MOST = 256  # recordings; more say that something differs from step to step that need not


class Recording(NamedTuple):
    """What was recorded: its results lie where they are after every replay."""

    replay: Callable[[], None]
    step: Step


Recorder = Callable[[Callable[[], Step]], Recording]


class CudaGraphs:
    """Records what a function does on the current GPU; all its recordings share their memory."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, function: Callable[[], Step]) -> Recording:
        graph = torch.cuda.CUDAGraph()
        torch.clear_autocast_cache()  # the recording makes its own low-precision copies of the weights
        with torch.cuda.graph(graph, pool=self._pool):
            step = function()
        self._pool = graph.pool()
        torch.clear_autocast_cache()
        return Recording(graph.replay, step)


@dataclass
class _Slot:
    """What serves the steps of one kind: the tensors that it reads, and the recording once there is one."""

    leaves: list[Tensor]
    warm: bool = False
    recording: Recording | None = None
    gradients: Gradients = field(default_factory=list)
    units: tuple[float, float] = (0.0, 0.0)


class StaticStep:
    """``backward`` of a method, recorded the second time that a step of its kind comes, replayed from then on.

    Args:
        method: any whose steps leave nothing open once they are decided. After ``load_state_dict`` make a new ``StaticStep``.
        record: makes the recordings; CUDA graphs where the model is on a GPU, and none on the CPU.

    Raises:
        UserError: the method has no such step, or the model draws random numbers (dropout), which a replay would repeat.
    """

    def __init__(self, method: Method, record: Recorder | None = None) -> None:
        if method.varies:
            raise UserError(f"graphs=true does not go with this method: {method.varies}.")
        self.method = method
        self.device = method.structure.parameters[0].device
        self.record = CudaGraphs() if record is None and self.device.type == "cuda" else record
        self._slots: dict[Hashable, _Slot] = {}

    def backward(
        self, inputs: Any, targets: Any, criterion: Criterion, *, indices: Any = None, scaler: Any = None, batch_dim: int = 0
    ) -> Report:
        """As ``Method.backward``; ``criterion`` has to be the same object in every step."""
        method = self.method
        decision = method.decide()
        if method.watch:  # what is watched is of the layers selected, and seldom
            return method.take(decision, inputs, targets, criterion, indices, scaler, batch_dim)
        kind, fixed = method.recorded(decision)
        leaves, tree = _flat((inputs, targets, indices))
        slot = self._slot((kind, tree, criterion, scaler, batch_dim, *self._circumstances()), leaves)
        inputs, targets, indices = tree_unflatten(slot.leaves, tree)
        batches = method.begin(inputs, targets, criterion, scaler, batch_dim)
        with method.alone():
            step = self._run(slot, partial(self._step, batches, indices, fixed))
        step.selected = decision.selected
        method.hear(step)
        method.step += 1
        return method.report(step)

    def _circumstances(self) -> tuple[Hashable, ...]:
        kind = self.device.type
        return self.method.passes.model.training, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def _slot(self, kind: tuple[Hashable, ...], leaves: Sequence[Any]) -> _Slot:
        """The one for steps of this kind and these shapes, with the batch copied into it."""
        key = (*kind, *((leaf.shape, leaf.dtype, leaf.stride()) if isinstance(leaf, Tensor) else leaf for leaf in leaves))
        slot = self._slots.get(key)
        if slot is None:
            if len(self._slots) == MOST:
                raise UserError(f"graphs=true records steps that come again; these were {MOST} kinds: pass the same criterion each time.")
            slot = self._slots[key] = _Slot(tree_map_only(Tensor, torch.empty_like, list(leaves)))
        for mine, given in zip(slot.leaves, leaves, strict=True):
            if isinstance(given, Tensor):
                mine.copy_(given, non_blocking=True)
        return slot

    def _step(self, batches: Sequence[MicroBatch], indices: Any, decision: Any) -> Step:
        step = self.method.differentiate(batches, indices, decision)
        self.method.combine(step)
        step.clean = []  # of no use any more: its memory may serve others
        return step

    def _run(self, slot: _Slot, function: Callable[[], Step]) -> Step:
        """Do it: the first time as it is, which is a step like any other and warms up, then by the recording."""
        if not slot.warm:
            slot.warm = True
            return self._warmed(function)
        if self.record is None:
            return function()
        passes, parameters = self.method.passes, self.method.structure.parameters
        if slot.recording is None:
            slot.recording = self._recorded(function)
            slot.gradients, slot.units = [p.grad for p in parameters], (passes.forward_units, passes.backward_units)
        slot.recording.replay()
        passes.forward_units, passes.backward_units = slot.units
        _hand_out(slot.gradients, parameters)
        return _copy(slot.recording.step)

    def _recorded(self, function: Callable[[], Step]) -> Recording:
        assert self.record is not None
        passes = self.method.passes
        saving, passes.same_dropout = passes.same_dropout, False  # there is none, and a generator's state is the host's business
        try:
            return self.record(function)
        finally:
            passes.same_dropout = saving

    def _warmed(self, function: Callable[[], Step]) -> Step:
        before, buffers = self._generators(), dict(self.method.passes.model.named_buffers())
        if self.device.type == "cuda":
            # As PyTorch wants it before a capture: not on the stream that autograd would remember.
            aside = torch.cuda.Stream(self.device)
            aside.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(aside):
                step = function()
            torch.cuda.current_stream(self.device).wait_stream(aside)
        else:
            step = function()
        if any(not torch.equal(a, b) for a, b in zip(before, self._generators(), strict=True)):
            raise UserError("graphs=true does not go with dropout: the model draws random numbers, and a replay would draw the same ones.")
        if any(p.grad is not None and p.grad.is_sparse for p in self.method.structure.parameters):
            raise UserError("graphs=true does not go with sparse gradients, whose sizes differ from step to step: set sparse=False.")
        for name, buffer in self.method.passes.model.named_buffers():
            if buffers.get(name) is not buffer:  # a replay would read the old one for ever
                raise UserError(
                    f"graphs=true does not go with this model: its forward puts a new tensor in the place of {name}; write into it."
                )
        return step

    def _generators(self) -> list[Tensor]:
        here = [torch.get_rng_state()]
        return [*here, torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else here


def _flat(batch: tuple[Any, Any, Any]) -> tuple[list[Any], Any]:
    """The tensors and constants of a batch, and how they are held."""
    inputs, *others = batch
    leaves, tree = tree_flatten(
        (dict(inputs) if isinstance(inputs, Mapping) else inputs, *others), is_leaf=lambda node: isinstance(node, PackedSequence)
    )
    for leaf in leaves:
        if not isinstance(leaf, Tensor) and tensors(leaf):
            raise UserError(
                f"graphs=true takes tensors in tuples, lists and dicts, not in a {type(leaf).__name__}, which may change from step to step."
            )
    return leaves, tree


def _hand_out(gradients: Gradients, parameters: Sequence[Tensor]) -> None:
    """Copies of the gradients in ``.grad``: what is accumulated there must outlast the next replay."""
    there = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    copies = [torch.empty_like(g) for _, g in there]
    torch._foreach_copy_(copies, [g for _, g in there])
    for (p, _), made in zip(there, copies, strict=True):
        p.grad = made


def _copy(step: Step) -> Step:
    """What is told of a step, out of the way of the next replay."""
    result = copy.copy(step)
    for name in ("loss", "weight", "outputs", "norms", "measured", "reused"):
        setattr(result, name, tree_map(torch.clone, getattr(step, name)))
    return result
