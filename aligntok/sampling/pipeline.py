"""What fixes a sample, and drawing a batch of them: the generator, labels, seeds, sampler and guidance."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import aligntok
from aligntok.device import check_precision, computing, device, explaining_out_of_memory, multiplying
from aligntok.diffusion.sampling import Sampling, draw_samples
from aligntok.errors import ConfigError, DivergenceError, at_least, first_line, multiples_of, unknown
from aligntok.io.pictures import to_uint8
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.loading import load_latent_diffusion
from aligntok.rng import rng
from aligntok.weights.load import weights_hash

LABELS = ("random", "balanced")
SEEDS = 2**32  # torch's generator on the CPU takes a seed's lowest 32 bits, and leaves the others out
SAME_STATISTICS = 1e-3  # of a channel's deviation: by how much two generators' latents may be normalised differently


@dataclass(frozen=True)
class SampleRequest:
    """What fixes a set of samples, but for their number.

    source, weights, average: the generator, as :func:`load_latent_diffusion` takes them. labels: "random" (the seed of
    a sample gives its label), "balanced" (sample i has label i modulo the number of classes), or None for "random"
    where there are classes; `classes`, numbers or names, come over and over instead. changes: keywords of
    :class:`Sampling` that are to differ from the generator's own; another sampler begins with its own options. size:
    (H, W) in pixels, None for that of the training images. precision: of the generator's arithmetic, "fp32", "tf32",
    or "bf16" or "fp16" autocast; pictures are decoded in float32, with "fp32" strictly. seed: that of sample 0.
    autoguidance: a weaker generator on the same latents, from which guidance leads away instead of the null class.

    Raises ConfigError for a value that none of these can have.
    """

    source: str | os.PathLike[str]
    weights: str | None = None
    average: float | None = None
    labels: str | None = None
    classes: Sequence[int | str] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    precision: str = "fp32"
    seed: int = 0
    autoguidance: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        at_least(0, seed=self.seed)
        check_precision(self.precision)
        if self.weights == "raw" and self.average is not None:
            raise ConfigError(f"average {self.average:g} is one of the EMA's; leave it, or --weights raw, out")
        if self.labels is not None and self.labels not in LABELS:
            raise ConfigError(f"{unknown('rule of labels', self.labels, LABELS)}; or list classes")
        if self.labels is not None and self.classes:
            raise ConfigError(f"both labels={self.labels} and a list of classes were given; give one of the two")
        known = [each.name for each in fields(Sampling)]
        for name in self.changes:
            if name not in known:
                raise ConfigError(f"sampling: {unknown('setting', name, known)}")


@dataclass(frozen=True)
class LabelRule:
    """The label of each sample: "random", "balanced", those `listed` over and over, or "none" (0 for all)."""

    rule: str
    num_classes: int
    listed: tuple[int, ...] = ()

    @classmethod
    def of(cls, drawing: SampleRequest, model: LatentDiffusion) -> LabelRule:
        """Return the rule of a drawing. Raises ConfigError for classes that there are not."""
        if not model.conditional and (drawing.labels or drawing.classes):
            raise ConfigError("labels or classes were given, but this generator is unconditional: leave them out")
        listed = tuple(model.class_index(name) for name in drawing.classes)
        rule = "listed" if listed else (drawing.labels or "random") if model.conditional else "none"
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


class SampleBatch(NamedTuple):
    """Normalised latents (N, C, h, w), where they were drawn, and pictures (N, H, W, 3), uint8."""

    latents: Tensor
    pixels: npt.NDArray[np.uint8]


class SamplePipeline:
    """A generator that is ready to draw. Raises what loading it raises, and ConfigError for what cannot be drawn."""

    def __init__(self, drawing: SampleRequest) -> None:
        self.drawing = drawing
        self.model = load_latent_diffusion(drawing.source, drawing.weights, drawing.average)
        self.sampling = _changed(self.model.sampling, drawing.changes)
        self.rule = LabelRule.of(drawing, self.model)
        self.weak = None if drawing.autoguidance is None else load_weaker(drawing.autoguidance, self.model)
        self.latent_size, self.image_size = _sizes(drawing.size, self.model)
        self.device = device()

    @property
    def conditional(self) -> bool:
        """Whether samples have labels."""
        return self.model.conditional

    def labels(self, numbers: Sequence[int]) -> list[int]:
        """Return the labels of these samples."""
        return [self.rule.label(i, self.drawing.seed + i) for i in numbers]

    def check(self, num: int, *several: Sampling) -> None:
        """Raise ConfigError unless `num` samples can be drawn with each of these settings.

        Each is rehearsed on a single number, with a model that says 0.
        """
        if self.drawing.seed + num > SEEDS:
            raise ConfigError(
                f"seed {self.drawing.seed} with {num} samples: seeds end at 2^32 - 1, and sample i has seed + i; "
                "give a lower seed"
            )
        null, shape = self.model.generator.null_class, (self.model.latent_shape[0], 1, 1)
        for sampling in several:
            self.model.check_guidance(sampling, self.weak)
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
        seeds, labels = [self.drawing.seed + i for i in numbers], self.labels(numbers)
        chosen, precision = sampling or self.sampling, self.drawing.precision
        what = f"{len(numbers)} samples of {' x '.join(map(str, self.image_size))}"
        with explaining_out_of_memory(what, "lower --batch-size"), multiplying(precision, whole=True):
            with computing(precision, whole=True):
                latents = self.model.sample_latents(labels, seeds, chosen, self.latent_size, self.weak)
            images = self.model.decode(latents)
        self._check_finite(latents, images, numbers, chosen)
        pixels = to_uint8(images).permute(0, 2, 3, 1)
        return SampleBatch(latents, pixels.cpu().numpy())

    def _check_finite(self, latents: Tensor, images: Tensor, numbers: Sequence[int], chosen: Sampling) -> None:
        finite = latents.isfinite().flatten(1).all(1) & images.isfinite().flatten(1).all(1)
        if not finite.all():
            place = int(finite.logical_not().nonzero()[0])
            what = "picture" if latents[place].isfinite().all() else "latents"
            raise DivergenceError(
                f"the {what} of sample {numbers[place]} (seed {self.drawing.seed + numbers[place]}) came out as NaN or "
                f"infinite, with --precision {self.drawing.precision} and --cfg-scale {chosen.cfg_scale:g}; try "
                "--precision fp32 and --cfg-scale 1. If it is not finite then either, the generator diverged in "
                "training: take weights of an earlier step"
            )

    def describe(self) -> dict[str, Any]:
        """Return what fixes the samples, as JSON types; paths and versions are told too."""
        drawing, model = self.drawing, self.model
        weak = None
        if self.weak is not None:
            weak = {"identity": weights_hash({}, self.weak), "source": str(drawing.autoguidance)}
        return {
            "generator": {
                "identity": generator_identity(model),
                "source": str(drawing.source),
                "weights": drawing.weights,
                "average": drawing.average,
            },
            "tokenizer": {
                "identity": model.tokenizer.identity,
                "decoder": weights_hash(model.tokenizer.config["decoder"], model.tokenizer.decoder),
            },
            "autoguidance": weak,
            "sampling": json.loads(json.dumps(asdict(self.sampling))),
            "image_size": list(self.image_size),
            "precision": drawing.precision,
            "labels": self.rule.as_json(),
            "seed": drawing.seed,
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


def _sizes(size: tuple[int, int] | None, model: LatentDiffusion) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (h, w) of the latents and (H, W) of the pictures. Raises ConfigError for a size that cannot be."""
    f = model.tokenizer.downsample_factor
    own = (model.latent_shape[1] * f, model.latent_shape[2] * f)
    height, width = size or own
    unit = f * getattr(model.generator, "patch_size", 1)
    multiples_of(unit, "size", (height, width), "the tokenizer's factor times the generator's patch size")
    return (height // f, width // f), (height, width)


def _nothing(x: Tensor, t: Tensor, y: Any) -> Tensor:
    return torch.zeros_like(x)
