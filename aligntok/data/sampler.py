"""Which images a step sees. Everything follows from (seed, step): not from processes, workers or interruptions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from aligntok.errors import ConfigError

# First word of a random stream's key, so that the streams drawn from one seed are independent of one another.
_ORDER_STREAM, _SAMPLE_STREAM = 0, 1


class SampleRequest(NamedTuple):
    """One image of a run: which one, and the how-manieth sample of the whole run it is (which seeds its crop)."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    sample_number: int


def sample_rng(seed: int, sample_number: int) -> np.random.Generator:
    """Return the random generator that belongs to one sample of a run."""
    return np.random.default_rng((_SAMPLE_STREAM, seed, sample_number))


def epoch_order(dataset_len: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the order in which an epoch visits the images: a permutation of range(dataset_len)."""
    return np.random.default_rng((_ORDER_STREAM, seed, epoch)).permutation(dataset_len)


class GlobalBatchSampler(Sampler[list[SampleRequest]]):
    """Batch sampler that walks one endless sequence of samples, cut into global batches.

    Sample n = step * global_batch_size + position is image ``epoch_order(n // len)[n % len]``: every epoch visits
    each image once, and an epoch may end inside a batch, so nothing is dropped and a data set may be smaller than the
    batch. Micro-step m of rank r takes positions (m * world_size + r) * per_process + i, so the union over ranks and
    micro-steps is the same global batch whatever the split. Yields one list of `per_process` requests a micro-step:
    an optimiser step takes `accumulation` of them.

    `start_step` is where to go on after an interruption (settable until iteration starts); `num_steps` the number of
    optimiser steps of the whole run, counted from 0 and not from `start_step` (None: endless). Without `shuffle` the
    images come in their own order. Raises ConfigError when the global batch cannot be split evenly, or an argument
    is out of range.
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
    ) -> None:
        _check_at_least_one(dataset_len=dataset_len, world_size=world_size, accumulation=accumulation)
        if not 0 <= rank < world_size or start_step < 0 or seed < 0:
            raise ConfigError(
                f"GlobalBatchSampler: rank {rank} must lie in [0, {world_size}), "
                f"start_step {start_step} and seed {seed} must not be negative"
            )
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
        self._epoch = -1
        self._order = np.arange(dataset_len)

    def __iter__(self) -> Iterator[list[SampleRequest]]:
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

    def batch(self, step: int, micro_step: int = 0) -> list[SampleRequest]:
        """Return what this rank sees in one micro-step of one optimiser step."""
        share = micro_step * self.world_size + self.rank
        first = step * self.global_batch_size + share * self.per_process
        return [SampleRequest(self._index(n), n) for n in range(first, first + self.per_process)]

    def _index(self, sample_number: int) -> int:
        epoch, position = divmod(sample_number, self.dataset_len)
        if self.shuffle and epoch != self._epoch:  # drawing the order of ten million images takes about half a second
            self._epoch, self._order = epoch, epoch_order(self.dataset_len, self.seed, epoch)
        return int(self._order[position])


def per_process_batch(global_batch_size: int, world_size: int, accumulation: int = 1) -> int:
    """Return the images of one process in one micro-step. Raises ConfigError when the split is not even."""
    _check_at_least_one(global_batch_size=global_batch_size)
    shares = world_size * accumulation
    if global_batch_size % shares:
        lower = global_batch_size // shares * shares
        works = " or ".join(str(size) for size in (lower, lower + shares) if size)
        raise ConfigError(
            f"global_batch_size {global_batch_size} is not divisible by {shares} "
            f"({world_size} processes x {accumulation} accumulation steps); {works} would work"
        )
    return global_batch_size // shares


def _check_at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
