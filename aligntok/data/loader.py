"""Batches read by processes of their own: one kind of loader, and what its processes die of in words."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader, Dataset, default_collate

from aligntok.device import device
from aligntok.distributed.job import ignore_sigterm
from aligntok.errors import AlignTokError, DataError, first_line


def make_loader(
    dataset: Dataset[Any],
    batches: Iterable[list[Any]],
    workers: int,
    collate: Callable[..., Any] | None = None,
    timeout: float = 0,
) -> DataLoader[Any]:
    """Return a loader of `batches`, lists of what the data set is asked for, put together by `collate`.

    Its processes, `workers` in number, leave SIGTERM to the process that they read for; one that gives no batch for
    `timeout` seconds (0: ever) counts as stuck. Iterate inside :func:`explaining_loader_errors`.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=default_collate if collate is None else collate,
        timeout=timeout if workers else 0,
        worker_init_fn=ignore_sigterm,
        pin_memory=device().type == "cuda",
    )


@contextmanager
def explaining_loader_errors() -> Iterator[None]:
    """Turn what a data-loading process raises, or its death, into one DataError or ConfigError."""
    try:
        yield
    except AlignTokError as error:
        if "Original Traceback" not in str(error):
            raise
        reason = str(error).rstrip().rpartition(f"{type(error).__name__}: ")[2]  # the last line of the worker's
        raise type(error)(reason) from None
    except (RuntimeError, ConnectionError, EOFError) as error:  # the latter two: it died while handing a batch over
        if isinstance(error, RuntimeError) and "DataLoader" not in str(error):
            raise
        if threading.current_thread() is threading.main_thread():
            # torch's handler of SIGCHLD raises wherever the process is, even while it tells the reason
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise DataError(
            f"a data-loading process ended or got stuck ({first_line(error)}); it may have run out of memory (lower "
            "data.workers), out of shared memory (enlarge /dev/shm), or wait for a disk (see data.timeout)"
        ) from error
