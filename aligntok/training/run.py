"""The run: stages in order, finished ones skipped, an unfinished one gone on with, a tokenizer at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset, default_collate

from aligntok.data.buckets import batches_in_buckets
from aligntok.data.files import claiming
from aligntok.data.sampler import GlobalBatchSampler
from aligntok.engine import hooks as engine_hooks
from aligntok.engine.buckets import find_buckets
from aligntok.engine.checkpoints import PartStates, finished_steps, write_json
from aligntok.engine.distributed import (
    SelfReducing,
    barrier,
    is_first,
    is_same_everywhere,
    start_processes,
    sum_over_processes,
    world,
)
from aligntok.engine.failures import ending_together
from aligntok.engine.loops import ShareValLoop, StepLoop
from aligntok.engine.optim import PartOptimizersConstructor
from aligntok.engine.preemption import ignore_sigterm, noting_sigterm, sigterm_was_sent
from aligntok.engine.runner import StageRunner, logging_the_end
from aligntok.errors import CheckpointError, ConfigError, Preempted
from aligntok.registry import DATASETS, HOOKS, METRICS
from aligntok.training.alignment import AlignmentModel
from aligntok.training.changes import report_changes
from aligntok.training.loading import load_stage_tokenizer, read_merged_parts
from aligntok.training.preflight import check_before_training, plan_stage, print_plan
from aligntok.training.report import print_summary
from aligntok.training.stages import Stage, expand_stages

_RUNS = count()


def run(config: Mapping[str, Any], only_stage: str | None = None, dry_run: bool = False) -> Path | None:
    """Train the stages of a config and return the folder of the finished tokenizer.

    Started again, it skips stages that are finished and goes on with the one that is not. `only_stage` runs one by
    name; `dry_run` prints the plan, on the meta device, and stops: it needs neither data nor weights. Returns None
    when no tokenizer is finished. Raises AlignTokError's kinds before the first step wherever they can be known.
    """
    stages = expand_stages(config)
    chosen = _choose(stages, only_stage)
    if dry_run:
        print_plan([plan_stage(stage, world()[1]) for stage in chosen])
        return None
    launcher = start_processes()
    with logging_the_end(), noting_sigterm(), ending_together(config["process_timeout"]):
        datasets = [build_datasets(stage) for stage in chosen]
        plans = [plan_stage(stage, world()[1], len(sets[0])) for stage, sets in zip(chosen, datasets, strict=True)]
        if is_first():
            print_plan(plans)
        left = [(stage, *sets) for stage, sets in zip(chosen, datasets, strict=True) if _is_left(stage, sets[1])]
        check_before_training([stage for stage, _, _ in left], plans)
        with claiming(config["work_dir"], wanted=is_first()):
            for stage, train, val in left:
                if sigterm_was_sent():
                    raise Preempted(f"stopped by SIGTERM before stage '{stage.name}'; the same command goes on with it")
                run_stage(stage, train, val, launcher)
            return _finish(config, stages)


def _is_left(stage: Stage, val: Any) -> bool:
    """Tell whether a stage is still to be trained; report what differs from the settings it was trained with so far."""
    finished = is_finished(stage, validated=val is not None)
    if not is_same_everywhere(finished):
        raise CheckpointError(f"not all processes find stage '{stage.name}' in {stage.folder} alike; start again")
    report_changes(stage, finished)
    if finished:
        _say(f"{stage.name}: finished already, skipped")
    return not finished


def is_finished(stage: Stage, validated: bool) -> bool:
    """Tell whether a stage has done all its steps and, if it is `validated`, measured the result."""
    done = finished_steps(stage.folder) >= stage["steps"]
    result = stage.folder / "result.json"
    return done and (not validated or (result.is_file() and json.loads(result.read_text())["step"] >= stage["steps"]))


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
        write_json(stage.folder / "stage.json", description)
    runner.train()
    runner.visualizer.close()
    _report_unreadable(stage, train)
    return runner


def build_runner(stage: Stage, train: Any, val: Any, launcher: str = "none") -> StageRunner:
    """Build the mmengine run of a stage."""
    rank, processes = world()
    sampler = GlobalBatchSampler(
        len(train),
        stage["global_batch_size"],
        stage.seed,
        rank,
        processes,
        stage["accumulation"],
        num_steps=stage["steps"],
        buckets=find_buckets(train, stage.folder.parent),
    )
    schedule = {"autoencoder": [{"by_epoch": False, **s} for s in stage["schedule"] or []], "discriminator": []}
    every = stage["validation"]["every"]
    torch.set_float32_matmul_precision("high" if stage["precision"] == "tf32" else "highest")
    validation = _validation(stage, val)  # finds the held-out images' buckets, before the hooks take pictures
    return StageRunner(
        model={"type": AlignmentModel.__name__, **stage.model_settings},
        work_dir=str(stage.folder),
        train_dataloader=_loader(train, stage["data"]["workers"], stage["data"]["timeout"], batch_sampler=sampler),
        train_cfg={"type": StepLoop.__name__, "max_iters": stage["steps"], "val_interval": every},
        optim_wrapper={
            "constructor": PartOptimizersConstructor.__name__,
            "autoencoder": stage["optimizer"],
            "discriminator": stage["discriminator_optimizer"],
            "clip_grad_norm": stage["clip_grad_norm"],
            "max_skipped": stage["max_skipped_steps"],
            "spike_factor": stage["spike_factor"],
        },
        param_scheduler=schedule if stage["schedule"] else None,
        default_hooks=dict.fromkeys(("runtime_info", "timer", "sampler_seed", "logger", "checkpoint")),
        custom_hooks=_hooks(stage, val),
        launcher=launcher,
        randomness={"seed": stage.seed},
        # mmengine 0.10.7 tells runs apart by whole seconds: two would share a log (ends with mmengine > 0.10.7).
        experiment_name=f"{stage.folder.parent.name}_{stage.folder.name}_{next(_RUNS)}",
        visualizer={
            "type": "Visualizer",
            "vis_backends": [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}],
        },
        cfg={"model_wrapper_cfg": {"type": SelfReducing.__name__}} if launcher != "none" else {},
        start=_start(stage),
        ema=stage["ema"],
        keep=stage["checkpoint"]["keep"],
        keep_every=stage["checkpoint"]["keep_every"],
        **validation,
    )


def _choose(stages: Sequence[Stage], name: str | None) -> list[Stage]:
    chosen = [stage for stage in stages if name in (None, stage.name)]
    if not chosen:
        raise ConfigError(f"no stage named '{name}'; the config has: {', '.join(s.name for s in stages)}")
    return chosen


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


def evenly_spaced(length: int, wanted: int) -> list[int]:
    """Return `wanted` places spread over range(length), or all of them: data sets are sorted by class."""
    number = min(wanted, length)
    return [i * length // number for i in range(number)]


def _loader(dataset: Any, workers: int, timeout: float, **options: Any) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        num_workers=workers,
        timeout=timeout if workers else 0,
        worker_init_fn=ignore_sigterm,
        collate_fn=default_collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        **options,
    )


def _validation(stage: Stage, val: Any) -> dict[str, Any]:
    if val is None:
        return {}
    settings, data, (rank, processes) = stage["validation"], stage["data"], world()
    shares = Subset(val, range(rank, len(val), processes))
    buckets, batch_size = find_buckets(val, stage.folder.parent), settings["batch_size"]
    one_size = np.zeros(len(val), dtype=np.uint8)
    batches = batches_in_buckets((one_size if buckets is None else buckets)[rank::processes], batch_size)
    metric = METRICS.build({"type": "reconstruction", "perceptual": settings["perceptual"]})
    return {
        "val_dataloader": _loader(shares, min(2, data["workers"]), data["timeout"], batch_sampler=list(batches)),
        "val_cfg": {"type": ShareValLoop.__name__, "num_images": len(val)},
        "val_evaluator": [metric],
    }


def _hooks(stage: Stage, val: Any) -> list[Any]:
    log, ema, batch = stage["log"], stage["ema"], stage["global_batch_size"]
    inference = ema["inference"] if ema else None
    hooks: list[Any] = [
        engine_hooks.ScalarsHook(log["every"], batch),
        engine_hooks.ProgressHook(stage.name, log["every"], batch),
        engine_hooks.StepCheckpointHook(stage["checkpoint"]["every"]),
        *(HOOKS.build(dict(hook)) for hook in stage["hooks"]),
    ]
    if ema:
        hooks.append(engine_hooks.EMAUpdateHook(ema["inference"], ema["snapshot_every"]))
    if val is not None and log["pictures"]:
        shown = [val[i]["images"] for i in evenly_spaced(len(val), log["pictures"])]
        hooks.append(engine_hooks.ReconstructionGridHook(shown, log["pictures_every"], inference))
    return hooks


def _start(stage: Stage) -> Any:
    folder = stage.start_folder
    if folder is None:
        return None

    def read() -> PartStates:
        return read_merged_parts(folder, stage["start"]["weights"])

    return read


def _finish(config: Mapping[str, Any], stages: Sequence[Stage]) -> Path | None:
    """Export the tokenizer once the last stage is finished, and print the table of all that are."""
    if is_first():
        print_summary(stages)
    if finished_steps(stages[-1].folder) < stages[-1]["steps"]:
        return None
    folder = Path(config["work_dir"]) / "tokenizer"
    if is_first():
        load_stage_tokenizer(stages[-1].folder).save_pretrained(folder)
        print(f"Tokenizer: {folder}   (aligntok.load_tokenizer('{folder}'))")
        pictures = sorted((stages[-1].folder / "pictures").glob("*.png"))
        if pictures:
            print(f"Reconstructions of held-out images: {pictures[-1]}")
    barrier()
    return folder


def _report_unreadable(stage: Stage, dataset: Any) -> None:
    """Say how many images could not be read, over all processes; each process saw its share of them."""
    number = int(sum_over_processes(torch.tensor(getattr(dataset, "num_unreadable", 0))))
    if number:
        _say(f"{stage.name}: images that could not be read and were replaced: {number} (named above)")


def _say(text: str) -> None:
    if is_first():
        print(text, flush=True)
