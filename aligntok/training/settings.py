"""Configs, key by key: the default of each, its meaning, what it may be. The docs' tables are made from these."""

from __future__ import annotations

import inspect
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from aligntok.annotations import check_values
from aligntok.distributed.parallel import Parallel
from aligntok.engine.ema import EMASettings
from aligntok.engine.trackers import Backend
from aligntok.errors import ConfigError, unknown
from aligntok.settings import (
    AboveZero,
    BatchSize,
    Count,
    FilledFrom,
    NotNegative,
    Pictures,
    Positive,
    Precision,
    Workers,
    settings,
)
from aligntok.tokenizer import Tokenizer
from aligntok.weights.lora import LoRASettings

_IMAGES, _LPIPS, _PATCHGAN = ({"type": name} for name in ("images", "lpips", "patchgan"))
_ADAM = {"type": "Adam", "lr": 1e-4, "betas": (0.5, 0.9)}


@settings(renamed={"num_images": "nominal_images"})
class LoadingSettings:
    """Data sets and their loading."""

    nominal_images: Positive | None = None
    """Training images of the nominal data set, from which `--dry-run` counts epochs without a `data_root`."""
    workers: Workers = 4
    """Data-loading processes of each training process."""
    timeout: NotNegative = 600
    """Seconds to wait for a batch of the data-loading processes before the run ends."""


@settings
class ImageDataSettings(LoadingSettings):
    """Data sets and their loading."""

    train: Annotated[dict[str, Any], FilledFrom(_IMAGES)] = field(default_factory=_IMAGES.copy)
    """Data set to train on: a registry name and its keywords; `root`, of a stream `index`, is `data_root`."""
    val: Annotated[dict[str, Any], FilledFrom(_IMAGES)] | None = None
    """Held-out data set, cropped in the middle; with `fraction`, that share of the training images; None: none."""


@settings
class InitFrom:
    """What a stage begins from."""

    stage: str
    """Name of the earlier stage whose weights this one begins from."""
    work_dir: str | None = None
    """Begin from that stage in another run's work folder."""
    weights: Literal["raw", "ema"] = "raw"
    """Which of its weights: raw ones, or their averages, which it has to keep."""


@settings
class CheckpointSettings:
    """When checkpoints are written and how many stay."""

    every: Positive = 5000
    """Steps between checkpoints; one is always written after the last step."""
    keep: Positive = 2
    """How many of a stage's newest checkpoints stay."""
    keep_every: Positive | None = None
    """Checkpoints at multiples of so many steps stay for good; None: none do."""
    asynchronous: bool = True
    """Copy what a checkpoint holds, and write it while the training goes on: main memory for one copy."""

    def __post_init__(self) -> None:
        every, kept = self.every, self.keep_every
        if kept and kept % every:
            raise ConfigError(
                f"checkpoint.keep_every={kept} is no multiple of checkpoint.every={every}, so nothing would be kept; "
                f"{max(1, round(kept / every)) * every} would work"
            )


@settings
class LogSettings:
    """Scalars and pictures."""

    every: Positive = 50
    """Steps between scalars and progress lines."""
    backends: list[Backend] = field(default_factory=lambda: ["tensorboard"])
    """Where scalars and pictures go beside the run's own files: tensorboard, wandb, mlflow; []: nowhere."""
    pictures_every: Positive | None = None
    """Steps between reconstruction grids; None: only after the last step."""
    pictures: Pictures = 8
    """Held-out images in a grid."""


@settings
class ValidationSettings:
    """Held-out reconstruction quality."""

    every: Positive | None = None
    """Steps between validations; None: only after the last step."""
    batch_size: BatchSize = 8
    """Images of a validation batch in each process."""
    num_images: Positive | None = None
    """Use only so many held-out images, evenly spaced; None: all."""
    perceptual: Annotated[dict[str, Any], FilledFrom(_LPIPS)] | list[Any] | None = field(default_factory=_LPIPS.copy)
    """Loss, or a list of losses, that measure perceptual distances; None: none."""
    extractor: str | dict[str, Any] | None = None
    """Features for rFID (inception_v3) or rFD (any other), as `tools/evaluate.py --extractor`; None: neither."""


