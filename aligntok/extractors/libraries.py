"""Any timm model, and any open_clip image tower (the text tower is never built), as a feature extractor."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from timm.data import resolve_model_data_config
from torch import Tensor

from aligntok.errors import ConfigError, first_line
from aligntok.extractors import Extractor, Features, resized
from aligntok.weights.libraries import OpenCLIPModel, check_model_name, create_timm, meta_twin, pretrained_tensors
from aligntok.weights.load import load_into

FILTERS = ("bilinear", "bicubic")


class LibraryExtractor(Extractor):
    """A model of a library, which sees images at its own size and with its own filter, mean and deviation."""

    mean: Tensor
    std: Tensor

    def finish(self, size: Sequence[int], filter: str, mean: Sequence[float], std: Sequence[float]) -> None:
        """End building: say how images are resized (antialiased, without crop) and normalised, and freeze."""
        self.size: tuple[int, int] = (size[0], size[1])
        self.filter = filter
        numbers = [", ".join(f"{value:.6g}" for value in values) for values in (mean, std)]
        self.resize = f"{filter} antialiased to {size[0]} x {size[1]}, mean ({numbers[0]}), std ({numbers[1]})"
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.freeze()

    def features(self, pixels: Tensor) -> Features:
        """Features of normalised pixels (N, 3, h, w) of the model's size: the subclass's part."""
        raise NotImplementedError(f"{type(self).__name__} must define features(pixels)")

    def forward(self, pixels: Tensor) -> Features:  # uint8 (N, 3, H, W)
        """Return the features, with logits where the model has a classifier."""
        return self.features(self.seen(pixels))

    @torch.no_grad()
    def check_pooled(self, who: str) -> None:
        """Raise ConfigError, in which `who` is the model, unless a blank image of its size has pooled features."""
        blank = torch.zeros(1, 3, *self.size, device=self.mean.device)
        try:
            try:
                shape = meta_twin(self).features(blank.to("meta")).pooled.shape
            except Exception:  # of a model that keeps tensors which are no buffers: it has to compute
                shape = self.features(blank).pooled.shape
            if len(shape) != 2:
                raise ValueError(f"they are {tuple(shape)}")
        except Exception as error:  # whatever the library has to say of the size, or of features that it does not have
            raise ConfigError(
                f"{who} gives no pooled features (N, D) of its own {self.size[0]} x {self.size[1]} pixels "
                f"({first_line(error)}); choose another"
            ) from error

    def seen(self, pixels: Tensor) -> Tensor:
        """Resize and normalise uint8 images (N, 3, H, W) to what the model takes."""
        return (resized(pixels, self.size, self.filter) - self.mean) / self.std


class TimmExtractor(LibraryExtractor):
    """A timm model's pooled features before its classifier (N, D), and its logits (N, K) where it has a classifier.

    model: any of timm's, with or without a pretrained tag; the title is ``timm-<model>``. Images are resized to its own
    test size with its own filter (antialiased, without crop) and normalised with its own mean and deviation.
    pretrained: True for the published weights, a local file of them, or False for random ones (``-random`` ends the
    title). Raises ConfigError for an unknown model and one without pooled features, WeightsError for weights that can't
    be had or don't fit.
    """

    def __init__(self, model: str, pretrained: bool | str | os.PathLike[str] = True) -> None:
        check_model_name(model)
        super().__init__()
        self.title = f"timm-{model}" + ("-random" if pretrained is False else "")
        self.model = create_timm(model, *pretrained_tensors(model, pretrained))
        data = resolve_model_data_config(self.model, use_test_size=True)
        filter = data["interpolation"] if data["interpolation"] in FILTERS else "bicubic"
        self.finish(data["input_size"][1:], filter, data["mean"], data["std"])
        self.check_pooled(f"timm model '{model}'")

    def features(self, pixels: Tensor) -> Features:
        features = self.model.forward_features(pixels)
        pooled = self.model.forward_head(features, pre_logits=True)
        if math.prod(pooled.shape[2:]) == 1:  # (N, D, 1, 1), too
            pooled = pooled.flatten(1)
        logits = self.model.forward_head(features).float() if self.model.num_classes else None
        return Features(pooled.float(), logits=logits)


class OpenCLIPExtractor(LibraryExtractor):
    """The image embedding (N, D) of an open_clip model, projected into the space of texts but not normalised.

    model: one of open_clip.list_models(). pretrained: the tag of a set of weights, True where there is one set, a local
    file (the whole model's or the image tower's), or False for random ones. weights_of: the tag whose activation, mean
    and std the tower has (by default that of `pretrained`): for a file of OpenAI's weights, say, "openai". The title is
    ``open_clip-<model>``, with ``-<tag>`` where there is one, ``-random`` for random weights and ``-as-<weights_of>``.
    Images are resized to the tower's own size, bicubic and antialiased, without crop. Raises ConfigError for an unknown
    model, and WeightsError for a tag or weights that can't be had or don't fit.
    """

    def __init__(
        self, model: str, pretrained: bool | str | os.PathLike[str] = True, weights_of: str | None = None
    ) -> None:
        meant = OpenCLIPModel(model, pretrained, weights_of)
        super().__init__()
        endings = [meant.tag or ("random" if pretrained is False else ""), weights_of and f"as-{weights_of}"]
        self.title = "-".join([f"open_clip-{model}", *filter(None, endings)])
        self.tower = meant.build_visual()
        tensors, source = meant.image_tensors()
        if tensors is not None:
            load_into(self.tower, tensors, meant.who, source)
        side = meant.vision.get("image_size", 224)
        self.finish((side, side) if isinstance(side, int) else side, "bicubic", meant.mean, meant.std)
        self.check_pooled(meant.who)

    def features(self, pixels: Tensor) -> Features:
        embedding = self.tower(pixels)
        return Features((embedding[0] if isinstance(embedding, tuple) else embedding).float())
