"""Whether an index still fits its shards: checksums, sizes, places, and what lies at some of them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aligntok.data.index.format import COLUMNS, DESCRIPTION, SHARDS, Index
from aligntok.data.index.parts import sides_of
from aligntok.data.index.tables import bytes_of, image_bytes, opened_table
from aligntok.data.remote import RemoteFiles, local_path, shown
from aligntok.data.sampler import evenly_spaced
from aligntok.data.settings import IndexCheck
from aligntok.data.sources.captions import captions_in
from aligntok.distributed.job import batched, progress_bar
from aligntok.errors import DataError
from aligntok.io.files import check_file, reading

_THREADS = 16
_AT_ONCE = 1 << 20  # samples of which the places are looked at
_IN_A_BLOCK = 8  # samples that are read at a place
_AGAIN = "make the index anew with `aligntok index`"


def check_index(asked: IndexCheck) -> tuple[list[str], str]:
    """Return what is wrong with an index, a line each, and what was looked at, in words.

    A shard on a disk that has another time and the same size is read, as a copy would be. Raises DataError for an index
    that cannot be opened.
    """
    index, files = Index.open(asked.index), RemoteFiles(asked.remote)
    problems = [*_damaged(index), *_outside(index)]
    changed, others = _changed_shards(index, files)
    problems += changed.values()
    first = [int(index.shards.first[shard]) for shard in others]
    blocks: list[_Block] = []
    for sample in sorted({*evenly_spaced(len(index), asked.blocks), *first}):
        if not blocks or sample > blocks[-1].samples[-1]:
            blocks.append(_Block.at(index, sample))
    blocks = [block for block in blocks if block.shard not in changed]
    look = _look_into_tar if index.kind == "tar" else _look_into_table
    with ThreadPoolExecutor(_THREADS) as pool, progress_bar(len(blocks), "reading samples", "block") as bar:
        for found in pool.map(lambda block: look(index, files, block), blocks):
            problems += found
            bar.update()
    read = sum(len(block.samples) for block in blocks)
    unreadable = sum(int((index.column("height")[part] == 0).sum()) for part in _parts(index))
    told = f"{len(index):,} samples of {len(index.shards):,} shards, {read:,} of them read"
    return problems, f"{told}; {unreadable:,} had no readable image when it was made"


class _Block(NamedTuple):
    """Samples of one shard, (k,), that lie one after another, in one row group if it has such."""

    shard: int
    place: str
    samples: npt.NDArray[np.int64]

    @classmethod
    def at(cls, index: Index, sample: int) -> _Block:
        shard = int(index.shard_of([sample])[0])
        end = min(sample + _IN_A_BLOCK, int(index.shards.first[shard + 1]))
        samples = np.arange(sample, end)
        if index.kind == "parquet":
            groups = index.at("row_group", samples)
            samples = samples[groups == groups[0]]
        return cls(shard, index.shards.place(shard), samples)


def _parts(index: Index) -> list[slice]:
    return [slice(part[0], part[-1] + 1) for part in batched(range(len(index)), _AT_ONCE)]


def _damaged(index: Index) -> Iterator[str]:
    names = [DESCRIPTION, SHARDS, *(f"{COLUMNS}/{name}.npy" for name in index.columns)]
    for name in names:
        try:
            if not check_file(index.folder / name, DataError, _AGAIN):
                yield f"{index.folder / name}: has no checksum; copy the index again, whole, or {_AGAIN}"
        except DataError as error:
            yield str(error)


def _outside(index: Index) -> Iterator[str]:
    for of in ("", "caption_"):
        if f"{of}offset" in index.columns:
            for part in _parts(index):
                begins, sizes = (index.column(f"{of}{name}")[part].astype(np.int64) for name in ("offset", "size"))
                try:
                    index.check_inside(np.arange(part.start, part.stop), begins, sizes)
                except DataError as error:
                    yield str(error)
                    break


def _changed_shards(index: Index, files: RemoteFiles) -> tuple[dict[int, str], list[int]]:
    """Return what is wrong with shards that are gone or other files; and which have another time alone."""
    table = index.shards

    def look(shard: int) -> tuple[str, bool]:
        place = table.place(shard)
        try:
            size, tag = files.size_and_tag(place)
        except DataError as error:
            return str(error), False
        if size != table.sizes[shard]:
            return (
                f"{shown(place)}: has {size:,} bytes, and {table.sizes[shard]:,} when it was indexed; {_AGAIN}",
                False,
            )
        if tag != table.tags[shard] and local_path(place) is None:
            return (
                f"{shown(place)}: is another file than was indexed, {tag} and not {table.tags[shard]}; {_AGAIN}",
                False,
            )
        return "", tag != table.tags[shard] and table.first[shard] < table.first[shard + 1]

    changed: dict[int, str] = {}
    others: list[int] = []
    with ThreadPoolExecutor(_THREADS) as pool, progress_bar(len(table), "looking at shards", "shard") as bar:
        for shard, (line, another) in enumerate(pool.map(look, range(len(table)))):
            changed |= {shard: line} if line else {}
            others += [shard] if another else []
            bar.update()
    return changed, others


def _look_into_tar(index: Index, files: RemoteFiles, block: _Block) -> list[str]:
    expected = index.shards.listed(block.shard)

    def pieces(of: str) -> Iterator[bytes]:
        for begin, end in zip(*(each.tolist() for each in index.spans(block.samples, of)), strict=True):
            yield files.read(block.place, begin, end - begin, expected)

    try:
        lines = [*_compared(index, block, pieces(""))]
        if index.caption is not None:
            what, kind = index.caption.removeprefix("json:"), ".txt" if index.caption == "txt" else ".json"
            for text in pieces("caption_"):
                if text and not captions_in(block.place, kind, text, what):
                    raise DataError(f"{shown(block.place)}: no caption lies where the index says; {_AGAIN}")
        return lines
    except DataError as error:
        return [str(error)]


def _look_into_table(index: Index, files: RemoteFiles, block: _Block) -> list[str]:
    group, rows = (index.at(name, block.samples) for name in ("row_group", "row"))
    try:
        with (
            reading(block.place, DataError, _AGAIN),
            opened_table(files, block.place, index.shards.listed(block.shard)) as (table, image),
        ):
            columns = [image, *([] if index.caption is None else [index.caption])]
            read = table.read_row_group(int(group[0]), columns=columns).take(rows)
            if index.caption is not None:
                there = read.column(index.caption).to_pylist() if index.caption in read.column_names else []
                if [*map(bytes_of, there)] != [
                    each for each in index.at("caption_size", block.samples) if each or there
                ]:
                    raise DataError(f"{shown(block.place)}: no caption lies where the index says; {_AGAIN}")
            return [*_compared(index, block, iter(image_bytes(read.column(image).combine_chunks())))]
    except DataError as error:
        return [str(error)]


def _compared(index: Index, block: _Block, images: Iterator[bytes | None]) -> Iterator[str]:
    columns = [index.at(name, block.samples).tolist() for name in ("height", "width", "size")]
    for sample, image, *said in zip(block.samples.tolist(), images, *columns, strict=True):
        found = [*sides_of(image), len(image or b"")]
        if found != said:
            yield (
                f"{shown(block.place)}: sample {sample:,} is of {found[0]} x {found[1]} pixels in {found[2]:,} bytes, "
                f"and {said[0]} x {said[1]} in {said[2]:,} by the index; {_AGAIN}"
            )
