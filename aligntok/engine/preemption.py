"""SIGTERM, which schedulers send before they take a machine away: noted, and obeyed once the step is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aligntok.engine.distributed import any_process

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
