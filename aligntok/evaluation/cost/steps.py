"""Seconds and bytes of a training step, whole and by part: real steps of the real model, its weights random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from aligntok.data.buckets import AspectBuckets
from aligntok.data.latent_shards import LatentStatistics
from aligntok.data.loader import explaining_loader_errors
from aligntok.data.sampler import per_process_batch
from aligntok.engine.ema import WeightAverages
from aligntok.engine.runner import StepBatch
from aligntok.evaluation.cost.counting import generator_inputs
from aligntok.evaluation.cost.timing import Watched
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.registry import ADAPTERS, DATASETS, DECODERS, DISCRIMINATORS, ENCODERS, LOSSES
from aligntok.training.alignment import build_datasets, build_runner
from aligntok.training.alignment import objective as objective_module
from aligntok.training.alignment.graph import Chain
from aligntok.training.generation import Ready, build_generation_runner
from aligntok.training.generation.settings import Generation
from aligntok.training.plan import without_weights
from aligntok.training.stages import Stage

DATA, ENCODER, TEACHER, DECODER = "data", "encoder", "teacher", "decoder"
LOSSES_, DISCRIMINATOR, GENERATOR = "losses", "discriminator", "generator"
OPTIMISER, EMA, REST = "optimiser", "EMA", "the rest"
PARTS = (DATA, ENCODER, TEACHER, DECODER, LOSSES_, DISCRIMINATOR, GENERATOR, OPTIMISER, EMA, REST)
MORE_STEPS = 10_000  # than the schedule's, so that no measurement runs out of batches


class RandomItems(Dataset[Any]):
    """A data set of one random item, over and over: what a step is measured on where there is no data."""

    def __init__(self, item: Mapping[str, Any], number: int) -> None:
        self.item = dict(item)
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.item


class Step:
    """One optimiser step of a stage or a generator's training, as the training loop takes it.

    `reads` says whether every step waits for the data loader; otherwise one batch serves all. Everything is as the
    config says, all losses active; nothing is written but the run's log, in the stage's folder.
    """

    def __init__(self, stage: Stage, runner: Any, reads: bool) -> None:
        self.stage, self.runner, self.reads = stage, runner, reads
        self.model = runner.trained_model
        self.optimizers: Any = runner.build_optim_wrapper(runner.optim_wrapper)
        self.model.begin(None)
        ema = stage["ema"]
        self.ema = WeightAverages(self.model.averaged_parts(), ema["sigma_rel"], ema["decays"]) if ema else None
        self.number = first_full_step(stage)
        self.images = stage["global_batch_size"]
        loader = runner.train_loop.dataloader
        loader.batch_sampler.start_step = self.number
        self.batches = iter(loader)
        self.accumulation = stage["accumulation"]
        runner.model.train()
        self.micro_batches = self.next_batches()

    def __call__(self) -> None:
        """Take the step."""
        if self.reads:
            self.micro_batches = self.next_batches()
        self.runner.model.train_step(StepBatch(self.number, self.micro_batches), self.optimizers)
        if self.ema is not None:
            self.ema.update()
        self.number += 1

    def next_batches(self) -> list[dict[str, Any]]:
        """Wait for the data loader."""
        with explaining_loader_errors():
            return [next(self.batches) for _ in range(self.accumulation)]

    def watched(self) -> Iterator[Watched]:
        """Yield the calls that a step's parts are told apart by."""
        yield Watched(self, "next_batches", DATA)
        yield from watched_calls(self.model)
        yield Watched(self.optimizers, "step_parts", OPTIMISER)
        if self.ema is not None:
            yield Watched(self.ema, "update", EMA)


def first_full_step(stage: Stage) -> int:
    """Return the number of the first step of a stage at which every loss is active."""
    return max((loss.get("start_step", 0) for loss in stage.settings.get("losses", {}).values()), default=0)


@singledispatch
def build_step(stage: Stage) -> Step:
    """Build the step of a stage that :func:`for_measuring` made ready.

    Its data is what `data_root` names, or random images of the size that the config crops to. Raises DataError for
    data that is not there.
    """
    reads = reads_data(stage)
    item = {"images": torch.rand(3, *training_size(stage)) * 2 - 1}
    train = build_datasets(stage)[0] if reads else RandomItems(item, stage["global_batch_size"])
    return Step(stage, build_runner(stage, train, None), reads)


