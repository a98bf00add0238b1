"""Checkpoints: plain tensors and numbers that load without pickled code, written whole or not at all.

A stage's folder holds ``checkpoints/step_00001000.pt`` (what changes: trained parts, optimisers, EMA, schedules) and,
written once, ``frozen.safetensors`` (what the stage does not change: frozen parts, frozen weights of trained parts, the
teacher) and ``stage.json``.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aligntok.distributed import barrier, is_first
from aligntok.distributed.parallel import load_state, whole
from aligntok.engine.ema import PartStates
from aligntok.errors import CheckpointError, first_line
from aligntok.io.arrays import check_stored
from aligntok.io.files import check_file, discard, load_tensors, replacing, save_tensors
from aligntok.io.folders import check_space

logger = logging.getLogger("aligntok.engine")

FORMAT = 2
CURE = "the checkpoints before it are whole. Make room and start the same command again"
_NAME = re.compile(r"step_(\d{8,})\.pt$")


def checkpoint_path(stage_dir: str | os.PathLike[str], step: int) -> Path:
    """Return where the checkpoint after `step` optimiser steps of a stage is."""
    return Path(stage_dir) / "checkpoints" / f"step_{step:08d}.pt"


def list_checkpoints(stage_dir: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """Return (step, path) of a stage's checkpoints, oldest first."""
    found = (Path(stage_dir) / "checkpoints").glob("step_*.pt")
    return sorted((int(m[1]), p) for p in found if (m := _NAME.search(p.name)))


def write_checkpoint(
    stage_dir: str | os.PathLike[str], step: int, content: Mapping[str, Any], keep: int, keep_every: int | None = None
) -> Path:
    """Write a checkpoint atomically, and its checksum, then remove others.

    What stays: the newest `keep`, and those at multiples of `keep_every` steps. Later ones, which could not be read
    when the run went on from before them, go. Raises WriteError when the disk is too full; what was there stays.
    """
    path = checkpoint_path(stage_dir, step)
    check_space(path, _size(content), f"the checkpoint of step {step}")
    with replacing(path, CURE, checksum=True) as temporary:
        try:
            torch.save({"format": FORMAT, "step": step, **content}, temporary)
        except RuntimeError as error:  # torch.save turns a full disk into a RuntimeError of its own
            raise OSError(first_line(error)) from error
    found = list_checkpoints(stage_dir)
    later = [old for number, old in found if number > step]
    earlier = found[: max(0, len(found) - len(later) - keep)]
    for old in [*later, *(old for number, old in earlier if not keep_every or number % keep_every)]:
        discard(old)
    return path


def _size(content: Any) -> int:
    """Return the bytes of the tensors inside nested dicts and lists."""
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(_size(value) for value in content.values())
    return sum(_size(value) for value in content) if isinstance(content, list | tuple) else 0


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing pickled in it is run. Raises CheckpointError if it is damaged.

    One without a checksum, as of an earlier version, is told once and read.
    """
    if not check_file(path, CheckpointError, "it is damaged or incomplete"):
        _say_unchecked(Path(path))
    try:
        check_stored(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); it is damaged or incomplete") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is no checkpoint of this version (format {FORMAT}); go on with the version that wrote it, "
            "or train in another work_dir"
        )
    return content


@cache
def _say_unchecked(path: Path) -> None:
    if path.is_file():
        logger.warning("%s has no checksum beside it, so it is not known to be as it was written", path)


def read_newest(stage_dir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read the newest checkpoint of a stage that can be read, or None without any; damaged ones are reported.

    Raises CheckpointError when there are some and none can be read: to begin anew would overwrite them.
    """
    found = list_checkpoints(stage_dir)
    for i, (_, path) in reversed([*enumerate(found)]):
        try:
            return read_checkpoint(path)
        except CheckpointError as error:
            if i == 0:
                raise CheckpointError(
                    f"no checkpoint of {len(found)} in {path.parent} can be read: {error}. "
                    "Restore one, or remove the stage's folder to train it anew"
                ) from error
            logger.warning("%s; the one before it is used", error)
    return None


def finished_steps(stage_dir: str | os.PathLike[str]) -> int:
    """Return the step of the newest checkpoint that can be read, 0 without any."""
    content = read_newest(stage_dir)
    return content["step"] if content else 0


