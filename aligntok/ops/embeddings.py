"""Positions, times and patches as vectors, and blocks that are computed anew in the backward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


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


def grid_rotations(height: int, width: int, axes: Sequence[int], *, theta: float = 1e4) -> Tensor:
    """Return the rotations of a grid, (2, height*width, sum of axes), as FLUX has them: for :func:`rotate`.

    axes: channels, even numbers, that turn by 0, by a token's row and by its column. Angles are found in float64.
    """
    places = torch.zeros(3, height, width, dtype=torch.float64, device="cpu")
    places[1], places[2] = torch.arange(height, device="cpu")[:, None], torch.arange(width, device="cpu")
    exponents = (torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim for dim in axes)
    angles = torch.cat([place[..., None] * theta**-each for place, each in zip(places, exponents, strict=True)], dim=-1)
    turned = angles.flatten(0, 1).repeat_interleave(2, dim=-1)  # (tokens, dim)
    return torch.stack([turned.cos(), turned.sin()]).float()


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Turn neighbouring pairs of channels of x (B, heads, tokens, dim) by the rotations of :func:`axial_rotations`."""
    pairs = _wide(x).unflatten(-1, (-1, 2))  # turned in float32: half precision would blur large angles
    if torch.compiler.is_compiling():  # torch.compile makes one pass of this, and none of complex numbers
        (cos, sin), (even, odd) = rotations[..., ::2], pairs.unbind(-1)
        turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * as_complex(rotations))
    return turned.flatten(-2).to(x.dtype)


def split_rotated(qkv: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split qkv (N, tokens, 3, heads, dim) into q, k, v (N, heads, tokens, dim) each, q and k as :func:`rotate` does.

    They stay where they are: qkv itself is overwritten, so that no second copy is kept for the backward pass, which
    puts the three gradients into one tensor. Nothing else may need qkv's values.
    """
    return _SplitRotated.apply(qkv, as_complex(rotations))


class _SplitRotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, rotations: Tensor) -> tuple[Tensor, ...]:  # (tokens, dim/2), complex
        ctx.save_for_backward(rotations)
        q, k, v = qkv.detach().permute(2, 0, 3, 1, 4)
        turn(q, rotations, q)
        turn(k, rotations, k)
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (rotations,) = ctx.saved_tensors
        n, heads, tokens, dim = gradients[0].shape
        whole = gradients[0].new_empty(n, tokens, 3, heads, dim)
        q, k, v = whole.permute(2, 0, 3, 1, 4)
        turn(gradients[0].contiguous(), rotations.conj(), q)
        turn(gradients[1].contiguous(), rotations.conj(), k)
        v.copy_(gradients[2])
        return whole, None


def turn(x: Tensor, rotations: Tensor, out: Tensor) -> None:
    """Write x, turned by complex `rotations`, into `out`; both (..., dim), the same tensor perhaps."""
    pairs = torch.view_as_complex(_wide(x).unflatten(-1, (-1, 2)))
    if out.dtype == pairs.real.dtype:
        torch.mul(pairs, rotations, out=torch.view_as_complex(out.unflatten(-1, (-1, 2))))
    else:
        out.copy_(torch.view_as_real(pairs * rotations).flatten(-2))


def _wide(x: Tensor) -> Tensor:
    return x.to(wide_type(x))


def wide_type(x: Tensor) -> torch.dtype:
    """Return the type that half precision is turned and normalised in: float32, or float64 where x is."""
    return torch.promote_types(x.dtype, torch.float32)


def as_complex(rotations: Tensor) -> Tensor:
    """Return rotations (2, tokens, dim) as complex numbers (tokens, dim/2), for :func:`turn`."""
    return torch.complex(*rotations[..., ::2].contiguous())  # each angle stands there twice


MAX_PERIOD = 1e4


def embed_times(t: Tensor, dim: int) -> Tensor:
    """Embed numbers t (N,) as (N, dim) in float32: cosines, then sines, of dim/2 frequencies from 1 down to 1e-4."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(MAX_PERIOD) / half))
    angles = t.float()[:, None] * frequencies  # (N, dim/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def embed_grid(height: int, width: int, dim: int, *, device: torch.device | None = None) -> Tensor:
    """Embed the places of a grid, (height*width, dim) in float32: the column in the first half of dim, then the row.

    dim: a multiple of 4. Positions count tokens from the corner, so a smaller grid is a corner of a larger one.
    """
    # In float64 on the CPU, as the published tables were made: some accelerators have no float64.
    places = torch.arange(max(height, width), dtype=torch.float64, device="cpu")
    frequencies = MAX_PERIOD ** -(torch.arange(dim // 4, dtype=torch.float64, device="cpu") / (dim // 4))
    angles = places[:, None] * frequencies  # (longer side, dim/4)
    line = torch.cat([angles.sin(), angles.cos()], dim=-1).float()  # (longer side, dim/2)
    columns, rows = line[:width].expand(height, -1, -1), line[:height, None].expand(-1, width, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1).to(device)


def to_patches(x: Tensor, size: int) -> Tensor:
    """Cut x (N, C, h*size, w*size) into tokens (N, h*w, C*size*size), row by row; each in a convolution's order."""
    x = x.unflatten(2, (-1, size)).unflatten(4, (-1, size))  # (N, C, h, size, w, size)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def from_packed_patches(tokens: Tensor, size: int, height: int, width: int) -> Tensor:
    """Put tokens of :func:`to_patches`, (N, height*width, C*size*size), together: (N, C, height*size, width*size)."""
    return from_patches(tokens.unflatten(2, (-1, size * size)).mT.flatten(2), size, height, width)


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


def run_block(block: nn.Module, x: Tensor, checkpointing: bool, *args: Any) -> Any:
    """Return ``block(x, *args)``; with checkpointing, its activations are recomputed in the backward pass, not kept."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, x, *args, use_reentrant=False)
    return block(x, *args)
