"""All processes of a run end together: one that fails tells the others why, and one that falls silent is missed."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist

from aligntok.distributed import abandon_process_group, connect_to_store, life, world
from aligntok.errors import AlignTokError, Preempted, ProcessError, first_line

SILENCE_SECONDS = 120.0  # without a sign of life after which a process counts as failed
logger = logging.getLogger("aligntok.engine")
POLL_SECONDS = 0.5
GRACE_SECONDS = 5.0  # for a process that hears of a failure to end by itself, in the midst of an exchange or after it
REASON_SECONDS = 3.0  # for the reason of a broken exchange to arrive
_EXCHANGE_WORDS = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "socket")


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
    board = FailureBoard(rank, processes)
    watch = _Watch(board, silence)
    watch.start()
    try:
        yield
    except Preempted:  # every process knows
        raise
    except BaseException as error:
        abandon_process_group()
        if not _is_exchange_error(error):
            board.post(f"{type(error).__name__}: {error if isinstance(error, AlignTokError) else first_line(error)}")
            raise
        reason = board.wait_for_reason(REASON_SECONDS) or (
            f"an exchange with another process broke off ({first_line(error)}); that process was killed or its machine "
            "is gone: look for the first failure in torchrun's and the scheduler's report (out of memory?)"
        )
        raise ProcessError(reason) from error
    finally:
        watch.stop()


class FailureBoard:
    """Where a process says that it lives, and why it failed: keys of the store that the process group met at."""

    def __init__(self, rank: int, processes: int) -> None:
        self.rank = rank
        self.processes = processes
        # What one life of the run posts must not end the next.
        self._store = dist.PrefixStore(f"aligntok/board/{life()}", connect_to_store())
        self._lock = threading.Lock()
        self._found: str | None = None

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
        """Return the reason once it is there, or None after so many seconds or when the store is gone too."""
        ends = time.monotonic() + seconds
        with suppress(RuntimeError):
            while time.monotonic() < ends:
                if found := self.reason():
                    return found
                time.sleep(0.1)
        return self._found

    def beat(self, count: int) -> None:
        """Give a sign of life."""
        with self._lock:
            self._store.set(f"alive/{self.rank}", str(count))

    def beats(self) -> dict[int, str]:
        """Return the newest sign of life of each process that this one looks after: the first after all, all after it.

        Those that have given none yet are left out.
        """
        looked_after = range(1, self.processes) if self.rank == 0 else [0]
        with self._lock:
            keys = {rank: f"alive/{rank}" for rank in looked_after}
            return {rank: self._store.get(key).decode() for rank, key in keys.items() if self._store.check([key])}


class _Watch(threading.Thread):
    """Looks at the board while the process works."""

    def __init__(self, board: FailureBoard, silence: float) -> None:
        super().__init__(name="aligntok-failure-watch", daemon=True)
        self.board = board
        self.silence = silence
        self._stopped = threading.Event()
        self._seen: dict[int, tuple[str, float]] = {}
        self._answered = time.monotonic()

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
                    self.board.beat(beats)
                    self._miss_the_silent()
                reason = self.board.reason()
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
        for rank, beat in self.board.beats().items():
            known, since = self._seen.get(rank, ("", now))
            if beat != known:
                self._seen[rank] = (beat, now)
            elif now - since > self.silence:
                self.board.post(
                    f"process {rank} gave no sign of life for {self.silence:g} s (process_timeout); "
                    "it hangs, was killed, or its machine is gone"
                )

    def _end(self, reason: str) -> None:
        """Let the process end by itself; end it if it hangs in an exchange that no other process will take part in."""
        if self._stopped.wait(GRACE_SECONDS):
            return
        logger.error("%s; this process is ended with it", reason)
        print(f"ProcessError: {reason}", file=sys.stderr, flush=True)
        logging.shutdown()
        os._exit(ProcessError.exit_status)


def _is_exchange_error(error: BaseException) -> bool:
    known: tuple[Any, ...] = (dist.DistError,)
    return isinstance(error, known) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _EXCHANGE_WORDS)
    )
