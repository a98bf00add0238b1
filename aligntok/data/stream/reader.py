"""The bytes of a stream's samples: ranges of shards, those far away by whole blocks, which are kept a while."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from aligntok.data.captions import texts_of
from aligntok.data.remote import RemoteFiles, local_path
from aligntok.data.sampler import Forgetful
from aligntok.data.sources.captions import captions_in
from aligntok.data.stream.cache import BlockCache
from aligntok.data.stream.selection import Selection
from aligntok.errors import AlignTokError, DataError, ImageError, ShardError, first_line

Int64s = npt.NDArray[np.int64]
T = TypeVar("T")
R = TypeVar("R")
#: Bytes between two samples that are read over: to ask anew takes as long.
_GAP = 512 << 10
#: Bytes of one request, at most, unless one sample has more.
_MOST = 64 << 20
_BLOCKS_KNOWN, _BLOCKS_AHEAD = 1024, 256


class Raw(NamedTuple):
    """A sample as it is stored: the encoded image, and its captions, none where none are asked for."""

    image: bytes
    captions: list[str]


class Span(NamedTuple):
    """What is fetched, and kept, as one: bytes `begin` to `end` of a shard, or of what is made of its rows."""

    shard: int
    begin: int
    end: int


class SampleReader(Forgetful, ABC):
    """Reads the samples of a selection. Picklable; for several threads.

    captioned: whether captions are read, too. threads: requests at once, and as many for what comes later. skips:
    whether a shard that stayed away is told in the place of its samples, and not asked for again.
    """

    def __init__(
        self,
        selection: Selection,
        captioned: bool,
        files: RemoteFiles,
        cache: BlockCache,
        threads: int,
        skips: bool = False,
    ) -> None:
        self.index, self.selection, self.captioned = selection.index, selection, captioned
        self.files, self.cache, self.threads, self.skips = files, cache, threads, skips
        self._forget()

    def _forget(self) -> None:
        """Begin without what belongs to a process."""
        self._pools: dict[tuple[int, str], ThreadPoolExecutor] = {}
        self._ahead: dict[Span, Future[None]] = {}
        self._away: dict[int, tuple[ShardError, float]] = {}  # why a shard stayed away, and when that was found

    @property
    def is_slow(self) -> bool:
        """Whether several samples are read at once, and what comes later beforehand."""
        return any(local_path(self.index.shards.place(i)) is None for i in (0, len(self.index.shards) - 1))

    @abstractmethod
    def place(self, sample: int) -> str:
        """Return where a sample lies, for messages."""

    @abstractmethod
    def _sample(self, sample: int) -> Raw:
        """Read a sample. Raises ImageError about it, ShardError about its shard."""

    @abstractmethod
    def _spans_for(self, sample: int) -> list[Span]:
        """Return what is fetched for a sample."""

    @abstractmethod
    def _fetch(self, span: Span) -> bytes:
        """Fetch it. Raises ShardError."""

    def _shard_of(self, span: Span) -> int:
        """Return the number of the shard that it is fetched from."""
        return span.shard

    @abstractmethod
    def _key(self, span: Span) -> str:
        """Return what it is kept under: other words for other bytes."""

    def read(self, samples: Iterable[int]) -> list[Raw | AlignTokError]:
        """Return image and captions of each sample; or the error that came in its place.

        ImageError is about that sample, ShardError, where such are skipped, about its shard. Else the first ShardError
        is raised, and what was not yet asked for is not.
        """
        wanted = list(samples)
        if self.is_slow and not self.cache.works:
            return self._side_by_side(self._read_or_error, wanted)
        if self.is_slow:
            spans = {span for sample in wanted for span in self._spans_for(sample)}
            missing = [span for span in spans if not self.cache.has(self._key(span), span.end - span.begin)]
            self._side_by_side(self._bring_now, missing)
        return [self._read_or_error(sample) for sample in wanted]

    def bring(self, samples: Iterable[int]) -> None:
        """Begin to fetch what some samples will need, unless much is on its way already."""
        if not self.is_slow or not self.cache.works:
            return
        self._ahead = {span: future for span, future in self._ahead.items() if not future.done()}
        for span in {span for sample in samples for span in self._spans_for(sample)}:
            if span not in self._ahead and len(self._ahead) < _BLOCKS_AHEAD:
                self._ahead[span] = self._pool("ahead").submit(self._bring, span)

    def _bring(self, span: Span) -> None:
        self.cache.bring(self._key(span), span.end - span.begin, self._fetching(span))

    def _bring_now(self, span: Span) -> None:
        """Have a span there; where shards are skipped, why it is not is told where it is read."""
        try:
            self._bring(span)
        except ShardError:
            if not self.skips:
                raise

    def _side_by_side(self, work: Callable[[T], R], of: Sequence[T]) -> list[R]:
        """Return what the work gives for each; raise what it raises first, and leave what was not begun."""
        asked = [self._pool("now").submit(work, each) for each in of]
        try:
            for done in as_completed(asked):
                done.result()
        finally:
            for each in asked:
                each.cancel()
        return [each.result() for each in asked]

    def _fetching(self, span: Span) -> Callable[[], bytes]:
        """Return what fetches a span, unless its shard was found to stay away meanwhile or, to be skipped, ever."""
        asked, shard = time.monotonic(), self._shard_of(span)

        def fetch() -> bytes:
            reason, found = self._away.get(shard, (None, 0.0))
            if reason is not None and (self.skips or found > asked):
                raise reason
            try:
                return self._fetch(span)
            except ShardError as error:
                self._away[shard] = error, time.monotonic()
                raise

        return fetch

    def shard_of(self, sample: int) -> int:
        """Return the number of a sample's shard."""
        return int(self.index.shard_of([sample])[0])

    def _pool(self, what: str) -> ThreadPoolExecutor:
        key = os.getpid(), what  # a fork has none of its parent's threads
        if key not in self._pools:
            self._pools[key] = ThreadPoolExecutor(self.threads)
        return self._pools[key]

    def _read_or_error(self, sample: int) -> Raw | AlignTokError:
        shard = self.shard_of(sample)
        try:
            if self.skips and shard in self._away:
                raise self._away[shard][0]
            return self._sample(sample)
        except ImageError as error:
            return error
        except ShardError as error:
            if not self.skips:
                raise
            self._away[shard] = error, time.monotonic()
            return error

    def _kept(self, span: Span, begin: int, end: int) -> bytes:
        """Return bytes `begin` to `end` of what a span lies in, out of the cache."""
        key, size = self._key(span), span.end - span.begin
        return self.cache.read(key, size, begin - span.begin, end - begin, self._fetching(span))


