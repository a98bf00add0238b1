"""Pictures in rows: of reconstructions, input | reconstruction | error, and of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def reconstruction_grid(images: Sequence[Tensor], reconstructions: Sequence[Tensor], gap: int = 4) -> Tensor:
    """Lay out pairs (3, H, W) in [-1, 1] as rows input | reconstruction | error; returns (3, H', W') in [-1, 1].

    The error is twice the absolute difference, black where there is none. Images of different sizes are padded with
    white; several rows stand side by side when there are more than six.
    """
    tiles = []
    for image, reconstruction in zip(images, reconstructions, strict=True):
        shown = reconstruction.clamp(-1, 1)
        error = ((image - shown).abs() * 2 - 1).clamp(max=1)
        tiles.append(_join([image, shown, error], dim=2, gap=gap))
    height, width = (max(tile.shape[d] for tile in tiles) for d in (1, 2))
    tiles = [F.pad(t, (0, width - t.shape[2], 0, height - t.shape[1]), value=1.0) for t in tiles]
    columns = 1 if len(tiles) <= 6 else 2
    rows = [_join(tiles[i : i + columns], dim=2, gap=3 * gap) for i in range(0, len(tiles), columns)]
    rows = [F.pad(row, (0, rows[0].shape[2] - row.shape[2]), value=1.0) for row in rows]
    return _join(rows, dim=1, gap=gap)


def image_grid(images: Sequence[Tensor], columns: int | None = None, gap: int = 2) -> Tensor:
    """Lay out images (3, H, W) in [-1, 1], all of one size, row by row; returns (3, H', W').

    columns: None makes the grid about square. White between them, and where the last row ends early.
    """
    across = columns or math.ceil(math.sqrt(len(images)))
    rows = [_join(images[i : i + across], dim=2, gap=gap) for i in range(0, len(images), across)]
    rows = [F.pad(row, (0, rows[0].shape[2] - row.shape[2]), value=1.0) for row in rows]
    return _join(rows, dim=1, gap=gap)


def _join(tiles: Sequence[Tensor], dim: int, gap: int) -> Tensor:
    """Concatenate tiles along rows (1) or columns (2), a white gap between them."""
    padding = (0, gap) if dim == 2 else (0, 0, 0, gap)
    padded = [F.pad(tile, padding, value=1.0) for tile in tiles[:-1]]
    return torch.cat([*padded, tiles[-1]], dim=dim)
