"""The run of one stage: its data sets, its mmengine runner, its hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from aligntok.data.buckets import batches_in_buckets
from aligntok.data.images import find_buckets
from aligntok.data.loader import make_loader
from aligntok.data.sampler import evenly_spaced
from aligntok.distributed import is_first, total, world
from aligntok.engine import hooks as engine_hooks
from aligntok.engine.checkpoints import PartStates, finished_steps
from aligntok.engine.runner import ShareValLoop, StageRunner
from aligntok.errors import ConfigError
from aligntok.io.files import write_json
from aligntok.loading import read_merged_parts
from aligntok.registry import DATASETS, METRICS
from aligntok.training.alignment.model import AlignmentModel
from aligntok.training.builder import common_hooks, optimizers, runner_options, training_batches
from aligntok.training.stages import Stage


def run_stage(stage: Stage, train: Any, val: Any, launcher: str = "none") -> StageRunner:
    """Train one stage to its end, from its start or from its newest checkpoint."""
    folder = stage.start_folder
    if folder is not None and not finished_steps(folder):
        raise ConfigError(f"stage '{stage.name}' starts from {folder}, which has no checkpoint; train that stage first")
    runner = build_runner(stage, train, val, launcher)
    if is_first():
        description = {
            "stage": stage.name,
            "seed": stage.seed,
            "tokenizer": runner.trained_model.tokenizer.config,
            **stage.settings,
        }
        write_json(stage.description, description)
    runner.train()
    runner.visualizer.close()
    _report_unreadable(stage, train)
    return runner


def build_runner(stage: Stage, train: Any, val: Any, launcher: str = "none") -> StageRunner:
    """Build the mmengine run of a stage."""
    validation = _validation(stage, val)  # finds the held-out images' buckets, before the hooks take pictures
    sides = {"autoencoder": stage["optimizer"], "discriminator": stage["discriminator_optimizer"]}
    return StageRunner(
        model={"type": AlignmentModel.__name__, **stage.model_settings},
        train_dataloader=training_batches(stage, train, find_buckets(train, stage.folder.parent)),
        optim_wrapper=optimizers(stage, sides),
        custom_hooks=[*common_hooks(stage), *_picture_hooks(stage, val)],
        start=_start(stage),
        **runner_options(stage, sides, launcher, val_every=stage["validation"]["every"]),
        **validation,
    )


def build_datasets(stage: Stage) -> tuple[Any, Any]:
    """Build the data sets of a stage, training and held-out (None without one). Raises DataError or ConfigError."""
    data = stage["data"]
    for split in ("train", "val"):
        if data[split] is not None and data[split]["type"] == "images" and "root" not in data[split]:
            raise ConfigError(
                "data_root is not set, so there is nothing to train on; "
                "add --cfg-options data_root=/path/to/images (a folder, a zip, shards, parquet files, or hf://owner/name)"
            )
    train = DATASETS.build({"train": True, "seed": stage.seed, **data["train"]})
    if data["val"] is None:
        return train, None
    val = DATASETS.build({"train": False, **data["val"]})
    wanted = stage["validation"]["num_images"]
    return train, Subset(val, evenly_spaced(len(val), wanted)) if wanted else val


def _validation(stage: Stage, val: Any) -> dict[str, Any]:
    if val is None:
        return {}
    settings, data, (rank, processes) = stage["validation"], stage["data"], world()
    shares = Subset(val, range(rank, len(val), processes))
    buckets, batch_size = find_buckets(val, stage.folder.parent), settings["batch_size"]
    one_size = np.zeros(len(val), dtype=np.uint8)
    batches = batches_in_buckets((one_size if buckets is None else buckets)[rank::processes], batch_size)
    measured = {key: settings[key] for key in ("perceptual", "extractor")}
    metric = METRICS.build({"type": "reconstruction", **measured})
    return {
        "val_dataloader": make_loader(shares, list(batches), min(2, data["workers"]), timeout=data["timeout"]),
        "val_cfg": {"type": ShareValLoop.__name__, "num_images": len(val)},
        "val_evaluator": [metric],
    }


def _picture_hooks(stage: Stage, val: Any) -> list[Any]:
    log = stage["log"]
    if val is None or not log["pictures"]:
        return []
    shown = [val[i]["images"] for i in evenly_spaced(len(val), log["pictures"])]
    inference = stage["ema"]["inference"] if stage["ema"] else None
    return [engine_hooks.ReconstructionGridHook(shown, log["pictures_every"], inference)]


def _start(stage: Stage) -> Any:
    folder = stage.start_folder
    if folder is None:
        return None

    def read() -> PartStates:
        return read_merged_parts(folder, stage["start"]["weights"])

    return read


def _report_unreadable(stage: Stage, dataset: Any) -> None:
    """Say how many images could not be read, over all processes; each process saw its share of them."""
    number = int(total(torch.tensor(getattr(dataset, "num_unreadable", 0))))
    if number and is_first():
        print(f"{stage.name}: images that could not be read and were replaced: {number} (named above)", flush=True)
