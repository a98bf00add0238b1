"""Images held out by their names, the same ones wherever the source lies and whatever is added to it."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from aligntok.data.sources.base import ImageSource, PackedNames, say_once
from aligntok.distributed.job import batched
from aligntok.errors import ConfigError, DataError

_THREADS, _CHUNK = 16, 256


def hold_out(source: ImageSource, fraction: float, held_out: bool) -> ImageSource:
    """Return the images of a source that are held out, about a `fraction` of them, or the others.

    An image is held out if the first 8 bytes of the SHA-256 of its :meth:`ImageSource.key` (in Unicode's form NFC) are,
    as a number, below fraction x 2^64: that of the lowest number, if none is. Images that are added move none, unless
    they change the others' keys: a shard in a folder beside or above that of all others does, and a row before others.

    Raises ConfigError unless the fraction is between 0 and 1, DataError when nothing is left to train on.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction={fraction} of the images held out; it must be above 0 and below 1")
    numbers = np.array([_number(source.key(index)) for index in range(len(source))], dtype=np.uint64)
    held = numbers < np.uint64(min(int(fraction * 2**64), 2**64 - 1))
    if not held.any():
        held[numbers.argmin()] = True
    if held.all():
        raise DataError(
            f"{source.where}: all {len(source):,} images are held out by fraction={fraction:g}, none is left to train "
            "on; lower it, or give more images"
        )
    if not held_out:
        say_once(f"{source.where}: {len(source) - held.sum():,} train, {held.sum():,} held out by name")
    return PartSource(source, np.flatnonzero(held == held_out))


def _number(key: str) -> int:
    normal = unicodedata.normalize("NFC", key).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(normal).digest()[:8], "big")


class PartSource(ImageSource):
    """Some images of a source, in its order; classes keep their numbers, and images their captions."""

    def __init__(self, whole: ImageSource, indices: npt.NDArray[np.int64]) -> None:
        super().__init__(whole.where, _PartNames(whole.names, indices), whole.labels[indices], whole.class_names)
        self.whole, self.indices, self.root, self.label = whole, indices, whole.root, whole.label
        self.captions = None if whole.captions is None else whole.captions.of(indices)
        self.caption = whole.caption

    def places(self) -> Iterable[str]:
        """Return what the images are read from, as the whole source does: of shards and tables, all of it."""
        places = self.whole.places()
        return compress(places, np.isin(np.arange(len(self.whole)), self.indices)) if self.root else places

    def key(self, index: int) -> str:
        """Return the key that the image has in the whole source."""
        return self.whole.key(int(self.indices[index]))

    def marks(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], bool]:
        """Return those that the images have in the whole source."""
        sizes, marks, by_content = self.whole.marks()
        return sizes[self.indices], marks[self.indices], by_content

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of one image. Raises as the whole source does."""
        return self.whole.read(int(self.indices[index]))

    def open(self, index: int) -> BinaryIO:
        """Open one encoded image. Raises as the whole source does."""
        return self.whole.open(int(self.indices[index]))


class _PartNames(PackedNames):
    """Some of other names."""

    def __init__(self, whole: PackedNames, indices: npt.NDArray[np.int64]) -> None:
        self._whole, self._indices = whole, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> str:
        return self._whole[int(self._indices[index])]

    def digest(self) -> str:
        """Return a fingerprint of the list and of what it is a part of."""
        return hashlib.sha256(self._whole.digest().encode() + self._indices.tobytes()).hexdigest()


class Placed(Protocol):
    """What lies somewhere: a source of images, or the shards of an index."""

    @property
    def where(self) -> str: ...

    @property
    def root(self) -> str: ...

    def places(self) -> Iterable[str]: ...


def check_apart(train: Placed, val: Placed, cure: str) -> None:
    """Raise DataError, which ends with a `cure`, when images are trained on and measured on alike.

    They are told by where they lie, not by what they show: files of folders and zips one by one, shards and tables by
    the file, data sets of the hub by the split.
    """
    measured = {*_followed(val)}
    if (
        any(place in measured for place in _followed(train))
        or measured & _wholes(train)
        or {*train.places()} & _wholes(val)
    ):
        raise DataError(
            f"images of {val.where} are measured on that are also trained on, in {train.where}: what is measured would "
            f"be what was learned by heart; {cure}"
        )


def _followed(source: Placed) -> Iterator[str]:
    """Yield the places of a source, those of files that are links by what they lead to: either set may be of links."""

    def follow(part: list[str]) -> list[str]:
        return [os.path.realpath(place) if os.path.islink(place) else place for place in part]

    places = [*source.places()]
    if not source.root:
        yield from places
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(follow, batched(places, _CHUNK)):
            yield from found


def _wholes(source: Placed) -> set[str]:
    """Return the splits at the hub of which a source is a part, such as train of train[:95%]."""
    if source.root:
        return set()
    parts = (place.partition("[") for place in source.places() if place.startswith("hf://"))
    return {whole for whole, bracket, _ in parts if bracket}
