"""The data set of a stream: samples of an index of shards, read as they are needed, wherever the shards lie."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch.utils.data import Dataset, get_worker_info

from aligntok.data.buckets import AspectBuckets, crop_to_tensor, draft_side
from aligntok.data.captions import AUTO, drawn
from aligntok.data.index import Index
from aligntok.data.listing import Listing, hashes
from aligntok.data.remote import RemoteFiles, local_path
from aligntok.data.sampler import SampleIndex
from aligntok.data.settings import MAX_ASPECT_RATIO, IndexedRatio, RemoteSettings, Shapes, Wanted
from aligntok.data.sources.base import say_once
from aligntok.data.sources.held_out import check_apart
from aligntok.data.stream.cache import BlockCache
from aligntok.data.stream.order import WINDOW, StreamSampler
from aligntok.data.stream.reader import Raw, SampleReader, TarReader
from aligntok.data.stream.selection import Selection, select
from aligntok.data.stream.tables import TableReader
from aligntok.data.transforms import open_image
from aligntok.errors import AlignTokError, ConfigError, DataError, ImageError, ShardError, unknown
from aligntok.rng import rng
from aligntok.settings import AboveZero, Count, Positive, Share, Width, read

logger = logging.getLogger("aligntok.data")
Threads = Annotated[int, Field(ge=1, le=256)]
#: Broken samples of which there may be so many, whatever their share.
_ALWAYS_ALLOWED = 16
_TRIES = 16
_MOST_WORKERS = 1024
_NAMED = 100  # broken samples that one process tells of


class StreamDataset(Dataset[dict[str, Any]]):
    """The samples of an index of shards that pass a condition; see :class:`aligntok.data.settings.Wanted`.

    An item is as that of :class:`aligntok.data.images.ImageDataset`: ``dict(images=float32 (3, H, W) in [-1, 1],
    label=-1, index=number in the index)``, cropped, mirrored and drawn alike, and with `caption` ("auto", or where the
    index has them) ``caption``, a text, one of several drawn as there, of those that are not empty. A
    :class:`SampleIndex` asks for a number in the index, as the order that :meth:`batches` gives has it; a plain integer
    for a place among those that pass.

    A sample that cannot be read is replaced by another one of its bucket, which (seed, sample number, try) name; more
    than `max_unreadable` of those read so far, and more than 16, are an error. So is a shard that stays away, unless
    `on_missing` is "skip": then its samples are replaced, too, and counted. Shards far away are read by whole blocks,
    with `threads` requests at once, which stay in the folder `cache` (None: one in the temporary folder), `cache_gb` of
    them at most; `remote` are keywords of :class:`aligntok.data.settings.RemoteSettings`. `window` blocks are mixed.

    Raises DataError for an index or a selection that is damaged; ConfigError for a condition that cannot be evaluated,
    or that nothing passes.
    """

    #: Whether it can be read now says nothing of the next minute.
    may_stay_away = True

    def __init__(
        self,
        index: str | os.PathLike[str],
        train: bool = True,
        where: str | None = None,
        blocked_domains: str | None = None,
        image_size: Shapes = 256,
        hflip: bool = True,
        seed: Count = 0,
        short_side: Width | None = None,
        max_aspect_ratio: IndexedRatio = MAX_ASPECT_RATIO,
        caption: str | None = None,
        fraction: float | None = None,
        held_out: bool = False,
        max_unreadable: Share = 0.01,
        on_missing: Literal["stop", "skip"] = "stop",
        cache: str | None = None,
        cache_gb: AboveZero = 16.0,
        threads: Threads = 8,
        remote: dict[str, Any] | None = None,
        window: Positive = WINDOW,
    ) -> None:
        self.shapes = AspectBuckets(image_size)
        self.shapes.check_short_side(short_side)
        self.train, self.hflip, self.seed, self.short_side = train, hflip, seed, short_side
        self.max_aspect_ratio, self.max_unreadable, self.on_missing = max_aspect_ratio, max_unreadable, on_missing
        self.window, self.captioned = window, caption is not None
        self.index = Index.open(index)
        if caption is not None and caption not in (AUTO, self.index.caption):
            raise ConfigError(f"{self.index.folder}: {unknown('place of captions', caption, _known(self.index))}")
        asked: dict[str, Any] = {
            "where": where,
            "blocked_domains": blocked_domains,
            "image_size": image_size,
            "held_out": held_out,
        }
        asked |= {"max_aspect_ratio": max_aspect_ratio, "captioned": self.captioned, "fraction": fraction}
        self.selection = select(self.index, read(Wanted, asked, "data"))
        self.reader: SampleReader = {"tar": TarReader, "parquet": TableReader}[self.index.kind](
            self.selection,
            self.captioned,
            RemoteFiles(read(RemoteSettings, remote or {}, "data.remote"), gives_up=on_missing == "skip"),
            BlockCache(cache, int(cache_gb * 1e9)),
            threads,
            on_missing == "skip",
        )
        #: Which of ``shapes.sizes`` each sample is cropped to, by its place among those that pass; None for one.
        self.buckets: Any = _Buckets(self.selection) if len(self.shapes) > 1 else None
        #: Of no sample is a class known.
        self.class_names, self.labels = (), np.full(1, -1, dtype=np.int32)
        self._sampler: StreamSampler | None = None
        # How many each process has read, found broken and missed: a row each, so that none needs a lock.
        self._counts = torch.zeros(_MOST_WORKERS + 1, 3, dtype=torch.int64).share_memory_()
        self._told = 0
        self._say_how_many()

    def __len__(self) -> int:
        return len(self.selection)

    @property
    def num_unreadable(self) -> int:
        """How often a sample was replaced so far, in this process and its workers."""
        return int(self._counts[:, 1:].sum())

    @cached_property
    def listing(self) -> Listing:
        """What the stream is made of: the shards as the index lists them, and the selection."""
        shards, nothing = self.index.shards, np.zeros(0, dtype=np.int64)
        names = np.append(hashes(shards.paths), hashes(["the selection"]))
        marks = np.append(hashes(shards.tags), hashes([self.selection.digest]))
        sizes, labels = np.append(shards.sizes, len(self)), np.full(len(names), -1, dtype=np.int64)
        return Listing(names, sizes, marks, labels, nothing, nothing, (), True, unit="shards and filters")

    def batches(self, global_batch_size: int, seed: int = 0, *split: Any, **how: Any) -> StreamSampler:
        """Return the sampler of a training, whose arguments are those of :class:`StreamSampler`."""
        self._sampler = StreamSampler(self.selection, global_batch_size, seed, *split, window=self.window, **how)
        return self._sampler

    @property
    def placed(self) -> _Shards:
        """What says where the samples lie."""
        return _Shards(self.index)

    def check_apart(self, val: Any, cure: str) -> None:
        """Raise DataError, which ends with a `cure`, when samples are measured on that are also trained on.

        val: another stream, whose samples are compared one by one; or a data set of images, its shards with these.
        """
        if not isinstance(val, StreamDataset):
            check_apart(self.placed, val.placed, cure)
        elif any(_meet(self.selection, val.selection, *shards) for shards in _shared(self.index, val.index)):
            raise DataError(
                f"samples of {val.index.folder} are measured on that are also trained on: what is measured would be "
                f"what was learned by heart; {cure}"
            )

    def __getitem__(self, request: SampleIndex | int) -> dict[str, Any]:
        return self.__getitems__([request])[0]

    def __getitems__(self, requests: Sequence[SampleIndex | int]) -> list[dict[str, Any]]:
        """Return the items of a batch, which torch's loader asks for at once: they are fetched together."""
        asked = [
            request if isinstance(request, SampleIndex) else SampleIndex(self._at(request), request)
            for request in requests
        ]
        found = self.reader.read([each.index for each in asked])
        if self._sampler is not None and isinstance(requests[0], SampleIndex):
            self.reader.bring([each.index for each in self._sampler.later(requests[0])])
        items = [self._item(*each) for each in zip(asked, found, strict=True)]
        if self.captioned:
            for item, request in zip(items, requests, strict=True):
                sample = request.sample_number if self.train and isinstance(request, SampleIndex) else None
                item["caption"] = item["caption"][drawn(self.seed, sample, len(item["caption"]))]
        return items

    def _at(self, place: int) -> int:
        return self.selection.nth(range(len(self))[place])

    def _item(self, asked: SampleIndex, found: Raw | AlignTokError) -> dict[str, Any]:
        """Return the item of a sample, with all its captions, or of another one that takes its place."""
        sample, bucket = asked.index, int(self.selection.buckets[asked.index])
        for again in range(_TRIES):
            try:
                return self._made(sample, bucket, asked.sample_number, found)
            except ImageError as error:
                self._note(1, sample, error)
            except ShardError as error:
                if self.on_missing == "stop":
                    raise
                self._note(2, sample, error)
            other = rng("instead", self.seed, asked.sample_number, again).integers(self.selection.totals[bucket])
            sample = self.selection.nth(int(other), bucket)
            (found,) = self.reader.read([sample])
        raise DataError(f"{self.index.folder}: {_TRIES} samples in a row cannot be read; they are named above")

    def _made(self, sample: int, bucket: int, number: int, found: Raw | AlignTokError) -> dict[str, Any]:
        self._counts[self._row(), 0] += 1
        if isinstance(found, AlignTokError):
            raise found
        data, captions = found
        size, own = self.shapes.sizes[bucket], rng("sample", self.seed, number) if self.train else None
        draft = draft_side(size, self.short_side) if self.train else None
        image = open_image(data, draft_side=draft, max_aspect_ratio=self.max_aspect_ratio)
        item = {"images": crop_to_tensor(image, size, self.short_side, self.hflip, own), "label": -1, "index": sample}
        return {**item, "caption": captions} if self.captioned else item

    def _note(self, kind: int, sample: int, error: AlignTokError) -> None:
        """Count a sample that is replaced, and say so. Raises DataError for too many broken ones."""
        self._counts[self._row(), kind] += 1
        self._told += 1
        if self._told <= _NAMED:
            end = "; further ones are counted, and not named" * (self._told == _NAMED)
            logger.warning("%s: cannot read %s, taking another sample%s", self.reader.place(sample), error, end)
        read, broken, _ = self._counts.sum(dim=0).tolist()
        if kind == 1 and broken > max(_ALWAYS_ALLOWED, self.max_unreadable * read):
            raise DataError(
                f"{self.index.folder}: {broken:,} of {read:,} samples read so far are broken, the latest in "
                f"{self.reader.place(sample)} ({error}); {self.max_unreadable:.3g} of them are "
                "allowed: make the index anew, or raise `max_unreadable`"
            ) from error

    def _row(self) -> int:
        worker = get_worker_info()
        return 0 if worker is None else 1 + worker.id

    def _say_how_many(self) -> None:
        passed = ", ".join(f"{text}: {number:,}" for text, number in self.selection.passed.items())
        shapes = zip(self.shapes.sizes, self.selection.totals.tolist(), strict=True)
        of_each = ", ".join(f"{number:,} of {height} x {width}" for (height, width), number in shapes)
        say_once(f"{self.index.folder}: {len(self):,} of {len(self.index):,} samples are taken ({passed}): {of_each}")


