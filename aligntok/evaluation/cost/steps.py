"""Seconds and bytes of a training step, whole and by part: real steps of the real model, its weights random."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import record_function
from torch.utils.data import Dataset

from aligntok.data.buckets import AspectBuckets
from aligntok.data.latent_shards import LatentStatistics
from aligntok.data.loader import explaining_loader_errors
from aligntok.data.sampler import per_process_batch
from aligntok.engine.ema import WeightAverages
from aligntok.engine.runner import StepBatch, logging_the_end
from aligntok.evaluation.cost.count import CountedStage, forward_operations, generator_inputs
from aligntok.evaluation.cost.measure import (
    CostRow,
    CostSettings,
    Limit,
    Stopwatch,
    check_room,
    leaving_out,
    seconds_per_operation,
    time_calls,
)
from aligntok.evaluation.cost.memory import free_bytes, metering
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.registry import ADAPTERS, DATASETS, DECODERS, DISCRIMINATORS, ENCODERS, LOSSES
from aligntok.training.alignment import build_datasets, build_runner
from aligntok.training.generation import Ready, build_generation_runner
from aligntok.training.generation.settings import Generation
from aligntok.training.plan import without_weights
from aligntok.training.stages import Stage

DATA, EMA, REST = "data", "EMA", "the rest"
MARKED = ("encoder", "teacher", "decoder", "losses", "discriminator", "generator", "optimiser")  # in the models' steps
PARTS = (DATA, *MARKED, EMA, REST)
BACKWARD = 3  # a forward and a backward pass are about so many forward passes
MORE_STEPS = 10_000  # than the schedule's, so that no measurement runs out of batches


class RandomItems(Dataset[Any]):
    """A data set of one random item, over and over: what a step is measured on where there is no data."""

    def __init__(self, item: Mapping[str, Any], number: int) -> None:
        self.item, self.number = dict(item), number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, place: Any) -> dict[str, Any]:
        return self.item


class Step:
    """One optimiser step of a stage or a generator's training, as the training loop takes it, its parts marked.

    `reads` says whether every step waits for the data loader; otherwise one batch serves all. Everything is as the
    config says, all losses active; nothing is written but the run's log, in the stage's folder.
    """

    def __init__(self, stage: Stage, runner: Any, reads: bool) -> None:
        self.stage, self.runner, self.reads = stage, runner, reads
        self.optimizers: Any = runner.build_optim_wrapper(runner.optim_wrapper)
        model, ema = runner.trained_model, stage["ema"]
        model.begin(None)
        self.ema = WeightAverages(model.averaged_parts(), ema["sigma_rel"], ema["decays"]) if ema else None
        self.number = first_full_step(stage)
        loader = runner.train_loop.dataloader
        loader.batch_sampler.start_step = self.number
        self.batches = iter(loader)
        runner.model.train()
        self.micro_batches = self.next_batches()

    def __call__(self) -> None:
        """Take the step."""
        if self.reads:
            with record_function(DATA):
                self.micro_batches = self.next_batches()
        self.runner.model.train_step(StepBatch(self.number, self.micro_batches), self.optimizers)
        if self.ema is not None:
            with record_function(EMA):
                self.ema.update()
        self.number += 1

    def next_batches(self) -> list[dict[str, Any]]:
        """Wait for the data loader."""
        with explaining_loader_errors():
            return [next(self.batches) for _ in range(self.stage["accumulation"])]


def first_full_step(stage: Stage) -> int:
    """Return the number of the first step of a stage at which every loss is active."""
    return max((loss.get("start_step", 0) for loss in stage.settings.get("losses", {}).values()), default=0)


def build_step(stage: Stage) -> Step:
    """Build the step of a stage, or a generator's training, that :func:`for_measuring` made ready.

    Its data is what `data_root` names, or random images of the size that the config crops to, or random latents.
    Raises DataError for data that is not there.
    """
    reads = reads_data(stage)
    if isinstance(stage, Generation):
        return Step(stage, build_generation_runner(stage, _latents_ready(stage, reads)), reads)
    item = {"images": torch.rand(3, *training_size(stage)) * 2 - 1}
    train: Any = build_datasets(stage)[0] if reads else RandomItems(item, stage["global_batch_size"])
    return Step(stage, build_runner(stage, train, None), reads)


def _latents_ready(stage: Generation, reads: bool) -> Ready:
    """Return what a generator trains on, and the generator, beside a tokenizer that a step on latents does not use."""
    x, _, _ = generator_inputs(stage, 1, "cpu")
    train: Any = RandomItems({"latents": x[0], "label": 0}, stage["global_batch_size"])
    if reads:
        train = DATASETS.build({"train": True, "seed": stage.seed, **stage["data"]["train"]})
    channels, *size = train[0]["latents"].shape
    tokenizer: Any = nn.Module()
    tokenizer.latent_dim = channels
    normal = LatentStatistics((0.0,) * channels, (1.0,) * channels)
    return Ready(train, LatentDiffusion(stage["generator"], tokenizer, normal, (channels, *size)))


def reads_data(stage: Stage) -> bool:
    """Tell whether a step's data can be read: images, or a finished cache of latents, that the config knows of."""
    data = stage["data"]["train"]
    if isinstance(stage, Generation):
        return data["type"] == "latents" and "root" in data and stage["latent_cache"] is None
    return "root" in data


