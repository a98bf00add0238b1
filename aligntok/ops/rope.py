"""Rotary position embedding on a two-dimensional grid of tokens (Su et al. 2021, axial form)."""

from __future__ import annotations

import torch
from torch import Tensor


def axial_rotations(
    height: int, width: int, dim: int, *, theta: float = 1e4, device: torch.device | None = None
) -> Tensor:
    """Return the rotations of a grid, (2, height*width, dim): cosines and sines; rows turn the first half of `dim`.

    dim: width of one attention head, a multiple of 4. Positions count tokens, so any grid can be asked for.
    """
    frequencies = theta ** -torch.arange(0, dim // 2, 2, dtype=torch.float32, device=device).div(dim // 2)  # (dim/4,)
    rows = torch.arange(height, dtype=torch.float32, device=device)[:, None] * frequencies  # (height, dim/4)
    columns = torch.arange(width, dtype=torch.float32, device=device)[:, None] * frequencies  # (width, dim/4)
    grid = torch.cat(
        [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1
    )  # (height, width, dim/2)
    angles = grid.reshape(height * width, dim // 2).repeat_interleave(2, dim=-1)  # (tokens, dim)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Turn neighbouring pairs of channels of x (B, heads, tokens, dim) by the rotations of :func:`axial_rotations`."""
    cos, sin = rotations
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (x * cos + turned * sin).to(x.dtype)  # turned in float32: half precision would blur large angles