class _Shards:
    """The shards of an index, as those of a source of images are told."""

    root = ""

    def __init__(self, index: Index) -> None:
        self.where, self._shards = str(index.folder), index.shards

    def places(self) -> Iterator[str]:
        """Yield their absolute paths, links followed, or their URLs, in the index's order."""
        for place in map(self._shards.place, range(len(self._shards))):
            path = local_path(place)
            yield place if path is None else os.path.realpath(path)


def _shared(one: Index, other: Index) -> Iterator[tuple[int, int]]:
    """Yield the numbers, in either index, of the shards that two have: of the same content, or at the same place."""
    first, second = (
        each.shards.paths if one.digest == other.digest else _Shards(each).places() for each in (one, other)
    )
    numbers = {name: number for number, name in enumerate(second)}
    yield from ((number, numbers[name]) for number, name in enumerate(first) if name in numbers)


def _meet(one: Selection, other: Selection, number: int, others: int) -> bool:
    """Tell whether two selections have a sample of a shard in common, which is so numbered in their indexes."""
    taken = []
    for selection, shard in ((one, number), (other, others)):
        begin, end = selection.index.shards.first[[shard, shard + 1]]
        taken.append(selection.buckets[begin:end] < len(selection.totals))
    return len(taken[0]) != len(taken[1]) or bool((taken[0] & taken[1]).any())


class _Buckets:
    """The bucket of each sample of a selection, by its place among those that pass: looked up as it is asked for."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection

    def __len__(self) -> int:
        return len(self._selection)

    def __getitem__(self, places: Any) -> npt.NDArray[np.uint8]:
        chosen = range(len(self))[places] if isinstance(places, slice) else np.atleast_1d(places)
        samples = [self._selection.nth(int(place)) for place in chosen]
        return np.asarray(self._selection.buckets[samples])


def _known(index: Index) -> list[str]:
    return [AUTO] if index.caption is None else [AUTO, index.caption]
