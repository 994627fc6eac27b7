"""BatchNorm over the batch of all processes, of which each has a part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce


class SyncedBatchNorm(nn.BatchNorm2d):
    """As torch's SyncBatchNorm, which wants a GPU: mean and variance are those of the whole batch, on any device."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        count = x.new_full((1,), x.numel() / x.shape[1])
        sums = all_reduce(torch.cat([x.sum(axes), x.square().sum(axes), count]))
        mean, square = sums[:-1].view(2, -1) / sums[-1]
        variance = square - mean.square()
        if self.track_running_stats:
            self._move(mean.detach(), variance.detach(), sums[-1].detach())
        shape = [1, -1] + [1] * (x.ndim - 2)
        normalised = (x - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        return normalised * self.weight.view(shape) + self.bias.view(shape) if self.affine else normalised

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """The running statistics, by the unbiased variance, as torch's."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None  # noqa: PT018
        self.num_batches_tracked += 1
        momentum: Any = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), momentum)


def synchronise(model: nn.Module) -> None:
    """Have every BatchNorm of the model see the whole batch; names and weights stay."""
    if not distributed.is_initialized():
        return
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SyncedBatchNorm
