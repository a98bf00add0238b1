"""What a run is going to do, found out before its first step: parts, batches, steps, disk; on the meta device."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from aligntok.data.buckets import AspectBuckets
from aligntok.data.sampler import per_process_batch
from aligntok.engine.checkpoints import finished_steps, list_checkpoints, load_parts, part_states, read_parts
from aligntok.engine.optim import check_optimizer, check_schedule
from aligntok.errors import AlignTokError, ConfigError, multiples_of
from aligntok.io.files import check_space
from aligntok.loading import read_merged_parts
from aligntok.registry import (
    ADAPTERS,
    DATASETS,
    DECODERS,
    DISCRIMINATORS,
    ENCODERS,
    HOOKS,
    LOSSES,
    ComponentRegistry,
    check_keywords,
)
from aligntok.training.alignment.model import AlignmentModel
from aligntok.training.stages import Stage

_OPTIMIZER_STATES = {"SGD": 0, "Adam": 2, "AdamW": 2, "RAdam": 2, "NAdam": 2}


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


@singledispatch
def build_on_meta(stage: Stage) -> Any:
    """Build a stage's model on the meta device: right in every shape and keyword, without data or weights."""
    settings = stage.model_settings
    model = dict(settings["tokenizer"])
    for part, registry in (("encoder", ENCODERS), ("adapter", ADAPTERS), ("decoder", DECODERS)):
        if part in model:
            model[part] = without_weights(registry, model[part])
    settings["tokenizer"] = model
    settings["losses"] = {name: without_weights(LOSSES, loss) for name, loss in settings["losses"].items()}
    settings["discriminator"] = without_weights(DISCRIMINATORS, settings["discriminator"])
    settings["teacher"] = without_weights(ENCODERS, settings["teacher"])
    if isinstance(settings["compile"], Mapping):
        check_keywords(torch.compile, dict(settings["compile"]), who="compile")
    settings["compile"] = False  # shapes do not depend on it
    with torch.device("meta"):
        return AlignmentModel(**settings)


def without_weights(registry: ComponentRegistry, config: Any) -> Any:
    """Return a component's config with ``pretrained=False`` if the component takes that keyword."""
    if not isinstance(config, Mapping) or "type" not in config:
        return config
    takes = inspect.signature(registry.get(config["type"])).parameters
    return {**config, "pretrained": False} if "pretrained" in takes else dict(config)


def plan_stage(stage: Stage, processes: int, num_images: int | None = None) -> StagePlan:
    """Plan one stage for a number of processes and, if known, of training images. Raises ConfigError."""
    model = build_on_meta(stage)
    _check_rest(stage, model)
    sides = {name: stage[_optimizer_key(name)] for name in model.trained_parts()}
    kept = len(stage["ema"]["sigma_rel"]) + len(stage["ema"]["decays"]) if stage["ema"] else 0
    return make_plan(
        stage,
        processes,
        num_images,
        parameters=count_parameters(model),
        checkpoint_bytes=checkpoint_bytes(model.trained_parts(), dict.fromkeys(model.averaged_parts(), kept), sides),
        frozen_bytes=_frozen_bytes(model),
    )


def make_plan(stage: Stage, processes: int, num_images: int | None, **found: Any) -> StagePlan:
    """Return the plan of a stage, or a generator's training, of which the parameters and sizes are `found`."""
    batch, accumulation = stage["global_batch_size"], stage["accumulation"]
    each = per_process_batch(batch, processes, accumulation)
    known = num_images or stage["data"]["num_images"]
    seen = stage["steps"] * batch
    return StagePlan(
        name=stage.name,
        global_batch=f"{batch} = {processes} process{'es' if processes > 1 else ''} x {accumulation} micro x {each}",
        steps=stage["steps"],
        images_seen=seen,
        epochs=seen / known if known else None,
        **found,
    )


def _optimizer_key(part: str) -> str:
    return "discriminator_optimizer" if part == "discriminator" else "optimizer"


def _check_rest(stage: Stage, model: AlignmentModel) -> None:
    """Check what the model does not: optimisers, data sets, hooks. Raises ConfigError."""
    where, f = f"stage '{stage.name}'", model.tokenizer.downsample_factor
    for key in ("optimizer", "discriminator_optimizer"):
        check_optimizer(stage[key], f"{where}, {key}")
    check_schedule(stage["schedule"] or [], where)
    for split in ("train", "val"):
        data = stage["data"][split]
        if data is None:
            continue
        options = {key: value for key, value in data.items() if key != "type"}
        who = f"{where}, data.{split}: {DATASETS.kind} '{data['type']}'"
        check_keywords(DATASETS.get(data["type"]), options, who=who)
        sizes = _check_sizes(data, f, who)
        if split == "train" and sizes:
            _try_sizes(model, sizes, stage["steps"])
    check_hooks(stage["hooks"], where)


def check_hooks(hooks: Iterable[Any], where: str) -> None:
    """Raise ConfigError, or UnknownComponentError, for hooks that cannot be built."""
    for hook in hooks:
        if not isinstance(hook, Mapping) or "type" not in hook:
            raise ConfigError(f"{where}: hooks holds {hook!r}; each must be dict(type=..., ...)")
        HOOKS.get(str(hook["type"]))


