"""A run's log: every message is in its file; the terminal shows the first of each kind, and counts."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aligntok.distributed import is_first
from aligntok.io.console import is_colored, is_verbose, say

own = logging.getLogger("aligntok")


@contextmanager
def logging_the_end() -> Iterator[None]:
    """Write the error that ends a run to the log of the stage that it was at; leave that log afterwards."""
    try:
        yield
    except BaseException as error:
        if own.handlers:
            own.error("%s: %s", type(error).__name__, error)
        raise
    finally:
        _leave()


def log_to(log: logging.Logger) -> None:
    """Let AlignTok's own loggers write to where mmengine's logger of a stage does: a file, and the terminal.

    The file has everything; what is no text is there by its code. The terminal has the first warning of each kind, and
    the tenth, hundredth, ... with its number. Errors go to the file alone: whoever ends on one prints it. Data-loading
    processes count their own.
    """
    _leave()
    for place, handler in enumerate(log.handlers):
        handler.filters.clear()  # mmengine 0.10.7 drops every later message of a template, in the file too
        if isinstance(handler, logging.FileHandler):
            handler.stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
            handler.handleError = _Silenced(handler.baseFilename)  # type: ignore[method-assign]
        else:
            log.handlers[place] = _Terminal(handler)
    own.setLevel(logging.INFO)
    own.handlers[:] = log.handlers


class _Silenced:
    """Says once, in place of a traceback a message, that a log cannot be written: its disk is full, for instance."""

    def __init__(self, path: str) -> None:
        self.path, self.said = path, False

    def __call__(self, record: logging.LogRecord) -> None:
        if not self.said:
            self.said = True
            print(f"the log {self.path} cannot be written; what it misses is not kept", file=sys.stderr, flush=True)


class _Terminal(logging.StreamHandler):
    """mmengine's handler, but on standard error, whatever that is by now: the first message of a kind, and numbers.

    Where a command is to tell all that it does, every message.
    """

    def __init__(self, like: logging.Handler) -> None:
        logging.Handler.__init__(self, max(like.level, logging.INFO if is_verbose() else logging.WARNING))
        self.setFormatter(type(like.formatter)(color=is_colored(), datefmt=like.formatter.datefmt))  # type: ignore
        self._counts: Counter[str] = Counter()

    @property
    def stream(self) -> Any:
        return sys.stderr

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return False
        self._counts[str(record.msg)] += 1
        return is_verbose() or str(self._counts[str(record.msg)]).rstrip("0") == "1"  # 1, 10, 100, ...

    def format(self, record: logging.LogRecord) -> str:
        number = self._counts[str(record.msg)]
        return super().format(record) + (
            f" ({number} like this so far, each in the log)" if number > 1 and not is_verbose() else ""
        )


def _leave() -> None:
    """Write no longer to the log of a stage, and tell how many warnings are in it that the terminal did not show."""
    files = [Path(each.baseFilename) for each in own.handlers if isinstance(each, logging.FileHandler)]
    own.handlers.clear()
    for file in files if is_first() else ():
        count = file.read_bytes().count(b" - WARNING - ") if file.is_file() else 0
        if count > 1:
            say(f"{count} warnings, each in {file}")
