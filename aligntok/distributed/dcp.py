"""A checkpoint's folder by DCP, torch's distributed checkpoints: tensors in .safetensors, all else in ``state.json``.

Each process writes the tensors, or shards of tensors, that DCP plans for it; a reader gets whole tensors, or those
shards that it is for, however many processes wrote them. No file of it is a pickle.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, HuggingFaceStorageReader, Metadata
from torch.distributed.checkpoint import HuggingFaceStorageWriter as Writer
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.tensor import DTensor
from torch.futures import Future

from aligntok.distributed import world
from aligntok.errors import CheckpointError, first_line
from aligntok.io.checksums import sha256
from aligntok.io.files import names_of_one_tensor, save_tensors, write_json

#: What a checkpoint holds that is no tensor, and where in it the tensors belong.
STATE = "state.json"
SHARDS = ".safetensors"
# Marks in ``state.json`` of what JSON has not; each is the only key of an object.
_TENSOR, _ITEMS, _TUPLE, _FLOAT = "$tensor", "$items", "$tuple", "$float"
_COPIERS = 2  # memory is not read much faster by more
_FLAT: dict[str, Any] = {"flatten_state_dict": False, "flatten_sharded_tensors": False}


class Stored(str):
    """The name under which a tensor is in a checkpoint: its path, such as ``parts/decoder/conv_out.weight``."""


def pack(content: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """Return a nest of dicts, lists and tuples as JSON takes it, and its tensors by the names that it has in it.

    Keys may be numbers. A plain tensor of several paths, such as a tied weight, is one. Raises CheckpointError for a
    value that neither file holds.
    """
    tensors: dict[str, Tensor] = {}
    places: list[dict[str, str]] = []

    def packed(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            while path in tensors:
                path += "'"  # 1 and "1" are two keys
            tensors[path] = value.detach()
            places.append({_TENSOR: path})
            return places[-1]
        if isinstance(value, Mapping) and all(isinstance(key, str | int | float) for key in value):
            inner = [(key, packed(each, f"{path}/{key}" if path else str(key))) for key, each in value.items()]
            is_plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
            return dict(inner) if is_plain else {_ITEMS: [list(item) for item in inner]}
        if isinstance(value, list | tuple):
            listed = [packed(each, f"{path}/{i}") for i, each in enumerate(value)]
            return {_TUPLE: listed} if isinstance(value, tuple) else listed
        if isinstance(value, float) and not math.isfinite(value):
            return {_FLOAT: str(value)}
        if value is None or isinstance(value, str | int | float):
            return value
        raise CheckpointError(
            f"a checkpoint cannot hold {path}, a {type(value).__name__}; it holds tensors, numbers, texts, None, and "
            "dicts, lists and tuples of them"
        )

    made = packed(content, "")
    first = names_of_one_tensor({name: t for name, t in tensors.items() if not isinstance(t, DTensor)})
    for place in places:
        place[_TENSOR] = first.get(place[_TENSOR], place[_TENSOR])
    return made, {name: t for name, t in tensors.items() if first.get(name, name) == name}


def unpack(packed: Any) -> Any:
    """Return what :func:`pack` was given, with a :class:`Stored` in the place of each tensor.

    Raises one of :data:`aligntok.io.files.DAMAGE` for what it has not written.
    """
    if isinstance(packed, list):
        return [unpack(each) for each in packed]
    if not isinstance(packed, dict):
        return packed
    mark = next(iter(packed), "") if len(packed) == 1 else ""
    if mark == _TENSOR:
        if not isinstance(packed[_TENSOR], str):
            raise ValueError(f"a tensor is named {packed[_TENSOR]!r}")
        return Stored(packed[_TENSOR])
    if mark == _ITEMS:
        return {key: unpack(value) for key, value in packed[_ITEMS]}
    if mark == _TUPLE:
        return tuple(unpack(each) for each in packed[_TUPLE])
    return float(packed[_FLOAT]) if mark == _FLOAT else {key: unpack(value) for key, value in packed.items()}


def sharded(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return those of a nest's tensors that several processes share, by the names that they have in a checkpoint."""
    return {name: tensor for name, tensor in pack(content)[1].items() if isinstance(tensor, DTensor)}


class _PlanOnly(Writer):
    """Takes what DCP plans for this process to write, in its own file, and writes nothing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), save_distributed=True)
        self.file = ""
        self.offsets: dict[str, dict[str, list[int]]] = {}

    def prepare_local_plan(self, plan: Any) -> Any:
        return plan  # the folder is there, and empty

    def write_data(self, plan: Any, planner: Any) -> Any:
        self.file = f"shard-{plan.storage_data['shard_index']:05d}-model-00001-of-00001{SHARDS}"  # as torch names them
        for item in plan.items:
            self.offsets[item.index.fqn] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
        written: Future[list[Any]] = Future()
        written.set_result([])
        return written


class _Planner(DefaultSavePlanner):
    """Is handed all tensors as one value: DCP logs each value that it is handed, which takes as long as the plan."""

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        super().set_up_planner(state_dict[""], storage_meta, is_coordinator)


class Staged(NamedTuple):
    """What this process writes of a checkpoint: the name of its file, tensors, and what torch's readers ask for."""

    file: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


