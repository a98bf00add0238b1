"""A piece of work that several processes share: its progress, and SIGTERM, which ends it early."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from aligntok.distributed import any_process


def progress_bar(total: int, description: str, unit: str, show: bool = True) -> tqdm[Any]:
    """Return a bar on stderr, seen when the work takes more than a few seconds, in the first process of a group."""
    first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    every = 0.5 if sys.stderr.isatty() else 30.0  # seconds; a log file gets fewer lines
    return tqdm(total=total, desc=description, unit=unit, delay=3, mininterval=every, disable=not (show and first))


_noted = threading.Event()


@contextmanager
def noting_sigterm() -> Iterator[None]:
    """Note SIGTERM instead of dying of it. Python lets only the main thread listen; in another, nothing changes."""
    _noted.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: _noted.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def sigterm_was_sent() -> bool:
    """Tell whether a process of the run got SIGTERM; collective, so that all stop after the same step."""
    return any_process(_noted.is_set())


def ignore_sigterm(*_: Any) -> None:
    """Make a data-loading process deaf to the first: the training process needs its batches until the step is done.

    A scheduler sends the signal to every process of a job. The second comes from the training process, to a loader
    that is stuck.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
