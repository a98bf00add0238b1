"""A piece of work that several processes share: who does what, its progress, and how it ends early in all of them.

SIGTERM ends it after the same step. One process that fails tells the others why, and one that falls silent is missed.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from tqdm import tqdm

from aligntok.device import keep_freed_memory
from aligntok.distributed import (
    ORPHANED,
    abandon_process_group,
    any_process,
    connect_to_store,
    is_first,
    is_orphaned,
    life,
    start_processes,
    total,
    world,
)
from aligntok.ends import end_now
from aligntok.errors import AlignTokError, Preempted, ProcessError, first_line
from aligntok.io.console import is_quiet

logger = logging.getLogger("aligntok.engine")
SILENCE_SECONDS = 120.0  # without a sign of life after which a process counts as failed
POLL_SECONDS = 0.5
GRACE_SECONDS = 5.0  # for a process that hears of a failure to end by itself, in the midst of an exchange or after it
REASON_SECONDS = 3.0  # for the reason of a broken exchange to arrive
_EXCHANGE_WORDS = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "socket")

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
    keep_freed_memory()
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
    hidden = is_quiet() or not (show and is_first())
    return tqdm(total=total, desc=description, unit=unit, delay=3, mininterval=every, disable=hidden)


_caught = threading.Event()


@contextmanager
def catching_sigterm() -> Iterator[None]:
    """Note SIGTERM instead of dying of it, and survive SIGHUP, the loss of the terminal.

    torchrun does not survive that, and sends it on: what it started stops as at SIGTERM. Python lets only the main
    thread listen; in another, nothing changes.
    """
    _caught.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(*_: Any) -> None:
        _caught.set()

    heard = {signal.SIGTERM: note, signal.SIGHUP: note if "TORCHELASTIC_RUN_ID" in os.environ else signal.SIG_IGN}
    before = {number: signal.signal(number, answer) for number, answer in heard.items()}
    try:
        yield
    finally:
        for number, answer in before.items():
            signal.signal(number, answer)


def sigterm_was_sent() -> bool:
    """Tell whether a process of the run got SIGTERM; collective, so that all stop after the same step."""
    return any_process(_caught.is_set())


def stop_if_preempted(stopped: Preempted) -> None:
    """Raise `stopped`, which says what was under way, in every process when one of them got SIGTERM; collective."""
    if sigterm_was_sent():
        raise stopped


def leave_signals_to_parent(*_: Any) -> None:
    """Make a data-loading process deaf to signals: the training process needs its batches until the step is done.

    A scheduler sends SIGTERM, and a terminal Ctrl-C, to every process of a job; the process that reads ends those that
    read for it, by :func:`aligntok.data.loader.end_loading`.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def ending_together(silence: float) -> Iterator[None]:
    """Run what is inside as one of several processes, of which none outlives another's failure.

    An error in one process is posted on the store that torchrun keeps; a thread of each other process finds it within
    a second, and that process ends with a ProcessError that names it, or is ended if it hangs in an exchange. A process
    without a sign of life for `silence` seconds counts as failed. Nothing to do in a single process.
    """
    rank, processes = world()
    if processes == 1:
        yield
        return
    watch = _FailureWatch(rank, processes, silence)
    watch.start()
    try:
        yield
    except Preempted:  # every process knows
        raise
    except BaseException as error:
        abandon_process_group()
        if not _is_exchange_error(error):
            watch.post(f"{type(error).__name__}: {error if isinstance(error, AlignTokError) else first_line(error)}")
            raise
        reason = watch.wait_for_reason(REASON_SECONDS) or (
            f"an exchange with another process broke off ({first_line(error)}); {watch.who_is_missing()}: look for the "
            "first failure in torchrun's and the scheduler's report"
        )
        raise ProcessError(reason) from error
    finally:
        watch.stop()