class TarReader(SampleReader):
    """Reads the samples of tar shards, each a range of bytes."""

    def _forget(self) -> None:
        super()._forget()
        self._spans = lru_cache(_BLOCKS_KNOWN)(self._spans_of)

    def place(self, sample: int) -> str:
        """Return shard and bytes of a sample."""
        where = self.index.shards.place(self.shard_of(sample))
        try:
            begins, ends = self.index.spans(np.array([sample]))
        except DataError:
            return where
        return f"{where}, bytes {begins[0]} to {ends[0]}"

    def _sample(self, sample: int) -> Raw:
        image, *caption = (self._read(sample, *where) for where in self._ranges(sample))
        return Raw(image, self._texts(sample, *caption) if caption else [])

    def _ranges(self, sample: int) -> list[tuple[int, int]]:
        """Return where image and caption begin and end in the shard."""
        of = ("", "caption_") if self.captioned else ("",)
        found = [self.index.spans(np.array([sample]), each) for each in of]
        return [(int(begins[0]), int(ends[0])) for begins, ends in found]

    def _texts(self, sample: int, content: bytes) -> list[str]:
        what, kind = self.index.caption or "", ".txt"
        if what.startswith("json:"):
            what, kind = what.removeprefix("json:"), ".json"
        try:
            texts = texts_of(captions_in(self.place(sample), kind, content, what).get(what))
        except DataError as error:
            raise ImageError(first_line(error)) from error
        if not texts:
            raise ImageError("it has no caption")
        return texts

    def _read(self, sample: int, begin: int, end: int) -> bytes:
        span = self._span_of(sample, begin, end)
        if local_path(self.index.shards.place(span.shard)) is not None or not self.cache.works:
            return self._fetching(Span(span.shard, begin, end))()
        return self._kept(span, begin, end)

    def _fetch(self, span: Span) -> bytes:
        shards = self.index.shards
        return self.files.read(shards.place(span.shard), span.begin, span.end - span.begin, shards.listed(span.shard))

    def _key(self, span: Span) -> str:
        shards = self.index.shards
        return f"{shards.place(span.shard)} {shards.listed(span.shard)} {span.begin} {span.end}"

    def _spans_for(self, sample: int) -> list[Span]:
        return [self._span_of(sample, *where) for where in self._ranges(sample)]

    def _span_of(self, sample: int, begin: int, end: int) -> Span:
        """Return the range that a range of a sample is fetched with."""
        shard = self.shard_of(sample)
        begins, ends = self._spans(int(self.selection.blocks.of(np.array([sample]))[0]))
        place = int(np.searchsorted(begins, begin, side="right")) - 1
        if place < 0 or end > ends[place]:  # of a sample that is not selected
            return Span(shard, begin, end)
        return Span(shard, int(begins[place]), int(ends[place]))

    def _spans_of(self, block: int) -> tuple[Int64s, Int64s]:
        """Return begins and ends of what is asked for at once of a block's samples that are selected."""
        samples, _ = self.selection.members(np.array([block]))
        found = [self.index.spans(samples, each) for each in (("", "caption_") if self.captioned else ("",))]
        begins, ends = (np.concatenate(each) for each in zip(*found, strict=True))
        return joined(begins, ends)


def joined(begins: Int64s, ends: Int64s, gap: int = _GAP, most: int = _MOST) -> tuple[Int64s, Int64s]:
    """Return ranges that cover some ranges, (n,): those that are at most `gap` apart become one, of `most` bytes."""
    spans: list[list[int]] = []
    order = np.argsort(begins, kind="stable")
    for begin, end in zip(begins[order].tolist(), ends[order].tolist(), strict=True):
        if spans and begin - spans[-1][1] <= gap and max(end, spans[-1][1]) - spans[-1][0] <= most:
            spans[-1][1] = max(end, spans[-1][1])
        else:
            spans.append([begin, end])
    both = np.array(spans, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]
