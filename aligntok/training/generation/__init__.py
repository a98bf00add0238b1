"""The training of a generator: on latents from a cache or encoded on the fly, with its tokenizer at hand."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from aligntok.caching.cache import images_to_cache
from aligntok.caching.encoder import check_posterior
from aligntok.caching.settings import Posterior
from aligntok.condition import asked_of_data, split_text
from aligntok.data.latent_shards import LatentStatistics
from aligntok.data.loader import number_of_classes
from aligntok.distributed import world
from aligntok.engine.checkpoints import PartStates, finished_steps, read_parts
from aligntok.engine.hooks import PictureHook, TimeBinsHook, draw_samples
from aligntok.errors import ConfigError
from aligntok.latent_diffusion import LatentDiffusion, described_fields
from aligntok.loading import (
    GENERATION,
    generation_folder,
    load_latent_diffusion,
    load_tokenizer,
    saved_size,
)
from aligntok.registry import DATASETS, GENERATORS, import_components
from aligntok.settings import read
from aligntok.tokenizer import Tokenizer
from aligntok.training.config import dotted_models, read_begun
from aligntok.training.generation import data as trained_on
from aligntok.training.generation import validation as held_to
from aligntok.training.generation.model import GenerationModel
from aligntok.training.generator_settings import GeneratorSettings
from aligntok.training.plan import plan_stage
from aligntok.training.settings import RunSettings
from aligntok.training.stages import RandomItems, Stage, StageData, merge, place_key, placed


def expand_generation(config: Mapping[str, Any]) -> GeneratorStage | None:
    """Return the generator's training of a checked config, or None if it has none. Raises ConfigError."""
    given = config["generation"] if config["stages"] else config
    if "generator" not in given:
        return None
    own = merge({}, {key: value for key, value in given.items() if key not in asdict(RunSettings())})
    settings = read(GeneratorSettings, own, f"{GENERATION} of a generator")
    work_dir, before = Path(config["work_dir"]), len(config["stages"])
    train = settings.data.train
    if settings.latent_cache is not None and (train["type"] != "latents" or "root" in train):
        raise ConfigError(
            f"{GENERATION} of a generator: latent_cache makes the data, so data.train must be dict(type='latents') "
            f"without a root, not {train!r}; leave one of the two out"
        )
    root = config["data_root"] if settings.latent_cache is None else str(work_dir / "latents")
    wanted = asked_of_data(GENERATORS.get(settings.generator["type"]))
    takes = inspect.signature(DATASETS.get(train["type"])).parameters if wanted else {}
    train = placed({**{k: v for k, v in wanted.items() if k in takes}, **train}, root)
    if (cache := settings.latent_cache) is not None:  # where it says of which place, that one
        cache = replace(cache, **{key: value for key, value in wanted.items() if getattr(cache, key) is None})
    settings = replace(settings, data=replace(settings.data, train=train), latent_cache=cache)
    return GeneratorStage(
        index=before,
        name=GENERATION,
        folder=work_dir / GENERATION,
        seed=config["seed"] + before,
        settings=settings,
        data_root=config["data_root"],
        stages_tokenizer=work_dir / "tokenizer" if before and settings.tokenizer is None else None,
        dotted=dotted_models(config),
    )


