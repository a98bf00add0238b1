"""Depthwise convolution, one filter a channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from aligntok.device import whole_on_cpu
from aligntok.ops import attention


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Convolve (N, C, H, W) with a filter (C, 1, k, k) for each channel: (N, C, h, w), as F.conv2d with C groups.

    On a CPU a half precision is computed in float32, channels last, and rounded at the end: the gradient of a strided
    depthwise convolution has no quick kernel there in bf16 (`benchmarks/half_on_cpu.py`).
    """
    groups = x.shape[1]
    if not attention.half_on_cpu(x):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    with whole_on_cpu():
        wide = x.float().contiguous(memory_format=torch.channels_last)
        bias = None if bias is None else bias.float()
        found = F.conv2d(wide, weight.float(), bias, stride, padding, dilation, groups)
    return found.to(attention.computed_in(x))
