"""Snapshots of weight averages, of which other widths are made later; and what an abandoned attempt leaves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from aligntok.engine.checkpoints import by_part, save_whole
from aligntok.engine.ema import PartStates
from aligntok.errors import CheckpointError
from aligntok.io.files import discard, load_tensors, read_json, reading, writing
from aligntok.io.values import count

_CURE = "copy that file again; without it, remove it, and the widths are made of the other snapshots"


def snapshots_folder(stage_dir: str | os.PathLike[str]) -> Path:
    """Return where a stage's snapshots lie, if there are any."""
    return Path(stage_dir) / "ema_snapshots"


def write_snapshot(stage_dir: str | os.PathLike[str], step: int, averages: Mapping[str, PartStates]) -> None:
    """Write the averages of all widths after `step`, for widths chosen later (:func:`read_snapshots`); collective."""
    states = {f"{width}/{part}": state for width, parts in averages.items() for part, state in parts.items()}
    save_whole(snapshots_folder(stage_dir) / f"step_{step:08d}.safetensors", states)


def _listed(stage_dir: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """Return (step, path) of every snapshot, oldest first; files of other names are none."""
    found = ((path.stem.removeprefix("step_"), path) for path in snapshots_folder(stage_dir).glob("step_*.safetensors"))
    return sorted((int(step), path) for step, path in found if step.isdecimal())


def read_snapshots(stage_dir: str | os.PathLike[str], last: int) -> list[tuple[int, float, PartStates]]:
    """Return (step, sigma_rel, averages) of every snapshot up to step `last`, its tensors mapped from disk.

    Raises CheckpointError for one that is damaged, or of other weights than the first.
    """
    found: dict[tuple[int, float], PartStates] = {}
    for step, path in _listed(stage_dir):
        tensors = load_tensors(path, CheckpointError, _CURE) if step <= last else {}
        with reading(path, CheckpointError, _CURE):
            for key, state in by_part(tensors).items():
                width, part = key.split("/")
                found.setdefault((step, float(width)), {})[part] = state
            shapes = [_shapes(parts) for parts in found.values()]
            if any(each != shapes[0] for each in shapes):
                raise ValueError("its weights have other names or shapes than those of the snapshots before it")
    return [(step, width, parts) for (step, width), parts in found.items()]


def _shapes(parts: PartStates) -> dict[str, dict[str, tuple[int, ...]]]:
    return {part: {name: tuple(tensor.shape) for name, tensor in state.items()} for part, state in parts.items()}


def forget_later(stage_dir: str | os.PathLike[str], step: int) -> None:
    """Remove the snapshots, and the result, of steps after `step`, from which the stage goes on: another attempt's.

    Raises WriteError.
    """
    result = Path(stage_dir) / "result.json"
    try:
        later = read_json(result, CheckpointError, "", lambda said: count(said["step"]) > step)
    except CheckpointError:  # it is missing; or nobody knows of which step it is, and the next one replaces it
        later = True
    snapshots = [path for number, path in _listed(stage_dir) if number > step]
    with writing(stage_dir):
        for path in [*snapshots, result] if later else snapshots:
            discard(path)
