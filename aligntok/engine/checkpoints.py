"""Checkpoints: plain tensors and numbers that load without pickled code, written whole or not at all.

A stage's folder holds ``checkpoints/step_00001000/`` (what changes: trained parts, optimisers, EMA, schedules) and,
written once, ``frozen.safetensors`` (what the stage does not change: frozen parts, frozen weights of trained parts, the
teacher) and ``stage.json``.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aligntok.distributed import agree, barrier, gather, is_first, world
from aligntok.distributed.parallel import as_shared, load_state, whole
from aligntok.engine.ema import PartStates
from aligntok.errors import CheckpointError
from aligntok.io.arrays import check_stored, why_unread
from aligntok.io.checksums import CHECKSUMS, read_checksums, remember, sha256
from aligntok.io.files import check_file, inside, load_tensors, read_json, reading, regular, save_tensors

logger = logging.getLogger("aligntok.engine")

FORMAT = 3
OF_ONE_FILE = 2  # the format before, ``step_00001000.pt``
CURE = "the checkpoints before it are whole. Make room and start the same command again"
DAMAGED = "it is damaged or incomplete"
_FROZEN = "frozen.safetensors"
_NAME = re.compile(r"step_(\d{8,})(\.pt)?")


def checkpoint_path(stage_dir: str | os.PathLike[str], step: int) -> Path:
    """Return the folder of the checkpoint after `step` optimiser steps of a stage."""
    return Path(stage_dir) / "checkpoints" / f"step_{step:08d}"


def list_checkpoints(stage_dir: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """Return (step, path) of a stage's checkpoints, oldest first: folders, and files of the format before."""
    found = (Path(stage_dir) / "checkpoints").glob("step_*")
    return sorted((int(m[1]), p) for p in found if (m := _NAME.fullmatch(p.name)))


class Checkpoint:
    """A checkpoint that is as it was written; `content` is its nest, of tensors their names until they are loaded."""

    def __init__(self, path: Path, content: dict[str, Any], files: tuple[str, ...] = ()) -> None:
        self.path = path
        self.content = content
        self._files = files

    @property
    def step(self) -> int:
        """The optimiser steps before it."""
        return int(self.content["step"])

    def load(self, nest: Any, like: Mapping[str, Tensor] | None = None) -> Any:
        """Return a part of the content, or all, with its tensors; of others nothing is read.

        They are whole and on the CPU, but for those that are sharded as `like` says, by the names that they have in
        the checkpoint: see :func:`aligntok.distributed.dcp.read_tensors`. Raises CheckpointError.
        """
        if not self._files and not like:
            return nest
        from aligntok.distributed import dcp  # takes a second to import, and who reads an export needs none

        tensors: dict[str, Tensor]
        names: dict[str, None] = {}

        def find(value: Any) -> None:
            if isinstance(value, dcp.Stored):
                names[value] = None
            elif isinstance(value, Mapping | list | tuple):
                for each in value.values() if isinstance(value, Mapping) else value:
                    find(each)

        def loaded(value: Any) -> Any:
            if isinstance(value, dcp.Stored):
                return tensors[value]
            if isinstance(value, Mapping):
                return {key: loaded(each) for key, each in value.items()}
            return type(value)(map(loaded, value)) if isinstance(value, list | tuple) else value

        if like and not self._files:
            packed, held = dcp.pack(nest)
            tensors = {name: as_shared(tensor, dcp.owner(name, like)) for name, tensor in held.items()}
            return loaded(dcp.unpack(packed))
        with reading(self.path, CheckpointError, DAMAGED):
            find(nest)
            shards = [name for name in self._files if name.endswith(dcp.SHARDS)]
            tensors = dcp.read_tensors(self.path, shards, list(names), like or {})
            return loaded(nest)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Look whether all of a checkpoint is as it was written, and read what of it is no tensor.

    Nothing pickled in it is run. Raises CheckpointError if it is damaged, or of another version. A file of before, if
    it is without a checksum, is told once and read.
    """
    place = Path(path)
    content, files = (_open_file(place), ()) if place.suffix else _open_folder(place)
    wanted = OF_ONE_FILE if place.suffix else FORMAT
    if not isinstance(content, dict) or content.get("format") != wanted or type(content.get("step")) is not int:
        raise CheckpointError(
            f"{path} is no checkpoint of this version (format {wanted}); go on with the version that wrote it, "
            "or train in another work_dir"
        )
    with reading(place, CheckpointError, DAMAGED):
        if (named := _NAME.fullmatch(place.name)) and int(named[1]) != content["step"]:
            raise ValueError(f"it says that it is of step {content['step']}")
    return Checkpoint(place, content, files)


def _open_folder(path: Path) -> tuple[Any, tuple[str, ...]]:
    from aligntok.distributed import dcp

    with reading(path / CHECKSUMS, CheckpointError, DAMAGED):
        os.close(regular(path / CHECKSUMS))
        files = tuple(sums := read_checksums(path))
        sums[dcp.STATE]  # it has to be among them
    for file in (inside(path, name, CheckpointError, DAMAGED) for name in files):
        with reading(file, CheckpointError, DAMAGED):
            os.close(regular(file))  # whoever checks passes what is missing
        check_file(file, CheckpointError, DAMAGED)
    return read_json(path / dcp.STATE, CheckpointError, DAMAGED, dcp.unpack), files


def _open_file(path: Path) -> Any:
    if not check_file(path, CheckpointError, DAMAGED):
        _say_unchecked(path)
    try:
        check_stored(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({why_unread(error)}); it is damaged or incomplete") from error


@cache
def _say_unchecked(path: Path) -> None:
    if path.is_file():
        logger.warning("%s has no checksum beside it, so it is not known to be as it was written", path)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a whole checkpoint onto the CPU; raises as :func:`open_checkpoint` does."""
    found = open_checkpoint(path)
    content: dict[str, Any] = found.load(found.content)
    return content


