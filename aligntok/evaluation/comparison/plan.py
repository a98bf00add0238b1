"""A comparison as data: which tokenizers, which generator, which seeds, how they are measured; and its budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from aligntok.errors import ConfigError
from aligntok.training.alignment import expand_stages
from aligntok.training.config import check_keys, fill_defaults, load_config, read_config
from aligntok.training.generation import expand_generation
from aligntok.training.settings import Key

_NONE = type(None)
PROBE_KEYS = {
    "epochs": Key(3, "Over the training images.", (int,)),
    "lr": Key(1e-3, "Of Adam.", (int, float)),
    "batch_size": Key(256, "Images of a step.", (int,)),
    "num_train": Key(None, "Only so many training images; None: all.", (int, _NONE)),
}
SAMPLES_KEYS = {
    "num": Key(1000, "Samples of each validation and variant.", (int,)),
    "every": Key(None, "Training steps between validations; None: only after the last.", (int, _NONE)),
    "batch_size": Key(50, "Samples at once.", (int,)),
    "labels": Key("balanced", "'random' or 'balanced'.", (str,)),
    "variants": Key(
        {}, "name -> settings that differ from the generator's `sampling`; {}: as `sampling` says.", (dict,)
    ),
}
COMPARISON_KEYS = {
    "work_dir": Key(None, "Where everything is written; None: work_dirs/<the config's name>.", (str, _NONE)),
    "data_root": Key(None, "Images with a training and a validation split, in classes.", (str, _NONE)),
    "tokenizers": Key({}, "name -> config file of a tokenizer's training, beside this one.", (dict,)),
    "generator": Key(None, "Config file of the generator that is trained on each, beside this one.", (str,)),
    "seeds": Key([0], "Every tokenizer and its generator is trained once with each.", (list, tuple)),
    "image_size": Key(64, "Pixels, a side or (H, W).", (int, list, tuple)),
    "train_split": Key("train", "The images that are trained on, and that references are made of.", (str,)),
    "val_split": Key("val", "The images that reconstructions, probe and latents are measured on.", (str,)),
    "num_val": Key(None, "Only so many of them, evenly spread; None: all.", (int, _NONE)),
    "num_reference": Key(None, "Images of the references of generation; None: all training images.", (int, _NONE)),
    "perceptual": Key([], "Losses that measure perceptual distances of reconstructions.", (list,)),
    "extractors": Key([], "Features of the Fréchet distances; none of them the encoder that is aligned.", (list,)),
    "reference_encoder": Key(None, "Encoder that latents are compared with (CKNNA).", (str, dict)),
    "probe": Key({}, "The linear probe.", (dict,), PROBE_KEYS),
    "workers": Key(2, "Processes that read images for evaluations and the latents' cache.", (int,)),
    "samples": Key({}, "How the generator is measured on the way.", (dict,), SAMPLES_KEYS),
}  # fmt: skip


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
    settings: Mapping[str, Any]
    work_dir: Path
    arms: tuple[Arm, ...]
    generator: Path

    def __getitem__(self, key: str) -> Any:
        return self.settings[key]

    def images(self, split: str, **more: Any) -> dict[str, Any]:
        """Return how the images of "train" or "val" are read for an evaluation, as its keywords, and `more` of them."""
        size, workers = self["image_size"], self["workers"]
        return {"image_size": size, "split": self[f"{split}_split"], "workers": workers, **more}

    def tokenizer_config(self, arm: Arm) -> dict[str, Any]:
        """Return the config of an arm's tokenizer, with the comparison's data, seed and folder."""
        options = {"data_root": self["data_root"], "seed": arm.seed, "work_dir": str(arm.folder / "tokenizer")}
        return load_config(arm.config, options)

    def generator_config(self, arm: Arm, references: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the config of an arm's generator on its latents, measured against `references` on the way."""
        settings = self["samples"]
        validation = {**settings, "metrics": references}
        options = {"data_root": str(arm.folder / "latents"), "seed": arm.seed, "validation": validation}
        return load_config(self.generator, {**options, "work_dir": str(arm.folder / "generator")})


def read_comparison(path: str | Path, options: Mapping[str, Any] | None = None) -> Comparison:
    """Read and check a comparison's config file, and the configs that it names.

    Raises ConfigError for keys that are unknown or missing, configs that are not there, and budgets that differ.
    """
    given = read_config(path, dict(options or {}), COMPARISON_KEYS)
    check_keys(given, COMPARISON_KEYS, str(path))
    settings = fill_defaults(given, COMPARISON_KEYS)
    source = Path(path)
    for key in ("tokenizers", "generator", "extractors", "reference_encoder", "seeds"):
        if not settings[key]:
            raise ConfigError(f"{path} compares nothing: {key}={settings[key]!r}; {COMPARISON_KEYS[key].doc}")
    work_dir = Path(settings["work_dir"] or f"work_dirs/{source.stem}")
    arms = tuple(
        Arm(name, seed, source.parent / file, work_dir / name / f"seed_{seed}")
        for name, file in settings["tokenizers"].items()
        for seed in settings["seeds"]
    )
    comparison = Comparison(source, settings, work_dir, arms, source.parent / settings["generator"])
    trained = read_config(comparison.generator, {})
    if trained.get("stages") or "generator" not in trained:
        raise ConfigError(
            f"{comparison.generator} trains no generator, or a tokenizer before it; give a config without stages, and "
            "with generator=dict(type=...)"
        )
    check_budgets(comparison)
    return comparison


class Budget(NamedTuple):
    """What a training sees: the steps of each stage, and images over all of them."""

    steps: tuple[int, ...]
    images: int


def tokenizer_budget(comparison: Comparison, arm: Arm) -> Budget:
    """Return the budget of an arm's tokenizer."""
    stages = expand_stages(comparison.tokenizer_config(arm))
    steps = tuple(stage["steps"] for stage in stages)
    return Budget(steps, sum(stage["steps"] * stage["global_batch_size"] for stage in stages))


def generator_budget(comparison: Comparison) -> Budget:
    """Return the budget of the generator, the same for every arm."""
    generation = expand_generation(comparison.generator_config(comparison.arms[0], []))
    assert generation is not None  # read_comparison has looked
    return Budget((generation["steps"],), generation["steps"] * generation["global_batch_size"])


def check_budgets(comparison: Comparison) -> None:
    """Raise ConfigError unless all tokenizers see as many images; a comparison at unequal budgets says nothing."""
    seen = {arm.name: tokenizer_budget(comparison, arm).images for arm in comparison.arms}
    if len(set(seen.values())) > 1:
        told = ", ".join(f"{name} {images:,}" for name, images in seen.items())
        raise ConfigError(
            f"{comparison.source}: the tokenizers see different numbers of images ({told}); give their stages steps "
            "that make steps x global_batch_size equal"
        )
