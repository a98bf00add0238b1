"""A piece of work that several processes share: who does what, its progress, and SIGTERM, which ends it early."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from tqdm import tqdm

from aligntok.distributed import any_process, is_first, start_processes, total, world
from aligntok.distributed.failures import SILENCE_SECONDS, ending_together
from aligntok.errors import Preempted

T = TypeVar("T")
Cut = TypeVar("Cut", bound="_Sliceable")


class _Sliceable(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self: Cut, key: slice, /) -> Cut: ...


def batched(items: Cut, size: int) -> list[Cut]:
    """Cut a range, list, array or tensor into parts of `size` in order, the last perhaps smaller: slices, not copies.

    (itertools.batched comes with Python 3.12, and gives tuples.)
    """
    return [items[first : first + size] for first in range(0, len(items), size)]


@contextmanager
def job(timeout: float = SILENCE_SECONDS) -> Iterator[str]:
    """Run what is inside as a collective command; gives mmengine's launcher name.

    Joins torchrun's process group, if there is one; SIGTERM is caught, for :func:`stop_if_preempted` to ask for; and no
    process outlives another's failure, or its silence of `timeout` seconds.
    """
    launcher = start_processes()
    with catching_sigterm(), ending_together(timeout):
        yield launcher


def shares(
    items: Sequence[T], what: str, stopped: Preempted, size: Callable[[Any], int] = len, unit: str = "image"
) -> Iterator[T]:
    """Yield this process's share of `items`, the same in every process: one a round, in turn; collective.

    A bar on stderr, called `what`, counts the items of all processes by their `size`, in `unit`s. Whoever takes part in
    exchanges for each item needs one in every round: see :func:`in_full_rounds`. Raises `stopped` in every process,
    after the same round, when any of them got SIGTERM.
    """
    rank, processes = world()
    with progress_bar(sum(map(size, items)), what, unit) as bar:
        for round in batched(items, processes):
            mine = round[rank : rank + 1]
            yield from mine
            bar.update(int(total(torch.tensor(sum(map(size, mine))))))
            stop_if_preempted(stopped)


def in_full_rounds(items: Sequence[T], nothing: T) -> list[T]:
    """Return the items, and `nothing` as often as it takes for every process to get one in each round of `shares`."""
    return [*items, *[nothing] * (-len(items) % world()[1])]


def progress_bar(total: int, description: str, unit: str, show: bool = True) -> tqdm[Any]:
    """Return a bar on stderr, seen when the work takes more than a few seconds, in the first process of a group."""
    every = 0.5 if sys.stderr.isatty() else 30.0  # seconds; a log file gets fewer lines
    hidden = not (show and is_first())
    return tqdm(total=total, desc=description, unit=unit, delay=3, mininterval=every, disable=hidden)


_caught = threading.Event()


@contextmanager
def catching_sigterm() -> Iterator[None]:
    """Note SIGTERM instead of dying of it. Python lets only the main thread listen; in another, nothing changes."""
    _caught.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: _caught.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def sigterm_was_sent() -> bool:
    """Tell whether a process of the run got SIGTERM; collective, so that all stop after the same step."""
    return any_process(_caught.is_set())


def stop_if_preempted(stopped: Preempted) -> None:
    """Raise `stopped`, which says what was under way, in every process when one of them got SIGTERM; collective."""
    if sigterm_was_sent():
        raise stopped


def ignore_sigterm(*_: Any) -> None:
    """Make a data-loading process deaf to the first: the training process needs its batches until the step is done.

    A scheduler sends the signal to every process of a job. The second comes from the training process, to a loader
    that is stuck.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