@settings(renamed={"accumulation": "gradient_accumulation_steps"})
class TrainingSettings:
    """What every kind of training has."""

    steps: Positive
    """Optimiser steps."""
    schedule: list[Any] | None = None
    """mmengine parameter schedulers of the learning rate, by step; None: constant."""
    schedule_end: Positive | None = None
    """Step at which schedulers without an `end` end; None: the last. Of a stage that has begun: stretches them."""
    clip_grad_norm: Annotated[float, Field(ge=1e-9, le=1e6)] | None = None
    """Largest gradient norm of a side; None: no clipping."""
    spike_factor: Annotated[float, Field(ge=1, le=1e9)] | None = 30.0
    """Leave a step out when a part's gradient norm is over so many times its median of 100 steps; None: never."""
    skip_norm: Annotated[float, Field(ge=1e-9, le=1e9)] | None = None
    """Leave a step out when a part's gradient norm is over this; None: never."""
    skip_after: Count = 1000
    """Steps of a training before `skip_norm` holds."""
    max_skipped_steps: Count = 20
    """Steps left out in a row, for a spike, a norm or what is not finite, before training stops."""
    ema: EMASettings | None = field(default_factory=EMASettings)
    """Weight averages; None: none."""
    global_batch_size: BatchSize = 64
    """Images of one optimiser step, over all processes and micro-batches."""
    gradient_accumulation_steps: Positive = 1
    """Micro-batches of one optimiser step."""
    precision: Precision = "fp32"
    """tf32: matrix products of float32 in TF32 on GPUs; bf16 or fp16, with loss scaling: autocast; auto: bf16 on GPUs
    and CPUs that multiply it themselves, fp32 on others."""
    grad_checkpointing: bool = False
    """Recompute activations to save memory."""
    parallel: Parallel = "replicate"
    """How processes hold the model: each the whole; shares of it (FSDP2); or shares in groups, dict(shard=8)."""
    compile: bool | dict[str, Any] = False
    """Compile what is trained block by block: True, or keywords of `torch.compile`."""
    attention: Literal["xformers", "sdpa"] | None = None
    """Force a kernel of attention; None: xformers on GPUs where it can run."""
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    """When checkpoints are written and how many stay."""
    hooks: list[Any] = field(default_factory=list)
    """More mmengine hooks: registry names or mmengine's classes."""
    data: Any
    log: Any
    validation: Any


@settings(renamed={"start": "init_from", "trains": "trainable"})
class StageSettings(TrainingSettings):
    """One stage of a tokenizer's training, complete; at the top of a config, what all stages begin with."""

    model: dict[str, Any] = field(default_factory=dict)
    """Keywords of `aligntok.tokenizer.Tokenizer`: encoder, adapter, decoder, latent_dim, ..."""
    discriminator: Annotated[dict[str, Any], FilledFrom(_PATCHGAN)] | None = field(default_factory=_PATCHGAN.copy)
    """The discriminator, carried from stage to stage; None: none."""
    losses: dict[str, Any] = field(default_factory=dict)
    """Name -> loss: its type and keywords, and `weight`, `start_step`, `adaptive_weight` (dict(at='decoder' |
    'encoder', max, eps, images, reference)). None in place of a loss removes it."""
    teacher: Literal["start"] | dict[str, Any] | None = None
    """What losses compare with: 'start' (encoder and adapter the stage starts from), an encoder's config, or None."""
    trainable: list[Literal["encoder", "adapter", "decoder"]] = field(
        default_factory=lambda: ["encoder", "adapter", "decoder"]
    )
    """Parts that are trained; the others stay frozen, in eval mode."""
    init_from: InitFrom | None = None
    """What the stage begins from; None: the pretrained encoder and fresh other parts."""
    optimizer: Annotated[dict[str, Any], FilledFrom(_ADAM)] = field(default_factory=_ADAM.copy)
    """Optimiser of the autoencoder (torch's name)."""
    discriminator_optimizer: Annotated[dict[str, Any], FilledFrom(_ADAM)] = field(default_factory=_ADAM.copy)
    """The discriminator's."""
    lora: LoRASettings | None = None
    """Train the encoder by low-rank updates (LoRA), which `init_from` and the export merge; None: all its weights."""
    data: ImageDataSettings = field(default_factory=ImageDataSettings)
    """Data sets and their loading."""
    log: LogSettings = field(default_factory=LogSettings)
    """Scalars and pictures."""
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    """Held-out reconstruction quality."""

    def __post_init__(self) -> None:
        known = [name for name in inspect.signature(Tokenizer.__init__).parameters if name not in ("self", "plugins")]
        for key in self.model:
            if key not in known:
                raise ConfigError(f"model: {unknown('key', key, sorted(known))}")
        check_values(Tokenizer, self.model, "model")
        if not self.losses:
            raise ConfigError("it has no losses, so nothing can be learned; give at least l1")


@settings
class RunSettings:
    """A run, whatever it trains."""

    work_dir: str | None = None
    """Where everything is written; None: work_dirs/<the config's name>."""
    seed: Count = 0
    """Source of every random choice."""
    deterministic: bool = False
    """Compute to the same bits each time on GPUs, too, where that costs speed; on a CPU it is so anyway."""
    data_root: str | None = None
    """Where the images are: a folder, a zip, WebDataset shards, parquet files, hf://owner/name."""
    process_timeout: AboveZero = 120
    """Seconds without a sign of life after which a process counts as failed."""
    stages: list[Any] = field(default_factory=list)
    """The stages, in order: a name, steps, and whatever differs from the top of the config."""
    generation: dict[str, Any] = field(default_factory=dict)
    """In a config with stages: the generator's training after them. Without stages these keys stand at the top."""


@settings
class StagesConfig(RunSettings, StageSettings):
    """The top of a config with stages."""


@settings
class OneStage(StageSettings):
    """An entry of `stages`."""

    name: str
    """The stage's name."""