def for_measuring(stage: Any, folder: Path, devices: int) -> Any:
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
        model, losses = settings["model"], settings["losses"]
        parts = {"encoder": ENCODERS, "adapter": ADAPTERS, "decoder": DECODERS}
        settings |= {
            "model": {**model, **{part: without_weights(parts[part], model[part]) for part in parts if part in model}},
            "losses": {name: without_weights(LOSSES, loss) for name, loss in losses.items()},
            "discriminator": without_weights(DISCRIMINATORS, settings["discriminator"]),
            "teacher": without_weights(ENCODERS, settings["teacher"]),
            "start": None,
            "data": {**settings["data"], "val": None},
        }
    return replace(stage, settings=settings, folder=folder / stage.name)


def training_size(stage: Stage) -> tuple[int, int]:
    """Return (H, W) of a stage's training images, as its config crops them; of several sizes the first."""
    return AspectBuckets(stage["data"]["train"].get("image_size", 256)).sizes[0]


def measure_step(
    config: str, counted: CountedStage, settings: CostSettings, device: torch.device, folder: Path
) -> CostRow:
    """Build a stage's model, or a generator's, with random weights, and take steps. Logs go to `folder`.

    What takes longer than `settings.max_seconds` a step, or more memory than there is, is left out and says so.
    Raises DataError and ConfigError for data that is not there.
    """
    stage = counted.stage
    ready = for_measuring(stage, folder, settings.devices)
    batch = ready["global_batch_size"]
    what = {"config": config, "stage": stage.name, "images": batch, "devices": settings.devices}
    row = CostRow(what, steps=stage["steps"], reads=reads_data(stage))
    size = (0, 0) if isinstance(stage, Generation) else training_size(stage)
    work = float(max(1, BACKWARD * batch * forward_operations(stage, size)))
    with leaving_out() as reason, logging_the_end():
        limit = Limit(settings.max_seconds, seconds_per_operation(device))
        limit.check(work)
        check_room(least_bytes(counted), free_bytes(device), "takes at least")
        row = _measure_step(row, build_step(ready), settings, limit, work, device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return replace(row, left_out="".join(reason))


def least_bytes(counted: CountedStage) -> float:
    """Return the bytes of weights, gradients, two states of the optimiser, and averages, all float32."""
    ema = counted.stage["ema"]
    averages = len(ema["sigma_rel"]) + len(ema["decays"]) if ema else 0
    return 4.0 * (counted.plan.frozen + counted.plan.trainable * (4 + averages))


def _measure_step(
    row: CostRow, step: Step, settings: CostSettings, limit: Limit, work: float, device: torch.device
) -> CostRow:
    try:
        timing = time_calls(step, settings.repeats, limit, work, compiles=bool(step.stage["compile"]))
        rounds = [_watch(step, Stopwatch()) for _ in range(timing.calls)]
        with metering(device) as peak:
            step()
            peak()  # everything that lives is known now
            memory = _watch(step, Stopwatch(peak))
    finally:
        step.runner.visualizer.close()
    parts = [part for part in PARTS if part in rounds[0].seconds]
    return replace(
        row,
        timing=timing,
        peak=max(memory.peaks.values()),
        seconds={part: statistics.median(watch.seconds[part] for watch in rounds) for part in parts},
        peaks={part: memory.peaks[part] for part in parts},
    )


def _watch(step: Step, watch: Stopwatch) -> Stopwatch:
    """Take one step under a stopwatch."""
    with watch.listening(PARTS), record_function(REST):
        step()
    return watch
