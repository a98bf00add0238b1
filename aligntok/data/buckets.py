"""Aspect-ratio buckets: which shape each image is cropped to, and which bucket each optimiser step takes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from aligntok.data.sources.base import ImageSource
from aligntok.data.transforms import parse_image_size, read_upright_size
from aligntok.distributed.job import batched, progress_bar
from aligntok.errors import ConfigError, ImageError
from aligntok.rng import rng

#: Index of each image's bucket.
BucketIndices: TypeAlias = npt.NDArray[np.uint8]
#: In place of a bucket: the image's header cannot be read.
UNREADABLE = 255
_THREADS, _CHUNK = 16, 256


class AspectBuckets:
    """The shapes that images may be cropped to: one, or several to choose from by aspect ratio.

    `image_size` is a side, a pair (H, W), or a list of pairs; `sizes` are the pairs. Raises ConfigError for anything
    else, for a pair given twice, and for more than 254 pairs.
    """

    def __init__(self, image_size: int | Sequence[int] | Sequence[Sequence[int]]) -> None:
        given: Any = image_size
        several = isinstance(given, (list, tuple)) and all(isinstance(size, (list, tuple)) for size in given)
        self.sizes = tuple(parse_image_size(size) for size in (given if several else [given]))
        if not 0 < len(self.sizes) < UNREADABLE or len(set(self.sizes)) < len(self.sizes):
            raise ConfigError(
                f"image_size={image_size!r}: give one to {UNREADABLE - 1} different (height, width) pairs"
            )
        self._log_ratios = [math.log(height / width) for height, width in self.sizes]

    def __len__(self) -> int:
        return len(self.sizes)

    def nearest(self, height: int, width: int) -> int:
        """Return the bucket whose log aspect ratio is nearest; the first of those that are equally near."""
        wanted = math.log(height / width)
        # Rounded, so that mirrored ratios (4:5 and 5:4 for a square) tie in spite of floating point.
        return min(range(len(self)), key=lambda b: round(abs(self._log_ratios[b] - wanted), 9))


def assign_buckets(
    source: ImageSource, buckets: AspectBuckets, indices: Sequence[int] | None = None, progress: bool = True
) -> BucketIndices:
    """Return the bucket of each image of `indices` (None: all), UNREADABLE where the header cannot be read.

    Reads headers with a pool of threads, and with `progress` shows how far it is on stderr after the first seconds.
    """
    indices = range(len(source)) if indices is None else indices

    def assign(places: Sequence[int]) -> bytes:
        return bytes(_assign(source, buckets, index) for index in places)

    found = bytearray()
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        progress_bar(len(indices), "reading image sizes", "image", progress) as bar,
    ):
        for chunk in pool.map(assign, batched(indices, _CHUNK)):
            found += chunk
            bar.update(len(chunk))
    return np.frombuffer(found, dtype=np.uint8)


def _assign(source: ImageSource, buckets: AspectBuckets, index: int) -> int:
    try:
        return buckets.nearest(*read_upright_size(source, index))
    except ImageError:  # reading the image will say what is wrong, and count it
        return UNREADABLE


def place_unreadable(found: BucketIndices) -> BucketIndices:
    """Put unreadable images into the first bucket that has a readable one, which can take their place in a batch."""
    used = found[found != UNREADABLE]
    return np.where(found == UNREADABLE, used.min() if len(used) else 0, found).astype(np.uint8)


def batches_in_buckets(buckets: BucketIndices, batch_size: int) -> Iterator[list[int]]:
    """Yield every image once, in order, in batches of one bucket each; a bucket's last batch may be smaller."""
    for bucket in np.unique(buckets):
        members = np.flatnonzero(buckets == bucket).tolist()
        yield from batched(members, batch_size)


class BucketSchedule:
    """Which bucket each optimiser step takes, and the how-manieth of that bucket it is, from (seed, step) alone.

    A bucket of n images is an endless stream of passes over them, cut into batches of B. A step belongs to the epoch
    in which its first image's pass lies, so bucket b has ``ceil((e + 1) * n / B) - ceil(e * n / B)`` steps in epoch e:
    in proportion to its images, exactly, over any number of epochs. What its last batch of an epoch lacks is taken
    from its own next pass, which then goes on from there: nothing is dropped and nothing comes twice in a pass.
    Within an epoch the buckets come in a shuffled order (without `shuffle`, one after the other).

    counts: images of each bucket, 0 for those without. Any step is found without the steps before it.
    """

    def __init__(self, counts: Sequence[int], batch_size: int, seed: int = 0, shuffle: bool = True) -> None:
        self.counts = [int(count) for count in counts]
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._nth: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def first_step(self, epoch: int) -> int:
        """Return the first step of an epoch."""
        return sum(self._steps_before(epoch))

    def at(self, step: int) -> tuple[int, int]:
        """Return the bucket of a step, and how many steps of that bucket came before it."""
        latest = step * self.batch_size // sum(self.counts) + 1  # begins after `step`: no epoch has fewer steps
        epoch = bisect_right(range(latest + 1), step, key=self.first_step) - 1
        if epoch != self._epoch:
            self._lay_out(epoch)
        place = step - self.first_step(epoch)
        return int(self._order[place]), int(self._nth[place])

    def _lay_out(self, epoch: int) -> None:
        before, after = self._steps_before(epoch), self._steps_before(epoch + 1)
        steps = np.subtract(after, before)
        order = np.repeat(np.arange(len(steps)), steps)
        if self.shuffle:
            rng("buckets", self.seed, epoch).shuffle(order)
        nth = np.empty(len(order), dtype=np.int64)
        for bucket, first in enumerate(before):
            nth[order == bucket] = first + np.arange(steps[bucket])
        self._epoch, self._order, self._nth = epoch, order, nth

    def _steps_before(self, epoch: int) -> list[int]:
        return [-(-epoch * count // self.batch_size) for count in self.counts]
