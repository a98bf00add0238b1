"""What fixes a sample, and drawing a batch of them: the generator, labels, seeds, sampler and guidance."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import aligntok
from aligntok.data.transforms import parse_image_size
from aligntok.device import computing, device, explaining_out_of_memory, multiplying, precision_on
from aligntok.diffusion.sampling import draw_samples
from aligntok.diffusion.settings import Sampling
from aligntok.engine.compile import compile_blocks
from aligntok.errors import ConfigError, DivergenceError, first_line, multiples_of
from aligntok.io.pictures import to_uint8
from aligntok.latent_diffusion import LatentDiffusion, check_null_class
from aligntok.loading import load_latent_diffusion
from aligntok.rng import rng
from aligntok.sampling.settings import SampleRequest
from aligntok.weights.load import weights_hash

LABELS = ("random", "balanced")
SEEDS = 2**32  # torch's generator on the CPU takes a seed's lowest 32 bits, and leaves the others out
DECODED_AT_ONCE = 2**20  # pixels: 16 pictures of 256 x 256, whatever the batch; a decoder needs a GiB for a few
SAME_STATISTICS = 1e-3  # of a channel's deviation: by how much two generators' latents may be normalised differently


@dataclass(frozen=True)
class LabelRule:
    """The label of each sample: "random", "balanced", those `listed` over and over, or "none" (0 for all)."""

    rule: str
    num_classes: int
    listed: tuple[int, ...] = ()

    @classmethod
    def of(cls, request: SampleRequest, model: LatentDiffusion) -> LabelRule:
        """Return the rule of a request. Raises ConfigError for classes that there are not."""
        if not model.conditional and (request.labels or request.classes):
            raise ConfigError("labels or classes were given, but this generator is unconditional: leave them out")
        listed = tuple(model.class_index(name) for name in request.classes)
        rule = "listed" if listed else (request.labels or "random") if model.conditional else "none"
        return cls(rule, model.generator.num_classes, listed)

    def label(self, number: int, seed: int) -> int:
        """Return the label of sample `number`, whose own seed is `seed`."""
        if self.rule == "listed":
            return self.listed[number % len(self.listed)]
        if self.rule == "balanced":
            return number % self.num_classes
        if self.rule == "none":
            return 0
        return int(rng("label", seed).bit_generator.seed_seq.generate_state(1, np.uint64)[0] % self.num_classes)

    def as_json(self) -> str | list[int]:
        return list(self.listed) if self.rule == "listed" else self.rule


def check_balanced(labels: str | None, num: int, num_classes: int, where: str) -> None:
    """Raise ConfigError where so many samples are too few for one of each class, which balanced labels promise."""
    if labels == "balanced" and num < num_classes:
        raise ConfigError(
            f"{where}labels=balanced with num_samples={num} misses {num_classes - num} of {num_classes} classes; draw "
            f"{num_classes} or more, or take random labels"
        )


class SampleBatch(NamedTuple):
    """Normalised latents (N, C, h, w), where they were drawn, and pictures (N, H, W, 3), uint8."""

    latents: Tensor
    pixels: npt.NDArray[np.uint8]


class SamplePipeline:
    """A generator that is ready to draw. Raises what loading it raises, and ConfigError for what cannot be drawn."""

    def __init__(self, request: SampleRequest) -> None:
        self.request = request
        self.model = load_latent_diffusion(request.run, request.weights, request.ema)
        self.sampling = _changed(self.model.sampling, request.sampling)
        self.rule = LabelRule.of(request, self.model)
        self.weak = None if request.autoguidance is None else load_weaker(request.autoguidance, self.model)
        f, (_, *latent_size) = self.model.tokenizer.downsample_factor, self.model.latent_shape
        own = (latent_size[0] * f, latent_size[1] * f)
        self.image_size = own if request.size is None else parse_image_size(request.size)
        unit = f * getattr(self.model.generator, "patch_size", 1)
        multiples_of(unit, "size", self.image_size, "the tokenizer's factor times the generator's patch size")
        self.latent_size = (self.image_size[0] // f, self.image_size[1] // f)
        self.device = device()
        self.precision = request.precision or precision_on(self.device)
        if request.compile:
            compile_blocks([self.model.generator, self.weak], {})

    def labels(self, numbers: Sequence[int]) -> list[int]:
        """Return the labels of these samples."""
        return [self.rule.label(i, self.request.seed + i) for i in numbers]

    def check(self, num: int, *several: Sampling) -> None:
        """Raise ConfigError unless `num` samples can be drawn with each of these settings.

        Each is rehearsed on a single number, with a model that says 0.
        """
        if self.request.seed + num > SEEDS:
            raise ConfigError(
                f"seed {self.request.seed} with {num} samples: seeds end at 2^32 - 1, and sample i has seed + i; "
                "give a lower seed"
            )
        null, shape = self.model.generator.null_class, (self.model.latent_shape[0], 1, 1)
        for sampling in several:
            check_null_class(sampling.cfg_scale, self.model.generator, "sampling", self.weak)
            weak = None if self.weak is None else _nothing
            try:
                draw_samples(_nothing, torch.zeros(1, dtype=torch.long), [0], shape, sampling, null, weak)
            except TypeError as error:  # such as text where a number belongs
                raise ConfigError(
                    f"sampler '{sampling.sampler}' cannot use its options {dict(sampling.options)} "
                    f"({first_line(error)}); give each a value of the type of its default"
                ) from error

    def to_device(self) -> None:
        """Move what drawing needs; the tokenizer's encoder stays."""
        for part in (self.model.generator, self.model.tokenizer.decoder, self.weak):
            if part is not None:
                part.to(self.device)

    @torch.inference_mode()
    def draw(self, numbers: Sequence[int], sampling: Sampling | None = None) -> SampleBatch:
        """Draw the samples of these numbers as one batch.

        Raises DivergenceError when one is not finite, ConfigError when memory does not suffice.
        """
        seeds, labels = [self.request.seed + i for i in numbers], self.labels(numbers)
        chosen, precision = sampling or self.sampling, self.precision
        what = f"{len(numbers)} samples of {' x '.join(map(str, self.image_size))}"
        with explaining_out_of_memory(what, "lower --batch-size"), multiplying(precision, whole=True):
            with computing(precision, whole=True):
                latents = self.model.sample_latents(labels, seeds, chosen, self.latent_size, self.weak)
            rows = max(1, DECODED_AT_ONCE // math.prod(self.image_size))
            decoded = [self._decode(few) for few in latents.split(rows)]
        pixels, finite = (torch.cat(each) for each in zip(*decoded, strict=True))
        self._check_finite(latents, finite, numbers, chosen)
        return SampleBatch(latents, pixels.cpu().numpy())

    def _decode(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return pictures (N, H, W, 3), uint8, and of each whether it and its latents are finite, (N,)."""
        images = self.model.decode(latents)
        finite = latents.isfinite().flatten(1).all(1) & images.isfinite().flatten(1).all(1)
        return to_uint8(images).permute(0, 2, 3, 1), finite

    def _check_finite(self, latents: Tensor, finite: Tensor, numbers: Sequence[int], chosen: Sampling) -> None:
        if not finite.all():
            place = int(finite.logical_not().nonzero()[0])
            what = "picture" if latents[place].isfinite().all() else "latents"
            raise DivergenceError(
                f"the {what} of sample {numbers[place]} (seed {self.request.seed + numbers[place]}) came out as NaN or "
                f"infinite, with --precision {self.precision} and --cfg-scale {chosen.cfg_scale:g}; try "
                "--precision fp32 and --cfg-scale 1. If it is not finite then either, the generator diverged in "
                "training: take weights of an earlier step"
            )

    def describe(self) -> dict[str, Any]:
        """Return what fixes the samples, as JSON types; paths and versions are told too."""
        request, model = self.request, self.model
        generator = {"identity": generator_identity(model), "source": str(request.run)}
        weak, tokenizer = None, model.tokenizer
        if self.weak is not None:
            weak = {"identity": weights_hash({}, self.weak), "source": str(request.autoguidance)}
        decoder = weights_hash(tokenizer.config["decoder"], tokenizer.decoder)
        return {
            "generator": {**generator, "weights": request.weights, "average": request.ema},
            "tokenizer": {"identity": tokenizer.identity, "decoder": decoder},
            "autoguidance": weak,
            "sampling": json.loads(json.dumps(asdict(self.sampling))),
            "image_size": list(self.image_size),
            "precision": self.precision,
            "compile": request.compile,
            "labels": self.rule.as_json(),
            "seed": request.seed,
            "aligntok_version": aligntok.__version__,
        }


def load_weaker(source: str | os.PathLike[str], model: LatentDiffusion) -> nn.Module:
    """Load the generator at `source`, to guide `model` with. Raises ConfigError unless both see the same latents."""
    weak = load_latent_diffusion(source)
    pairs = {
        "latent channels": (weak.latent_shape[0], model.latent_shape[0]),
        "classes": (weak.generator.num_classes, model.generator.num_classes),
        "names of the classes": (weak.class_names or model.class_names, model.class_names or weak.class_names),
    }
    for what, (its, ours) in pairs.items():
        if its != ours:
            told = f"{its}, not {ours}" if isinstance(its, int) else "others"
            raise ConfigError(
                f"autoguidance: {source} has other {what} than the generator that it is to guide ({told}); "
                "give a generator that was trained on the same latents"
            )
    (mean, std), (own_mean, own_std) = weak.statistics.tensors(), model.statistics.tensors()
    apart = torch.stack([(mean - own_mean) / own_std, (std - own_std) / own_std]).abs().max()
    if not apart <= SAME_STATISTICS:
        raise ConfigError(
            f"autoguidance: the latents of {source} are normalised by other means and deviations (up to {apart:.2g} "
            "deviations apart) than the generator's that it is to guide; give one that was trained on the same latents"
        )
    return weak.generator


def generator_identity(model: LatentDiffusion) -> str:
    """SHA-256 of the generator's weights and config and its latents' statistics, 64 hexadecimal digits."""
    config = {"generator": model.config["generator"], "statistics": model.config["statistics"]}
    return weights_hash(config, model.generator)


def _changed(own: Sampling, changes: Mapping[str, Any]) -> Sampling:
    kept = own.options if changes.get("sampler", own.sampler) == own.sampler else {}
    return replace(own, **{**changes, "options": {**kept, **changes.get("options", {})}})


def _nothing(x: Tensor, t: Tensor, y: Any) -> Tensor:
    return torch.zeros_like(x)
