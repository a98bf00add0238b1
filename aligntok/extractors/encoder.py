"""Any encoder's features, averaged over its grid."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aligntok.extractors.contract import Extractor, Features
from aligntok.extractors.resizing import resized


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
