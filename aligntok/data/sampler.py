"""Which images a step sees. Everything follows from (seed, step): not from processes, workers or interruptions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from aligntok.data.buckets import BucketIndices, BucketSchedule
from aligntok.errors import ConfigError, at_least
from aligntok.rng import rng


class SampleIndex(NamedTuple):
    """One image of a run: which one, and the how-manieth sample of the whole run it is (which seeds its crop)."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    sample_number: int


def evenly_spaced(length: int, wanted: int) -> list[int]:
    """Return `wanted` places spread over range(length), or all of them: data sets are sorted by class."""
    number = min(wanted, length)
    return [i * length // number for i in range(number)]


def epoch_order(dataset_len: int, seed: int, epoch: int, bucket: int = 0) -> npt.NDArray[np.int64]:
    """Return the order in which a pass visits the images of a bucket: a permutation of range(dataset_len)."""
    return rng("order", seed, epoch, bucket).permutation(dataset_len)


class GlobalBatchSampler(Sampler[list[SampleIndex]]):
    """Batch sampler that walks one endless sequence of samples, cut into global batches.

    Sample n = step * global_batch_size + position is image ``epoch_order(n // len)[n % len]``: every epoch visits
    each image once, and an epoch may end inside a batch, so nothing is dropped and a data set may be smaller than the
    batch. Micro-step m of rank r takes positions (m * world_size + r) * per_process + i, so the union over ranks and
    micro-steps is the same global batch whatever the split. Yields one list of `per_process` requests a micro-step:
    an optimiser step takes `accumulation` of them.

    With `buckets`, the bucket of each image, every global batch is within one bucket; each bucket then has such a
    sequence of its own, and :class:`aligntok.data.buckets.BucketSchedule` says whose turn it is.

    `start_step` is where to go on after an interruption (settable until iteration starts); `num_steps` the number of
    optimiser steps of the whole run, counted from 0 and not from `start_step` (None: endless). Without `shuffle` the
    images come in their own order, bucket by bucket. Raises ConfigError when the global batch cannot be split evenly,
    or an argument is out of range.
    """

    def __init__(
        self,
        dataset_len: int,
        global_batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        start_step: int = 0,
        shuffle: bool = True,
        num_steps: int | None = None,
        buckets: BucketIndices | None = None,
    ) -> None:
        at_least(1, dataset_len=dataset_len, world_size=world_size, accumulation=accumulation)
        if not 0 <= rank < world_size or start_step < 0 or seed < 0:
            raise ConfigError(
                f"GlobalBatchSampler: rank {rank} must lie in [0, {world_size}), "
                f"start_step {start_step} and seed {seed} must not be negative"
            )
        if buckets is not None and len(buckets) != dataset_len:
            raise ConfigError(f"GlobalBatchSampler: buckets of {len(buckets)} images for a data set of {dataset_len}")
        self.per_process = per_process_batch(global_batch_size, world_size, accumulation)
        self.dataset_len = dataset_len
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.accumulation = accumulation
        self.start_step = start_step
        self.shuffle = shuffle
        self.num_steps = num_steps
        self._members = _members(buckets, dataset_len)
        self._schedule = BucketSchedule([len(m) for m in self._members], global_batch_size, seed, shuffle)
        self._orders: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        step = self.start_step
        while self.num_steps is None or step < self.num_steps:
            for micro_step in range(self.accumulation):
                yield self.batch(step, micro_step)
            step += 1

    def __len__(self) -> int:
        """Return the number of micro-steps still to come. Raises TypeError when the sampler is endless."""
        if self.num_steps is None:
            raise TypeError("an endless GlobalBatchSampler has no length; give num_steps")
        return max(0, self.num_steps - self.start_step) * self.accumulation

    def batch(self, step: int, micro_step: int = 0) -> list[SampleIndex]:
        """Return what this rank sees in one micro-step of one optimiser step."""
        share = micro_step * self.world_size + self.rank
        first = share * self.per_process
        bucket, nth = self._schedule.at(step)
        return [
            SampleIndex(
                self._index(bucket, nth * self.global_batch_size + position), step * self.global_batch_size + position
            )
            for position in range(first, first + self.per_process)
        ]

    def _index(self, bucket: int, position: int) -> int:
        epoch, place = divmod(position, len(self._members[bucket]))
        if not self.shuffle:
            return int(self._members[bucket][place])
        if bucket not in self._orders or self._orders[bucket][0] != epoch:  # half a second for ten million images
            order = epoch_order(len(self._members[bucket]), self.seed, epoch, bucket)
            self._orders[bucket] = (epoch, self._members[bucket][order])
        return int(self._orders[bucket][1][place])


def _members(buckets: BucketIndices | None, dataset_len: int) -> list[npt.NDArray[np.int64]]:
    """Return the images of each bucket; all of them, without buckets."""
    if buckets is None:
        return [np.arange(dataset_len)]
    return [np.flatnonzero(buckets == bucket) for bucket in range(int(buckets.max()) + 1)]


def per_process_batch(global_batch_size: int, world_size: int, accumulation: int = 1) -> int:
    """Return the images of one process in one micro-step. Raises ConfigError when the split is not even."""
    at_least(1, global_batch_size=global_batch_size)
    shares = world_size * accumulation
    if global_batch_size % shares:
        lower = global_batch_size // shares * shares
        works = " or ".join(str(size) for size in (lower, lower + shares) if size)
        raise ConfigError(
            f"global_batch_size {global_batch_size} is not divisible by {shares} "
            f"({world_size} processes x {accumulation} accumulation steps); {works} would work"
        )
    return global_batch_size // shares