def open_newest(stage_dir: str | os.PathLike[str]) -> Checkpoint | None:
    """Open the newest checkpoint of a stage that can be read, or None without any; damaged ones are reported.

    Raises CheckpointError when there are some and none can be read: to begin anew would overwrite them.
    """
    found = list_checkpoints(stage_dir)
    for i, (_, path) in reversed([*enumerate(found)]):
        try:
            return open_checkpoint(path)
        except CheckpointError as error:
            if i == 0:
                raise CheckpointError(
                    f"no checkpoint of {len(found)} in {path.parent} can be read: {error}. "
                    "Restore one, or remove the stage's folder to train it anew"
                ) from error
            logger.warning("%s; the one before it is used", error)
    return None


def read_newest(stage_dir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read all of the checkpoint that :func:`open_newest` opens."""
    found = open_newest(stage_dir)
    return None if found is None else dict(found.load(found.content))


def open_newest_alike(stage_dir: str | os.PathLike[str]) -> Checkpoint | None:
    """Open the newest checkpoint that can be read, as :func:`open_newest` does, in every process; collective.

    Raises CheckpointError, too, where they find different ones.
    """
    barrier()  # on a network disk all look at the same time
    found = open_newest(stage_dir)
    if not agree(found.step if found else 0):
        raise CheckpointError(
            f"the processes read different newest checkpoints in {stage_dir}, this one that of step "
            f"{found.step if found else 'none'}; see the logs for one that cannot be read, and start again"
        )
    return found


def share_hashing(stage_dir: str | os.PathLike[str]) -> None:
    """Hash the files of a stage's newest checkpoint, and of what is frozen, each in one process for all; collective.

    So that to look at it, and to go on from it, each process reads a share of it. What it says of a file that is
    damaged, or missing, whoever opens the checkpoint finds.
    """
    rank, processes = world()
    found = list_checkpoints(stage_dir)
    files = [*found[-1][1].glob("*"), Path(stage_dir, _FROZEN)] if found else []
    files = sorted(file for file in files if file.is_file())
    if processes == 1 or not agree(len(files)):
        return
    rows = torch.zeros(len(files[rank::processes]), 32, dtype=torch.uint8)
    for row, file in zip(rows, files[rank::processes], strict=True):
        with suppress(OSError):
            row.copy_(torch.tensor(list(bytes.fromhex(sha256(file)))))
    for other, digests in enumerate(gather(rows)):
        for digest, file in zip(digests, files[other::processes], strict=True):
            with suppress(OSError):
                if digest.any():
                    remember(file, bytes(digest.tolist()).hex())


def finished_steps(stage_dir: str | os.PathLike[str]) -> int:
    """Return the step of the newest checkpoint that can be read, 0 without any; tensors are not read."""
    found = open_newest(stage_dir)
    return found.step if found else 0


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
    save_whole(Path(stage_dir) / _FROZEN, states)


def read_frozen(stage_dir: str | os.PathLike[str]) -> PartStates:
    """Read the parts that a stage does not change. Raises CheckpointError if the file is missing or damaged."""
    cure = "copy the stage's folder whole, or train it anew"
    return by_part(load_tensors(Path(stage_dir) / _FROZEN, CheckpointError, cure))


def save_whole(path: Path, states: PartStates) -> None:
    """Write states from the first process, gathered tensor by tensor where processes share them; collective."""
    gathered = {}
    for name, tensor in _named(states).items():
        each = whole(tensor)
        if is_first():
            gathered[name] = each if each is tensor else each.cpu()  # a device need not hold all of them at once
    if is_first():
        save_tensors(path, gathered, cure=CURE)
    barrier()


def _named(states: PartStates) -> dict[str, Tensor]:
    return {f"{part}/{name}": tensor for part, state in states.items() for name, tensor in state.items()}


def by_part(tensors: Mapping[str, Tensor]) -> PartStates:
    """Return the states whose tensors a file has by names such as "encoder/conv.weight"."""
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
    found = open_newest(stage_dir)
    if found is None:
        raise CheckpointError(f"{stage_dir} has no checkpoint that can be read; train that stage first")
    content = found.content
    if weights == "raw":
        return join(read_frozen(stage_dir), _load_states(found, content.get("parts")))
    if weights != "ema":
        raise CheckpointError(f"weights must be 'raw' or 'ema', not '{weights}'")
    if not content.get("ema"):
        raise CheckpointError(f"{stage_dir} keeps no EMA; start from its raw weights, or set ema in that stage")
    width = str(content.get("ema_inference") if sigma_rel is None else sigma_rel)
    with reading(found.path, CheckpointError, DAMAGED):
        averages = dict(content["ema"]["averages"])
    if width not in averages:
        raise CheckpointError(f"{stage_dir} keeps no EMA of width {width}; it keeps {', '.join(averages)}")
    with reading(found.path, CheckpointError, DAMAGED):
        wanted = join(content["parts"], averages[width])  # of weights that are averaged nothing else is read
    return join(read_frozen(stage_dir), _load_states(found, wanted))


def _load_states(found: Checkpoint, nest: Any) -> PartStates:
    """Load the states of parts. Raises CheckpointError where there are none, or other things among their tensors."""
    with reading(found.path, CheckpointError, DAMAGED):
        states = {str(part): dict(state) for part, state in found.load(nest).items()}
        if not all(isinstance(tensor, Tensor) for state in states.values() for tensor in state.values()):
            raise ValueError("the states of its parts hold more than tensors")
    return states


def join(first: PartStates, second: PartStates) -> PartStates:
    """Return the parts of both; tensors of one name are the second's."""
    return {part: {**first.get(part, {}), **second.get(part, {})} for part in {**first, **second}}