class _FailureWatch(threading.Thread):
    """Says on a board that its process lives, or why it failed, and looks there for others while the process works.

    The board is keys of the store that the process group met at. The first process looks after all, all after it.
    """

    def __init__(self, rank: int, processes: int, silence: float) -> None:
        super().__init__(name="aligntok-failure-watch", daemon=True)
        self.rank = rank
        self.processes = processes
        self.silence = silence
        # What one life of the run posts must not end the next.
        self._store = dist.PrefixStore(f"aligntok/board/{life()}", connect_to_store())
        self._lock = threading.Lock()
        self._found: str | None = None
        self._stopped = threading.Event()
        self._seen = dict.fromkeys(range(1, processes) if rank == 0 else [0], ("", math.inf))
        self._answered = time.monotonic()

    def post(self, reason: str) -> None:
        """Say why this process ends, unless another was first."""
        text = f"process {self.rank} on {socket.gethostname()} failed: {reason}"
        with suppress(RuntimeError), self._lock:
            self._store.compare_set("failure", "", text)
        if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            time.sleep(3 * POLL_SECONDS)  # the store ends with this process: let the others read first

    def reason(self) -> str | None:
        """Return what the first process to fail posted, if any did."""
        with self._lock:
            if self._found is None and self._store.check(["failure"]):
                self._found = self._store.get("failure").decode()
        return self._found

    def wait_for_reason(self, seconds: float) -> str | None:
        """Return the reason once it is there, or None after so many seconds or when the store is gone too.

        Meanwhile the processes that are there say so, for :meth:`who_is_missing`.
        """
        ends = time.monotonic() + seconds
        with suppress(RuntimeError):
            self._store.set("roll call", "")
            self._answer_roll_call()
            while time.monotonic() < ends:
                if found := self.reason():
                    return found
                time.sleep(0.1)
        return self._found

    def who_is_missing(self) -> str:
        """Return, in words, which processes did not answer the roll call."""
        try:
            missing = [rank for rank in range(self.processes) if not self._store.check([f"present/{rank}"])]
        except RuntimeError:
            return "that process was killed or its machine is gone (out of memory?)"
        if not missing:
            return "all processes answer, so one of them is stuck, or has lost its network"
        names = ", ".join(map(str, missing))
        return f"no answer from process {names}, killed (out of memory?) or its machine gone"

    def _answer_roll_call(self) -> None:
        if self._store.check(["roll call"]):
            self._store.set(f"present/{self.rank}", "")

    def stop(self) -> None:
        self._stopped.set()
        self.join(GRACE_SECONDS)  # it may wait for a store that no longer answers

    def run(self) -> None:
        threading.Thread(target=self._miss_the_store, daemon=True).start()
        beats, next_beat = 0, time.monotonic()
        while not self._stopped.wait(POLL_SECONDS):
            try:
                if time.monotonic() >= next_beat:
                    beats, next_beat = beats + 1, time.monotonic() + self.silence / 6
                    with self._lock:
                        self._store.set(f"alive/{self.rank}", str(beats))
                    self._miss_the_silent()
                if is_orphaned():
                    self.post(ORPHANED)
                reason = self.reason()
                self._answer_roll_call()
                self._answered = time.monotonic()
            except RuntimeError as error:  # the store, and with it the process or agent that kept it
                reason = f"the store that the processes met at is gone ({first_line(error)}): its process has ended"
            if reason is not None:
                self._end(reason)
                return

    def _miss_the_store(self) -> None:
        """torch's TCPStore client waits without limit for a server that is stopped or gone without a word."""
        while not self._stopped.wait(POLL_SECONDS):
            if time.monotonic() - self._answered > self.silence + GRACE_SECONDS:
                self._end(
                    f"the store that the processes met at gave no answer for {self.silence:g} s (process_timeout)"
                )

    def _miss_the_silent(self) -> None:
        now = time.monotonic()
        for rank, (known, since) in self._seen.items():
            with self._lock:  # no sign of life yet is none to miss
                key = f"alive/{rank}"
                beat = self._store.get(key).decode() if self._store.check([key]) else known
            if beat != known:
                self._seen[rank] = (beat, now)
            elif now - since > self.silence:
                self.post(
                    f"process {rank} gave no sign of life for {self.silence:g} s (process_timeout); "
                    "it hangs, was killed, or its machine is gone"
                )

    def _end(self, reason: str) -> None:
        """Let the process end by itself; end it if it hangs in an exchange that no other process will take part in."""
        if self._stopped.wait(GRACE_SECONDS):
            return
        logger.error("ProcessError: %s; this process is ended with it", reason)
        print(f"ProcessError: {reason}", file=sys.stderr, flush=True)
        end_now(ProcessError.exit_status)


def _is_exchange_error(error: BaseException) -> bool:
    known: tuple[Any, ...] = (dist.DistError,)
    return isinstance(error, known) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _EXCHANGE_WORDS)
    )
