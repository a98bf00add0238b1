"""An index is built of shards, each of them read once, in processes; or of indexes that were built apart."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from aligntok.data.captions import AUTO
from aligntok.data.index.format import CAPTIONED, DOMAIN, FIXED, NAME, Index, is_url
from aligntok.data.index.parts import Asked, Part, types_of
from aligntok.data.index.tables import read_table
from aligntok.data.index.tars import beside_of, read_tar
from aligntok.data.index.write import Shard, check_place, write_index
from aligntok.data.loader import explaining_loader_errors, make_loader
from aligntok.data.remote import RemoteFiles, check_address, local_path
from aligntok.data.settings import IndexRequest, MergeRequest
from aligntok.data.sources import packed_files
from aligntok.data.sources.webdataset import expand_pattern
from aligntok.distributed.job import progress_bar
from aligntok.errors import ConfigError, DataError, WriteError, some_of
from aligntok.io.files import remove
from aligntok.io.folders import check_writable, lock_folder, real

logger = logging.getLogger("aligntok.data")
_READ = {"tar": read_tar, "parquet": read_table}


def build_index(asked: IndexRequest) -> Index:
    """Build the index of shards, or of a part of them, and open it.

    What was read of each shard lies in a folder beside it until it is whole, so a start after a stop goes on there.
    Raises DataError once all shards are read, when more than `max_broken` of them cannot be; ConfigError for a request
    that cannot be; WriteError.
    """
    out = Path(asked.out).expanduser()
    places, kind = _places(asked)
    _check_columns(asked.columns)
    check_place(out)
    check_writable(out)
    wanted = Asked(kind, asked.columns, asked.caption)
    folder = out.with_name(f"{out.name}.parts")
    with lock_folder(folder):
        read, broken = _read_shards(_Shards(places, RemoteFiles(asked.remote), wanted, folder), asked.workers)
        for reason in broken:
            logger.warning("left out of the index: %s", reason)
        if len(broken) > asked.max_broken:
            raise DataError(
                f"{len(broken)} of {len(places)} shards cannot be indexed, the first for this: {broken[0]}. What was "
                f"read of the others stays in {folder}: start the same command again when they are right, or leave "
                f"them out with --max-broken {len(broken)}"
            )
        _assemble(out, wanted, read)
    remove(folder)
    return Index.open(out)


def _places(asked: IndexRequest) -> tuple[list[str], str]:
    """Return the shards that are asked for, absolute paths or URLs, sorted, and their kind. Raises ConfigError."""
    found = sorted(place for word in asked.shards for place in _expanded(word))
    if twice := [one for one, other in pairwise(found) if one == other]:
        raise ConfigError(f"{some_of(twice)} is given twice; give each shard once")
    kinds = {kind: place for place in found for kind in _READ if place.lower().endswith(f".{kind}")}
    strangers = [place for place in found if not place.lower().endswith(tuple(f".{kind}" for kind in _READ))]
    if strangers or not found:
        raise ConfigError(
            f"{(strangers or ['nothing'])[0]} is no shard: shards end in .tar or .parquet; give such files, "
            "their folders, patterns or addresses, or one of the verbs check and merge first"
        )
    if len(kinds) > 1 or len({is_url(place) for place in found}) > 1:
        raise ConfigError(
            f"{' and '.join(kinds.values()) if len(kinds) > 1 else 'files and addresses'} together are of two kinds; "
            "make an index of each"
        )
    return _share(found, asked.part), next(iter(kinds))


def _expanded(word: str) -> list[str]:
    if is_url(word) and local_path(word) is None:
        check_address(word)
    path = local_path(word)
    if path is not None and os.path.isdir(os.path.expanduser(path)):
        files = packed_files(Path(path).expanduser())
        tars = [file for file in files if file.suffix == ".tar"]  # parquet files beside them are about them
        words = [str(file) for file in tars or files]
        if not words:
            raise ConfigError(f"{word} has no files that end in .tar or .parquet; give the folder that has them")
    else:
        words = expand_pattern(word) if "{" in word else [word]
    return [_absolute(each) for each in words]


def _absolute(word: str) -> str:
    path = local_path(word)
    if path is None:
        return word
    folder, name = os.path.split(os.path.abspath(os.path.expanduser(path)))
    return os.path.join(os.path.realpath(folder), name)


def _share(places: list[str], part: str | None) -> list[str]:
    number, of = (1, 1) if part is None else map(int, part.split("/"))
    if not 1 <= number <= of:
        raise ConfigError(f"--part {part}: parts are 1/{of} to {of}/{of}")
    share = places[len(places) * (number - 1) // of : len(places) * number // of]
    if not share:
        raise ConfigError(f"--part {part}: there are {len(places)} shards, so this part has none; take fewer parts")
    return share


def _check_columns(names: Sequence[str]) -> None:
    own = {DOMAIN}.union(*FIXED.values(), *CAPTIONED.values())
    for name in names:
        if name in own or not NAME.fullmatch(name) or names.count(name) > 1:
            raise ConfigError(
                f"--columns {name}: "
                + ("every index has its own" if name in own else "names are letters, digits and _, each once")
            )


class _Read(NamedTuple):
    """What came of a shard: as the index lists it, the types of its columns, its part's file; or why there is none."""

    shard: Shard
    types: dict[str, str]
    caption: str | None
    part: Path
    broken: str = ""


