"""Square patches of a grid as tokens, and back."""

from __future__ import annotations

from torch import Tensor


def to_patches(x: Tensor, size: int) -> Tensor:
    """Cut x (N, C, h*size, w*size) into tokens (N, h*w, C*size*size), row by row; each in a convolution's order."""
    x = x.unflatten(2, (-1, size)).unflatten(4, (-1, size))  # (N, C, h, size, w, size)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def from_patches(tokens: Tensor, size: int, height: int, width: int) -> Tensor:
    """Put tokens (N, height*width, size*size*C), channels last in each, together as (N, C, height*size, width*size)."""
    x = tokens.unflatten(2, (size, size, -1)).unflatten(1, (height, width))  # (N, height, width, size, size, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