def _check_sizes(data: Mapping[str, Any], f: int, who: str) -> list[tuple[int, int]]:
    """Return the sizes that a data set crops to (its default, if none is given); ConfigError unless they fit f."""
    default = inspect.signature(DATASETS.get(data["type"])).parameters.get("image_size")
    given = data.get("image_size", None if default is None else default.default)
    if given in (None, inspect.Parameter.empty):
        return []
    sizes = list(AspectBuckets(given).sizes)
    for size in sizes:
        multiples_of(f, f"{who}: image_size", size)
    return sizes


def _try_sizes(model: AlignmentModel, sizes: Sequence[tuple[int, int]], steps: int) -> None:
    """Send images of the smallest and of the largest size through everything that the last step computes.

    On the meta device, so only shapes are computed. Raises what components raise about them.
    """
    model.eval()  # a batch norm over all processes would have to exchange numbers
    for size in {min(sizes, key=math.prod), max(sizes, key=math.prod)}:
        try:
            model.values(torch.empty(2, 3, *size, device="meta"), steps - 1)
        except AlignTokError:
            raise
        except Exception:  # of a component that cannot run without data: its first step will tell
            return


def count_parameters(model: AlignmentModel) -> dict[str, tuple[int, int]]:
    """Return the parameters of each part of a stage's model that has any, as (trainable, frozen)."""
    parts: dict[str, nn.Module] = {
        **{name: getattr(model.tokenizer, name) for name in model.tokenizer_parts},
        **({"discriminator": model.discriminator} if model.discriminator is not None else {}),
        **{f"loss: {name}": loss for name, loss in model.objective.losses.items()},
        **({"teacher": model.teacher} if model.teacher is not None else {}),
    }
    counted = {name: trainable_and_frozen(part) for name, part in parts.items()}
    return {name: count for name, count in counted.items() if any(count)}


def trainable_and_frozen(part: nn.Module) -> tuple[int, int]:
    """Return the numbers of parameters of a module that are trained, and that are not."""
    trainable = sum(p.numel() for p in part.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in part.parameters()) - trainable


def check_before_training(stages: Sequence[Stage], plans: Sequence[StagePlan]) -> None:
    """Check what is on the disk already, and its room, before hours go by: nothing is written yet.

    Raises CheckpointError when a stage would go on, or start, from weights of other shapes, WriteError when the disk
    has no room for what the stages write.
    """
    planned = {plan.name: plan for plan in plans}
    needed = 0
    for stage in stages:
        plan = planned[stage.name]
        written = plan.frozen_bytes + plan.checkpoint_bytes * (stage["checkpoint"]["keep"] + 1)
        needed += max(0, written - _bytes_there(stage))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="for .*: copying from a non-meta parameter")  # shapes are enough
            _check_shapes(stage)
    if stages:
        check_space(stages[0].folder, needed, "what these stages write")


def _bytes_there(stage: Stage) -> int:
    """Return the bytes of what is on the disk already of that which the stage keeps."""
    newest = [path for _, path in list_checkpoints(stage.folder)[-stage["checkpoint"]["keep"] :]]
    return sum(path.stat().st_size for path in (*newest, stage.folder / "frozen.safetensors") if path.is_file())


def _check_shapes(stage: Stage) -> None:
    if finished_steps(stage.folder):
        model = build_on_meta(stage)
        parts = {**model.trained_parts(), **model.frozen_parts()}
        load_parts(parts, read_parts(stage.folder), f"the newest checkpoint in {stage.folder}")
    elif stage.start_folder is not None and finished_steps(stage.start_folder):
        build_on_meta(stage).load_start(read_merged_parts(stage.start_folder))


def checkpoint_bytes(
    parts: Mapping[str, nn.Module], averages: Mapping[str, int], optimizers: Mapping[str, Mapping[str, Any]]
) -> int:
    """Return the bytes of a checkpoint of `parts`, with their number of averages and their optimiser's config."""
    total = 0
    for name, state in part_states(parts, frozen=False).items():
        states = _OPTIMIZER_STATES.get(optimizers[name]["type"], 2)
        trained = [p for p in parts[name].parameters() if p.requires_grad]
        total += _bytes(state.values()) + (states + averages.get(name, 0)) * _bytes(trained)
    return total


def _frozen_bytes(model: AlignmentModel) -> int:
    frozen = {**part_states(model.frozen_parts()), **part_states(model.trained_parts(), frozen=True)}
    return sum(_bytes(state.values()) for state in frozen.values())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def print_plan(plans: Sequence[StagePlan], console: Console | None = None) -> None:
    """Print what every stage will do, one column a stage."""
    table = Table(title="What is going to be trained", title_justify="left")
    table.add_column("", style="bold")
    for plan in plans:
        table.add_column(plan.name, justify="right", overflow="fold")
    for part in dict.fromkeys(part for plan in plans for part in plan.parameters):
        table.add_row(part, *(_describe_count(plan.parameters.get(part)) for plan in plans))
    table.add_section()
    rows: list[tuple[str, Any]] = [
        ("trainable / frozen", lambda p: f"{_millions(p.trainable)} / {_millions(p.frozen)}"),
        ("images a step", lambda p: p.global_batch),
        ("steps", lambda p: f"{p.steps:,}"),
        ("= epochs", lambda p: "unknown" if p.epochs is None else f"{p.epochs:.2f}"),
        ("= images seen", lambda p: f"{p.images_seen:,}"),
        ("disk a checkpoint", lambda p: _size(p.checkpoint_bytes)),
        ("disk once (frozen)", lambda p: _size(p.frozen_bytes)),
    ]
    for label, describe in rows:
        table.add_row(label, *(describe(plan) for plan in plans))
    (console or Console()).print(table)


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
