"""Sines and cosines of times and places: the fixed embeddings of diffusion transformers (Vaswani et al. 2017)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

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
