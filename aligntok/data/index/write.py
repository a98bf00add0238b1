"""An index written whole or not at all, one shard's columns after the other: memory for one shard alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from aligntok.data.index.format import COLUMNS, DESCRIPTION, FORMAT, SHARDS, VERSION, is_url
from aligntok.errors import ConfigError, DataError
from aligntok.io.checksums import read_checksums
from aligntok.io.files import replacing, write_checksums, write_json
from aligntok.io.folders import replacing_folder


@dataclass(frozen=True, order=True)
class Shard:
    """A shard as an index lists it: its absolute path or its URL, bytes, tag, and how many samples it has."""

    path: str
    size: int
    tag: str
    samples: int


def write_index(
    out: Path,
    kind: str,
    caption: str | None,
    dtypes: Mapping[str, str],
    shards: Sequence[Shard],
    columns_of: Callable[[int], Mapping[str, npt.NDArray[Any]]],
) -> None:
    """Write the index of `shards`, all files or all URLs; `columns_of` gives the columns of one, (samples,) each.

    The folder `out` takes the place of an index that is there. Raises WriteError; ConfigError for a folder that is
    there and is none; DataError for shards that hold nothing.
    """
    samples = sum(shard.samples for shard in shards)
    if not samples:
        raise DataError(f"{out}: {len(shards)} shards hold no sample to make an index of")
    check_place(out)
    with replacing_folder(out) as made:
        _write_columns(made / COLUMNS, dtypes, shards, columns_of, samples)
        root, paths = _rooted(out, [shard.path for shard in shards])
        listed = {"paths": paths, "sizes": [each.size for each in shards], "tags": [each.tag for each in shards]}
        listed["samples"] = [each.samples for each in shards]
        write_json(made / SHARDS, listed)
        said = {"kind": kind, "samples": samples, "columns": dict(dtypes), "caption": caption}
        told = [said, paths, listed["sizes"], listed["samples"], read_checksums(made / COLUMNS)]
        digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        write_json(made / DESCRIPTION, {"format": FORMAT, "version": VERSION, **said, "root": root, "digest": digest})
        write_checksums(made, [DESCRIPTION, SHARDS])


def check_place(out: Path) -> None:
    """Raise ConfigError unless an index can be made at `out`: nothing lies there, or one that it takes the place of."""
    if os.path.lexists(out) and not (out / DESCRIPTION).is_file() and (not out.is_dir() or [*out.iterdir()]):
        raise ConfigError(f"{out} has other things in it, and no {DESCRIPTION}; give a new folder with --out")


def _write_columns(
    folder: Path,
    dtypes: Mapping[str, str],
    shards: Sequence[Shard],
    columns_of: Callable[[int], Mapping[str, npt.NDArray[Any]]],
    samples: int,
) -> None:
    with ExitStack() as stack:
        columns = {name: _column(folder / f"{name}.npy", dtype, samples) for name, dtype in dtypes.items()}
        files = {name: stack.enter_context(column) for name, column in columns.items()}
        for number, shard in enumerate(shards):
            own = columns_of(number)
            for name, file in files.items():
                values = own[name].astype(dtypes[name], copy=False)
                if len(values) != shard.samples:
                    raise DataError(f"{shard.path}: {len(values)} values of {name} for {shard.samples} samples")
                file.write(np.ascontiguousarray(values).data)
    write_checksums(folder, [f"{name}.npy" for name in dtypes])


@contextmanager
def _column(path: Path, dtype: str, samples: int) -> Iterator[BinaryIO]:
    """Yield a file of numpy's for so many numbers, which follow; whole once it is left."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        head = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (samples,)}
        np.lib.format.write_array_header_1_0(file, head)
        yield file


def _rooted(out: Path, places: Sequence[str]) -> tuple[str, list[str]]:
    """Return the root of an index, and the paths from there on: of files what leads to their folder from the index."""
    folders = [place.split("/")[:-1] for place in places]
    pairs = zip(min(folders), max(folders), strict=False)
    shared = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    if is_url(places[0]) and len(shared) < len(("https:", "", "host")):
        return "", list(places)
    common = "/".join([*shared, ""])
    here = os.path.join(os.path.realpath(out.parent), out.name)  # what lies there now, perhaps a link, goes
    root = common if is_url(places[0]) else os.path.relpath(common, here)
    return root, [place.removeprefix(common) for place in places]
