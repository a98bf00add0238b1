"""What a generator's training trains on: its tokenizer, a cache of latents, the data set, statistics of latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from aligntok.caching.cache import LatentCache, images_to_cache
from aligntok.caching.encoder import LatentEncoder, latent_statistics
from aligntok.caching.settings import CacheContent, CacheSettings
from aligntok.caching.text_cache import cache_texts
from aligntok.condition import pinned
from aligntok.data.images import find_buckets, square_size
from aligntok.data.latent_shards import LatentStatistics
from aligntok.data.lightningdit import open_manifest
from aligntok.data.loader import number_of_classes
from aligntok.errors import ConfigError
from aligntok.io.places import with_places
from aligntok.latent_diffusion import LatentDiffusion, described_fields
from aligntok.loading import UNKNOWN, read_stage_file
from aligntok.registry import DATASETS
from aligntok.rng import seed_torch
from aligntok.tokenizer import Tokenizer
from aligntok.training.config import read_begun
from aligntok.training.stages import StageData, check_placed

if TYPE_CHECKING:
    from aligntok.training.generation import GeneratorStage


def build(stage: GeneratorStage) -> StageData:
    """Return the opened data of a stage, with generator, tokenizer and statistics as one model; collective.

    Raises DataError, ConfigError and WeightsError.
    """
    settings = stage.settings
    if settings.data.train["type"] == "stream":
        check_placed(settings.data.train)
    elif "root" not in settings.data.train:
        raise ConfigError(
            "data_root is not set, so there is nothing to train on; add --cfg-options data_root=... (a folder that "
            "tools/cache_latents.py wrote; or, with latent_cache or data.train.type=images, a folder of images)"
        )
    tokenizer = stage.open_tokenizer()
    if settings.latent_cache is not None:
        _make_cache(stage, tokenizer)
    config = dict(settings.data.train)
    if config["type"] == "latents":
        config["tokenizer_identity"] = tokenizer.identity
    train = DATASETS.build({"train": True, "seed": stage.seed, **config})
    check_classes(stage, train)
    start = read_begun(stage, described_fields) if stage.has_begun else _start(stage, tokenizer)
    statistics, shape = _statistics(stage, tokenizer, train, start)
    names, sampling = tuple(getattr(train, "class_names", ())), asdict(settings.sampling)
    seed_torch("weights", stage.seed)  # the generator's first weights
    diffusion = LatentDiffusion(pinned(settings.generator, start), tokenizer, statistics, shape, names, sampling)
    diffusion.condition.check_data(train)
    if (texts := diffusion.condition.to_encode(train)) is not None:
        diffusion.condition.cache = cache_texts(stage.folder.parent / "texts", **texts)
    return StageData(train, made_with=diffusion)


def check_classes(stage: GeneratorStage, data: Any) -> None:
    """Raise ConfigError where the data have another number of classes than a generator that is told of them."""
    given, number = stage.settings.generator.get("num_classes", 1), number_of_classes(data)
    if given != 1 and number not in (None, given):
        raise ConfigError(
            f"the data has {number} classes, the generator's num_classes is {given}; leave generator.num_classes "
            "out to have the data's, or set it to 1 for an unconditional generator"
        )


def tokenizers_source(stage: GeneratorStage) -> str | Any:
    """Return where the tokenizer is: of the config, the stages before, or a cache. Raises ConfigError for nowhere."""
    source = stage.settings.tokenizer or stage.stages_tokenizer
    if source is None and stage.reads_data:
        root = stage.settings.data.train["root"]
        named = open_manifest(root).encoding["tokenizer"]["source"]
        source = str(with_places(named, root)) if named else None
    if source is None:
        raise ConfigError(
            "no tokenizer is known: set tokenizer to a work folder, a saved tokenizer, a published checkpoint or a "
            "hub id (a finished cache of latents names its own)"
        )
    return source


def _make_cache(stage: GeneratorStage, tokenizer: Tokenizer) -> None:
    settings = stage.settings.latent_cache
    assert settings is not None  # it is made where the config has one
    if stage.data_root is None:
        raise ConfigError(
            "latent_cache encodes the images at data_root, which is not set; "
            "add --cfg-options data_root=/path/to/images"
        )
    content = {field.name: getattr(settings, field.name) for field in fields(CacheContent)}
    encoder = LatentEncoder(tokenizer, CacheSettings(**content, seed=stage.seed))
    images = images_to_cache(stage.data_root, settings)
    source = str(stage.settings.tokenizer or stage.stages_tokenizer)
    cache = LatentCache(stage.folder.parent / "latents", images, encoder, source)
    cache.fill(settings.batch_size, settings.workers, stage.settings.data.timeout)


def _statistics(
    stage: GeneratorStage, tokenizer: Tokenizer, train: Any, start: Mapping[str, Any]
) -> tuple[LatentStatistics, tuple[int, int, int]]:
    """Return the latents' statistics and shape: of the training that it goes on from; the cache's; new ones."""
    settings = stage.settings.data
    if settings.train["type"] == "latents":
        if stage.settings.init_from is not None:
            train.normalise_as(start["statistics"])
        return train.statistics, train.latent_shape
    if stage.has_begun:
        return start["statistics"], tuple(start["latent_shape"])
    size = square_size(train) or train[0]["images"].shape[1:]
    height, width = (side // tokenizer.downsample_factor for side in size)
    shape = (tokenizer.latent_dim, height, width)
    if start:
        return start["statistics"], shape
    buckets = find_buckets(train, stage.folder.parent)
    how = stage.settings.precision, settings.workers, settings.posterior, stage.seed, buckets, settings.timeout
    return latent_statistics(tokenizer, settings.train, settings.statistics_images, *how), shape


def _start(stage: GeneratorStage, tokenizer: Tokenizer) -> Mapping[str, Any]:
    """Return what describes the generator that the training goes on from; nothing where it begins anew.

    Raises ConfigError where that is on latents of another tokenizer.
    """
    if stage.start_folder is None:
        return {}
    said, theirs = read_stage_file(
        stage.start_folder, UNKNOWN, lambda said: (described_fields(said), str(said["tokenizer_identity"]))
    )
    if theirs != tokenizer.identity:
        raise ConfigError(
            f"init_from: the generator in {stage.start_folder} is on latents of another tokenizer (identity "
            f"{theirs[:12]}) than this training's ({tokenizer.identity[:12]}); set tokenizer to that one's"
        )
    if (kind := said["generator"].get("type")) != (own := stage.settings.generator["type"]):
        raise ConfigError(
            f"init_from: the generator in {stage.start_folder} is a '{kind}', this one a '{own}'; give one"
        )
    return said
