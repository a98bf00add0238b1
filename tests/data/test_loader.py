"""A loader reads what it is asked for, and keeps to itself what is no mistake."""

from __future__ import annotations

import gc
import os
import signal
import time

import pytest

from aligntok.data.loader import explaining_loader_errors, make_loader
from aligntok.errors import DataError

# Of an error torch finds out whether files can still be opened, by ten that it leaves to the garbage.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <_io:pytest.PytestUnraisableExceptionWarning"),
]


def test_more_processes_than_cores_are_no_warning():
    """Warnings are errors here; none of the processes starts before the loader is read."""
    assert make_loader(range(3), [[0, 1], [2]], 4 * (os.cpu_count() or 1)).num_workers > (os.cpu_count() or 1)
    assert [batch.tolist() for batch in make_loader(range(3), [[0, 1], [2]], 0)] == [[0, 1], [2]]


class Deadly:
    """Numbers, of which the reading of a negative one is the end of the process that reads."""

    def __getitem__(self, index):
        if index < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


@pytest.mark.parametrize("turn", ["first", "second"])  # it is told of every loader of a process, not of one
def test_a_process_that_dies_while_it_is_waited_for_is_told_at_once(turn):
    began = time.monotonic()
    with pytest.raises(DataError, match="ended or got stuck"), explaining_loader_errors():
        list(make_loader(Deadly(), [[0], [-1], [2]], 1))
    assert time.monotonic() - began < 30  # of the 600 seconds after which it would count as stuck


def test_a_process_that_dies_meanwhile_is_told_when_the_next_batch_is_asked_for():
    """Not in the middle of a step, or of a checkpoint."""
    batches = iter(make_loader(Deadly(), [[i] for i in range(9)], 2))
    assert next(batches).tolist() == [0]
    os.kill(batches._workers[0].pid, signal.SIGKILL)
    batches._workers[0].join()
    time.sleep(0.1)  # signals are handled here
    with pytest.raises(DataError, match=r"DataLoader worker \(pid \d+\) ended with -9"), explaining_loader_errors():
        list(batches)


def read_and_kill(batches, after):
    """Read to the end, and on the way kill the process that reads ahead."""
    for i, _ in enumerate(batches):
        if i == after:
            os.kill(batches._workers[0].pid, signal.SIGKILL)


@pytest.mark.slow
def test_whenever_a_process_dies_there_is_one_error_that_explains_it():
    for trial in range(20):
        batches = iter(make_loader(Deadly(), [[i] * 500 for i in range(4000)], 1))
        with pytest.raises(DataError, match="ended or got stuck"), explaining_loader_errors():
            read_and_kill(batches, 3 * trial)


def test_an_iterator_that_goes_with_a_cycle_of_garbage_ends_its_processes_soon():
    """As after an error in Python, whose traceback holds the frames that hold it: torch waits ten seconds for each."""
    batches = iter(make_loader(range(99), [[i] for i in range(99)], 3))
    next(batches)
    workers, cycle = batches._workers, [batches]
    cycle.append(cycle)
    del batches, cycle
    began = time.monotonic()
    gc.collect()
    assert not any(worker.is_alive() for worker in workers)
    assert time.monotonic() - began < 8
