"""The samples of a stream out of parquet shards: a block's rows, which are packed together once and kept a while."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from aligntok.data.captions import texts_of
from aligntok.data.index.tables import image_bytes, opened_table
from aligntok.data.sources.captions import MOST_READ
from aligntok.data.stream.reader import Raw, SampleReader, Span
from aligntok.errors import ShardError
from aligntok.io.files import check_size, reading

Int64s = npt.NDArray[np.int64]
_ROWS = 64  # at once in memory
_BLOCKS_HELD, _BLOCKS_KNOWN = 4, 1024
_BETWEEN = b"\xff"  # captions: a byte that no text in UTF-8 has
_CURE = "put it back as it was, or make the index anew"


class TableReader(SampleReader):
    """Reads the samples of parquet shards, row group by row group: images, and captions, are rows of two columns.

    A block's samples that are selected lie behind one another in what is kept, image and captions of each; for these
    there is twice the room that the index says, for what parts them, and what they lack of it is filled with zeros.
    """

    def _forget(self) -> None:
        super()._forget()
        self._ends = lru_cache(_BLOCKS_KNOWN)(self._ends_of)
        self._held = lru_cache(_BLOCKS_HELD)(self._packed)

    @property
    def is_slow(self) -> bool:
        """A row is not had without its row group, wherever that lies."""
        return True

    def place(self, sample: int) -> str:
        """Return shard, row group and row of a sample."""
        group, row = (int(self.index.column(name)[sample]) for name in ("row_group", "row"))
        return f"{self.index.shards.place(self.shard_of(sample))}, row {row} of row group {group}"

    def _sample(self, sample: int) -> Raw:
        (span,) = self._spans_for(sample)
        samples, ends = self._ends(self._block_of(sample))
        row = int(np.searchsorted(samples, sample))
        begin, middle, end = (int(each) for each in ends[2 * row : 2 * row + 3])
        found = self._kept(span, begin, end) if self.cache.works else self._held(span)[begin:end]
        image, texts = found[: middle - begin], found[middle - begin :].rstrip(b"\0").split(_BETWEEN)
        return Raw(image, [text.decode() for text in texts] if self.captioned else [])

    def _block_of(self, sample: int) -> int:
        return int(self.selection.blocks.of(np.array([sample]))[0])

    def _ends_of(self, block: int) -> tuple[Int64s, Int64s]:
        """Return the samples of a block that are selected, (n,), and where an image and captions end, (2 n + 1,)."""
        samples, _ = self.selection.members(np.array([block]))
        sizes = np.zeros((len(samples), 2), dtype=np.int64)
        sizes[:, 0] = self.index.column("size")[samples]
        if self.captioned:
            sizes[:, 1] = 2 * self.index.column("caption_size")[samples].astype(np.int64)
        return samples, np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes.ravel())])

    def _spans_for(self, sample: int) -> list[Span]:
        _, ends = self._ends(self._block_of(sample))
        return [Span(self._block_of(sample), 0, int(ends[-1]))]

    def _shard_of(self, span: Span) -> int:
        return self.shard_of(int(self.selection.blocks.ranges(np.array([span.shard]))[0][0]))

    def _key(self, span: Span) -> str:
        shard = self._shard_of(span)
        whose = self.index.shards.place(shard), *self.index.shards.listed(shard)
        return f"{whose} {self.selection.digest} {self.captioned} {span}"

    def _fetch(self, span: Span) -> bytes:
        return self._packed(span)

    def _packed(self, span: Span) -> bytes:
        """Return what is kept of a block, which a span calls its shard. Raises ShardError."""
        samples, ends = self._ends(span.shard)
        shard, shards = self.shard_of(int(samples[0])), self.index.shards
        where, pieces = shards.place(shard), []
        with reading(where, ShardError, _CURE):
            check_size(int(np.diff(ends)[1::2].max(initial=0)) // 2, MOST_READ)  # of captions, filled up to twice that
            for found, sizes in zip(self._rows(shard, samples), np.diff(ends).reshape(-1, 2).tolist(), strict=True):
                image, texts = found
                if len(image) != sizes[0] or 2 * sum(map(len, texts)) > sizes[1]:
                    raise ValueError("a row is not as it was indexed")
                pieces += [image, _BETWEEN.join(texts).ljust(sizes[1], b"\0")]
        return b"".join(pieces)

    def _rows(self, shard: int, samples: Int64s) -> Iterator[tuple[bytes, list[bytes]]]:
        """Yield image and captions of some samples of a shard, in their order."""
        shards = self.index.shards
        groups, rows = (self.index.column(name)[samples].astype(np.int64) for name in ("row_group", "row"))
        with opened_table(self.files, shards.place(shard), shards.listed(shard)) as (table, image):
            columns = [image, *([self.index.caption] if self.captioned else [])]
            for group in np.unique(groups).tolist():
                wanted, first = set(rows[groups == group].tolist()), 0
                for batch in table.iter_batches(_ROWS, row_groups=[group], columns=columns):
                    here = sorted(wanted & set(range(first, first + len(batch))))
                    part = batch.take([row - first for row in here])
                    texts = part.column(self.index.caption).to_pylist() if self.captioned else [""] * len(part)
                    for content, text in zip(image_bytes(part.column(image)), texts, strict=True):
                        yield content or b"", [each.encode() for each in texts_of(text)]
                    first += len(batch)
                    if first > max(wanted):
                        break
