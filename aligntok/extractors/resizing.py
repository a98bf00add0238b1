"""From 8-bit images to what a network was trained on: its size and its mean and deviation."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def resized(pixels: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Return uint8 images (N, 3, H, W) as float32 (N, 3, h, w) in [0, 1], resized with an antialiased filter.

    mode: 'bilinear' or 'bicubic', whose overshoot is cut off. The sides are scaled each by its own factor; nothing is
    cropped, and nothing rounded back to 8 bits. Images of that size already stay as they are.
    """
    images = pixels.contiguous().float() / 255  # in one memory layout, so that the same kernel is used for each
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode=mode, align_corners=False, antialias=True).clamp(0, 1)


def in_words(size: tuple[int, int], mode: str, mean: Sequence[float], std: Sequence[float]) -> str:
    """Say what :func:`resized` and a normalisation do: part of an extractor's identity."""
    numbers = [", ".join(f"{value:.6g}" for value in values) for values in (mean, std)]
    return f"{mode} antialiased to {size[0]} x {size[1]}, mean ({numbers[0]}), std ({numbers[1]})"
