"""In which order a stream's samples come: a function of (seed, epoch, number), with no list of them anywhere.

The blocks of an index come in the order that a keyed permutation of their numbers gives, and are taken by windows;
within a window the samples of a bucket are shuffled. Every bucket sees the same order of blocks: what is fetched for
one is there for the others.

A batch is cut into lanes, and each lane of a window draws from neighbouring blocks of it: so a process, whose share of
a batch is a range of it, reads a share of the blocks, and the batches are the same for any number of processes.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from aligntok.data.sampler import Forgetful, SampleIndex, SharedBatchSampler
from aligntok.data.stream.selection import Selection
from aligntok.distributed.job import batched
from aligntok.errors import DataError
from aligntok.rng import rng

Int64s = npt.NDArray[np.int64]
#: Blocks that are mixed with one another.
WINDOW = 256
#: Parts of a batch that draw from blocks of their own, at most.
LANES = 64
_ROUNDS, _MIX = 6, np.uint64(0xD6E8FEB86659FD93)
_AT_ONCE = 1 << 20  # blocks, of which an epoch's order is computed
_WINDOWS_KEPT = 64


def permuted(numbers: Int64s, among: int, keys: npt.NDArray[np.uint64]) -> Int64s:
    """Return where a permutation of range(among) sends each of some numbers, (n,); `keys` (rounds,) choose which.

    A Feistel network over the next power of two; who leaves the range goes through it until he is back
    (Black and Rogaway 2002, "cycle walking").
    """
    right = max(1, (among - 1).bit_length()) // 2
    left = max(1, (among - 1).bit_length()) - right
    halves = np.uint64((1 << left) - 1), np.uint64((1 << right) - 1)
    found = np.asarray(numbers, dtype=np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        value = found[outside]
        high, low = value >> np.uint64(right), value & halves[1]
        for i, key in enumerate(keys):
            if i % 2:
                low = low ^ (_mixed(high, key) & halves[1])
            else:
                high = high ^ (_mixed(low, key) & halves[0])
        found[outside] = value = (high << np.uint64(right)) | low
        outside = outside[value >= among]
    return found.astype(np.int64)


def _mixed(value: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    """Return 64 bits that each depend on all of `value` and `key`: two rounds of multiply and shift."""
    mixed = (value ^ key) * _MIX
    mixed ^= mixed >> np.uint64(32)
    mixed *= _MIX
    return mixed ^ (mixed >> np.uint64(32))


class StreamOrder(Forgetful):
    """The order of a selection's samples, for batches of `batch_size` over all processes.

    Each bucket is an endless sequence: position p is in epoch ``p // n`` of the n samples of that bucket, each of which
    comes once an epoch. Small, but for an epoch's table of windows (8 bytes for each bucket of each).
    """

    def __init__(self, selection: Selection, seed: int, batch_size: int, window: int = WINDOW) -> None:
        self.selection, self.seed, self.batch_size, self.window = selection, seed, batch_size, window
        self.lanes = math.gcd(batch_size, LANES)
        self._forget()

    def _forget(self) -> None:
        self._windows = lru_cache(2)(self._count_windows)
        self._members = lru_cache(4)(self._gather)
        self._tables = lru_cache(_WINDOWS_KEPT)(self._shuffle)

    def samples(self, bucket: int, first: int, number: int) -> Int64s:
        """Return the samples at `number` positions of a bucket's sequence, from `first` on: numbers in the index."""
        found: list[Int64s] = []
        of_bucket = int(self.selection.totals[bucket])
        while number > 0:
            epoch, place = divmod(first, of_bucket)
            ends = self._windows(epoch)[:, bucket]
            window = int(np.searchsorted(ends, place, side="right")) - 1
            begin = place - int(ends[window])
            part = self._tables(epoch, bucket, window)[begin : begin + number]
            found.append(part)
            first, number = first + len(part), number - len(part)
        return np.concatenate(found)

    def blocks(self, epoch: int, places: Int64s) -> Int64s:
        """Return the blocks at some places of an epoch's order."""
        keys = rng("blocks", self.seed, epoch).integers(2**64, size=_ROUNDS, dtype=np.uint64)
        return permuted(places, self.selection.blocks.number, keys)

    def _count_windows(self, epoch: int) -> Int64s:
        """Return how many samples of each bucket come before each window of an epoch, (windows + 1, buckets)."""
        number, counts = self.selection.blocks.number, self.selection.counts
        windows = -(-number // self.window)
        ends = np.zeros((windows + 1, counts.shape[1]), dtype=np.int64)
        done = 1
        for part in batched(range(number), max(1, _AT_ONCE // self.window) * self.window):
            found = counts[self.blocks(epoch, np.array(part))]
            rows = np.add.reduceat(found, np.arange(0, len(found), self.window), axis=0, dtype=np.int64)
            ends[done : done + len(rows)] = rows
            done += len(rows)
        return np.cumsum(ends, axis=0)

    def _gather(self, epoch: int, window: int) -> tuple[Int64s, npt.NDArray[np.uint8]]:
        """Return the samples of a window that are selected, block after block, and the bucket of each."""
        first = window * self.window
        places = np.arange(first, min(first + self.window, self.selection.blocks.number))
        return self.selection.members(self.blocks(epoch, places))

    def _shuffle(self, epoch: int, bucket: int, window: int) -> Int64s:
        """Return the samples of a bucket in a window, in their order."""
        samples, buckets = self._members(epoch, window)
        samples, ends = samples[buckets == bucket], self._windows(epoch)[:, bucket]
        if len(samples) != ends[window + 1] - ends[window]:
            raise DataError(f"{self.selection.folder} is damaged: its files do not fit one another; remove that folder")
        first = epoch * int(self.selection.totals[bucket]) + int(ends[window])
        in_batch = (first + np.arange(len(samples))) % self.batch_size
        lanes = in_batch * self.lanes // self.batch_size
        places = np.argsort(lanes, kind="stable")  # a lane's places take neighbouring samples, in any order
        drawn = rng("window", self.seed, epoch, bucket, window).random(len(samples))
        table = np.empty(len(samples), dtype=np.int64)
        table[places] = samples[np.lexsort((drawn, lanes[places]))]
        return table


class StreamSampler(SharedBatchSampler):
    """A batch sampler over the samples of a selection, in a stream's order: requests name them by number in the index.

    The other arguments are those of :class:`SharedBatchSampler`.
    """

    def __init__(
        self, selection: Selection, global_batch_size: int, seed: int = 0, *split: Any, window: int = WINDOW, **how: Any
    ) -> None:
        super().__init__(selection.totals.tolist(), global_batch_size, seed, *split, **how)
        self.order = StreamOrder(selection, seed, global_batch_size, window)
        #: How many steps ahead blocks are fetched: about a window's.
        self.steps_ahead = max(4, -(-len(selection) * window // (selection.blocks.number * global_batch_size)))

    def later(self, request: SampleIndex) -> list[SampleIndex]:
        """Return what this rank sees in the micro-step that comes `steps_ahead` steps after that of a request."""
        step, position = divmod(request.sample_number, self.global_batch_size)
        later = step + self.steps_ahead
        if self.num_steps is not None and later >= self.num_steps:
            return []
        return self.batch(later, position // (self.world_size * self.per_process))

    def _images(self, bucket: int, first: int, number: int) -> list[int]:
        return self.order.samples(bucket, first, number).tolist()
