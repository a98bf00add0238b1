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

from aligntok.caching.encoder import Batch, LatentEncoder
from aligntok.caching.settings import CacheSettings
from aligntok.device import computing, device, explaining_out_of_memory
from aligntok.distributed import total
from aligntok.errors import ConfigError, DataError
from aligntok.evaluation.images import EvaluationImages
from aligntok.evaluation.metrics.latent_space import spatial_variance, total_variation
from aligntok.evaluation.results import identity
from aligntok.registry import ENCODERS
from aligntok.rng import rng
from aligntok.settings import Precision
from aligntok.tokenizer import Tokenizer

REFERENCE = "reference"


#: Encoder types whose models have names of their own, written as ``timm:MODEL``.
WITH_MODELS = ("timm", "open_clip")


@dataclass(frozen=True)
class LatentModel:
    """A model whose latents are looked at: images (N, 3, H, W) in [-1, 1] to latents (N, C, h, w), on the CPU.

    name: in tables and pictures. shape: (C, h, w) of an image's latent. what: which model it is, as JSON types.
    """

    name: str
    encode: Callable[[Tensor], Tensor]
    shape: tuple[int, int, int]
    what: Mapping[str, Any]


def tokenizer_subject(
    name: str, source: str, tokenizer: Tokenizer, size: tuple[int, int], precision: Precision
) -> LatentModel:
    """Return a tokenizer as a subject. Raises ConfigError for a size that its factor does not divide."""
    encoder = LatentEncoder(tokenizer, CacheSettings(image_size=size, hflip=False, precision=precision))
    encoder.to_device()
    what = {"source": source, "identity": identity(tokenizer), "downsample_factor": tokenizer.downsample_factor}
    return LatentModel(name, lambda images: encoder(images)[:, 0].float(), encoder.latent_shape, what)


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


def reference_subject(config: Mapping[str, Any], size: tuple[int, int], precision: Precision) -> LatentModel:
    """Return the reference encoder as a subject. Raises what building it does, ConfigError for an unfit size."""
    encoder = ENCODERS.build(dict(config)).eval().requires_grad_(False)
    encoder.to(device())

    @torch.inference_mode()
    def encode(images: Tensor) -> Tensor:
        what = f"{len(images)} images of {size[0]} x {size[1]}"
        with explaining_out_of_memory(what, "lower the batch size"), computing(precision):
            return encoder(images.to(device(), non_blocking=True)).float().cpu()

    channels, height, width = encode(torch.zeros(1, 3, *size)).shape[1:]
    return LatentModel(REFERENCE, encode, (channels, height, width), {"encoder": {**config}})


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


class Collected:
    """What is kept of N images' latents of a subject; images that could not be read have zeros.

    pooled: (N, C) means over positions, L2-normalised. variance, variation: (N,). points: (S, P, C), the drawn latents.
    shown: (M, C, h, w), those of the images in pictures.
    """

    def __init__(self, subject: LatentModel, images: int, draws: Draws, shown: Sequence[int]) -> None:
        self.subject, self.draws = subject, draws
        channels = subject.shape[0]
        self.pooled = torch.zeros(images, channels, dtype=torch.float64)
        self.variance = torch.zeros(images, dtype=torch.float64)
        self.variation = torch.zeros(images, dtype=torch.float64)
        self.points = torch.zeros(*draws.rows.shape, channels)
        self.shown = torch.zeros(len(shown), *subject.shape)
        self._drawn = torch.full((len(draws.rows), images), -1)
        self._drawn.scatter_(1, draws.rows, torch.arange(draws.rows.shape[1]).expand_as(draws.rows))
        self._shown = {row: place for place, row in enumerate(shown)}

    def add(self, rows: Tensor, latents: Tensor) -> None:
        """Take in the latents (N, C, h, w) of the images `rows` (N,)."""
        self.pooled[rows] = F.normalize(latents.double().mean(dim=(2, 3)), dim=1)
        self.variance[rows], self.variation[rows] = spatial_variance(latents), total_variation(latents)
        grid = torch.tensor(latents.shape[2:])
        for seed, drawn in enumerate(self._drawn[:, rows]):
            wanted = (drawn >= 0).nonzero()[:, 0]
            y, x = (self.draws.places[seed, drawn[wanted]] * grid).long().T
            self.points[seed, drawn[wanted]] = latents[wanted, :, y, x]
        for latent, row in zip(latents, rows.tolist(), strict=True):
            if row in self._shown:
                self.shown[self._shown[row]] = latent

    def share(self) -> None:
        """Put together what the processes have; collective."""
        for name in ("pooled", "variance", "variation", "points", "shown"):
            setattr(self, name, total(getattr(self, name)))


@dataclass(frozen=True)
class Collection:
    """Everything kept of the images: of each subject, and labels (N,), which were read (N,), pictures (M, 3, H, W)."""

    subjects: list[Collected]
    labels: Tensor
    read: Tensor
    inputs: Tensor


def collect(
    subjects: Sequence[LatentModel], images: EvaluationImages, draws: Draws, shown: Sequence[int]
) -> Collection:
    """Encode every image with every subject; collective. `shown` are the places, among the images, of pictures.

    An image's numbers depend on it alone, as far as rounding goes, and on the batch it is in not at all between
    numbers of processes. Raises DataError for latents that are not finite, and what reading the images does.
    """
    kept = [Collected(subject, len(images), draws, shown) for subject in subjects]
    labels, read = torch.zeros(len(images), dtype=torch.int64), torch.zeros(len(images), dtype=torch.int64)
    inputs = torch.zeros(len(shown), 3, *images.image_size)
    for rows, batch in images.read():
        labels[rows], read[rows] = batch.labels.long(), 1
        for place, row in enumerate(shown):
            inputs[place] += batch.images[rows == row].sum(dim=0)  # one image, or none
        for each in kept:
            latents = each.subject.encode(batch.images)
            _check_finite(each.subject, latents, images, batch)
            each.add(rows, latents)
    for each in kept:
        each.share()
    return Collection(kept, total(labels), total(read), total(inputs))


def _check_finite(subject: LatentModel, latents: Tensor, images: EvaluationImages, batch: Batch) -> None:
    finite = latents.isfinite().flatten(1).all(1)
    if not finite.all():
        name = images.source.names[int(batch.places[~finite][0])]
        raise DataError(
            f"{subject.name} gives latents of {name} that are not finite; take --precision fp32, and leave the model "
            "out if they are not finite in fp32 either"
        )