@dataclass(frozen=True)
class GeneratorStage(Stage):
    """A generator's training by flow matching (paper, Sec. 4).

    `data_root` is the run's; `stages_tokenizer` the folder of the tokenizer that the same config's stages make, or
    None; `dotted` the import paths that the config names as components.
    """

    settings: GeneratorSettings
    data_root: str | None
    stages_tokenizer: Path | None
    dotted: Sequence[str] = ()

    waits = True

    @property
    def where(self) -> str:
        return self.name

    @property
    def components(self) -> dict[str, Any]:
        """The classes that the config names by import path, by that name: its own folders may name them, too."""
        return import_components(self.dotted)

    @property
    def optimizers(self) -> dict[str, Mapping[str, Any]]:
        """The generator's alone."""
        return {"generator": self.settings.optimizer}

    @property
    def validates(self) -> bool:
        """Whether samples are drawn and measured."""
        return bool(self.settings.validation.num_samples)

    @property
    def reads_data(self) -> bool:
        """Whether there is a finished cache of latents."""
        data = self.settings.data.train
        return data["type"] == "latents" and "root" in data and self.settings.latent_cache is None

    @property
    def start_folder(self) -> Path | None:
        """The folder of the training that it goes on from, if any, until its own first checkpoint.

        Raises WeightsError where there is none.
        """
        start = None if finished_steps(self.folder) else self.settings.init_from
        return None if start is None else generation_folder(Path(start.folder))

    @property
    def needs_stages(self) -> bool:
        """Whether its tokenizer is that of the config's stages."""
        return self.stages_tokenizer is not None

    @property
    def taken(self) -> tuple[Path, Sequence[str]] | None:
        start, folder = self.settings.init_from, self.start_folder
        return None if start is None or folder is None else (folder, start.take)

    def read_start(self) -> PartStates | None:
        """Read the weights that it goes on from."""
        return None if self.start_folder is None else read_parts(self.start_folder)

    @property
    def posterior(self) -> Posterior:
        """What is taken of the posterior of a variational tokenizer: "mean" or "sample"."""
        cache = self.settings.latent_cache
        return self.settings.data.posterior if cache is None else cache.posterior

    def build_model(self, data: StageData | None = None) -> GenerationModel:
        """Build the generator in training; without data on the meta device, and without a tokenizer."""
        if data is not None:
            return GenerationModel(data.made_with, self.settings, self.seed)
        with torch.device("meta"):
            diffusion = self._beside_nothing(self.latent_input()[0].shape[1:])
        return GenerationModel(diffusion, replace(self.settings, compile=False), self.seed)

    def look(self) -> Any:
        """Open the cache, or the images that are encoded, where the config says where they are."""
        cache, train = self.settings.latent_cache, self.settings.data.train
        if place_key(train) not in train or (cache is not None and self.data_root is None):
            return None
        if cache is not None:
            data: Any = images_to_cache(str(self.data_root), cache)
        else:
            data = DATASETS.build({"train": True, "seed": self.seed, **train})
        trained_on.check_classes(self, data)
        trained_on.tokenizers_source(self)
        own = self.latent_input()[0].shape[1]
        if (channels := getattr(data, "latent_shape", (own,))[0]) != own:
            where = f"{self.name}: generator.in_channels={own}"
            raise ConfigError(f"{where}, but the cache has latents of {channels} channels; set it to that")
        return data

    def completed(self) -> Self:
        """Return it with the generator's number of classes: the config's, that of a run which has begun, the data's."""
        generator = self.settings.generator
        if "num_classes" in generator or "num_classes" not in _keywords(generator):
            return self
        if self.has_begun:
            number = read_begun(self, described_fields)["generator"].get("num_classes")
        else:
            number = number_of_classes(self.look())
        known = {} if number is None else {"num_classes": number}
        return replace(self, settings=replace(self.settings, generator={**generator, **known}))

    def build_data(self) -> StageData:
        """Load the tokenizer, make the cache if there is to be one, and open the data; collective.

        Its model is made with generator, tokenizer and statistics. Raises DataError, ConfigError and WeightsError.
        """
        return trained_on.build(self)

    def open_tokenizer(self) -> Tokenizer:
        """Load the tokenizer: the run's own copy once it has begun, else that of the config, or of its cache."""
        kept = self.folder / "tokenizer"
        if (kept / "config.json").is_file() and self.has_begun:
            return load_tokenizer(kept, components=self.components)
        return load_tokenizer(trained_on.tokenizers_source(self), components=self.components)

    def check(self, model: GenerationModel) -> None:
        """Raise ConfigError for sampling that cannot work with the generator."""
        sampling, generator = self.settings.sampling, model.generator
        for name, each in held_to.drawn_with(self.settings).items():
            model.diffusion.condition.check_guidance(each.cfg_scale, f"{self.where}, {name}")
        held_to.check_sampling(self.settings, generator.in_channels, self.where)
        held_to.check_captions(self.settings, self.where)
        held_to.check_stream(self.settings, self.where)
        held_to.check_words(self.settings, model.diffusion.condition, self.where)
        classes = self.settings.generator.get("num_classes", 1)  # of the data, once they are known
        held_to.check_variants(self.settings.validation, sampling, self.where, classes)
        source = None if self.has_begun else self.settings.tokenizer  # what has begun has its own copy
        size = None if source is None else saved_size(source)
        held_to.check_size(self.settings, generator, size, "the tokenizer", self.name)

    def check_encoders(self) -> None:
        """Check the text encoders, their files but for the weights, and their widths."""
        self.build_model().diffusion.condition.check_encoders()

    def check_beforehand(self, stages: list[Stage]) -> None:
        """Check settings, validation, images, and whether it fits the tokenizer of the stages. Raises our errors."""
        plan_stage(self, world()[1])
        held_to.check_validation(self.settings.validation, self.settings.sampling, self.where)
        self.check_follows(stages)
        cache = self.settings.latent_cache
        if self.stages_tokenizer is not None and cache is not None and self.data_root is not None:
            trained_on.check_classes(self, images_to_cache(self.data_root, cache))

    def check_follows(self, stages: list[Stage]) -> None:
        """Raise ConfigError where it does not fit the tokenizer that the `stages` make."""
        if self.stages_tokenizer is None:
            return
        tokenizer, generator = stages[-1].build_model().tokenizer, self.build_model().generator
        check_posterior(self.posterior, tokenizer)
        size = tokenizer.latent_dim, tokenizer.downsample_factor
        held_to.check_size(self.settings, generator, size, "the stages' tokenizer", self.name)

    def validation(self, data: StageData) -> dict[str, Any]:
        """Return how samples are drawn and measured on the way."""
        return held_to.validation_options(self.settings.validation, data)

    def hooks(self, data: StageData) -> list[Any]:
        """Return those that log the loss by time and, if pictures are wanted, draw samples."""
        log, ema = self.settings.log, self.settings.ema
        hooks: list[Any] = [TimeBinsHook(log.every)]
        if log.pictures:
            condition, inference = data.made_with.condition, ema.inference if ema else None
            words = list(log.prompts) or condition.examples(log.pictures, data.train)
            seeds = [condition.seed(0, place, 0) for place in range(len(words))]
            draw = partial(draw_samples, words=words, seeds=seeds, captions=condition.captions(words))
            hooks.append(PictureHook("samples", draw, log.pictures_every, inference, log.pictures_at))
        return hooks

    def describe(self, model: GenerationModel) -> dict[str, Any]:
        """Save the tokenizer beside the description, and return what rebuilds the generator around it."""
        diffusion = model.diffusion
        diffusion.tokenizer.save_pretrained(self.folder / "tokenizer")
        return {
            "tokenizer_identity": diffusion.tokenizer.identity,
            "statistics": asdict(diffusion.statistics),
            "latent_shape": list(diffusion.latent_shape),
            **diffusion.condition.describe(),
        }

    def export(self) -> Path:
        """Write the generator with its tokenizer into the run's work folder."""
        folder = self.folder.parent / "latent_diffusion"
        load_latent_diffusion(self.folder, components=self.components).save_pretrained(folder)
        print(f"Generator: {folder}   (python tools/sample.py {folder} --num-samples 16)")
        if pictures := sorted((self.folder / "pictures").glob("*.png")):
            print(f"Samples: {pictures[-1]}")
        return folder

    def is_of_classes(self, data: StageData) -> bool:
        """Tell whether the generator is conditioned on classes."""
        return bool(data.made_with.condition.conditional)

    def collate(self, data: StageData) -> Any:
        """Return what puts a batch together, and prepares its captions where prompts are trained on."""
        return data.made_with.condition.collate(super().collate(data))

    def without_pretrained(self) -> Self:
        """Return it without validation: a generator begins with random weights."""
        measured = replace(self.settings.validation, num_samples=0)
        return replace(self, settings=replace(self.settings, validation=measured))

    def data_to_measure(self) -> StageData:
        """Return the config's cache, or random latents; the generator has no tokenizer, which no step uses."""
        train: Any = RandomItems(self.an_item(), self.settings.global_batch_size)
        if self.reads_data:
            train = DATASETS.build({"train": True, "seed": self.seed, **self.settings.data.train})
        return StageData(train, made_with=self._beside_nothing(train[0]["latents"].shape))

    def an_item(self) -> dict[str, Any]:
        """Return a random latent of the size that the config is made for, and what it is conditioned on."""
        return {"latents": self.latent_input()[0][0], **self.build_model().diffusion.condition.item()}

    def _beside_nothing(self, shape: Sequence[int]) -> LatentDiffusion:
        """Return the generator with statistics of normalised latents (C, h, w), and nothing in place of a tokenizer."""
        channels, height, width = shape
        tokenizer: Any = nn.Module()
        tokenizer.latent_dim, tokenizer.variational = channels, True  # whichever posterior is asked for
        normal = LatentStatistics((0.0,) * channels, (1.0,) * channels)
        diffusion = LatentDiffusion(dict(self.settings.generator), tokenizer, normal, (channels, height, width))
        diffusion.condition.without_encoders()
        return diffusion

    def rehearse(self, model: GenerationModel) -> None:
        """Take one latent of the size that the config is made for through the generator."""
        model.generator.eval()(*self.meta_inputs(model))

    def meta_inputs(self, model: GenerationModel) -> list[Any]:
        """Return what a model's generator takes, one row, at the latent size that the config is made for."""
        meta = torch.device("meta")
        return [*(each.to(meta) for each in self.latent_input()), model.diffusion.condition.blank(1, meta)]

    def latent_input(self) -> tuple[Tensor, Tensor]:
        """Return x (1, C, h, w) and t (1,) for the generator, at the latent size that it is made for."""
        generator, takes = self.settings.generator, _keywords(self.settings.generator)
        names = [name for name in ("input_size", "in_channels") if name in takes]
        sizes = {name: generator.get(name, takes[name].default) for name in names}
        side = sizes.get("input_size") or held_to.latent_side(self.settings)
        height, width = (side, side) if isinstance(side, int) else side
        return torch.randn(1, sizes["in_channels"], height, width), torch.rand(1)


def _keywords(generator: Mapping[str, Any]) -> Mapping[str, inspect.Parameter]:
    GENERATORS.check(split_text(generator)[0], GENERATION)
    return inspect.signature(GENERATORS.get(generator["type"])).parameters
