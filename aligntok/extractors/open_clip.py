"""Any open_clip image tower as a feature extractor; the text tower is never built."""

from __future__ import annotations

import os
from typing import Any

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import _build_vision_tower
from torch import Tensor

from aligntok.extractors.base import Extractor, Features, in_words, resized
from aligntok.weights.libraries import any_tag, chosen_tag, image_tensors, model_config
from aligntok.weights.load import load_into


class OpenCLIPExtractor(Extractor):
    """The image embedding (N, D) of an open_clip model, projected into the space of texts but not normalised.

    model: one of open_clip.list_models(). pretrained: the tag of a set of weights, True where there is one set, a local
    file (the whole model's or the image tower's), or False for random ones. The title is ``open_clip-<model>``, with
    ``-<tag>`` where there is one, and ``-random`` for random weights. Images are resized to the tower's own size,
    bicubic and antialiased, without crop. Raises ConfigError for an unknown model, and WeightsError for a tag or
    weights that can't be had or don't fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: str, pretrained: bool | str | os.PathLike[str] = True) -> None:
        config = model_config(model)
        tag = chosen_tag(model, pretrained)
        published = open_clip.get_pretrained_cfg(model, tag or any_tag(model))
        super().__init__()
        ending = tag or ("random" if pretrained is False else "")
        self.title = f"open_clip-{model}" + (f"-{ending}" if ending else "")
        quick_gelu = bool(config.get("quick_gelu") or (tag and published.get("quick_gelu")))
        self.tower = _tower(config, quick_gelu)
        tensors, source = image_tensors(model, tag, pretrained)
        if tensors is not None:
            load_into(self.tower, tensors, f"open_clip model '{model}'", source)
        mean, std = published.get("mean") or OPENAI_DATASET_MEAN, published.get("std") or OPENAI_DATASET_STD
        side = config["vision_cfg"].get("image_size", 224)
        self.size: tuple[int, int] = (side, side) if isinstance(side, int) else tuple(side)
        self.resize = in_words(self.size, "bicubic", mean, std)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.freeze()

    def forward(self, pixels: Tensor) -> Features:  # uint8 (N, 3, H, W)
        """Return the image embedding."""
        embedding = self.tower((resized(pixels, self.size) - self.mean) / self.std)
        return Features((embedding[0] if isinstance(embedding, tuple) else embedding).float())


def _tower(config: dict[str, Any], quick_gelu: bool) -> Any:
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}  # the tower's weights come with the rest
    return _build_vision_tower(config["embed_dim"], vision, quick_gelu)
