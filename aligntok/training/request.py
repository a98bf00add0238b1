"""What a command that trains, or exports what was trained, is told beside the config."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

from aligntok.errors import ConfigError
from aligntok.settings import AboveZero, Parallel, Positive, Share, settings


class Hardware(NamedTuple):
    """What a run is planned for: processes, how they hold the model (None: as its config says), GiB of a GPU."""

    processes: int = 1
    parallel: Parallel | None = None
    gpu_memory: float = 80


@settings
class TrainRequest:
    """Train a tokenizer, stage after stage, and a generator. The same command started again goes on where it
    stopped.

        aligntok train configs/demo/photographs_f8d16.py --dry-run
        aligntok train configs/aligntok_dinov2_f16d32.py --cfg-options data_root=/data/imagenet
        aligntok train configs/aligntok_dinov2_f16d32.py --dry-run --processes 8 --gpu-memory 80
    """

    config: str | Path
    """A config file, such as configs/aligntok_dinov2_f16d32.py."""
    stage: str | None = None
    """Run only the stage of this name."""
    work_dir: str | Path | None = None
    """Where everything is written; None: work_dirs/<config name>."""
    dry_run: bool = False
    """Print what each stage would do, and stop."""
    processes: Positive | None = None
    """Of a dry run: tell what a GPU holds and sends in a step of so many processes, and the largest micro-batch that
    fits."""
    parallel: Parallel | None = None
    """Of a dry run: how they hold the model, as the config's key: replicate, shard, or shard=8; None: as that says."""
    gpu_memory: AboveZero | None = None
    """Of a dry run: GiB of the GPU that a micro-batch is to fit; None: 80."""
    cfg_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Override config keys, such as seed=1 stages.0.steps=10."""

    def __post_init__(self) -> None:
        if self.hardware is not None and not self.dry_run:
            raise ConfigError(
                "--processes, --parallel and --gpu-memory say what --dry-run plans for; add it, or start processes "
                "with torchrun --nproc_per_node and set --cfg-options parallel=..."
            )

    @property
    def hardware(self) -> Hardware | None:
        """What a dry run plans for, if it is told anything of it."""
        given = self.processes, self.parallel, self.gpu_memory
        if given == (None, None, None):
            return None
        return Hardware(self.processes or 1, self.parallel, self.gpu_memory or Hardware().gpu_memory)

    @property
    def options(self) -> dict[str, Any]:
        """The config keys that are overridden, the work folder among them."""
        return self.cfg_options if self.work_dir is None else {**self.cfg_options, "work_dir": str(self.work_dir)}


@settings(renamed={"sigma_rel": "ema"})
class ExportRequest:
    """Write a tokenizer as a folder that anyone can load, or for other programs; a generator for diffusers.

    aligntok export work_dirs/my_run my_tokenizer
    aligntok export work_dirs/my_run my_tokenizer --weights raw
    aligntok export work_dirs/my_flux my_transformer --format diffusers
    """

    source: str | Path
    """A work folder or stage, a saved tokenizer, a published checkpoint, a hub id."""
    out: str | Path
    """The folder to write."""
    weights: Literal["raw", "ema"] | None = None
    """Of a work folder; None: averages where they are kept."""
    ema: Share | None = None
    """Width of the average; one that was not kept is made from the snapshots. Or a decay that was."""
    format: Literal["aligntok", "diffusers", "onnx"] = "aligntok"
    """diffusers: of a source with a generator its pipeline, or its transformer of prompts, else the tokenizer as an
    autoencoder; onnx: the tokenizer's encoder and decoder."""
    latents: str | Path | None = None
    """A cache of latents that the tokenizer made, whose mean and deviation are written along; of the other formats."""

    def __post_init__(self) -> None:
        if self.latents is not None and self.format == "aligntok":
            raise ConfigError("--latents is of --format diffusers and onnx; a tokenizer by itself has no such place")
