"""The loss of a model over samples as a function of its weights: value, gradient, and Hessian times vector.

The mean is over samples, so a shorter last batch counts by its size. The model runs in evaluation mode, in full precision and
without augmentation, and is afterwards what it was: weights, modes, ``.grad``, statistics, random number generators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..chain import call
from ..optim.batches import size
from ..optim.passes import Masks
from ..schema import UserError

Loss = Callable[[Any, Any], Tensor]
Batches = Iterable[tuple[Any, Any]]
BACKENDS: Any = torch.backends  # torch does not declare the parts of cudnn and mkldnn
PRECISIONS = (
    *(BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn),
    *(BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.rnn),
)


class Objective:
    """The mean loss of ``model`` over ``batches``.

    Args:
        model: any module; its trainable parameters are the variables.
        loss: ``loss(outputs, targets)`` returns the loss of each sample, ``(batch,)``.
        batches: ``(inputs, targets)``, gone through anew for every value: a list, or a loader that does not shuffle.
        tick: called after every batch of a pass with the number of samples done.
    """

    def __init__(self, model: nn.Module, loss: Loss, batches: Batches, tick: Callable[[int], None] | None = None) -> None:
        self.model, self.batches = model, batches
        self._loss, self._tick = loss, tick
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise UserError("The model has nothing to measure: no parameter requires a gradient.")

    @property
    def size(self) -> int:
        """The number of variables."""
        return sum(p.numel() for p in self.parameters)

    def value(self) -> Tensor:
        """The mean loss, 0-dim."""
        return self._mean(lambda loss: [loss], differentiated=False)[0]

    def gradient(self) -> list[Tensor]:
        """Its gradient, tensor by tensor like ``parameters``."""
        return self._mean(lambda loss: list(torch.autograd.grad(loss, self.parameters, materialize_grads=True)))

    def hessian_times(self, vector: Sequence[Tensor]) -> list[Tensor]:
        """The Hessian times ``vector`` (tensor by tensor), by differentiating the gradient once more."""

        def product(loss: Tensor) -> list[Tensor]:
            gradient = torch.autograd.grad(loss, self.parameters, create_graph=True, materialize_grads=True)
            pairs = [(g, v) for g, v in zip(gradient, vector, strict=True) if g.requires_grad]
            if not pairs:  # the loss is linear
                return [torch.zeros_like(p) for p in self.parameters]
            moving, along = zip(*pairs, strict=True)
            return list(torch.autograd.grad(moving, self.parameters, along, materialize_grads=True))

        return self._mean(product)

    def _mean(self, of: Callable[[Tensor], list[Tensor]], *, differentiated: bool = True) -> list[Tensor]:
        """The mean over samples of what ``of`` makes of a batch's summed loss."""
        total: list[Tensor] = []
        samples = 0
        with undisturbed(self.model), torch.set_grad_enabled(differentiated):
            for inputs, targets in self.batches:
                losses = self._loss(call(self.model, inputs), targets)
                if losses.shape != (size(inputs),):
                    raise ValueError(f"The loss must be one number per sample, shape ({size(inputs)},), not {tuple(losses.shape)}.")
                part = [t.detach() for t in of(losses.sum())]
                total = list(torch._foreach_add(total, part)) if total else part
                samples += size(inputs)
                if self._tick is not None:
                    self._tick(samples)
        if not samples:
            raise UserError("There are no samples to measure on.")
        return list(torch._foreach_div(total, samples))


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, autocast and TF32 off, attention twice differentiable; on leaving, all as it was."""
    modes = {module: module.training for module in model.modules()}
    masks = Masks(model, active=True)
    precisions = [backend.fp32_precision for backend in PRECISIONS]
    device = next((p.device for p in model.parameters()), torch.device("cpu")).type
    model.eval()
    with ExitStack() as stack:
        stack.callback(_restore, modes, masks, precisions)
        for backend in PRECISIONS:
            backend.fp32_precision = "ieee"
        stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the fused kernels have no second derivative
        yield


def _restore(modes: dict[nn.Module, bool], masks: Masks, precisions: Sequence[str]) -> None:
    for module, training in modes.items():
        module.training = training
    masks.replay()
    for backend, precision in zip(PRECISIONS, precisions, strict=True):
        backend.fp32_precision = precision