class Stager:
    """Finds what of a checkpoint this process is to write; keeps for the next one what takes time to find, and memory.

    With `copies` tensors are copied, so that training may go on, each into its copy of the time before.
    """

    def __init__(self, copies: bool) -> None:
        self._copies: dict[str, Tensor] | None = {} if copies else None
        self._planned: tuple[list[Any], _PlanOnly] | None = None

    def stage(self, folder: Path, tensors: Mapping[str, Tensor]) -> Staged:
        """Return what of `tensors` this process is to write into `folder`; collective, nothing is written yet.

        Plain tensors are alike in every process, and the first's; of those that are sharded each writes its own, a
        shard that several hold the first of these.
        """
        asked = [(name, t.shape, t.dtype, getattr(t, "placements", None)) for name, t in tensors.items()]
        if self._planned is None or self._planned[0] != asked:
            plan, planner = _PlanOnly(folder), _Planner(dedup_save_to_lowest_rank=True, **_FLAT)
            with _plainly():
                dcp.save(state_dict={"": dict(tensors)}, storage_writer=plan, planner=planner, no_dist=world()[1] == 1)
            self._planned = asked, plan
        plan = self._planned[1]
        threads = torch.get_num_threads()
        try:  # each copies the next tensor when it is free, so none waits for another where processors are busy
            with ThreadPoolExecutor(min(_COPIERS, threads), initializer=partial(torch.set_num_threads, 1)) as pool:
                copied = pool.map(lambda name: self._to_write(name, tensors[name]), plan.offsets)
                own = dict(zip(plan.offsets, copied, strict=True))
        finally:
            torch.set_num_threads(threads)  # what a thread sets for itself holds for MKL in all
        said = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(plan.offsets)}
        return Staged(plan.file, own, said)

    def _to_write(self, name: str, tensor: Tensor) -> Tensor:
        own = tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
        if self._copies is None:
            return own
        kept = self._copies.get(name)
        if kept is None or kept.shape != own.shape or kept.dtype != own.dtype:
            kept = self._copies[name] = torch.empty(own.shape, dtype=own.dtype, pin_memory=own.is_cuda)
        return kept.copy_(own)


def write(folder: Path, staged: Staged, state: Any, cure: str) -> dict[str, str]:
    """Write this process's file, if it has tensors to write, and `state`, if it is given: what the first process has.

    Returns the SHA-256 of each file by its name. Raises WriteError, which ends with `cure`.
    """
    written = []
    if staged.tensors:
        save_tensors(folder / staged.file, staged.tensors, staged.metadata, cure, checksum=False)
        written.append(staged.file)
    if state is not None:
        write_json(folder / STATE, state, cure)
        written.append(STATE)
    return {name: sha256(folder / name) for name in written}


class _Reader(HuggingFaceStorageReader):
    """Reads those files of a folder that are named, and says once what is in them."""

    def __init__(self, folder: Path, files: Collection[str]) -> None:
        super().__init__(str(folder))
        self.fs = _Listed(files)
        self._metadata: Metadata | None = None

    def read_metadata(self) -> Metadata:
        if self._metadata is None:
            self._metadata = super().read_metadata()
            for name, stored in self._metadata.state_dict_metadata.items():
                size, chunks = getattr(stored, "size", ()), getattr(stored, "chunks", ())
                placed = all(len(c.offsets) == len(size) and min(c.offsets, default=0) >= 0 for c in chunks)
                if not placed or sum(math.prod(c.sizes) for c in chunks) != math.prod(size):
                    raise ValueError(f"{name} is there in part")
        return self._metadata

    def file_of(self, name: str) -> str:
        """Return the file of a tensor that is in one."""
        places = self.read_metadata().storage_data
        return str(next(place.relative_path for index, place in places.items() if index.fqn == name))


class _Listed(FileSystem):
    def __init__(self, files: Collection[str]) -> None:
        super().__init__()
        self.files = files

    def ls(self, path: Any) -> list[str]:
        return [str(Path(path, name)) for name in self.files]


def read_tensors(
    folder: Path, files: Collection[str], names: Collection[str], like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors `names` out of those files of a checkpoint's folder; of no others anything is read.

    One that `like` has, of the same shape, is read into that. So is a new one like that, of the same sharding, where
    `like` has what is one step up in its path, such as a parameter whose state it is. All others are whole and on the
    CPU, mapped from the file where one process wrote them. Raises one of :data:`aligntok.io.files.DAMAGE`.
    """
    try:
        with _plainly():
            return _read(_Reader(folder, files), names, like)
    except (SafetensorError, AssertionError, RuntimeError) as error:  # the words of those who read a damaged file
        raise ValueError(first_line(error)) from error


def owner(name: str, like: Mapping[str, Tensor]) -> Tensor | None:
    """Return of `like` the tensor of that name, or what is one step up in its path: the parameter whose state it is."""
    return like.get(name, like.get(name.rpartition("/")[0]))


def _read(reader: _Reader, names: Collection[str], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    targets: dict[str, Any] = {}
    whole: dict[str, list[str]] = {}
    for name in names:
        stored: Any = reader.read_metadata().state_dict_metadata[name]
        model = owner(name, like)
        if model is not None and model.shape == stored.size:
            targets[name] = model if name in like else torch.empty_like(model, dtype=stored.properties.dtype)
        elif len(stored.chunks) == 1:
            whole.setdefault(reader.file_of(name), []).append(name)
        else:
            targets[name] = torch.zeros(stored.size, dtype=stored.properties.dtype)
    for file, held in whole.items():
        with safe_open(file, "pt") as opened:
            found.update({name: opened.get_tensor(name) for name in held})
    if targets:
        dcp.load(targets, storage_reader=reader, planner=DefaultLoadPlanner(**_FLAT), no_dist=True)
    return {**found, **targets}


@contextmanager
def _plainly() -> Iterator[None]:
    """Raise what DCP has caught, not its list of that, which is no Exception; and no warning of a single process."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error
