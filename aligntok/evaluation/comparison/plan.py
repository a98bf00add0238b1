"""A comparison as data: which tokenizers, which generator, which seeds, how they are measured; and its budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from aligntok.errors import ConfigError
from aligntok.settings import BatchSize, Count, ImageSize, Positive, Workers, read, settings
from aligntok.training.alignment import expand_stages
from aligntok.training.config import load_config, read_config
from aligntok.training.generation import expand_generation
from aligntok.training.stages import Stage


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
    """Name -> settings that differ from the generator's `sampling`; {}: as `sampling` says."""


@settings
class ComparisonSettings:
    """Tokenizers that are compared: how they and their generators are trained and measured."""

    tokenizers: Annotated[dict[str, str], Field(min_length=1)]
    """Name -> config file of a tokenizer's training, beside this one."""
    generator: str
    """Config file of the generator that is trained on each, beside this one."""
    extractors: Annotated[list[Any], Field(min_length=1)]
    """Features of the Fréchet distances; none of them the encoder that is aligned."""
    reference_encoder: str | dict[str, Any]
    """Encoder that latents are compared with (CKNNA)."""
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
    workers: Workers = 2
    """Processes that read images for evaluations and the latents' cache."""
    samples: SamplesSettings = field(default_factory=SamplesSettings)
    """How the generator is measured on the way."""


class Budget(NamedTuple):
    """What a training sees: the steps of each stage, and images over all of them."""

    steps: tuple[int, ...]
    images: int

    @classmethod
    def of(cls, stages: Sequence[Stage]) -> Budget:
        """Return what all the stages of a training see."""
        seen = [(stage.settings.steps, stage.settings.global_batch_size) for stage in stages]
        return cls(tuple(steps for steps, _ in seen), sum(steps * batch for steps, batch in seen))


class Arm(NamedTuple):
    """One tokenizer with one seed: the config that trains it, and the folder of all that comes of it."""

    name: str
    seed: int
    config: Path
    folder: Path

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer that it trains, for inference."""
        return self.folder / "tokenizer" / "tokenizer"


@dataclass(frozen=True)
class Comparison:
    """A comparison, complete: its settings, where it is written, its arms, the generator's config file."""

    source: Path
    settings: ComparisonSettings
    work_dir: Path
    arms: tuple[Arm, ...]
    generator: Path

    @property
    def data_root(self) -> str:
        """Where the images are. Raises ConfigError where the config does not know."""
        if self.settings.data_root is None:
            raise ConfigError(
                "data_root is not set, so there is nothing to train on; add --cfg-options data_root=/path/to/images"
            )
        return self.settings.data_root

    def images(self, split: str, **more: Any) -> dict[str, Any]:
        """Return where and how an evaluation reads images of "train" or "val", as its keywords, and `more` of them."""
        own = self.settings
        how = {"data": self.data_root, "image_size": own.image_size, "workers": own.workers}
        return {**how, "split": own.train_split if split == "train" else own.val_split, **more}

    def tokenizer_config(self, arm: Arm) -> dict[str, Any]:
        """Return the config of an arm's tokenizer, with the comparison's data, seed and folder."""
        options = {"data_root": self.settings.data_root, "seed": arm.seed, "work_dir": str(arm.folder / "tokenizer")}
        return load_config(arm.config, options)

    def generator_config(self, arm: Arm, references: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the config of an arm's generator on its latents, measured against `references` on the way."""
        validation = {**asdict(self.settings.samples), "metrics": references}
        options = {"data_root": str(arm.folder / "latents"), "seed": arm.seed, "validation": validation}
        return load_config(self.generator, {**options, "work_dir": str(arm.folder / "generator")})

    def tokenizer_budget(self, arm: Arm) -> Budget:
        """Return the budget of an arm's tokenizer."""
        return Budget.of(expand_stages(self.tokenizer_config(arm)))

    def generator_budget(self) -> Budget:
        """Return the budget of the generator, the same for every arm."""
        generation = expand_generation(self.generator_config(self.arms[0], []))
        return Budget.of([generation] if generation else [])


def read_comparison(path: str | Path, options: Mapping[str, Any] | None = None) -> Comparison:
    """Read and check a comparison's config file, and the configs that it names.

    Raises ConfigError for keys that are unknown or missing, configs that are not there, and budgets that differ.
    """
    source, given = Path(path), read_config(path, dict(options or {}), ComparisonSettings)
    settings = read(ComparisonSettings, given, str(path))
    work_dir = Path(settings.work_dir or f"work_dirs/{source.stem}")
    arms = tuple(
        Arm(name, seed, source.parent / file, work_dir / name / f"seed_{seed}")
        for name, file in settings.tokenizers.items()
        for seed in settings.seeds
    )
    comparison = Comparison(source, settings, work_dir, arms, source.parent / settings.generator)
    trained = read_config(comparison.generator, {})
    if trained.get("stages") or "generator" not in trained:
        raise ConfigError(
            f"{comparison.generator} trains no generator, or a tokenizer before it; give a config without stages, and "
            "with generator=dict(type=...)"
        )
    seen = {arm.name: comparison.tokenizer_budget(arm).images for arm in arms}
    if len(set(seen.values())) > 1:  # a comparison at unequal budgets says nothing
        told = ", ".join(f"{name} {images:,}" for name, images in seen.items())
        raise ConfigError(
            f"{source}: the tokenizers see different numbers of images ({told}); give their stages steps that make "
            "steps x global_batch_size equal"
        )
    return comparison
