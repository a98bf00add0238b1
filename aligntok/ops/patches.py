"""Square patches of a grid as tokens, and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def to_patches(x: Tensor, size: int) -> Tensor:
    """Cut x (N, C, h*size, w*size) into tokens (N, h*w, C*size*size), row by row; each in a convolution's order."""
    x = x.unflatten(2, (-1, size)).unflatten(4, (-1, size))  # (N, C, h, size, w, size)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def from_patches(tokens: Tensor, size: int, height: int, width: int) -> Tensor:
    """Put tokens (N, height*width, size*size*C), channels last in each, together as (N, C, height*size, width*size)."""
    x = tokens.unflatten(2, (size, size, -1)).unflatten(1, (height, width))  # (N, height, width, size, size, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def resample_position_grid(
    table: Tensor, grid: tuple[int, int], source: tuple[int, int] | None = None, prefix: int = 1
) -> Tensor:
    """Resample a learned position table (prefix + h*w, C) to another grid, bicubic with antialiasing.

    source: (h, w) of the table, a square when not given. Returns (prefix + grid[0]*grid[1], C); the first `prefix`
    rows belong to tokens without a place and stay.
    """
    h, w = source or (int((len(table) - prefix) ** 0.5),) * 2
    if (h, w) == grid:
        return table
    places = table[prefix:].reshape(1, h, w, -1).permute(0, 3, 1, 2).float()
    places = F.interpolate(places, size=grid, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([table[:prefix], places.flatten(2)[0].T.to(table.dtype)])
