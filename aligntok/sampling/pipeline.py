"""What fixes a sample, and drawing a batch of them: the generator, labels, seeds, sampler and guidance."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import aligntok
from aligntok.condition import ClassCondition
from aligntok.data.transforms import parse_image_size
from aligntok.device import computing, device, explaining_out_of_memory, multiplying, precision_on, precision_taken
from aligntok.diffusion.sampling import draw_samples
from aligntok.diffusion.settings import Sampling, changed
from aligntok.engine.compile import compile_blocks
from aligntok.errors import ConfigError, DivergenceError, first_line, multiples_of
from aligntok.io.pictures import to_uint8
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.loading import load_latent_diffusion
from aligntok.rng import SEEDS
from aligntok.sampling.prompt_files import read_prompts
from aligntok.sampling.settings import SampleRequest
from aligntok.sampling.words import word_rule
from aligntok.weights.load import weights_hash

DECODED_AT_ONCE = 2**20  # pixels: 16 pictures of 256 x 256, whatever the batch; a decoder needs a GiB for a few
SAME_STATISTICS = 1e-3  # of a channel's deviation: by how much two generators' latents may be normalised differently


class SampleBatch(NamedTuple):
    """Normalised latents (N, C, h, w), where they were drawn, and pictures (N, H, W, 3), uint8."""

    latents: Tensor
    pixels: npt.NDArray[np.uint8]


class SamplePipeline:
    """A generator that is ready to draw. Raises what loading it raises, and ConfigError for what cannot be drawn."""

    def __init__(self, request: SampleRequest) -> None:
        self.request = request
        self.model = load_latent_diffusion(
            request.run, weights=request.weights, average=request.ema, text_encoders=request.text_encoders or None
        )
        self.sampling = Sampling(**changed(self.model.sampling, request.sampling))
        prompts = request.prompt if request.prompts is None else read_prompts(request.prompts)
        self.rule = word_rule(self.model, request.labels, request.classes, prompts, request.seed)
        self._check_negative()
        self.num = request.num_samples or self.rule.num
        self.weak = None if request.autoguidance is None else load_weaker(request.autoguidance, self.model)
        f, (_, *latent_size) = self.model.tokenizer.downsample_factor, self.model.latent_shape
        own = (latent_size[0] * f, latent_size[1] * f)
        self.image_size = own if request.size is None else parse_image_size(request.size)
        unit = f * getattr(self.model.generator, "patch_size", 1)
        multiples_of(unit, "size", self.image_size, "the tokenizer's factor times the generator's patch size")
        self.latent_size = (self.image_size[0] // f, self.image_size[1] // f)
        self.device = device()
        self.precision = precision_taken(request.precision or precision_on(self.device), self.device)
        if request.compile:
            compile_blocks([self.model.generator, self.weak], {})

    def _check_negative(self) -> None:
        """Raise ConfigError for a word to lead away from that there is not, or that would change nothing."""
        negative, condition = self.request.negative, self.model.condition
        if negative is None:
            return
        if isinstance(condition, ClassCondition) and not condition.conditional:
            raise ConfigError("negative was given, but this generator is unconditional: leave it out")
        condition.check_words([negative])
        if self.sampling.cfg_scale == 1 and self.request.guidance_sweep is None:
            raise ConfigError(
                f"negative '{negative[:40]}' with cfg_scale=1 guides nothing; give --cfg-scale, such as 5, or leave it "
                "out"
            )

    def check(self, num: int, *several: Sampling) -> None:
        """Raise ConfigError unless `num` samples can be drawn with each of these settings.

        Each is rehearsed on a single number, with a model that says 0.
        """
        if self.rule.seed(num - 1) >= SEEDS:
            raise ConfigError(
                f"seed {self.request.seed} with {num} samples: seeds end at 2^32 - 1, and sample i has seed + i; "
                "give a lower seed"
            )
        condition, shape = self.model.condition, (self.model.latent_shape[0], 1, 1)
        blank = condition.blank(1, torch.device("cpu"))
        for sampling in several:
            if self.request.negative is None:
                condition.check_guidance(sampling.cfg_scale, "sampling", self.weak)
            weak = None if self.weak is None else _nothing
            try:
                draw_samples(_nothing, blank, [0], shape, sampling, blank, weak)
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
        words, seeds = [self.rule.word(i) for i in numbers], [self.rule.seed(i) for i in numbers]
        negative = None if self.request.negative is None else [self.request.negative] * len(words)
        chosen, precision = sampling or self.sampling, self.precision
        what = f"{len(numbers)} samples of {' x '.join(map(str, self.image_size))}"
        with explaining_out_of_memory(what, "lower --batch-size"), multiplying(precision, whole=True):
            with computing(precision, whole=True):
                latents = self.model.sample_latents(words, seeds, chosen, self.latent_size, self.weak, negative)
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
                f"the {what} of sample {numbers[place]} (seed {self.rule.seed(numbers[place])}) came out as NaN or "
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
            **self.rule.describe(),
            **({} if request.negative is None else {"negative": request.negative}),
            "seed": request.seed,
            "aligntok_version": aligntok.__version__,
        }


def load_weaker(source: str | os.PathLike[str], model: LatentDiffusion) -> nn.Module:
    """Load the generator at `source`, to guide `model` with. Raises ConfigError unless both see the same latents."""
    weak = load_latent_diffusion(source)
    pairs: dict[str, tuple[Any, Any]] = {
        "latent channels": (weak.latent_shape[0], model.latent_shape[0]),
        **model.condition.differences(weak.condition),
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


def _nothing(x: Tensor, t: Tensor, y: Any) -> Tensor:
    return torch.zeros_like(x)
