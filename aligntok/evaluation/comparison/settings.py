"""A comparison's config, key by key."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from aligntok.errors import ConfigError, distinct
from aligntok.io.folders import told_apart
from aligntok.settings import (
    AboveZero,
    BatchSize,
    Count,
    ImageSize,
    NotNegative,
    Positive,
    Precision,
    Workers,
    settings,
)

_FOLDERS = ("references", "real_images", "grid", "budget")  # of a comparison's work folder, beside the tokenizers'


@settings
class ProbeTraining:
    """The linear probe."""

    epochs: Positive = 3
    """Over the training images."""
    lr: Annotated[float, Field(ge=1e-12, le=100)] = 1e-3
    """Of Adam."""
    batch_size: BatchSize = 256
    """Images of a step."""
    num_train: Positive | None = None
    """Only so many training images; None: all."""
    standardize: bool = False
    """Bring features to mean 0 and deviation 1 over the training images: latents of tokenizers differ in scale."""


@settings
class BetweenSamples:
    """What is measured of samples before the last step, where that is less than after it."""

    variants: Annotated[list[str], Field(min_length=1)] | None = None
    """Some of the names in `samples.variants`; None: all."""
    extractors: Annotated[list[str], Field(min_length=1)] | None = None
    """Types of some of `extractors`, such as ["efficientnet_lite2"]; None: all."""


@settings(renamed={"num": "num_samples"})
class SamplesSettings:
    """How the generator is measured on the way."""

    num_samples: Positive = 1000
    """Samples of each validation and variant."""
    every: Positive | None = None
    """Training steps between validations; None: only after the last."""
    batch_size: BatchSize = 50
    """Samples at once."""
    labels: Literal["random", "balanced"] = "balanced"
    """Of samples, as `tools/sample.py --labels`."""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> settings that differ from the generator's `sampling`, such as dict(guided=dict(cfg_scale=2.0),
    unguided={}, unconditional=dict(cfg_scale=0)); {}: as `sampling` says."""
    between: BetweenSamples | None = None
    """What is measured before the last step, with `every`; None: all that is measured after it."""


@settings
class ReconstructionLimit:
    """How far the arm's own reconstructions may be behind another's."""

    metrics: Annotated[list[str], Field(min_length=1)]
    """Such as "reconstructions/FD-EfficientNetLite2-96px"."""
    against: str | None = None
    """The other tokenizer; None: none."""
    times: AboveZero = 1.5
    """The arm's distance less that of real images is at most so many times the other's."""
    at_most: AboveZero | None = None
    """It is at most so much; None: however much."""


@settings
class Multiple:
    """How many times as much as another the arm is to have of something."""

    metric: Literal["top1", "top5", "psnr", "ssim"]
    """Of the tokenizer: accuracies of the linear probe, or what its reconstructions have."""
    against: str
    """The other tokenizer."""
    times: AboveZero = 1.0
    """The arm has at least so many times as much, in every seed."""


@settings
class Criterion:
    """What is to be seen for the comparison's claim to hold, stated before it runs and checked after it."""

    arm: str
    """The tokenizer that the claim is of."""
    metrics: list[str] = field(default_factory=list)
    """Of samples after the last step, such as "unguided/FD-EfficientNetLite2-96px"; the arm's is to be lower."""
    below: list[str] | None = None
    """The tokenizers that it is to be below; None: all others."""
    spreads: NotNegative = 2.0
    """By more than so many times the larger spread over seeds, of the two, in every seed."""
    reconstruction: ReconstructionLimit | None = None
    """How far its reconstructions may be behind; None: any."""
    at_least: list[Multiple] = field(default_factory=list)
    """What its tokenizer is to have more of."""


@settings
class GridTokenizer:
    """What a grid tries of one tokenizer."""

    options: list[dict[str, Any]] = field(default_factory=list)
    """Sets of config overrides that are its own, such as [{"losses.kl.weight": 1e-6}, ...]; as many for each."""
    shorter: dict[str, Any] = field(default_factory=dict)
    """Config overrides that shorten its training in the grid, such as {"stages.0.steps": 1000}."""
    like: str | None = None
    """In place of options: a control, which takes what is shared as that tokenizer's best has it."""
    whole: bool = False
    """The control takes what is that tokenizer's own as well."""


