"""How a command and its process end: by signals, without a terminal, with other processes that still run for it.

Nothing heavy is imported here; rooms that start processes say by :func:`at_end` how those are ended.
"""

from __future__ import annotations

import atexit
import errno
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

#: From a command's last line on, after which its process is ended whatever it still waits for.
GRACE_SECONDS = 6.0
#: Of Ctrl-C, as shells have it.
INTERRUPTED = 130
_GONE = {errno.EPIPE, errno.EIO, errno.EBADF}  # the reader of a pipe, a terminal, a stream that was closed
_ENDERS: list[Callable[[], None]] = []


class Terminated(BaseException):
    """SIGTERM, to a command that is not in the midst of anything that it finishes first."""


def at_end(end: Callable[[], None]) -> None:
    """Have `end` called when a command ends, however it does, and before the interpreter ends.

    Call it when what it ends has begun: what is said to `atexit` last is done first, and multiprocessing's own waits.
    """
    if end not in _ENDERS:
        _ENDERS.append(end)
    atexit.unregister(end_children)
    atexit.register(end_children)


def end_children() -> None:
    """End the processes that were started for the work of this one."""
    for end in _ENDERS:
        end()


def end_now(status: int) -> NoReturn:
    """End the process with this status, and with it what it started; nothing that it waits for is waited for."""
    with suppress(Exception):  # nothing may keep it
        end_children()
        logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


def leave(command: Callable[[Sequence[str] | None], int]) -> NoReturn:
    """Run a command on this process's command line, and end the process with its status, 1 after a defect.

    What is left to do at an interpreter's end is done, but not waited for any longer than GRACE_SECONDS: a thread that
    reads from a disk that hangs, or a group of processes that others have left, holds neither process nor GPU.
    """
    status: Any = 1
    with keeping_on_without_terminal():
        try:
            status = command(None)
        except SystemExit as end:  # of --help, or of options that are unknown
            status = end.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
        is_over = threading.Event()
        threading.Thread(target=_end_late, args=(is_over, status), daemon=True).start()
        if status:  # what it was in the midst of may hold even the interpreter's own end
            is_over.set()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # torchrun sends them more than once
                signal.signal(number, signal.SIG_IGN)
            end_children()
            threading._shutdown()  # type: ignore[attr-defined]  # joins threads, as the interpreter's end does
            atexit._run_exitfuncs()
            end_now(status)
    getattr(threading, "_register_atexit", atexit.register)(is_over.set)  # the former before threads are joined
    raise SystemExit(0)


def _end_late(is_over: threading.Event, status: int) -> None:
    is_over.wait()
    time.sleep(GRACE_SECONDS)
    with suppress(Exception):
        end_children()
    os._exit(status)  # unflushed: the main thread may hold a stream, or wait for its reader


@contextmanager
def heeding_sigterm() -> Iterator[None]:
    """Raise Terminated at SIGTERM, where nobody else listens to it; for the main thread, Python's only listener."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    own = os.getpid()

    def terminate(number: int, frame: Any) -> None:
        if os.getpid() != own:  # a process that was forked meanwhile
            os._exit(128 + number)
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _told_elsewhere(error: threading.ExceptHookArgs) -> None:
    """Leave out the traceback of TensorBoard's thread (2.21) for a full disk: its next call raises that error again."""
    if not (isinstance(error.exc_value, OSError) and type(error.thread).__name__ == "_AsyncWriterThread"):
        threading.__excepthook__(error)


class _Lasting(io.FileIO):
    """A standard stream that swallows what cannot be written any more; `fault` is why, unless its reader has gone."""

    fault: OSError | None = None

    def write(self, data: Any, /) -> Any:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _GONE:
                self.fault = error
            return len(data)


@contextmanager
def keeping_on_without_terminal() -> Iterator[list[OSError]]:
    """Let no print fail: not when the terminal is lost, a pipe's reader has ended, or the disk of a log is full.

    Yields a list that has, after the end, why something could not be printed, if not for a reader that has gone. A path
    that is no text, or a letter that the terminal does not know, is shown by its code.
    """
    faults: list[OSError] = []
    before, opened = (sys.stdout, sys.stderr), list[Any]()
    threading.excepthook = _told_elsewhere
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed when the process began
            opened.append(io.TextIOWrapper(io.FileIO(os.open(os.devnull, os.O_WRONLY), "w")))
            setattr(sys, name, opened[-1])
        elif stream is getattr(sys, f"__{name}__"):  # not captured by anybody, nor by a command around this one
            setattr(sys, name, _lasting(stream))
    try:
        yield faults
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
            below = getattr(stream, "buffer", None)
            fault = getattr(getattr(below, "raw", below), "fault", None)
            faults += [fault] if fault else []
        sys.stdout, sys.stderr = before
        for stream in opened:
            stream.close()


def _lasting(stream: Any) -> io.TextIOWrapper:
    """Return a stream to the same place as a standard stream, with its settings, to which writing never fails."""
    with suppress(OSError):
        stream.flush()
    raw = _Lasting(stream.fileno(), "w", closefd=False)
    below: Any = raw if isinstance(stream.buffer, io.FileIO) else io.BufferedWriter(raw)
    how = dict(line_buffering=stream.line_buffering, write_through=stream.write_through)
    return io.TextIOWrapper(below, stream.encoding, "backslashreplace", **how)
