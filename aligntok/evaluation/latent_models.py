"""The same images through several models: what is measured of each image, and what is kept of it for t-SNE and PCA."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aligntok.caching.encoder import latent_shape
from aligntok.distributed import total
from aligntok.errors import ConfigError, DataError
from aligntok.evaluation.images import EvaluationImages, frozen
from aligntok.evaluation.metrics.latent_space import spatial_variance, total_variation
from aligntok.evaluation.results import identity
from aligntok.evaluation.settings import LatentAnalysis
from aligntok.loading import load_tokenizer
from aligntok.registry import ENCODERS
from aligntok.rng import rng

REFERENCE = "reference"
#: Encoder types whose models have names of their own, written as ``timm:MODEL``.
WITH_MODELS = ("timm", "open_clip")


@dataclass(frozen=True)
class LatentModel:
    """A model whose latents are looked at: images (N, 3, H, W) in [-1, 1] to latents (N, C, h, w).

    name: in tables and pictures. shape: (C, h, w) of an image's latent. what: which model it is, as JSON types.
    """

    name: str
    encode: Callable[[Tensor], Tensor]
    shape: tuple[int, int, int]
    what: Mapping[str, Any]


def load_models(
    asked: LatentAnalysis, names: Sequence[str], encoder: Mapping[str, Any], size: tuple[int, int]
) -> list[LatentModel]:
    """Load the tokenizers, by these names, and, last, the reference encoder of this config.

    Raises what loading and building do, ConfigError for an image size that a model cannot take.
    """
    loaded = [load_tokenizer(source, weights=asked.weights) for source in asked.tokenizers]
    factors = {each.downsample_factor for each in loaded}
    config = on_grid_of(encoder, factors)
    models = []
    for name, source, tokenizer in zip(names, asked.tokenizers, loaded, strict=True):
        shape, encode = latent_shape(tokenizer, size), frozen(tokenizer, asked.precision, "encode")
        what = {"source": os.fspath(source), "identity": identity(tokenizer)}
        models.append(LatentModel(name, encode, shape, {**what, "downsample_factor": tokenizer.downsample_factor}))
    encode = frozen(ENCODERS.build(dict(config)), asked.precision)
    channels, height, width = encode(torch.zeros(1, 3, *size)).shape[1:]
    return [*models, LatentModel(REFERENCE, encode, (channels, height, width), {"encoder": config})]


def encoder_config(encoder: str) -> dict[str, Any]:
    """Return the config that a word stands for: a registry name, ``timm:MODEL`` or ``open_clip:MODEL``.

    Raises ConfigError for a type without the model that it needs.
    """
    kind, _, model = encoder.partition(":")
    if kind in WITH_MODELS and not model:
        raise ConfigError(f"reference encoder '{encoder}' names no model; write {kind}:MODEL")
    return {"type": kind, "model_name": model} if model else {"type": kind}


def on_grid_of(config: Mapping[str, Any], factors: set[int]) -> dict[str, Any]:
    """Give an encoder's config the factor of the tokenizers, where it says none, takes one, and they have but one."""
    takes = inspect.signature(ENCODERS.get(config["type"])).parameters if "type" in config else {}
    filled = {"downsample_factor": min(factors)} if len(factors) == 1 and "downsample_factor" in takes else {}
    return {**filled, **config}


def distinct_names(sources: Sequence[str], names: Sequence[str] | None = None) -> list[str]:
    """Return a name for each tokenizer: those given, or the parts of their paths that tell them apart.

    Raises ConfigError for given names that are too many, too few, not different, or the reference's, and for a
    tokenizer given twice without names.
    """
    if names is None and len(set(sources)) == len(sources):
        parts = [list(Path(os.path.abspath(source) if os.path.exists(source) else source).parts) for source in sources]
        while len(parts) > 1 and min(map(len, parts)) > 1 and len({each[-1] for each in parts}) == 1:
            parts = [each[:-1] for each in parts]  # the end that all have, such as .../tokenizer
        shown = (["/".join(each[-count:]) for each in parts] for count in range(1, max(map(len, parts)) + 1))
        found = next((found for found in shown if len(set(found)) == len(found)), list(sources))
        return found if REFERENCE not in found else list(sources)
    if names is None:
        raise ConfigError(f"a tokenizer is given twice: {', '.join(sources)}; leave one out, or give both --names")
    if len(names) != len(sources) or len({*names, REFERENCE}) != len(names) + 1:
        raise ConfigError(
            f"names {', '.join(names)} for {len(sources)} tokenizers; give as many, all different, and none of them "
            f"'{REFERENCE}'"
        )
    return list(names)


