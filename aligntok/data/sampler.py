"""Which images a step sees. Everything follows from (seed, step): not from processes, workers or interruptions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from aligntok.distributed.job import batched
from aligntok.errors import ConfigError, at_least
from aligntok.rng import rng

#: Index of each image's bucket: which of several shapes it is cropped to.
BucketIndices: TypeAlias = npt.NDArray[np.uint8]


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


def batches_in_buckets(buckets: BucketIndices, batch_size: int) -> Iterator[list[int]]:
    """Yield every image once, in order, in batches of one bucket each; a bucket's last batch may be smaller."""
    for bucket in np.unique(buckets):
        members = np.flatnonzero(buckets == bucket).tolist()
        yield from batched(members, batch_size)


class Forgetful:
    """Base of what goes to other processes without what belongs to one: attributes that begin with an underscore.

    `_forget` makes those: caches, which cannot be pickled where they are of a method, and threads.
    """

    def _forget(self) -> None:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()


class BucketSchedule(Forgetful):
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
        self._forget()

    def _forget(self) -> None:
        self._laid_out = lru_cache(1)(self._lay_out)

    def first_step(self, epoch: int) -> int:
        """Return the first step of an epoch."""
        return sum(self._steps_before(epoch))

    def at(self, step: int) -> tuple[int, int]:
        """Return the bucket of a step, and how many steps of that bucket came before it."""
        latest = step * self.batch_size // sum(self.counts) + 1  # begins after `step`: no epoch has fewer steps
        epoch = bisect_right(range(latest + 1), step, key=self.first_step) - 1
        bucket, nth = self._laid_out(epoch)[:, step - self.first_step(epoch)].tolist()
        return bucket, nth

    def _lay_out(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the bucket of each step of an epoch, and which of that bucket's it is, (2, steps)."""
        before, after = self._steps_before(epoch), self._steps_before(epoch + 1)
        steps = np.subtract(after, before)
        order = np.repeat(np.arange(len(steps)), steps)
        if self.shuffle:
            rng("buckets", self.seed, epoch).shuffle(order)
        nth = np.empty(len(order), dtype=np.int64)
        for bucket, first in enumerate(before):
            nth[order == bucket] = first + np.arange(steps[bucket])
        return np.stack([order, nth])

    def _steps_before(self, epoch: int) -> list[int]:
        return [-(-epoch * count // self.batch_size) for count in self.counts]


class SharedBatchSampler(Sampler[list[SampleIndex]]):
    """Batch sampler that walks one endless sequence of samples for each bucket, cut into global batches.

    Every global batch is within one bucket; :class:`BucketSchedule` says whose turn it is, by the images of each,
    `counts`. Micro-step m of rank r takes positions (m * world_size + r) * per_process + i of a batch, so the union
    over ranks and micro-steps is the same global batch whatever the split. Yields one list of `per_process` requests a
    micro-step: an optimiser step takes `accumulation` of them.

    `start_step` is where to go on after an interruption (settable until iteration starts); `num_steps` the number of
    optimiser steps of the whole run, counted from 0 and not from `start_step` (None: endless). Raises ConfigError when
    the global batch cannot be split evenly, or an argument is out of range.
    """

    def __init__(
        self,
        counts: Sequence[int],
        global_batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        start_step: int = 0,
        shuffle: bool = True,
        num_steps: int | None = None,
    ) -> None:
        at_least(1, world_size=world_size, accumulation=accumulation)
        if not 0 <= rank < world_size or start_step < 0 or seed < 0:
            raise ConfigError(
                f"{type(self).__name__}: rank {rank} must lie in [0, {world_size}), "
                f"start_step {start_step} and seed {seed} must not be negative"
            )
        self.per_process = per_process_batch(global_batch_size, world_size, accumulation)
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.accumulation = accumulation
        self.start_step = start_step
        self.shuffle = shuffle
        self.num_steps = num_steps
        self._schedule = BucketSchedule(counts, global_batch_size, seed, shuffle)

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        step = self.start_step
        while self.num_steps is None or step < self.num_steps:
            for micro_step in range(self.accumulation):
                yield self.batch(step, micro_step)
            step += 1

    def __len__(self) -> int:
        """Return the number of micro-steps still to come. Raises TypeError when the sampler is endless."""
        if self.num_steps is None:
            raise TypeError(f"an endless {type(self).__name__} has no length; give num_steps")
        return max(0, self.num_steps - self.start_step) * self.accumulation

    def batch(self, step: int, micro_step: int = 0) -> list[SampleIndex]:
        """Return what this rank sees in one micro-step of one optimiser step."""
        share = micro_step * self.world_size + self.rank
        first = share * self.per_process
        bucket, nth = self._schedule.at(step)
        images = self._images(bucket, nth * self.global_batch_size + first, self.per_process)
        return [SampleIndex(image, step * self.global_batch_size + first + i) for i, image in enumerate(images)]

    def _images(self, bucket: int, first: int, number: int) -> list[int]:
        """Return the images at `number` places of a bucket's sequence, from `first` on."""
        raise NotImplementedError


class GlobalBatchSampler(SharedBatchSampler):
    """A batch sampler over the images of a data set, in an order that is drawn anew for each pass.

    Sample n = step * global_batch_size + position is image ``epoch_order(n // len)[n % len]``: every epoch visits
    each image once, and an epoch may end inside a batch, so nothing is dropped and a data set may be smaller than the
    batch. With `buckets`, the bucket of each image, each bucket has such a sequence of its own. Without `shuffle` the
    images come in their own order, bucket by bucket.
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
        at_least(1, dataset_len=dataset_len)
        if buckets is not None and len(buckets) != dataset_len:
            raise ConfigError(f"GlobalBatchSampler: buckets of {len(buckets)} images for a data set of {dataset_len}")
        kinds = [None] if buckets is None else range(int(buckets.max()) + 1)
        self._members = [np.arange(dataset_len) if kind is None else np.flatnonzero(buckets == kind) for kind in kinds]
        how = seed, rank, world_size, accumulation, start_step, shuffle, num_steps
        super().__init__([len(members) for members in self._members], global_batch_size, *how)
        self.dataset_len = dataset_len
        self._orders: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}

    def _images(self, bucket: int, first: int, number: int) -> list[int]:
        return [self._index(bucket, position) for position in range(first, first + number)]

    def _index(self, bucket: int, position: int) -> int:
        epoch, place = divmod(position, len(self._members[bucket]))
        if not self.shuffle:
            return int(self._members[bucket][place])
        if bucket not in self._orders or self._orders[bucket][0] != epoch:  # half a second for ten million images
            order = epoch_order(len(self._members[bucket]), self.seed, epoch, bucket)
            self._orders[bucket] = (epoch, self._members[bucket][order])
        return int(self._orders[bucket][1][place])


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
