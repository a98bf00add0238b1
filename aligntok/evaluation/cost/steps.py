"""Seconds and bytes of a training step, whole and by part: real steps of the real model, its weights random."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import record_function

from aligntok.data.loader import explaining_loader_errors
from aligntok.data.sampler import per_process_batch
from aligntok.engine.ema import WeightAverages
from aligntok.engine.log import logging_the_end
from aligntok.engine.runner import StepBatch
from aligntok.evaluation.cost.count import CountedStage, forward_operations
from aligntok.evaluation.cost.measure import (
    GB,
    Limit,
    Row,
    Stopwatch,
    Timing,
    check_room,
    free_bytes,
    leaving_out,
    metering,
    seconds_per_operation,
)
from aligntok.evaluation.cost_settings import CostSettings
from aligntok.training.builder import build_runner
from aligntok.training.stages import Stage

DATA, EMA, REST = "data", "EMA", "the rest"
MARKED = ("encoder", "teacher", "decoder", "losses", "discriminator", "generator", "optimiser")  # in the models' steps
MEASURED = ("s_a_step", "s_lower_quartile", "s_upper_quartile", "steps_timed", "peak_gb")
PARTS = (DATA, *MARKED, EMA, REST)
BACKWARD = 3  # a forward and a backward pass are about so many forward passes
MORE_STEPS = 10_000  # than the schedule's, so that no measurement runs out of batches


class Step:
    """One optimiser step of a stage that :func:`for_measuring` made ready, as the training loop takes it, parts marked.

    Every step waits for the data loader where the stage reads data; otherwise one batch serves all. Everything is as
    the config says, all losses active; nothing is written but the run's log, in the stage's folder. Raises DataError
    for data that is not there.
    """

    def __init__(self, stage: Stage) -> None:
        runner: Any = build_runner(stage, stage.data_to_measure())
        self.stage, self.runner = stage, runner
        self.optimizers: Any = runner.build_optim_wrapper(runner.optim_wrapper)
        model, ema = runner.trained_model, stage.settings.ema
        model.load_start(None)
        self.ema = WeightAverages(model.averaged_parts(), ema.sigma_rel, ema.decays) if ema else None
        self.number = first_full_step(stage)
        loader = runner.train_loop.dataloader
        loader.batch_sampler.start_step = self.number
        self.batches = iter(loader)
        runner.model.train()
        self.micro_batches = self.next_batches()

    def __call__(self) -> None:
        """Take the step."""
        if self.stage.reads_data:
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
            return [next(self.batches) for _ in range(self.stage.settings.gradient_accumulation_steps)]


def first_full_step(stage: Stage) -> int:
    """Return the number of the first step of a stage at which every loss is active."""
    return max((loss.get("start_step", 0) for loss in getattr(stage.settings, "losses", {}).values()), default=0)


def for_measuring(stage: Stage, folder: Path, devices: int) -> Stage:
    """Return a stage as its step is measured: random weights, one device's share, no pictures, no validation.

    Raises ConfigError when the devices cannot share a batch evenly.
    """
    ready = stage.without_pretrained()
    own, micro_batches = ready.settings, ready.settings.gradient_accumulation_steps
    settings = replace(
        own,
        global_batch_size=per_process_batch(own.global_batch_size, devices, micro_batches) * micro_batches,
        steps=own.steps + MORE_STEPS,
        hooks=[],
        spike_factor=None,
        skip_norm=None,
        log=replace(own.log, pictures=0),
        data=own.data if stage.reads_data else replace(own.data, workers=0),
    )
    return replace(ready, settings=settings, folder=folder / stage.name)


def measure_step(
    config: str, counted: CountedStage, settings: CostSettings, device: torch.device, folder: Path
) -> tuple[Row, list[Row]]:
    """Build a stage's model, with random weights, and take steps; return a row, and one a part. Logs go to `folder`.

    What takes longer than `settings.max_seconds` a step, or more memory than there is, is left out and says so.
    Raises DataError and ConfigError for data that is not there.
    """
    stage = counted.stage
    ready = for_measuring(stage, folder, settings.devices)
    batch, steps = ready.settings.global_batch_size, stage.settings.steps
    where = {"config": config, "stage": stage.name}
    row: Row = {**where, "images": batch, "devices": settings.devices, **dict.fromkeys(MEASURED)}
    row |= {"steps": steps, "device_hours": None, "left_out": ""}
    parts: list[Row] = []
    work = float(max(1, BACKWARD * batch * forward_operations(stage)))
    ema, plan = stage.settings.ema, counted.plan
    averages = len(ema.sigma_rel) + len(ema.decays) if ema else 0
    # in float32: weights, gradients, two states of the optimiser, averages
    least = 4.0 * (plan.frozen + plan.trainable * (4 + averages))
    with leaving_out(row), logging_the_end():
        limit = Limit(settings.max_seconds, seconds_per_operation(device))
        limit.check(work)
        check_room(least, free_bytes(device), "takes at least")
        timing, seconds, peaks = _measure_step(Step(ready), settings, limit, work, device)
        row.update(zip(MEASURED, (*timing, max(peaks.values()) / GB), strict=True))
        row["device_hours"] = steps * timing.median * settings.devices / 3600
        total = sum(seconds.values()) or 1.0
        parts = [{**where, "part": p, "s": s, "share": s / total, "peak_gb": peaks[p] / GB} for p, s in seconds.items()]
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return row, parts


def _measure_step(
    step: Step, settings: CostSettings, limit: Limit, work: float, device: torch.device
) -> tuple[Timing, dict[str, float], dict[str, int]]:
    """Return the seconds of a step, and of each of its parts, and the peak of each, bytes."""

    def watch(peak: Callable[[], int] = lambda: 0) -> Stopwatch:
        stopwatch = Stopwatch(peak)
        with stopwatch.listening(PARTS), record_function(REST):
            step()
        return stopwatch

    try:
        timing = limit.time(step, settings.repeats, work, compiles=bool(step.stage.settings.compile))
        rounds = [watch().seconds for _ in range(timing.calls)]
        with metering(device) as peak:
            step()
            peak()  # everything that lives is known now
            peaks = watch(peak).peaks
    finally:
        step.runner.visualizer.close()
    seconds = {part: statistics.median(r[part] for r in rounds) for part in PARTS if part in rounds[0]}
    return timing, seconds, peaks