@build_step.register
def _(stage: Generation) -> Step:
    train: Any = None
    if reads_data(stage):
        train = DATASETS.build({"train": True, "seed": stage.seed, **stage["data"]["train"]})
    x, _, _ = generator_inputs(stage, 1, "cpu")
    channels, *size = x.shape[1:] if train is None else train[0]["latents"].shape
    tokenizer: Any = _NoTokenizer(channels)
    statistics = LatentStatistics((0.0,) * channels, (1.0,) * channels)
    diffusion = LatentDiffusion(stage["generator"], tokenizer, statistics, (channels, *size))
    item = {"latents": x[0], "label": 0}
    ready = Ready(train or RandomItems(item, stage["global_batch_size"]), diffusion)
    return Step(stage, build_generation_runner(stage, ready), train is not None)


def reads_data(stage: Stage) -> bool:
    """Tell whether a step's data can be read: images, or a finished cache of latents, that the config knows of."""
    data = stage["data"]["train"]
    if isinstance(stage, Generation):
        return data["type"] == "latents" and "root" in data and stage["latent_cache"] is None
    return "root" in data


class _NoTokenizer(nn.Module):
    """Stands where a generator's training has its tokenizer, which a step on latents does not use."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim


def for_measuring(stage: Any, folder: Any, devices: int) -> Any:
    """Return a stage, or a generator's training, as its step is measured: random weights, one device's share.

    Raises ConfigError when the devices cannot share a batch evenly.
    """
    settings = dict(stage.settings)
    each = per_process_batch(settings["global_batch_size"], devices, settings["accumulation"])
    settings |= {
        "global_batch_size": each * settings["accumulation"],
        "steps": settings["steps"] + MORE_STEPS,
        "hooks": [],
        "spike_factor": None,
        "log": {**settings["log"], "pictures": 0},
        "data": {**settings["data"], **({} if reads_data(stage) else {"workers": 0})},
    }
    if not isinstance(stage, Generation):
        settings |= _without_weights(settings)
    return replace(stage, settings=settings, folder=folder / stage.name)


def _without_weights(settings: Mapping[str, Any]) -> dict[str, Any]:
    model = dict(settings["model"])
    for part, registry in (("encoder", ENCODERS), ("adapter", ADAPTERS), ("decoder", DECODERS)):
        if part in model:
            model[part] = without_weights(registry, model[part])
    return {
        "model": model,
        "losses": {name: without_weights(LOSSES, loss) for name, loss in settings["losses"].items()},
        "discriminator": without_weights(DISCRIMINATORS, settings["discriminator"]),
        "teacher": without_weights(ENCODERS, settings["teacher"]),
        "start": None,
        "data": {**settings["data"], "val": None},
    }


def training_size(stage: Stage) -> tuple[int, int]:
    """Return (H, W) of a stage's training images, as its config crops them; of several sizes the first."""
    return AspectBuckets(stage["data"]["train"].get("image_size", 256)).sizes[0]


def watched_calls(model: Any) -> Iterator[Watched]:
    """Yield the calls inside a model's training step, by part; forward and backward of a part count together."""
    if hasattr(model, "diffusion"):
        yield Watched(model, "losses", GENERATOR)
        yield Watched(Tensor, "backward", GENERATOR)
        return
    objective = model.objective
    yield from (Watched(getattr(model.tokenizer, part), "forward", ENCODER) for part in ("encoder", "adapter"))
    yield Watched(Chain, "backward_encoder", ENCODER)
    yield Watched(model.tokenizer.decoder, "forward", DECODER)
    yield Watched(Chain, "backward_decoder", DECODER)
    if model.teacher is not None:
        yield Watched(model.teacher, "forward", TEACHER)
    if model.discriminator is not None:  # its pass over the reconstruction serves both sides
        yield Watched(model.discriminator, "forward", DISCRIMINATOR)
        yield Watched(model, "_backward_discriminator", DISCRIMINATOR)
    adversarial = {t.name for t in objective.terms if "fake_logits" in objective.loss(t).inputs}

    def part_of(term: Any, *_: Any) -> str:
        return DISCRIMINATOR if term.name in adversarial else LOSSES_

    yield Watched(objective, "pull_on_image", LOSSES_)
    yield Watched(objective, "pull_on_encoder", LOSSES_)
    yield Watched(objective, "_pull_balanced", part_of)
    yield Watched(objective_module, "ratio_at", LOSSES_)
