"""Feature extractors: 8-bit images -> the features that distances between sets of images are taken on."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from aligntok.weights.load import weights_hash


class Features(NamedTuple):
    """What an extractor says of N images, float32: pooled (N, D), spatial (N, S) and logits (N, K), or None."""

    pooled: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


class Extractor(nn.Module):
    """A frozen network whose features sets of images are compared on; a component of the extractor registry.

    title: what metrics on it are called after (``FD-<title>``; that of Inception-v3 alone gives ``FID``). resize: in
    words, how it brings images to its own input size. Both are part of what a reference file is checked by.

    A component resizes and normalises by itself, and ends building with :meth:`freeze`. Where its weights are random
    its title says so, so that no metric on them has the name of one that others publish; to that of one built with a
    local file :func:`aligntok.evaluation.metrics.features.build_extractor` adds the file's name.

    ``forward`` takes images as they would be saved, uint8 (N, 3, H, W), and returns :class:`Features`; an image's
    features depend on it alone. It takes `pretrained` (True, False for random weights, or a local file) as encoders do.
    """

    title: str
    resize: str

    @property
    def identity(self) -> str:
        """SHA-256 of the title, the way of resizing and the weights, 64 hexadecimal digits."""
        return weights_hash(f"{self.title} {self.resize}", self)

    def freeze(self) -> None:
        """Go into eval mode, and take no gradient for any parameter."""
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Features:
        """Return the features of uint8 images (N, 3, H, W)."""
        raise NotImplementedError


def resized(pixels: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Return uint8 images (N, 3, H, W) as float32 (N, 3, h, w) in [0, 1], resized with an antialiased filter.

    mode: 'bilinear' or 'bicubic', whose overshoot is cut off. The sides are scaled each by its own factor; nothing is
    cropped, and nothing rounded back to 8 bits. Images of that size already stay as they are.
    """
    images = pixels.contiguous().float() / 255  # in one memory layout, so that the same kernel is used for each
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode=mode, align_corners=False, antialias=True).clamp(0, 1)


class EncoderFeatures(Extractor):
    """Pooled features (N, C) of a built encoder, frozen: the mean over the positions of its grid.

    encoder: images (N, 3, H, W) in [-1, 1], of sides that are multiples of its `downsample_factor`, to (N, C, h, w).
    title: what metrics on it are called after. Images of other sides are resized to the nearest multiples.
    """

    def __init__(self, encoder: Any, title: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.title = title
        self.factor: int = encoder.downsample_factor
        stride = getattr(encoder, "stride", self.factor)
        self.resize = (
            f"bilinear antialiased to multiples of {self.factor}; seen at {stride} / {self.factor} of its size"
        )
        self.freeze()

    def forward(self, pixels: Tensor) -> Features:  # uint8 (N, 3, H, W)
        """Return the mean of the encoder's features over its grid, float32 (N, C)."""
        height, width = (max(1, round(side / self.factor)) * self.factor for side in pixels.shape[-2:])
        images = resized(pixels, (height, width), "bilinear") * 2 - 1
        return Features(self.encoder(images).float().mean(dim=(2, 3)))