class _Shards(Dataset[_Read]):
    """Reads shard i, if no earlier start has, into its part's file."""

    def __init__(self, places: Sequence[str], files: RemoteFiles, asked: Asked, folder: Path) -> None:
        self.places, self.files, self.asked, self.folder = places, files, asked, folder

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> _Read:
        place = self.places[number]
        try:
            listed = self.files.size_and_tag(place)
            beside = self.files.find(beside_of(place), optional=True) if self.asked.kind == "tar" else None
            path = self.asked.file_of(self.folder, place, listed, beside)
            part = None
            with suppress(OSError, ValueError, zipfile.BadZipFile):  # there is none, or a damaged one
                part = Part.read(path, self.asked)
            if part is None:
                part = _READ[self.asked.kind](self.files, place, listed, self.asked)
                part.write(path)
        except WriteError:
            raise
        except DataError as error:
            return _Read(Shard(place, 0, "", 0), {}, None, self.folder, str(error))
        types = {name: values.dtype.str[1:] for name, values in part.columns.items()}
        return _Read(Shard(place, *listed, len(part)), types, part.caption, path)


def _read_shards(shards: _Shards, workers: int) -> tuple[list[_Read], list[str]]:
    """Return what came of each shard that could be read, and why others could not."""
    read, broken = [], []
    numbers = [[number] for number in range(len(shards))]
    loader = make_loader(shards, numbers, min(workers, len(shards)), list, timeout=0)
    with explaining_loader_errors(), progress_bar(len(shards), "indexing", "shard") as bar:
        for (found,) in loader:
            broken += [found.broken] if found.broken else []
            read += [] if found.broken else [found]
            bar.update()
    return read, broken


def _assemble(out: Path, asked: Asked, read: Sequence[_Read]) -> None:
    ways = sorted({each.caption for each in read if each.caption})
    if len(ways) > 1:
        raise DataError(f"{out}: captions are in {' and in '.join(ways)}; choose one with --caption")
    if not ways and asked.caption not in (None, AUTO):
        raise DataError(
            f"{out}: no shard has captions {asked.caption!r}; --caption names txt, a key of the .json, a column"
        )
    caption = ways[0] if ways else None
    filled = [each for each in read if each.shard.samples]
    dtypes = types_of(asked.kind, asked.columns, caption, (each.types for each in filled))

    def columns_of(number: int) -> Mapping[str, npt.NDArray[Any]]:
        part = Part.read(read[number].part, asked)
        return {name: part.columns.get(name, _nothing(len(part))) for name in dtypes}

    write_index(out, asked.kind, caption, dtypes, [each.shard for each in read], columns_of)


@lru_cache(4)
def _nothing(samples: int) -> npt.NDArray[Any]:
    return np.zeros(samples)  # of captions and domains that a shard does not have


def merge_indexes(asked: MergeRequest) -> Index:
    """Merge indexes of different shards, sorted by the shards' paths, as if it had been built as one, and open it.

    Raises ConfigError for parts that do not fit together, DataError for damaged ones, WriteError.
    """
    out = Path(asked.out).expanduser()
    if any(real(Path(part).expanduser()) == real(out) for part in asked.parts):
        raise ConfigError(f"{out} is one of the parts; give a new folder with --out")
    check_place(out)
    check_writable(out)
    indexes = [Index.open(part) for part in asked.parts]
    if not indexes:
        raise ConfigError("there is nothing to merge; give the folders of the parts")
    _check_alike(indexes)
    shards = sorted(
        (_shard(index, number), i, number) for i, index in enumerate(indexes) for number in range(len(index.shards))
    )
    for (one, i, _), (other, k, _) in pairwise(shards):
        if one.path == other.path:
            raise ConfigError(f"{one.path} is in {asked.parts[i]} and in {asked.parts[k]}; merge each shard once")
    kind, caption = indexes[0].kind, indexes[0].caption
    own = [name for name in indexes[0].columns if name not in {DOMAIN, *FIXED[kind], *CAPTIONED[kind]}]
    dtypes = types_of(kind, own, caption, (index.columns for index in indexes))

    def columns_of(place: int) -> Mapping[str, npt.NDArray[Any]]:
        _, i, number = shards[place]
        first = indexes[i].shards.first
        samples = slice(first[number], first[number + 1])
        return {name: indexes[i].column(name)[samples] for name in dtypes}

    write_index(out, kind, caption, dtypes, [shard for shard, *_ in shards], columns_of)
    return Index.open(out)


def _shard(index: Index, number: int) -> Shard:
    table = index.shards
    samples = int(table.first[number + 1] - table.first[number])
    return Shard(table.place(number), int(table.sizes[number]), table.tags[number], samples)


def _check_alike(indexes: Sequence[Index]) -> None:
    """Raise ConfigError for indexes that cannot be one."""
    first = indexes[0]
    for index in indexes[1:]:
        for what, one, other in (
            ("shards of the kind", first.kind, index.kind),
            ("captions in", first.caption, index.caption),
            ("the columns", ", ".join(sorted(first.columns)), ", ".join(sorted(index.columns))),
            ("shards", *("far away" if is_url(each.shards.place(0)) else "on a disk" for each in (first, index))),
        ):
            if one != other:
                raise ConfigError(f"{first.folder} has {what} {one}, and {index.folder} {other}; make the parts alike")
