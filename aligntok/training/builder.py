"""The mmengine run of a stage, whatever it trains: loader, optimisers, hooks, mmengine's options."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader

import aligntok
from aligntok.data.images import find_buckets
from aligntok.data.loader import make_loader
from aligntok.data.sampler import GlobalBatchSampler
from aligntok.distributed import barrier, is_first, total, world
from aligntok.engine import hooks as engine_hooks
from aligntok.engine.optim import PartOptimizersConstructor
from aligntok.engine.runner import StageRunner, StepLoop
from aligntok.engine.schedules import complete_schedule
from aligntok.engine.trackers import vis_backends
from aligntok.io.console import say
from aligntok.io.files import write_json
from aligntok.io.places import hide_host, without_places
from aligntok.loading import STAGE_FORMAT
from aligntok.ops.attention import force_backend
from aligntok.registry import HOOKS
from aligntok.settings import flatten
from aligntok.training.plan import check_start
from aligntok.training.stages import Stage, StageData

_RUNS = count()


def train(stage: Stage, data: StageData, launcher: str = "none") -> StageRunner:
    """Train one stage to its end, from its start or from its newest checkpoint; collective.

    Raises ConfigError when the stage that it starts from has no checkpoint, and what training raises.
    """
    check_start(stage)
    described: dict[str, Any] = {}
    runner = build_runner(stage, data, launcher, lambda model: described.update(stage.describe(model)))
    runner.register_hook(engine_hooks.OnceLoadedHook(partial(_write_description, stage, data, described)))
    try:
        runner.train()
    finally:
        with engine_hooks.visualizing(runner) as visualizer:
            visualizer.close()  # writes TensorBoard's last two minutes, whatever ended the training
    unreadable = int(total(torch.tensor(getattr(data.train, "num_unreadable", 0))))  # each process saw its share
    if unreadable and is_first():
        say(f"{stage.name}: images that could not be read and were replaced: {unreadable} (named above)")
    return runner


def _write_description(stage: Stage, data: StageData, described: Mapping[str, Any]) -> None:
    """Write what a stage trains, and how, beside a listing of its data; collective."""
    if is_first():
        about = {"format": STAGE_FORMAT, "aligntok_version": aligntok.__version__, "stage": stage.name}
        about |= {"seed": stage.seed, **described}
        if (listing := getattr(data.train, "listing", None)) is not None:
            listing.write(stage.folder)
            about["source"] = listing.described()
        settings = without_places(asdict(stage.settings), stage.folder)
        write_json(stage.description, {**about, **settings}, checksum=True)
    barrier()


def build_runner(
    stage: Stage, data: StageData, launcher: str = "none", look: Callable[[Any], None] | None = None
) -> StageRunner:
    """Build the mmengine run of a stage. The first process lets `look` see the model while it holds all of it."""

    def build() -> Any:
        model = stage.build_model(data)
        if look is not None and is_first():
            look(model)
        return model

    validation = stage.validation(data)  # finds the held-out images' buckets, before the hooks take pictures
    log, ema, batch = stage.settings.log, stage.settings.ema, stage.settings.global_batch_size
    hooks: list[Any] = [
        engine_hooks.KernelsHook(),
        engine_hooks.ScalarsHook(log.every, batch),
        engine_hooks.ProgressHook(stage.name, log.every, batch),
        engine_hooks.StepCheckpointHook(stage.settings.checkpoint.every),
        *(HOOKS.build(dict(hook)) for hook in stage.settings.hooks),
        *([engine_hooks.EMAUpdateHook(ema.inference, ema.snapshot_every)] if ema else []),
    ]
    return StageRunner(
        model=build,
        train_dataloader=_training_batches(stage, data),
        optim_wrapper={
            "constructor": PartOptimizersConstructor.__name__,
            **stage.optimizers,
            "clip_grad_norm": stage.settings.clip_grad_norm,
            "max_skipped": stage.settings.max_skipped_steps,
            "spike_factor": stage.settings.spike_factor,
            "skip": None if stage.settings.skip_norm is None else (stage.settings.skip_norm, stage.settings.skip_after),
        },
        custom_hooks=[*hooks, *stage.hooks(data)],
        start=stage.read_start,
        taken=stage.taken,
        **_runner_options(stage, launcher),
        **validation,
    )


def _runner_options(stage: Stage, launcher: str) -> dict[str, Any]:
    """Return mmengine's own keywords: folder, loop, schedule, seed, logs."""
    force_backend(stage.settings.attention)
    hide_host()
    every = stage.settings.validation.every
    first, *others = stage.optimizers
    schedule = {
        first: complete_schedule(stage.settings.schedule, stage.settings.schedule_end or stage.settings.steps),
        **{side: [] for side in others},
    }
    return {
        "work_dir": str(stage.folder),
        "train_cfg": {"type": StepLoop.__name__, "max_iters": stage.settings.steps, "val_interval": every},
        "param_scheduler": schedule if stage.settings.schedule else None,
        "default_hooks": dict.fromkeys(("runtime_info", "timer", "sampler_seed", "logger", "checkpoint")),
        "launcher": launcher,
        "randomness": {"seed": stage.seed},
        # mmengine 0.10.7 tells runs apart by whole seconds: two would share a log (ends with mmengine > 0.10.7).
        "experiment_name": f"{stage.folder.parent.name}_{stage.folder.name}_{next(_RUNS)}",
        "visualizer": {
            "type": "Visualizer",
            "vis_backends": vis_backends(stage.settings.log.backends, stage.folder, _shown(stage)),
        },
        "parallel": stage.settings.parallel,
        "ema": stage.settings.ema,
        "keep": stage.settings.checkpoint.keep,
        "keep_every": stage.settings.checkpoint.keep_every,
        "asynchronous": stage.settings.checkpoint.asynchronous,
    }


def _shown(stage: Stage) -> str:
    """Return the settings of a stage as trackers show them."""
    settings = without_places(asdict(stage.settings), stage.folder)
    return json.dumps({"seed": stage.seed, **flatten(settings)}, default=str)


def _training_batches(stage: Stage, data: StageData) -> DataLoader[Any]:
    """Return the loader of this process's share of every step's batch."""
    train, loading = data.train, stage.settings.data
    how = stage.settings.global_batch_size, stage.seed, *world(), stage.settings.gradient_accumulation_steps
    if hasattr(train, "batches"):  # in an order of its own
        sampler: Any = train.batches(*how, num_steps=stage.settings.steps)
    else:
        buckets = find_buckets(train, stage.folder.parent)
        sampler = GlobalBatchSampler(len(train), *how, num_steps=stage.settings.steps, buckets=buckets)
    return make_loader(train, sampler, loading.workers, stage.collate(data), loading.timeout)
