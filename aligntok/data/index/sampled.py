"""Some samples of an index as a source of images, to be looked at; and what its columns say of all."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from aligntok.data.buckets import AspectBuckets, CropTally
from aligntok.data.index.format import CAPTIONED, DOMAIN, FIXED, Index
from aligntok.data.index.tables import image_bytes, opened_table
from aligntok.data.remote import RemoteFiles, shown
from aligntok.data.sampler import Forgetful, evenly_spaced
from aligntok.data.sources.base import ImageSource, PackedNames
from aligntok.distributed.job import batched
from aligntok.errors import DataError
from aligntok.io.files import reading

_AT_ONCE = 1 << 20  # samples of which the columns are looked at
_AGAIN = "make the index anew with `aligntok index`"


class SampledSource(Forgetful, ImageSource):
    """At most `number` samples of an index, evenly spread, of those that could be read when it was made."""

    def __init__(self, index: Index, number: int, files: RemoteFiles) -> None:
        samples = np.array(evenly_spaced(len(index), number), dtype=np.int64)
        self.samples = samples[index.column("height")[samples] > 0]
        self.index, self.files = index, files
        self._forget()
        places = (shown(index.shards.place(int(shard))) for shard in index.shard_of(self.samples))
        names = (f"{place}, sample {sample}" for place, sample in zip(places, self.samples.tolist(), strict=True))
        super().__init__(str(index.folder), PackedNames(names))

    def _forget(self) -> None:
        self._group = lru_cache(2)(self._read_group)

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of one sample. Raises DataError when they cannot be had."""
        sample = self.samples[index : index + 1]
        shard = int(self.index.shard_of(sample)[0])
        if self.index.kind == "tar":
            begins, ends = self.index.spans(sample)
            place, listed = self.index.shards.place(shard), self.index.shards.listed(shard)
            return self.files.read(place, int(begins[0]), int(ends[0] - begins[0]), listed)
        group, row = (int(self.index.column(name)[sample][0]) for name in ("row_group", "row"))
        found = self._group(shard, group)
        if row >= len(found):
            raise DataError(
                f"{self.names[index]}: its row group has {len(found)} rows, and it would be row {row}; {_AGAIN}"
            )
        return found[row] or b""

    def _read_group(self, shard: int, group: int) -> list[bytes | None]:
        place, listed = self.index.shards.place(shard), self.index.shards.listed(shard)
        with reading(place, DataError, _AGAIN), opened_table(self.files, place, listed) as (table, image):
            return [*image_bytes(table.read_row_group(group, columns=[image]).column(image).combine_chunks())]


def told_by_columns(index: Index, shapes: AspectBuckets) -> dict[str, Any]:
    """Return what the columns of an index say of all its samples: sides, shapes, captions, and the numbers kept.

    A column's median is that of a million samples at most, evenly spread.
    """
    tally, captioned = CropTally(shapes), 0
    for part in batched(range(len(index)), _AT_ONCE):
        rows = slice(part.start, part.stop)
        sizes = np.stack([np.asarray(index.column(name)[rows]) for name in ("height", "width")], axis=1)
        tally.add(sizes[(sizes > 0).all(axis=1)])
        captioned += int((index.column("caption_size")[rows] > 0).sum()) if index.caption is not None else 0
    return tally.told() | {
        "without_header": len(index) - tally.images,
        "captions": {"images": captioned, "without": len(index) - captioned, "none": "none"},
        "columns": {name: _numbers(index, name) for name in _own(index)},
    }


def _own(index: Index) -> list[str]:
    """Return the columns that were asked for when the index was made."""
    fixed = {*FIXED[index.kind], *CAPTIONED[index.kind], DOMAIN}
    return [name for name in index.columns if name not in fixed]


def _numbers(index: Index, name: str) -> dict[str, Any]:
    column = index.column(name)
    few = np.asarray(column[:: max(1, len(index) // _AT_ONCE)], dtype=np.float64)
    known = few[~np.isnan(few)]
    spread = [float(found) for found in np.quantile(known, [0, 0.5, 1])] if len(known) else []
    return {"spread": spread, "missing": round(1 - len(known) / len(few), 4)}
