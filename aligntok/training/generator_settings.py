"""A generator's config, key by key, as :mod:`aligntok.training.settings` for the rest."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from aligntok.caching.settings import LatentCacheSettings, Posterior
from aligntok.diffusion.settings import Sampling, TransportSettings
from aligntok.engine.ema import EMASettings
from aligntok.errors import ConfigError
from aligntok.settings import BatchSize, Count, FilledFrom, Pictures, Positive, Workers, settings
from aligntok.training.settings import LoadingSettings, LogSettings, RunSettings, TrainingSettings

_LATENTS = {"type": "latents"}
_ADAMW = {"type": "AdamW", "lr": 2e-4, "betas": (0.9, 0.95), "weight_decay": 0.0}


@settings
class ContinueFrom:
    """What a generator's training begins from: another one's end, as a training at twice the size does."""

    folder: str
    """A work folder with a generator of the same shape, tokenizer and text encoders; its newest checkpoint."""
    take: list[Literal["weights", "averages", "optimizer"]] = field(
        default_factory=lambda: ["weights", "averages", "optimizer"]
    )
    """What goes on of it; steps and learning rates begin anew. Latents stay normalised as they were there."""

    def __post_init__(self) -> None:
        if "weights" not in self.take:
            raise ConfigError(f"init_from.take={self.take} lacks 'weights', which the others belong to; add it")


@settings
class GeneratorEMASettings(EMASettings):
    """Weight averages."""

    sigma_rel: list[float] = field(default_factory=list)
    """Relative widths that are kept (EDM2's power-function profile)."""
    decays: list[float] = field(default_factory=lambda: [0.9999])
    """Decays of plain averages that are kept."""
    inference: float = 0.9999
    """The width or decay used for validation, pictures, samples and what is exported."""


@settings
class GeneratorLogSettings(LogSettings):
    """Scalars and pictures."""

    time_bins: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Equal parts of the time axis for which the loss is logged apart."""
    pictures_every: Positive | None = None
    """Steps between sample grids; None: only after the last step."""
    pictures_at: list[Positive] = field(default_factory=list)
    """More steps at which a grid is drawn."""
    pictures: Pictures = 16
    """Samples in a grid, of seeds 0, 1, ...; 0 for none."""
    prompts: list[str] = field(default_factory=list)
    """Prompts that are drawn, of a generator that takes them; []: captions of training images, evenly spaced."""


@settings
class BetweenSettings:
    """What is measured before the last step, where that is less than after it."""

    variants: list[str] | None = None
    """Some of the names in `variants`; None: all."""
    metrics: list[Any] | None = None
    """Metrics, as in `metrics`; None: those."""


@settings(renamed={"num": "num_samples"})
class GeneratorValidationSettings:
    """Samples that are measured on the way."""

    num_samples: Count = 0
    """Samples that are drawn, of seeds 0, 1, ..., as `tools/sample.py` does; 0: no validation."""
    every: Positive | None = None
    """Steps between validations; None: only after the last step."""
    batch_size: BatchSize = 32
    """Samples at once in each process."""
    labels: Literal["random", "balanced"] = "random"
    """Random: a sample's seed gives its label."""
    prompts: str | None = None
    """A file of prompts to draw, as `aligntok sample --prompts`; None: captions of training images, evenly spaced."""
    metrics: list[Any] = field(default_factory=list)
    """Metrics of the samples, such as dict(type='generation', reference='...')."""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> settings that differ from `sampling`, such as dict(unguided=dict(cfg_scale=1.0)); every metric is taken
    of each. {}: of one, 'generation', as `sampling` says."""
    between: BetweenSettings | None = None
    """What is measured before the last step; None: all that is measured after it."""


@settings
class LatentDataSettings(LoadingSettings):
    """What is trained on, and its loading."""

    train: Annotated[dict[str, Any], FilledFrom(_LATENTS)] = field(default_factory=_LATENTS.copy)
    """What to train on: 'latents', a cache, or 'images' or a 'stream', encoded on the fly; `root`, of a stream `index`,
    is `data_root`, or the cache that `latent_cache` makes."""
    workers: Workers = 0
    """Data-loading processes of each training process. A cache is read fastest with none."""
    statistics_images: Positive | None = 10_000
    """Images whose latents' mean and deviation normalise those encoded on the fly; None: all. A cache has its own."""
    posterior: Posterior = "mean"
    """Of a variational tokenizer that encodes on the fly: the posterior's mean, or a sample drawn anew each time. Of a
    cache, its own."""


@settings
class GeneratorSettings(TrainingSettings):
    """A generator's training: at the top of a config without stages, in `generation` of one with stages."""

    generator: dict[str, Any]
    """The generator: a registry name and its keywords. It is what the config trains."""
    tokenizer: str | None = None
    """The tokenizer that made the latents, or encodes: a work folder, a saved folder, a published checkpoint, a hub id.
    None: that of the stages, or the one that made the cache."""
    init_from: ContinueFrom | None = None
    """Go on from another training of the same generator; None: with random weights."""
    latent_cache: LatentCacheSettings | None = None
    """Encode `data_root` into <work_dir>/latents first, and train on that; None: do not."""
    transport: TransportSettings = field(default_factory=TransportSettings)
    """From noise to data: training times and loss."""
    sampling: Sampling = field(default_factory=Sampling)
    """How samples are drawn, here and by `tools/sample.py` unless it is told otherwise."""
    optimizer: Annotated[dict[str, Any], FilledFrom(_ADAMW)] = field(default_factory=_ADAMW.copy)
    """Optimiser of the generator (torch's name)."""
    ema: GeneratorEMASettings | None = field(default_factory=GeneratorEMASettings)
    """Weight averages; None: none."""
    global_batch_size: BatchSize = 256
    """Latents of one optimiser step, over all processes and micro-batches."""
    data: LatentDataSettings = field(default_factory=LatentDataSettings)
    """What is trained on, and its loading."""
    log: GeneratorLogSettings = field(default_factory=GeneratorLogSettings)
    """Scalars and pictures."""
    validation: GeneratorValidationSettings = field(default_factory=GeneratorValidationSettings)
    """Samples that are measured on the way."""

    def __post_init__(self) -> None:
        if "type" not in self.generator:
            raise ConfigError(f"generator={self.generator!r} has no type; lightning_dit is one")
        train = self.data.train
        if train["type"] == "latents" and self.data.posterior != "mean":
            raise ConfigError(
                f"data.posterior='{self.data.posterior}' is for images that are encoded on the fly; a cache of latents "
                "has its own: latent_cache.posterior, or tools/cache_latents.py --posterior"
            )


@settings
class GeneratorConfig(RunSettings, GeneratorSettings):
    """The top of a config without stages."""