@settings
class Grid:
    """Options that are chosen for every tokenizer alike, by short trainings, before the main ones."""

    tokenizers: dict[str, GridTokenizer]
    """Every tokenizer with its own sets of options."""
    metric: str
    """What is lowest for the best, such as "unguided/FD-EfficientNetLite2-96px"."""
    seed: Count
    """Of all of the grid; not one of the comparison's seeds."""
    shared: Annotated[list[dict[str, Any]], Field(min_length=1)] = field(default_factory=lambda: [{}])
    """Sets of config overrides for all tokenizers, such as [{"optimizer.lr": 1e-3}, {"optimizer.lr": 3e-4}]; each is
    tried with each of the tokenizer's own."""
    generator: dict[str, Any] = field(default_factory=dict)
    """Config overrides that shorten the generator's training in the grid, such as {"steps": 500}."""


@settings
class ComparisonSettings:
    """Tokenizers that are compared: how they and their generators are trained and measured."""

    tokenizers: Annotated[dict[str, str], Field(min_length=1)]
    """Name -> config file of a tokenizer's training, beside this one."""
    extractors: Annotated[list[Any], Field(min_length=1)]
    """Features of the distances; none of them the encoder that is aligned."""
    reference_encoder: str | dict[str, Any]
    """Encoder that latents are compared with (CKNNA)."""
    generator: str | None = None
    """Config file of the generator that is trained on each, beside this one; None: tokenizers alone are compared."""
    criterion: Criterion | None = None
    """What is to be seen for the claim to hold; None: nothing is checked."""
    grid: Grid | None = None
    """Options that are chosen before; None: configs are taken as they are."""
    results: str | None = None
    """Folder, from this file's, of a small JSON file and picture for each tokenizer and seed that is finished: one that
    is there is not trained again. None: all stays in the work folder."""
    work_dir: str | None = None
    """Where everything is written; None: work_dirs/<the config's name>."""
    data_root: str | None = None
    """Images with a training and a validation split, in classes."""
    seeds: Annotated[list[Count], Field(min_length=1)] = field(default_factory=lambda: [0])
    """Every tokenizer and its generator is trained once with each."""
    image_size: ImageSize = 64
    """Pixels, a side or (H, W)."""
    train_split: str = "train"
    """The images that are trained on, and that references are made of."""
    val_split: str = "val"
    """The images that reconstructions, probe and latents are measured on."""
    num_val: Positive | None = None
    """Only so many of them, evenly spread; None: all."""
    num_reference: Positive | None = None
    """Images of the references of generation; None: all training images."""
    perceptual: list[Any] = field(default_factory=list)
    """Losses that measure perceptual distances of reconstructions."""
    probe: ProbeTraining = field(default_factory=ProbeTraining)
    """The linear probe."""
    precision: Precision = "fp32"
    """Of the tokenizers' arithmetic where they are measured and latents encoded; trainings have their own."""
    workers: Workers = 2
    """Processes that read images for evaluations and the latents' cache."""
    samples: SamplesSettings = field(default_factory=SamplesSettings)
    """How the generator is measured on the way."""

    def __post_init__(self) -> None:
        distinct(seeds=self.seeds)
        names = [*self.tokenizers]
        if wrong := [name for name in names if not re.fullmatch(r"\w[\w.-]{0,99}", name)]:
            raise ConfigError(
                f"tokenizers: {wrong[0]!r} is no name of a folder; take letters, digits, '_', '-' and '.', at most 100"
            )
        apart = told_apart([*_FOLDERS, *names])[len(_FOLDERS) :]
        if taken := [name for name, free in zip(names, apart, strict=True) if name != free]:
            raise ConfigError(
                f"tokenizers: '{taken[0]}' is the folder of something else, or differs from it in capitals alone, "
                "which some disks take for one; take another name"
            )
