"""What a measurement of cost is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from aligntok.settings import AboveZero, BatchSize, Parallel, Positive, Precision, Width, settings


@settings
class CostSettings:
    """How costs are measured."""

    resolutions: tuple[Width, ...] = (256, 512, 1024)
    """Pixels a side."""
    batch_sizes: tuple[BatchSize, ...] = (1, 4, 8)
    """Images at once, of encoder and decoder."""
    repeats: Positive = 10
    """Timed calls of each kind."""
    precision: Precision = "fp32"
    """Of encoder and decoder."""
    max_seconds: AboveZero = 30.0
    """Leave out calls that take longer."""
    devices: BatchSize = 1
    """Devices that share a training step's batch."""


@settings
class CostRequest(CostSettings):
    """Tell what configs cost: parameters and multiply-accumulates; latency and memory of encoder and decoder; time and
    memory of training steps, whole and by part; device-hours of the schedule. Weights are random. On a GPU if there is
    one. `measure-cost scaling` tells what more GPUs are worth.

        aligntok measure-cost configs/aligntok_dinov2_f16d32.py --meta
        aligntok measure-cost configs/aligntok_dinov2_f16d32.py configs/baselines/vavae_f16d32.py --meta
    """

    configs: Annotated[tuple[str | Path, ...], Field(min_length=1)]
    """Config files, such as configs/aligntok_dinov2_f16d32.py."""
    meta: bool = False
    """Only what needs no run: parameters, multiply-accumulates, schedule."""
    inference: bool = True
    """Measure encoder and decoder."""
    training: bool = True
    """Measure training steps."""
    encoders: tuple[str, ...] = ()
    """Count and measure these encoders, too, such as ldm_cnn."""
    out: str | Path | None = None
    """Folder of cost.json; None: evaluation/cost in the first config's work_dir."""
    cfg_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Override keys of every config."""

    @property
    def measured(self) -> list[str]:
        """Which of inference and training to run."""
        return [name for name in ("inference", "training") if getattr(self, name) and not self.meta]


@settings
class ScalingRequest:
    """Tell what more GPUs are worth: seconds of a step, images a second and efficiency, by arithmetic, from the step of
    one GPU, the bytes that are sent, and bandwidths.

        aligntok measure-cost scaling configs/generator/lightningdit_xl_aligntok_f16d32_64ep.py --step-seconds 0.5
        aligntok measure-cost scaling configs/aligntok_dinov2_f16d32.py --gpus 8 16 32
    """

    config: str | Path
    """A config file, such as configs/aligntok_dinov2_f16d32.py."""
    stage: str | None = None
    """Only the stage of this name, or generation."""
    step_seconds: tuple[AboveZero, ...] = ()
    """Seconds of a step of one GPU, one for each stage; none: they are measured here."""
    images: BatchSize | None = None
    """Images of one GPU in that step; None: its share of the config's batch on one node."""
    fixed_batch: bool = False
    """Share out the config's batch, in place of as many images for every GPU."""
    parallel: Parallel | None = None
    """How processes hold the model: replicate, shard, or shard=8; None: as the config says."""
    gpus: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Numbers of GPUs."""
    gpus_per_node: Positive = 8
    """GPUs of a node."""
    node_bandwidth: AboveZero = 300.0
    """GB/s that a GPU sends within a node; what NVLink of an H100 is said to leave to NCCL."""
    network_bandwidth: AboveZero = 40.0
    """GB/s that a GPU sends to another node; what a network of 400 Gb/s a GPU leaves."""
    overlap: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of the backward pass in which exchanges go on unnoticed."""
    cfg_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Override config keys."""