@dataclass(frozen=True)
class Draws:
    """Which latents are drawn for t-SNE: of each repetition one position of each of P images.

    rows: (S, P), which images. places: (S, P, 2) in [0, 1), where in the image: the same for every grid.
    """

    rows: Tensor
    places: Tensor

    @classmethod
    def of(cls, seeds: Sequence[int], images: int, points: int) -> Draws:
        """Draw `points` of the images, or all of them if there are fewer, for each seed."""
        rows, places = [], []
        for seed in seeds:
            generator = rng("points", seed)
            rows.append(torch.randperm(images, generator=generator)[:points])
            places.append(torch.rand(len(rows[-1]), 2, generator=generator))
        return cls(torch.stack(rows), torch.stack(places))


@dataclass(frozen=True)
class Collected:
    """What is kept of N images' latents of a model; images that could not be read have zeros.

    pooled: (N, C) means over positions, L2-normalised. variance, variation: (N,). points: (S, P, C), the drawn latents.
    shown: (M, C, h, w), those of the images in pictures.
    """

    model: LatentModel
    pooled: Tensor
    variance: Tensor
    variation: Tensor
    points: Tensor
    shown: Tensor


@dataclass(frozen=True)
class Collection:
    """Everything kept of the images: of each model, and labels (N,), which were read (N,), pictures (M, 3, H, W)."""

    models: list[Collected]
    labels: Tensor
    read: Tensor
    inputs: Tensor


def collect(models: Sequence[LatentModel], images: EvaluationImages, draws: Draws, shown: Sequence[int]) -> Collection:
    """Encode every image with every model; collective. `shown` are the rows, among the images, of pictures.

    An image's numbers depend on it alone, as far as rounding goes, and on the batch it is in not at all between
    numbers of processes. Raises DataError for latents that are not finite, and what reading the images does.
    """
    num = len(images)
    kept = [
        {
            "pooled": torch.zeros(num, model.shape[0], dtype=torch.float64),
            "variance": torch.zeros(num, dtype=torch.float64),
            "variation": torch.zeros(num, dtype=torch.float64),
            "points": torch.zeros(*draws.rows.shape, model.shape[0]),
            "shown": torch.zeros(len(shown), *model.shape),
        }
        for model in models
    ]
    labels, read = torch.zeros(2, num, dtype=torch.int64)
    inputs = torch.zeros(len(shown), 3, *images.image_size)
    for batch in images:
        rows = images.rows(batch)
        labels[rows], read[rows] = batch.labels.long(), 1
        seeds, points, drawn = (draws.rows[..., None] == rows).nonzero().T
        pictures, seen = (torch.tensor(shown)[:, None] == rows).nonzero().T
        inputs[pictures] = batch.images[seen]
        for model, own in zip(models, kept, strict=True):
            latents = model.encode(batch.images).cpu()
            finite = latents.isfinite().flatten(1).all(1)
            if not finite.all():
                name = images.source.names[int(batch.places[~finite][0])]
                raise DataError(
                    f"{model.name} gives latents of {name} that are not finite; take --precision fp32, and leave the "
                    "model out if they are not finite in fp32 either"
                )
            own["pooled"][rows] = F.normalize(latents.double().mean(dim=(2, 3)), dim=1)
            own["variance"][rows], own["variation"][rows] = spatial_variance(latents), total_variation(latents)
            y, x = (draws.places[seeds, points] * torch.tensor(latents.shape[2:])).long().T
            own["points"][seeds, points] = latents[drawn, :, y, x]
            own["shown"][pictures] = latents[seen]
    summed = [{name: total(tensor) for name, tensor in own.items()} for own in kept]
    collected = [Collected(model, **own) for model, own in zip(models, summed, strict=True)]
    return Collection(collected, total(labels), total(read), total(inputs))
