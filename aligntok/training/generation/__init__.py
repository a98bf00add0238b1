"""The run of a generator: its tokenizer, its latents, its mmengine runner, and the folder it ends as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from aligntok.caching import LatentCache, fill
from aligntok.caching.encoder import CacheSettings, LatentEncoder, check_posterior, latent_statistics
from aligntok.data.latent_shards import LatentStatistics, read_manifest
from aligntok.data.sampler import evenly_spaced
from aligntok.data.sources import open_source
from aligntok.data.transforms import parse_image_size
from aligntok.distributed import barrier, is_first, world
from aligntok.engine.hooks import SampleGridHook, TimeBinsHook
from aligntok.engine.runner import StageRunner
from aligntok.errors import CheckpointError, ConfigError, DataError, multiples_of
from aligntok.generators.base import check_label_range
from aligntok.io.files import read_json, write_json
from aligntok.latent_diffusion import LatentDiffusion, described_fields
from aligntok.loading import UNKNOWN, load_latent_diffusion, load_tokenizer
from aligntok.registry import DATASETS
from aligntok.rng import seed_torch
from aligntok.tokenizer import Tokenizer
from aligntok.training.builder import common_hooks, optimizers, runner_options, training_batches
from aligntok.training.generation.model import GenerationModel
from aligntok.training.generation.plan import plan_generation
from aligntok.training.generation.settings import Generation
from aligntok.training.generation.validation import validation_options
from aligntok.training.plan import build_on_meta, check_before_training, print_plan
from aligntok.training.stages import Stage


class Ready(NamedTuple):
    """What a generator's training begins with: the data set, and everything about it that its samples need."""

    train: Any
    diffusion: LatentDiffusion


def train_generator(generation: Generation, launcher: str = "none") -> Path:
    """Train a generator to its end, from its start or its newest checkpoint, and return the folder it is saved in.

    Collective. Raises AlignTokError's kinds before the first step wherever they can be known.
    """
    if "root" not in generation["data"]["train"]:
        raise ConfigError(
            "data_root is not set, so there is nothing to train on; add --cfg-options data_root=... (a folder that "
            "tools/cache_latents.py wrote; or, with latent_cache or data.train.type=images, a folder of images)"
        )
    ready = prepare(generation)
    plan = plan_generation(generation, world()[1], len(ready.train))
    if is_first():
        print_plan([plan])
    check_before_training([generation], [plan])
    runner = build_generation_runner(generation, ready, launcher)
    if is_first():
        _describe(generation, ready.diffusion)
    barrier()
    runner.train()
    runner.visualizer.close()
    return save_result(generation)


def check_chain(generation: Generation, stages: Sequence[Stage]) -> None:
    """Check, before stages are trained, that the generator fits the tokenizer that they are to make, and its images.

    Raises ConfigError or DataError. Nothing to check without stages.
    """
    if not stages or generation["tokenizer"] is not None:
        return
    model: Any = build_on_meta(stages[-1])
    generator: Any = build_on_meta(generation)
    check_posterior(generation.posterior, model.tokenizer)
    latent_dim, f = model.tokenizer.latent_dim, model.tokenizer.downsample_factor
    if generator.generator.in_channels != latent_dim:
        raise ConfigError(
            f"{generation.name}: generator.in_channels={generator.generator.in_channels}, but the stages' tokenizer "
            f"has latent_dim {latent_dim}; set one to the other"
        )
    cache = generation["latent_cache"]
    if cache is not None and generation.data_root is not None:
        open_source(generation.data_root, cache["split"])
        multiples_of(f, f"{generation.name}: latent_cache.image_size", parse_image_size(cache["image_size"]))


def save_result(generation: Generation) -> Path:
    """Save the finished generator with its tokenizer, and say where; the first process writes."""
    folder = generation.folder.parent / "latent_diffusion"
    if is_first():
        load_latent_diffusion(generation.folder, components=generation.components).save_pretrained(folder)
        print(f"Generator: {folder}   (python tools/sample.py {folder} --num 16)")
        pictures = sorted((generation.folder / "pictures").glob("*.png"))
        if pictures:
            print(f"Samples: {pictures[-1]}")
    barrier()
    return folder


def prepare(generation: Generation) -> Ready:
    """Load the tokenizer, make the cache if there is to be one, and open the data; collective.

    Raises DataError, ConfigError and WeightsError for what cannot be trained on.
    """
    tokenizer = open_tokenizer(generation)
    if generation["latent_cache"] is not None:
        _make_cache(generation, tokenizer)
    train_config = dict(generation["data"]["train"])
    if train_config["type"] == "latents":
        train_config["tokenizer_identity"] = tokenizer.identity
    train = DATASETS.build({"train": True, "seed": generation.seed, **train_config})
    statistics, shape = _statistics(generation, tokenizer, train)
    names = tuple(getattr(train, "class_names", ()))
    seed_torch("weights", generation.seed)  # the generator's first weights; mmengine's Runner comes too late for them
    diffusion = LatentDiffusion(
        generation["generator"], tokenizer, statistics, shape, names, sampling=generation["sampling"]
    )
    _check_labels(train, diffusion)
    return Ready(train, diffusion)