def same_content(a: Any, b: Any) -> bool:
    """Tell whether two nests of dicts, lists and tensors, such as checkpoints, are equal, tensors bit for bit."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(same_content(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        alike = isinstance(b, list | tuple) and len(a) == len(b)
        return alike and all(same_content(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def part_states(parts: Mapping[str, nn.Module], frozen: bool | None = None) -> PartStates:
    """Return the state dict of each part: all of it, or only what is `frozen` in training, or only what is not."""
    states: PartStates = {}
    for name, part in parts.items():
        named = part.named_parameters(remove_duplicate=False)
        fixed = {key for key, parameter in named if not parameter.requires_grad}
        state = part.state_dict()
        states[name] = {key: t for key, t in state.items() if frozen is None or (key in fixed) == frozen}
    return states


def load_parts(parts: Mapping[str, nn.Module], states: Mapping[str, Mapping[str, Tensor]], source: object) -> None:
    """Load the states of `parts`, each complete. Raises CheckpointError if one is missing or of another shape."""
    for name, part in parts.items():
        if name not in states:
            raise CheckpointError(
                f"{source} has no {name}; it has {', '.join(states)}: set model, losses, discriminator and trainable "
                "back, or train in another work_dir"
            )
        try:
            load_state(part, states[name])
        except RuntimeError as error:
            raise CheckpointError(
                f"the {name} in {source} does not fit the config's: {error}\n"
                "  set model and discriminator back, or train in another work_dir"
            ) from error


def write_frozen(
    stage_dir: str | os.PathLike[str], frozen: Mapping[str, nn.Module], trained: Mapping[str, nn.Module]
) -> None:
    """Write, once a stage, what it does not change: `frozen` parts, frozen weights of `trained` ones; collective."""
    states = {**part_states(frozen), **part_states(trained, frozen=True)}
    _save_whole(Path(stage_dir) / "frozen.safetensors", states)


def read_frozen(stage_dir: str | os.PathLike[str]) -> PartStates:
    """Read the parts that a stage does not change. Raises CheckpointError if the file is missing or damaged."""
    cure = "copy the stage's folder whole, or train it anew"
    return _by_part(load_tensors(Path(stage_dir) / "frozen.safetensors", CheckpointError, cure))


def _save_whole(path: Path, states: PartStates) -> None:
    """Write states from the first process, gathered tensor by tensor where processes share them; collective."""
    gathered = {}
    for name, tensor in _named(states).items():
        each = whole(tensor)
        if is_first():
            gathered[name] = each
    if is_first():
        save_tensors(path, gathered, cure=CURE)
    barrier()


def _named(states: PartStates) -> dict[str, Tensor]:
    return {f"{part}/{name}": tensor for part, state in states.items() for name, tensor in state.items()}


def _by_part(tensors: Mapping[str, Tensor]) -> PartStates:
    states: PartStates = {}
    for key, tensor in tensors.items():
        part, _, name = key.rpartition("/")  # names of weights have none
        states.setdefault(part, {})[name] = tensor
    return states


def read_parts(stage_dir: str | os.PathLike[str], weights: str = "raw", sigma_rel: float | None = None) -> PartStates:
    """Read every part of a stage from its newest checkpoint and its frozen parts.

    `weights` "raw" takes the trained parts as they are; "ema" puts the averages of width `sigma_rel` (None: the one
    that the stage uses for inference) over them where there are any. Raises CheckpointError without a checkpoint.
    """
    content = read_newest(stage_dir)
    if content is None:
        raise CheckpointError(f"{stage_dir} has no checkpoint that can be read; train that stage first")
    states = join(read_frozen(stage_dir), content["parts"])
    if weights == "raw":
        return states
    if weights != "ema":
        raise CheckpointError(f"weights must be 'raw' or 'ema', not '{weights}'")
    if not content.get("ema"):
        raise CheckpointError(f"{stage_dir} keeps no EMA; start from its raw weights, or set ema in that stage")
    width = str(content["ema_inference"] if sigma_rel is None else sigma_rel)
    averages = content["ema"]["averages"]
    if width not in averages:
        raise CheckpointError(f"{stage_dir} keeps no EMA of width {width}; it keeps {', '.join(averages)}")
    return join(states, averages[width])


def join(first: PartStates, second: PartStates) -> PartStates:
    """Return the parts of both; tensors of one name are the second's."""
    return {part: {**first.get(part, {}), **second.get(part, {})} for part in {**first, **second}}


def write_snapshot(stage_dir: str | os.PathLike[str], step: int, averages: Mapping[str, PartStates]) -> None:
    """Write the averages of all widths after `step`, for widths chosen later (:func:`read_snapshots`); collective."""
    states = {f"{width}/{part}": state for width, parts in averages.items() for part, state in parts.items()}
    _save_whole(Path(stage_dir) / "ema_snapshots" / f"step_{step:08d}.safetensors", states)


def read_snapshots(stage_dir: str | os.PathLike[str]) -> list[tuple[int, float, PartStates]]:
    """Return (step, sigma_rel, averages) of every snapshot, its tensors mapped from disk.

    Raises CheckpointError for one that is damaged.
    """
    cure = "copy that file again; without it, remove it, and the widths are made of the other snapshots"
    found: dict[tuple[int, float], PartStates] = {}
    for path in sorted((Path(stage_dir) / "ema_snapshots").glob("step_*.safetensors")):
        for key, state in _by_part(load_tensors(path, CheckpointError, cure)).items():
            width, part = key.split("/")
            found.setdefault((int(path.stem.split("_")[1]), float(width)), {})[part] = state
    return [(step, width, parts) for (step, width), parts in found.items()]
