"""Any timm model as a feature extractor."""

from __future__ import annotations

import os
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor

from aligntok.errors import ConfigError
from aligntok.extractors.base import Extractor, Features, in_words, resized
from aligntok.weights.libraries import check_model_name, pretrained_tensors
from aligntok.weights.load import misfit_of

FILTERS = ("bilinear", "bicubic")


class TimmExtractor(Extractor):
    """A timm model's pooled features before its classifier (N, D), and its logits (N, K) where it has a classifier.

    model: any of timm's, with or without a pretrained tag; the title is ``timm-<model>``. Images are resized to its own
    test size with its own filter (antialiased, without crop) and normalised with its own mean and deviation.
    pretrained: True for the published weights, a local file of them, or False for random ones (``-random`` ends the
    title). Raises ConfigError for an unknown model, WeightsError for weights that can't be had or don't fit.
    """

    def __init__(self, model: str, pretrained: bool | str | os.PathLike[str] = True) -> None:
        check_model_name(model)
        super().__init__()
        self.title = f"timm-{model}" + ("-random" if pretrained is False else "")
        self.model = _create(model, pretrained)
        data = resolve_model_data_config(self.model, use_test_size=True)
        self.size: tuple[int, int] = tuple(data["input_size"][1:])
        self.filter: str = data["interpolation"] if data["interpolation"] in FILTERS else "bicubic"
        self.resize = in_words(self.size, self.filter, data["mean"], data["std"])
        self.register_buffer("mean", torch.tensor(data["mean"]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(data["std"]).view(-1, 1, 1), persistent=False)
        self.freeze()

    mean: Tensor
    std: Tensor

    def forward(self, pixels: Tensor) -> Features:  # uint8 (N, 3, H, W)
        """Return pooled features and, of a classifier, logits."""
        x = (resized(pixels, self.size, self.filter) - self.mean) / self.std
        features = self.model.forward_features(x)
        pooled = self.model.forward_head(features, pre_logits=True).flatten(1).float()
        logits = self.model.forward_head(features).float() if self.model.num_classes else None
        return Features(pooled, logits=logits)


def _create(model: str, pretrained: bool | str | os.PathLike[str]) -> Any:
    who = f"timm model '{model}'"
    tensors, source = pretrained_tensors(model, pretrained)
    if tensors is None:
        return timm.create_model(model)
    # timm's own path converts original checkpoints; as many classes as the file's model had keep its loading strict.
    overlay: dict[str, Any] = {"state_dict": tensors, "source": ""}
    try:
        created: Any = timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, KeyError, ValueError, IndexError, AssertionError) as error:  # loading, or its converter
        raise misfit_of(error, who, source) from error
    created.pretrained_cfg.pop("state_dict", None)  # where the tensors would stay in memory
    if not hasattr(created, "forward_head"):
        raise ConfigError(f"timm model '{model}' gives no pooled features; choose another")
    return created
