"""Batch normalisation whose batch is that of all processes, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aligntok.distributed import total, world


class GlobalBatchNorm2d(nn.SyncBatchNorm):
    """Batch norm over the batches of all processes together: (N, C, h, w) to (N, C, h, w).

    Outputs, input gradients and running statistics are those of one process with the whole batch, whatever each
    process's share. Weight and bias get the gradient of the process's own share, to be summed as for any parameter.
    Without a process group, with one process, or in eval mode it is ``nn.BatchNorm2d``; names are the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world()[1] == 1:
            return nn.BatchNorm2d.forward(self, input)
        if input.is_cuda:
            return super().forward(input)
        return self._forward_anywhere(input.float()).to(input.dtype)

    def _forward_anywhere(self, x: Tensor) -> Tensor:
        # nn.SyncBatchNorm has kernels for accelerators only; this is the same in differentiable sums.
        local_count = x.new_full((1,), x.numel() / x.shape[1])
        summed, count = _Total.apply(torch.cat([x.sum((0, 2, 3)), local_count])).split([x.shape[1], 1])
        mean = summed / count
        centred = x - mean[:, None, None]
        variance = _Total.apply(centred.square().sum((0, 2, 3))) / count
        self._update_running(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            return centred * (scale * self.weight)[:, None, None] + self.bias[:, None, None]
        return centred * scale[:, None, None]

    @torch.no_grad()
    def _update_running(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(unbiased_variance, momentum)


class _Total(torch.autograd.Function):
    """Sum over processes, whose gradient is the sum over processes of the sum's gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return total(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)