def open_tokenizer(generation: Generation) -> Tokenizer:
    """Load the tokenizer: the run's own copy once it has begun, else the one that the config, or its cache, names."""
    kept = generation.folder / "tokenizer"
    if (kept / "config.json").is_file() and generation.description.is_file():
        return load_tokenizer(kept, components=generation.components)
    source = generation["tokenizer"] or generation.stages_tokenizer
    train = generation["data"]["train"]
    if source is None and train["type"] == "latents" and generation["latent_cache"] is None:
        source = read_manifest(train["root"]).encoding["tokenizer"]["source"]
    if source is None:
        raise ConfigError(
            "no tokenizer is known: set tokenizer to a work folder, a saved tokenizer, a published checkpoint or a hub "
            "id (a finished cache of latents names its own)"
        )
    return load_tokenizer(source, components=generation.components)


def _make_cache(generation: Generation, tokenizer: Tokenizer) -> None:
    settings = generation["latent_cache"]
    if generation.data_root is None:
        raise ConfigError(
            "latent_cache encodes the images at data_root, which is not set; "
            "add --cfg-options data_root=/path/to/images"
        )
    taken = ("image_size", "hflip", "dtype", "precision", "posterior")
    encoding = CacheSettings(**{key: settings[key] for key in taken}, seed=generation.seed)
    images = open_source(generation.data_root, settings["split"])
    cache = LatentCache(generation.latents_folder, images, LatentEncoder(tokenizer, encoding), max_unreadable=None)
    source = generation["tokenizer"] or generation.stages_tokenizer
    fill(cache, str(source), settings["batch_size"], settings["workers"])


def _statistics(
    generation: Generation, tokenizer: Tokenizer, train: Any
) -> tuple[LatentStatistics, tuple[int, int, int]]:
    """Return the latents' statistics and shape: the cache's; those a run has begun with; or new ones."""
    if generation["data"]["train"]["type"] == "latents":
        return train.statistics, train.latent_shape
    if generation.description.is_file():
        begun = read_json(generation.description, CheckpointError, UNKNOWN, described_fields)
        return begun["statistics"], tuple(begun["latent_shape"])
    data = generation["data"]
    statistics = latent_statistics(
        tokenizer,
        data["train"],
        data["statistics_images"],
        generation["precision"],
        data["workers"],
        data["posterior"],
        generation.seed,
    )
    height, width = (side // tokenizer.downsample_factor for side in train[0]["images"].shape[1:])
    return statistics, (tokenizer.latent_dim, height, width)


def _check_labels(train: Any, diffusion: LatentDiffusion) -> None:
    labels = getattr(train, "labels", None)
    labels = getattr(getattr(train, "source", None), "labels", None) if labels is None else labels
    if labels is None or not len(labels) or not diffusion.conditional:
        return
    check_label_range(labels, diffusion.generator, DataError)


def _describe(generation: Generation, diffusion: LatentDiffusion) -> None:
    diffusion.tokenizer.save_pretrained(generation.folder / "tokenizer")
    description: Mapping[str, Any] = {
        "stage": generation.name,
        "seed": generation.seed,
        "tokenizer_identity": diffusion.tokenizer.identity,
        "statistics": asdict(diffusion.statistics),
        "latent_shape": list(diffusion.latent_shape),
        "class_names": list(diffusion.class_names),
        **generation.settings,
    }
    write_json(generation.description, description)


def build_generation_runner(generation: Generation, ready: Ready, launcher: str = "none") -> StageRunner:
    """Build the mmengine run of a generator's training."""
    sides = {"generator": generation["optimizer"]}
    log, ema = generation["log"], generation["ema"]
    hooks = [*common_hooks(generation), TimeBinsHook(log["every"])]
    if log["pictures"]:
        inference = ema["inference"] if ema else None
        labels = grid_labels(ready.diffusion, log["pictures"])
        hooks.append(SampleGridHook(labels, log["pictures_every"], log["pictures_at"], inference))
    return StageRunner(
        model={
            "type": GenerationModel.__name__,
            "diffusion": ready.diffusion,
            **generation.model_settings,
        },
        train_dataloader=training_batches(generation, ready.train, collate=getattr(ready.train, "collate", None)),
        optim_wrapper=optimizers(generation, sides),
        custom_hooks=hooks,
        **runner_options(generation, sides, launcher, val_every=generation["validation"]["every"]),
        **validation_options(generation, ready.diffusion),
    )


def grid_labels(diffusion: LatentDiffusion, number: int) -> list[int]:
    """Return a label for each sample of a grid, spread over the classes; 0 for all without any."""
    classes = diffusion.generator.num_classes
    return [i % classes for i in range(number)] if number >= classes else evenly_spaced(classes, number)
