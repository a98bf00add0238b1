"""Batches read by processes of their own: one kind of loader, and what its processes die of in words."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch.utils import data
from torch.utils.data import Dataset, Subset, _utils, default_collate
from torch.utils.data._utils import signal_handling

from aligntok.device import device
from aligntok.distributed.job import leave_signals_to_parent
from aligntok.ends import at_end
from aligntok.errors import AlignTokError, DataError, first_line

STUCK_SECONDS = 600.0  # without a batch after which a data-loading process counts as stuck
END_SECONDS = 1.0  # for data-loading processes to end by themselves
_reading: weakref.WeakSet[Any] = weakref.WeakSet()  # the iterators of loaders with processes
_workers: weakref.WeakSet[Any] = weakref.WeakSet()  # those processes, which may outlive a loader when they are stuck


class _Batches(data.dataloader._MultiProcessingDataLoaderIter):
    """torch's iterator, which tells that a process died where it is asked for a batch, and nowhere else.

    Torch's tells it by its handler of SIGCHLD: in the middle of a step, of the writing of a checkpoint, of the telling
    that it died. Its end says nothing where it could not be made.
    """

    def __init__(self, loader: data.DataLoader[Any]) -> None:
        try:
            super().__init__(loader)
        except OSError:
            self._shutdown = True  # else torch's __del__ misses what was not made yet, and Python prints a traceback
            raise
        self._heed(False)

    def _try_get_data(self, *timeout: float) -> Any:
        # The handler is needed while it waits: a process that dies within a long message leaves its reader waiting.
        self._heed(threading.current_thread() is threading.main_thread())
        try:
            for worker, reads in zip(self._workers, self._workers_status, strict=True):
                if reads and not worker.is_alive():
                    raise RuntimeError(f"DataLoader worker (pid {worker.pid}) ended with {worker.exitcode}")
            return super()._try_get_data(*timeout)
        finally:
            self._heed(False)

    def ask_to_end(self) -> None:
        """Tell the processes that nothing more is read."""
        self._heed(False)  # else torch raises an error here when one is killed
        self._workers_done_event.set()
        for queue in self._index_queues:
            queue.put(None)

    def _shutdown_workers(self) -> None:
        """End the processes, within END_SECONDS altogether.

        Torch's waits ten seconds for each that does not hear it: for all, where the iterator goes with the garbage of a
        cycle, as an error's traceback makes one. Their queues have sent their last by then.
        """
        if not self._shutdown and _utils.python_exit_status is False:
            if thread := getattr(self, "_pin_memory_thread", None):  # it would wait for all of what a killed one sends
                self._pin_memory_thread_done_event.set()
                self._worker_result_queue.put((None, None))
                thread.join()
            self.ask_to_end()
            _end(self._workers)
        super()._shutdown_workers()

    def _heed(self, deaths: bool) -> None:
        """Have torch's handler raise an error in this thread, the main one, when one of the processes dies, or not."""
        if self._worker_pids_set == deaths:
            return
        if deaths:
            signal_handling._set_worker_pids(id(self), tuple(worker.pid or 0 for worker in self._workers))
        else:
            signal_handling._remove_worker_pids(id(self))
        self._worker_pids_set = deaths


class DataLoader(data.DataLoader[Any]):
    """torch's, whose processes end with the command or process that reads: see :func:`end_loading`."""

    def __iter__(self) -> Any:
        before = multiprocessing.active_children()
        try:
            batches: Any = super().__iter__()
        except OSError as error:  # /dev/shm has no room for a lock, no more processes or open files are allowed
            for started in {*multiprocessing.active_children()} - {*before}:
                started.kill()
            raise _explained(error) from error
        if workers := getattr(batches, "_workers", None):
            _reading.add(batches)
            _workers.update(workers)
            at_end(end_loading)
        return batches

    def _get_iterator(self) -> Any:
        return _Batches(self) if self.num_workers else super()._get_iterator()

    def check_worker_number_rationality(self) -> None:
        """Do not warn of more processes than cores: they wait for disks and servers, and a config says how many."""


def end_loading() -> None:
    """End the data-loading processes of every loader that this process still reads from.

    They are asked to, and killed when they do not soon. Nobody else may be left to do it: Python's end of the
    interpreter sends them one SIGTERM, to which they are deaf, and waits for them (torch 2.14; theirs would be heeded,
    but so would a scheduler's).
    """
    own = [worker for worker in _workers if worker._parent_pid == os.getpid()]
    for each in _reading if own else ():
        each.ask_to_end()
    _reading.clear()
    _end(own)


def _end(workers: Iterable[Any]) -> None:
    """Wait for processes that were asked to end, and kill those that do not."""
    ends = time.monotonic() + END_SECONDS
    for worker in workers:
        worker.join(max(0.0, ends - time.monotonic()))
        if worker.is_alive():
            worker.kill()
            worker.join(END_SECONDS)


def make_loader(
    dataset: Dataset[Any],
    batches: Iterable[list[Any]],
    workers: int,
    collate: Callable[..., Any] | None = None,
    timeout: float = STUCK_SECONDS,
) -> DataLoader:
    """Return a loader of `batches`, lists of what the data set is asked for, put together by `collate`.

    Its processes, `workers` in number, leave signals to the process that they read for; one that gives no batch for
    `timeout` seconds (0: ever) counts as stuck. Iterate inside :func:`explaining_loader_errors`.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=default_collate if collate is None else collate,
        timeout=timeout if workers else 0,
        worker_init_fn=leave_signals_to_parent,
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
        raise _explained(error) from error


def _explained(error: BaseException) -> DataError:
    return DataError(
        f"a data-loading process ended or got stuck ({first_line(error)}); it may have run out of memory (lower "
        "data.workers), out of shared memory (enlarge /dev/shm), or wait for a disk (see data.timeout) or for a "
        "server (see data.train.remote)"
    )


def labels_of(data: Any) -> Any:
    """Return the labels of a data set, or of its source; empty where it does not know them beforehand."""
    labels = getattr(data, "labels", None)
    return getattr(getattr(data, "source", None), "labels", ()) if labels is None else labels


def captions_of(data: Any) -> Any:
    """Return the captions of a data set, or of its source, (n,) of several each; None where it has none."""
    captions = getattr(data, "captions", None)
    return getattr(getattr(data, "source", None), "captions", None) if captions is None else captions


def contents_of(data: Any) -> dict[str, Any]:
    """Return what tells a data set from others, wherever it lies: number, names and labels of items, and classes."""
    if isinstance(data, Subset):
        return {**contents_of(data.dataset), "of them": [*map(int, data.indices)]}
    names, selection = getattr(getattr(data, "source", None), "names", None), getattr(data, "selection", None)
    digests = {"names": names and names.digest(), "selection": selection and selection.digest}
    labels = zlib.crc32(np.ascontiguousarray(labels_of(data)).tobytes())
    return {**digests, "items": len(data), "classes": [*getattr(data, "class_names", ())], "labels": labels}


def number_of_classes(data: Any) -> int | None:
    """Return how many classes a data set, or a source, has: its names, or up to the largest label; None: unknown."""
    if names := getattr(data, "class_names", ()):
        return len(names)
    labels = labels_of(data)
    return int(np.max(labels)) + 1 if len(labels) and np.min(labels) >= 0 else None
