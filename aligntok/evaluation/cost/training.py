"""Seconds and bytes of a training step, measured; and what the schedule then takes."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from aligntok.engine.runner import logging_the_end
from aligntok.evaluation.cost.counting import CountedStage, forward_operations
from aligntok.evaluation.cost.inference import How
from aligntok.evaluation.cost.memory import GB, free_bytes, is_out_of_memory, metering
from aligntok.evaluation.cost.steps import PARTS, REST, Step, build_step, for_measuring, reads_data, training_size
from aligntok.evaluation.cost.timing import Limit, Stopwatch, Timing, TooSlow, seconds_per_operation, time_calls
from aligntok.training.generation.settings import Generation

BACKWARD = 3  # a forward and a backward pass are about so many forward passes


@dataclass(frozen=True)
class MeasuredStep:
    """A training step of one device: seconds, peak of bytes, the same by part; or why it was not measured.

    images: of one device. reads: whether it reads its data. `hours` is of all devices for the schedule, exchanges
    between them left out.
    """

    config: str
    stage: str
    images: int
    devices: int
    steps: int
    reads: bool
    timing: Timing | None = None
    peak: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    peaks: Mapping[str, int] = field(default_factory=dict)
    left_out: str = ""

    @property
    def hours(self) -> float | None:
        """Steps of the schedule x seconds a step x devices, in hours."""
        return None if self.timing is None else self.steps * self.timing.median * self.devices / 3600

    def row(self) -> dict[str, Any]:
        """Return it as JSON types, without its parts: seconds, GB, hours."""
        named = {"s_a_step": "median", "s_lower_quartile": "low", "s_upper_quartile": "high", "steps_timed": "calls"}
        timing = {title: None if self.timing is None else getattr(self.timing, name) for title, name in named.items()}
        what = {"config": self.config, "stage": self.stage, "images": self.images, "devices": self.devices}
        return {
            **what,
            **timing,
            "peak_gb": None if self.peak is None else self.peak / GB,
            "steps": self.steps,
            "device_hours": self.hours,
            "left_out": self.left_out,
        }

    def part_rows(self) -> list[dict[str, Any]]:
        """Return one row a part: seconds, share of their sum, peak of GB while it ran."""
        total = sum(self.seconds.values()) or 1.0
        return [
            {
                "config": self.config,
                "stage": self.stage,
                "part": part,
                "s": self.seconds[part],
                "share": self.seconds[part] / total,
                "peak_gb": self.peaks[part] / GB,
            }
            for part in PARTS
            if part in self.seconds
        ]


def measure_step(
    config: str, counted: CountedStage, stage: Any, how: How, device: torch.device, folder: Path
) -> MeasuredStep:
    """Build a stage's model, or a generator's, with random weights, and take steps. Logs go to `folder`.

    What takes longer than `how.max_seconds` a step, or more memory than there is, is left out and says so.
    Raises DataError and ConfigError for data that is not there.
    """
    ready = for_measuring(stage, folder, how.devices)
    batch = ready["global_batch_size"]
    row = MeasuredStep(config, stage.name, batch, how.devices, stage["steps"], reads_data(stage))
    size = (0, 0) if isinstance(stage, Generation) else training_size(stage)
    work = float(max(1, BACKWARD * batch * forward_operations(stage, size)))
    try:
        limit = Limit(how.max_seconds, seconds_per_operation(device))
        limit.check(work)
        needed, free = least_bytes(counted, stage), free_bytes(device)
        if needed > free:
            reason = f"out of memory: takes at least {needed / GB:.1f} GB, {free / GB:.1f} are free"
            return replace(row, left_out=reason)
        with logging_the_end():
            return _measure(row, build_step(ready), how, limit, work, device)
    except TooSlow as error:
        return replace(row, left_out=str(error))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return replace(row, left_out="out of memory")
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def least_bytes(counted: CountedStage, stage: Any) -> float:
    """Return the bytes of weights, gradients, two states of the optimiser, and averages, all float32."""
    ema = stage["ema"]
    averages = len(ema["sigma_rel"]) + len(ema["decays"]) if ema else 0
    return 4.0 * (counted.frozen + counted.trainable * (4 + averages))


def _measure(row: MeasuredStep, step: Step, how: How, limit: Limit, work: float, device: torch.device) -> MeasuredStep:
    try:
        timing = time_calls(step, how.repeats, limit, work, compiles=bool(step.stage["compile"]))
        rounds = [_watch(step, Stopwatch()) for _ in range(timing.calls)]
        with metering(device) as meter:
            step()
            meter.peak()  # everything that lives is known now
            memory = _watch(step, Stopwatch(meter.peak))
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
    watch.measure(step, step.watched(), REST)
    return watch


def notes(rows: Sequence[MeasuredStep]) -> list[str]:
    """Return what was not measured, and why, a line each."""
    told = [f"{r.config}: training step of {r.stage}: {r.left_out}" for r in rows if r.left_out]
    unread = [r for r in rows if not r.reads and not r.left_out]
    for config in dict.fromkeys(r.config for r in unread):
        stages = ", ".join(r.stage for r in unread if r.config == config)
        told.append(f"{config}: reading data is not in the steps of {stages}: data_root names none that can be read")
    return told


def as_metrics(rows: Sequence[MeasuredStep]) -> dict[str, float]:
    """Return seconds, GB and hours by name."""
    found: dict[str, float] = {}
    for row in rows:
        where = f"{row.config}/{row.stage}"
        if row.timing is not None and row.peak is not None and row.hours is not None:
            found |= {f"{where}/s_a_step": row.timing.median, f"{where}/peak_gb": row.peak / GB}
            found[f"{where}/device_hours"] = row.hours
    return found
