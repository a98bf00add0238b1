"""The trunks of ST-LPIPS as feature extractors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from aligntok.extractors import Extractor, Features, resized
from aligntok_st_lpips.loss import STLPIPSLoss

SIZE = 64
NAMES = {"vgg": "VGG16", "alex": "AlexNet"}


class STLPIPSExtractor(Extractor):
    """Features of ST-LPIPS's VGG-16 or AlexNet: metrics on them are called ``FD-STLPIPS-VGG16`` and alike.

    pooled: the mean over positions of each stage's activations, scaled to unit length over the channels as the distance
    takes them, one stage behind the other: (N, 1472) of "vgg", (N, 1152) of "alex". Images are resized to 64 x 64,
    small enough for a CPU. Textures count for more than shapes, so have a second, semantic extractor beside it.

    net, pretrained: see :class:`STLPIPSLoss`, with the errors it raises; random weights have another title.
    """

    resize = f"bicubic antialiased to {SIZE} x {SIZE}"

    def __init__(self, net: str = "vgg", pretrained: bool | str | Path = True) -> None:
        super().__init__()
        self.distance = STLPIPSLoss(net, pretrained)
        self.title = f"STLPIPS-{NAMES[net]}" + ("-random" if pretrained is False else "")
        self.freeze()

    def forward(self, pixels: Tensor) -> Features:  # uint8 (N, 3, H, W)
        """Return pooled features."""
        stages = self.distance.directions(resized(pixels, (SIZE, SIZE)) * 2 - 1)
        return Features(torch.cat([stage.mean(dim=(2, 3)) for stage in stages], dim=1))
