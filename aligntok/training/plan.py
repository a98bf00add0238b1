"""What a run is going to do, found out before its first step: parts, batches, steps, disk; on the meta device."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from torch import Tensor, nn

from aligntok.data.sampler import per_process_batch
from aligntok.distributed.parallel import check_group
from aligntok.engine.checkpoints import finished_steps, list_checkpoints, load_parts, part_states, read_parts
from aligntok.engine.compile import check_compile
from aligntok.engine.optim import check_optimizer, optimizer_bytes, side_of
from aligntok.engine.schedules import check_schedule
from aligntok.errors import ConfigError, some_of
from aligntok.io.console import print_table
from aligntok.io.folders import check_space
from aligntok.loading import check_there
from aligntok.registry import DATASETS, HOOKS, keywords_in
from aligntok.training.stages import Stage
from aligntok.weights.hub import check_named


@dataclass(frozen=True)
class StagePlan:
    """What one stage will do. Parameters by part, as (trainable, frozen); bytes of a checkpoint and of the frozen file.

    `epochs` is None where the number of training images is unknown.
    """

    name: str
    parameters: dict[str, tuple[int, int]]
    global_batch: str
    steps: int
    images_seen: int
    epochs: float | None
    checkpoint_bytes: int
    frozen_bytes: int

    @property
    def trainable(self) -> int:
        """All parameters that the stage trains."""
        return sum(trainable for trainable, _ in self.parameters.values())

    @property
    def frozen(self) -> int:
        """All parameters that it holds but does not train."""
        return sum(frozen for _, frozen in self.parameters.values())


def plan_stage(stage: Stage, processes: int, num_images: int | None = None) -> StagePlan:
    """Plan one stage for a number of processes and, if known, of training images.

    Raises ConfigError for what its model and what every kind of training has cannot be: optimisers, schedule, data
    sets, hooks.
    """
    check_group(stage.settings.parallel, processes, stage.where)
    model = stage.build_model()
    where = stage.where
    for side, config in stage.optimizers.items():
        check_optimizer(config, f"{where}, {'discriminator_' * (side == 'discriminator')}optimizer")
    check_schedule(stage.settings.schedule, where, stage.settings.steps, stage.settings.schedule_end)
    if isinstance(stage.settings.compile, Mapping):
        check_compile(stage.settings.compile, where)
    for split in ("train", "val"):
        if (data := getattr(stage.settings.data, split, None)) is not None:
            DATASETS.check(data, f"{where}, data.{split}")
    for hook in stage.settings.hooks:
        if not isinstance(hook, Mapping) or "type" not in hook:
            raise ConfigError(f"{where}: hooks holds {hook!r}; each must be dict(type=..., ...)")
        HOOKS.check(hook, f"{where}, hooks")
    stage.check(model)
    return make_plan(stage, model, processes, num_images)


def check_weights(stage: Stage) -> None:
    """Raise WeightsError for weights that a stage's settings name by a path at which there is nothing, or other things.

    A plan needs none, so that a run can be planned before its weights are fetched; a run asks before it trains.
    """
    for key, value in keywords_in(asdict(stage.settings)):
        if key == "pretrained":
            check_named(value, stage.where)
        elif key == "tokenizer" and value is not None and not stage.has_begun:  # its own copy, once begun
            check_there(value)
    stage.check_encoders()


def check_start(stage: Stage) -> None:
    """Raise ConfigError where a stage, which has no checkpoint, starts from one that has none."""
    folder = stage.start_folder
    if folder is not None and not finished_steps(folder) and not finished_steps(stage.folder):
        raise ConfigError(f"stage '{stage.name}' starts from {folder}, which has no checkpoint; train that stage first")


def make_plan(stage: Stage, model: Any, processes: int, num_images: int | None = None) -> StagePlan:
    """Return the plan of a stage whose `model` is built.

    Raises ConfigError for a batch that cannot be shared out, and for layers of no width.
    """
    counted = {name: trainable_and_frozen(part) for name, part in model.parts().items()}
    batch, accumulation = stage.settings.global_batch_size, stage.settings.gradient_accumulation_steps
    each = per_process_batch(batch, processes, accumulation)
    stage.check_batch(model, batch // accumulation)
    weights = ((f"{name}.{key}", each) for name, part in model.parts().items() for key, each in part.named_parameters())
    if empty := [f"{key} {[*each.shape]}" for key, each in weights if not each.numel()]:
        raise ConfigError(f"{stage.where}: {some_of(empty)} would have no weights; enlarge its width or ratio")
    frozen = {**part_states(model.frozen_parts()), **part_states(model.trained_parts(), frozen=True)}
    known, seen = num_images or stage.settings.data.nominal_images, stage.settings.steps * batch
    return StagePlan(
        name=stage.name,
        parameters={name: count for name, count in counted.items() if any(count)},
        global_batch=f"{batch} = {processes} process{'es' if processes > 1 else ''} x {accumulation} micro x {each}",
        steps=stage.settings.steps,
        images_seen=seen,
        epochs=seen / known if known else None,
        checkpoint_bytes=_checkpoint_bytes(stage, model),
        frozen_bytes=sum(_bytes(state.values()) for state in frozen.values()),
    )


def trainable_and_frozen(part: nn.Module) -> tuple[int, int]:
    """Return the numbers of parameters of a module that are trained, and that are not."""
    trainable = sum(p.numel() for p in part.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in part.parameters()) - trainable


def check_before_training(stages: Sequence[Stage], plans: Sequence[StagePlan]) -> None:
    """Check what is on the disk already, and its room, before hours go by: nothing is written yet.

    Raises CheckpointError when a stage would go on, or start, from weights of other shapes, WriteError when the disk
    has no room for what the stages write, ConfigError for a folder in which TensorBoard cannot write.
    """
    planned = {plan.name: plan for plan in plans}
    needed = 0
    for stage in stages:
        plan, keep = planned[stage.name], stage.settings.checkpoint.keep
        kept = [*(path for _, path in list_checkpoints(stage.folder)[-keep:]), stage.folder / "frozen.safetensors"]
        files = (file for path in kept for file in ([*path.iterdir()] if path.is_dir() else [path]))
        there = sum(file.stat().st_size for file in files if file.is_file())
        needed += max(0, plan.frozen_bytes + plan.checkpoint_bytes * (keep + 1) - there)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="for .*: copying from a non-meta parameter")  # shapes are enough
            if finished_steps(stage.folder):
                model = stage.build_model()
                parts = {**model.trained_parts(), **model.frozen_parts()}
                load_parts(parts, read_parts(stage.folder), f"the newest checkpoint in {stage.folder}")
            elif stage.start_folder is not None and finished_steps(stage.start_folder):
                stage.build_model().load_start(stage.read_start())
    if stages:
        if any("\udc80" <= letter <= "\udcff" for letter in str(stages[0].folder)):
            raise ConfigError(f"work_dir {stages[0].folder} is no UTF-8, which TensorBoard needs; take another name")
        check_space(stages[0].folder, needed, "what these stages write")


def _checkpoint_bytes(stage: Stage, model: Any) -> int:
    """Return the bytes of a checkpoint: trained weights, their averages, and what their optimisers keep of each."""
    parts, ema = model.trained_parts(), stage.settings.ema
    kept = len(ema.sigma_rel) + len(ema.decays) if ema else 0
    total = 0
    for name, state in part_states(parts, frozen=False).items():
        trained = [p for p in parts[name].parameters() if p.requires_grad]
        moments = optimizer_bytes(stage.optimizers[side_of(name)], (tuple(p.shape) for p in trained))
        total += _bytes(state.values()) + moments + kept * (name in model.averaged_parts()) * _bytes(trained)
    return total


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.nbytes for t in tensors)


def print_plan(plans: Sequence[StagePlan], console: Console | None = None) -> None:
    """Print what every stage will do, one column a stage."""
    parts = dict.fromkeys(part for plan in plans for part in plan.parameters)
    facts: list[tuple[str, Any]] = [
        ("trainable / frozen", lambda p: f"{_millions(p.trainable)} / {_millions(p.frozen)}"),
        ("images a step", lambda p: p.global_batch),
        ("steps", lambda p: f"{p.steps:,}"),
        ("= epochs", lambda p: "unknown" if p.epochs is None else f"{p.epochs:.2f}"),
        ("= images seen", lambda p: f"{p.images_seen:,}"),
        ("disk a checkpoint", lambda p: _size(p.checkpoint_bytes)),
        ("disk once (frozen)", lambda p: _size(p.frozen_bytes)),
    ]
    rows = [
        *([part, *(_describe_count(plan.parameters.get(part)) for plan in plans)] for part in parts),
        None,
        *([label, *(describe(plan) for plan in plans)] for label, describe in facts),
    ]
    print_table("What is going to be trained", ["", *(plan.name for plan in plans)], rows, console=console)


def _describe_count(count: tuple[int, int] | None) -> str:
    if count is None:
        return "-"
    trainable, frozen = count
    return _millions(trainable) + " trained" if trainable else _millions(frozen) + " frozen"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
