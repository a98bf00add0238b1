"""Checkpoints: plain tensors and numbers that load without pickled code, written whole or not at all.

A stage's folder holds ``checkpoints/step_00001000.pt`` (what changes: trained parts, optimisers, EMA, schedules) and,
written once, ``frozen.safetensors`` (what the stage does not change: frozen parts and the teacher) and ``stage.json``.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aligntok.data.files import replacing, write_atomically
from aligntok.engine.ema import PartStates
from aligntok.errors import CheckpointError, first_line

logger = logging.getLogger("aligntok.engine")

FORMAT = 1
_NAME = re.compile(r"step_(\d{8,})\.pt$")


def checkpoint_path(stage_dir: str | os.PathLike[str], step: int) -> Path:
    """Return where the checkpoint after `step` optimiser steps of a stage is."""
    return Path(stage_dir) / "checkpoints" / f"step_{step:08d}.pt"


def list_checkpoints(stage_dir: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """Return (step, path) of a stage's checkpoints, oldest first."""
    found = (Path(stage_dir) / "checkpoints").glob("step_*.pt")
    return sorted((int(m[1]), p) for p in found if (m := _NAME.search(p.name)))


def write_checkpoint(stage_dir: str | os.PathLike[str], step: int, content: Mapping[str, Any], keep: int) -> Path:
    """Write a checkpoint atomically, then remove all but the newest `keep`, and later ones, which could not be read."""
    path = checkpoint_path(stage_dir, step)
    write_atomically(path, lambda temporary: torch.save({"format": FORMAT, "step": step, **content}, temporary))
    found = list_checkpoints(stage_dir)
    later = [old for number, old in found if number > step]
    for old in [*later, *(old for _, old in found[: len(found) - len(later) - keep])]:
        old.unlink(missing_ok=True)
    return path


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing pickled in it is run. Raises CheckpointError if it is damaged."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); it is damaged or incomplete") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this version (format {FORMAT})")
    return content


def read_newest(stage_dir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read the newest checkpoint of a stage that can be read, or None without any; damaged ones are reported."""
    for _, path in reversed(list_checkpoints(stage_dir)):
        try:
            return read_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s; the one before it is used", error)
    return None


def finished_steps(stage_dir: str | os.PathLike[str]) -> int:
    """Return the step of the newest checkpoint that can be read, 0 without any."""
    content = read_newest(stage_dir)
    return content["step"] if content else 0


def part_states(parts: Mapping[str, nn.Module]) -> PartStates:
    """Return the state dict of each part."""
    return {name: dict(part.state_dict()) for name, part in parts.items()}


def load_parts(parts: Mapping[str, nn.Module], states: Mapping[str, Mapping[str, Tensor]], source: object) -> None:
    """Load the states of `parts`, each complete. Raises CheckpointError if one is missing or of another shape."""
    for name, part in parts.items():
        if name not in states:
            raise CheckpointError(f"{source} has no {name}; it has {', '.join(states)}")
        try:
            part.load_state_dict(states[name])
        except RuntimeError as error:
            raise CheckpointError(f"the {name} in {source} does not fit the config's: {error}") from error


def write_frozen(stage_dir: str | os.PathLike[str], parts: Mapping[str, nn.Module]) -> None:
    """Write, once for the whole stage, the parts that it does not change."""
    tensors = {f"{name}/{key}": t.contiguous() for name, s in part_states(parts).items() for key, t in s.items()}
    write_atomically(Path(stage_dir) / "frozen.safetensors", lambda temporary: save_file(tensors, temporary))


def read_frozen(stage_dir: str | os.PathLike[str]) -> PartStates:
    """Read the parts that a stage does not change. Raises CheckpointError if the file is missing or damaged."""
    path = Path(stage_dir) / "frozen.safetensors"
    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)})") from error
    states: PartStates = {}
    for key, tensor in tensors.items():
        part, name = key.split("/", 1)
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
    states: PartStates = {**read_frozen(stage_dir), **content["parts"]}
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
    return {part: {**state, **averages[width].get(part, {})} for part, state in states.items()}


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=str) + "\n")


def write_snapshot(stage_dir: str | os.PathLike[str], step: int, averages: Mapping[str, PartStates]) -> None:
    """Write the averages of all widths after `step`, for widths chosen afterwards (:func:`read_snapshots`)."""
    tensors = {
        f"{width}/{part}/{name}": tensor.contiguous()
        for width, parts in averages.items()
        for part, state in parts.items()
        for name, tensor in state.items()
    }
    write_atomically(
        Path(stage_dir) / "ema_snapshots" / f"step_{step:08d}.safetensors",
        lambda temporary: save_file(tensors, temporary),
    )


def read_snapshots(stage_dir: str | os.PathLike[str]) -> list[tuple[int, float, PartStates]]:
    """Return (step, sigma_rel, averages) of every snapshot. The tensors are mapped from disk, not read yet."""
    found: list[tuple[int, float, PartStates]] = []
    for path in sorted((Path(stage_dir) / "ema_snapshots").glob("step_*.safetensors")):
        found.extend(_snapshot_widths(int(path.stem.split("_")[1]), load_file(path)))
    return found


def _snapshot_widths(step: int, tensors: Mapping[str, Tensor]) -> Iterable[tuple[int, float, PartStates]]:
    widths: dict[str, PartStates] = {}
    for key, tensor in tensors.items():
        width, part, name = key.split("/", 2)
        widths.setdefault(width, {}).setdefault(part, {})[name] = tensor
    return [(step, float(width), parts) for width, parts in widths.items()]
