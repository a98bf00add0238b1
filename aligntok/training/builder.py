"""What the runs of stages and of generators have in common: loaders, optimisers, hooks, mmengine's options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from torch.utils.data import DataLoader

from aligntok.data.buckets import BucketIndices
from aligntok.data.loader import make_loader
from aligntok.data.sampler import GlobalBatchSampler
from aligntok.distributed import world
from aligntok.distributed.parallel import SelfReducing
from aligntok.engine import hooks as engine_hooks
from aligntok.engine.optim import PartOptimizersConstructor
from aligntok.engine.runner import StepLoop
from aligntok.ops.attention import force_backend
from aligntok.registry import HOOKS
from aligntok.training.stages import Stage

_RUNS = count()


def runner_options(
    stage: Stage, sides: Mapping[str, Any], launcher: str, val_every: int | None = None
) -> dict[str, Any]:
    """Return the keywords of :class:`aligntok.engine.runner.StageRunner` that do not depend on what is trained."""
    force_backend(stage["attention"])
    first, *others = sides
    schedule = {first: [{"by_epoch": False, **s} for s in stage["schedule"] or []], **{side: [] for side in others}}
    return {
        "work_dir": str(stage.folder),
        "train_cfg": {"type": StepLoop.__name__, "max_iters": stage["steps"], "val_interval": val_every},
        "param_scheduler": schedule if stage["schedule"] else None,
        "default_hooks": dict.fromkeys(("runtime_info", "timer", "sampler_seed", "logger", "checkpoint")),
        "launcher": launcher,
        "randomness": {"seed": stage.seed},
        # mmengine 0.10.7 tells runs apart by whole seconds: two would share a log (ends with mmengine > 0.10.7).
        "experiment_name": f"{stage.folder.parent.name}_{stage.folder.name}_{next(_RUNS)}",
        "visualizer": {
            "type": "Visualizer",
            "vis_backends": [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}],
        },
        "cfg": {"model_wrapper_cfg": {"type": SelfReducing.__name__}} if launcher != "none" else {},
        "ema": stage["ema"],
        "keep": stage["checkpoint"]["keep"],
        "keep_every": stage["checkpoint"]["keep_every"],
    }


def optimizers(stage: Stage, sides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of :class:`aligntok.engine.optim.PartOptimizers`, with an optimiser's config a side."""
    return {
        "constructor": PartOptimizersConstructor.__name__,
        **sides,
        "clip_grad_norm": stage["clip_grad_norm"],
        "max_skipped": stage["max_skipped_steps"],
        "spike_factor": stage["spike_factor"],
    }


def training_batches(
    stage: Stage, train: Any, buckets: BucketIndices | None = None, collate: Callable[..., Any] | None = None
) -> DataLoader[Any]:
    """Return the loader of this process's share of every step's batch."""
    rank, processes = world()
    sampler = GlobalBatchSampler(
        len(train),
        stage["global_batch_size"],
        stage.seed,
        rank,
        processes,
        stage["accumulation"],
        num_steps=stage["steps"],
        buckets=buckets,
    )
    data = stage["data"]
    return make_loader(train, sampler, data["workers"], collate, data["timeout"])


def common_hooks(stage: Stage) -> list[Any]:
    """Return the hooks of every run: scalars, progress, checkpoints, averages, and the config's own."""
    log, ema, batch = stage["log"], stage["ema"], stage["global_batch_size"]
    hooks: list[Any] = [
        engine_hooks.ScalarsHook(log["every"], batch),
        engine_hooks.ProgressHook(stage.name, log["every"], batch),
        engine_hooks.StepCheckpointHook(stage["checkpoint"]["every"]),
        *(HOOKS.build(dict(hook)) for hook in stage["hooks"]),
    ]
    if ema:
        hooks.append(engine_hooks.EMAUpdateHook(ema["inference"], ema["snapshot_every"]))
    return hooks
