"""The training of a generator: on latents from a cache or encoded on the fly, with its tokenizer at hand."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from aligntok.caching.cache import LatentCache, images_to_cache
from aligntok.caching.encoder import LatentEncoder, check_posterior, latent_statistics
from aligntok.caching.settings import CacheContent, CacheSettings, Posterior
from aligntok.data.images import find_buckets, square_size
from aligntok.data.latent_shards import LatentStatistics, read_manifest
from aligntok.data.loader import labels_of, number_of_classes
from aligntok.data.sampler import evenly_spaced
from aligntok.distributed import world
from aligntok.engine.hooks import PictureHook, TimeBinsHook, draw_samples
from aligntok.errors import ConfigError, DataError
from aligntok.generators import check_label_range
from aligntok.io.places import with_places
from aligntok.latent_diffusion import LatentDiffusion, check_null_class, described_fields
from aligntok.loading import GENERATION, UNKNOWN, load_latent_diffusion, load_tokenizer, read_stage_file, saved_size
from aligntok.registry import DATASETS, GENERATORS, import_components
from aligntok.rng import seed_torch
from aligntok.settings import read
from aligntok.tokenizer import Tokenizer
from aligntok.training.config import dotted_models
from aligntok.training.generation.model import GenerationModel
from aligntok.training.generation.validation import (
    check_captions,
    check_sampling,
    check_size,
    check_validation,
    check_variants,
    validation_options,
)
from aligntok.training.plan import plan_stage
from aligntok.training.settings import GeneratorSettings, RunSettings
from aligntok.training.stages import RandomItems, Stage, StageData, merge


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
    train = {**({} if root is None else {"root": root}), **train}
    settings = replace(settings, data=replace(settings.data, train=train))
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
        """What errors call it."""
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
        if "root" not in train or (cache is not None and self.data_root is None):
            return None
        if cache is not None:
            data: Any = images_to_cache(str(self.data_root), cache)
        else:
            data = DATASETS.build({"train": True, "seed": self.seed, **train})
        self._check_classes(data)
        self._tokenizers_source()
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
        begun = read_stage_file(self.folder, UNKNOWN)["generator"] if self.description.is_file() else None
        number = number_of_classes(self.look()) if begun is None else begun.get("num_classes")
        known = {} if number is None else {"num_classes": number}
        return replace(self, settings=replace(self.settings, generator={**generator, **known}))

    def _check_classes(self, data: Any) -> None:
        """Raise ConfigError where the data have another number of classes than a generator that is told of them."""
        given, number = self.settings.generator.get("num_classes", 1), number_of_classes(data)
        if given != 1 and number not in (None, given):
            raise ConfigError(
                f"the data has {number} classes, the generator's num_classes is {given}; leave generator.num_classes "
                "out to have the data's, or set it to 1 for an unconditional generator"
            )

    def build_data(self) -> StageData:
        """Load the tokenizer, make the cache if there is to be one, and open the data; collective.

        Its model is made with generator, tokenizer and statistics. Raises DataError, ConfigError and WeightsError.
        """
        if "root" not in self.settings.data.train:
            raise ConfigError(
                "data_root is not set, so there is nothing to train on; add --cfg-options data_root=... (a folder that "
                "tools/cache_latents.py wrote; or, with latent_cache or data.train.type=images, a folder of images)"
            )
        tokenizer = self.open_tokenizer()
        if self.settings.latent_cache is not None:
            self._make_cache(tokenizer)
        config = dict(self.settings.data.train)
        if config["type"] == "latents":
            config["tokenizer_identity"] = tokenizer.identity
        train = DATASETS.build({"train": True, "seed": self.seed, **config})
        self._check_classes(train)
        statistics, shape = self._statistics(tokenizer, train)
        names, sampling = tuple(getattr(train, "class_names", ())), asdict(self.settings.sampling)
        seed_torch("weights", self.seed)  # the generator's first weights
        diffusion = LatentDiffusion(self.settings.generator, tokenizer, statistics, shape, names, sampling)
        labels = labels_of(train)
        if len(labels) and diffusion.conditional:
            check_label_range(labels, diffusion.generator, DataError)
        return StageData(train, made_with=diffusion)

    def open_tokenizer(self) -> Tokenizer:
        """Load the tokenizer: the run's own copy once it has begun, else that of the config, or of its cache."""
        kept = self.folder / "tokenizer"
        if (kept / "config.json").is_file() and self.description.is_file():
            return load_tokenizer(kept, components=self.components)
        return load_tokenizer(self._tokenizers_source(), components=self.components)

    def _tokenizers_source(self) -> str | Path:
        source: str | Path | None = self.settings.tokenizer or self.stages_tokenizer
        if source is None and self.reads_data:
            root = self.settings.data.train["root"]
            source = str(with_places(read_manifest(root).encoding["tokenizer"]["source"], root))
        if source is None:
            raise ConfigError(
                "no tokenizer is known: set tokenizer to a work folder, a saved tokenizer, a published checkpoint or a "
                "hub id (a finished cache of latents names its own)"
            )
        return source

    def _make_cache(self, tokenizer: Tokenizer) -> None:
        settings = self.settings.latent_cache
        assert settings is not None  # it is made where the config has one
        if self.data_root is None:
            raise ConfigError(
                "latent_cache encodes the images at data_root, which is not set; "
                "add --cfg-options data_root=/path/to/images"
            )
        content = {field.name: getattr(settings, field.name) for field in fields(CacheContent)}
        encoder = LatentEncoder(tokenizer, CacheSettings(**content, seed=self.seed))
        images = images_to_cache(self.data_root, settings)
        source = str(self.settings.tokenizer or self.stages_tokenizer)
        LatentCache(self.folder.parent / "latents", images, encoder, source).fill(settings.batch_size, settings.workers)

    def _statistics(self, tokenizer: Tokenizer, train: Any) -> tuple[LatentStatistics, tuple[int, int, int]]:
        """Return the latents' statistics and shape: the cache's; those a run has begun with; or new ones."""
        data = self.settings.data
        if data.train["type"] == "latents":
            return train.statistics, train.latent_shape
        if self.description.is_file():
            begun = read_stage_file(self.folder, UNKNOWN, described_fields)
            return begun["statistics"], tuple(begun["latent_shape"])
        number, workers = data.statistics_images, data.workers
        how = self.settings.precision, workers, data.posterior, self.seed, find_buckets(train, self.folder.parent)
        statistics = latent_statistics(tokenizer, data.train, number, *how)
        size = square_size(train) or train[0]["images"].shape[1:]
        height, width = (side // tokenizer.downsample_factor for side in size)
        return statistics, (tokenizer.latent_dim, height, width)

    def check(self, model: GenerationModel) -> None:
        """Raise ConfigError for sampling that cannot work with the generator."""
        sampling, generator = self.settings.sampling, model.generator
        check_null_class(sampling.cfg_scale, generator, f"{self.where}, sampling")
        check_sampling(self.settings, generator.in_channels, self.where)
        check_captions(self.settings, self.where)
        classes = self.settings.generator.get("num_classes", 1)  # of the data, once they are known
        check_variants(self.settings.validation, sampling, self.where, classes)
        source = None if self.description.is_file() else self.settings.tokenizer  # what has begun has its own copy
        size = None if source is None else saved_size(source)
        check_size(self.settings, generator.in_channels, size, "the tokenizer", self.name)

    def check_beforehand(self, stages: list[Stage]) -> None:
        """Check settings, validation, images, and whether it fits the tokenizer of the stages. Raises our errors."""
        plan_stage(self, world()[1])
        check_validation(self.settings.validation, self.settings.sampling, self.where)
        self.check_follows(stages)
        cache = self.settings.latent_cache
        if self.stages_tokenizer is not None and cache is not None and self.data_root is not None:
            self._check_classes(images_to_cache(self.data_root, cache))

    def check_follows(self, stages: list[Stage]) -> None:
        """Raise ConfigError where it does not fit the tokenizer that the `stages` make."""
        if self.stages_tokenizer is None:
            return
        tokenizer, generator = stages[-1].build_model().tokenizer, self.build_model().generator
        check_posterior(self.posterior, tokenizer)
        size = tokenizer.latent_dim, tokenizer.downsample_factor
        check_size(self.settings, generator.in_channels, size, "the stages' tokenizer", self.name)

    def validation(self, data: StageData) -> dict[str, Any]:
        """Return how samples are drawn and measured on the way."""
        return validation_options(self.settings.validation, data.made_with)

    def hooks(self, data: StageData) -> list[Any]:
        """Return those that log the loss by time and, if pictures are wanted, draw samples."""
        log, ema = self.settings.log, self.settings.ema
        hooks: list[Any] = [TimeBinsHook(log.every)]
        if log.pictures:
            classes, inference = data.made_with.generator.num_classes, ema.inference if ema else None
            every = range(classes) if log.pictures >= classes else evenly_spaced(classes, log.pictures)
            draw = partial(draw_samples, labels=[*islice(cycle(every), log.pictures)])
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
            "class_names": list(diffusion.class_names),
        }

    def export(self) -> Path:
        """Write the generator with its tokenizer into the run's work folder."""
        folder = self.folder.parent / "latent_diffusion"
        load_latent_diffusion(self.folder, components=self.components).save_pretrained(folder)
        print(f"Generator: {folder}   (python tools/sample.py {folder} --num-samples 16)")
        if pictures := sorted((self.folder / "pictures").glob("*.png")):
            print(f"Samples: {pictures[-1]}")
        return folder

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
        """Return a random latent of the size that the config is made for, and a label."""
        return {"latents": self.latent_input()[0][0], "label": 0}

    def _beside_nothing(self, shape: Sequence[int]) -> LatentDiffusion:
        """Return the generator with statistics of normalised latents (C, h, w), and nothing in place of a tokenizer."""
        channels, height, width = shape
        tokenizer: Any = nn.Module()
        tokenizer.latent_dim, tokenizer.variational = channels, True  # whichever posterior is asked for
        normal = LatentStatistics((0.0,) * channels, (1.0,) * channels)
        return LatentDiffusion(dict(self.settings.generator), tokenizer, normal, (channels, height, width))

    def rehearse(self, model: GenerationModel) -> None:
        """Take one latent of the size that the config is made for through the generator."""
        model.generator.eval()(*(each.to("meta") for each in self.latent_input()))

    def latent_input(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return x (1, C, h, w), t (1,) and y (1,) for the generator, at the latent size that it is made for."""
        generator, takes = self.settings.generator, _keywords(self.settings.generator)
        names = [name for name in ("input_size", "in_channels") if name in takes]
        sizes = {name: generator.get(name, takes[name].default) for name in names}
        side = sizes.get("input_size", 16)
        height, width = (side, side) if isinstance(side, int) else side
        return torch.randn(1, sizes["in_channels"], height, width), torch.rand(1), torch.zeros(1, dtype=torch.int64)


def _keywords(generator: Mapping[str, Any]) -> Mapping[str, inspect.Parameter]:
    GENERATORS.check(generator, GENERATION)
    return inspect.signature(GENERATORS.get(generator["type"])).parameters
