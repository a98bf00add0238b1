"""Seconds: of calls, with their spread and a limit to how long measuring them may take; and of parts of a call."""

from __future__ import annotations

import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of `calls` calls: their median and quartiles."""

    median: float
    low: float
    high: float
    calls: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Return the median and quartiles of at least one number."""
        if len(seconds) == 1:
            return cls(seconds[0], seconds[0], seconds[0], 1)
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high, len(seconds))


class TooSlow(Exception):
    """A call that takes, or would take, longer than a measurement may: why it is left out."""


class Limit:
    """The seconds that one measurement may take, and what a call is expected to take after those before it.

    Expected is the work times the seconds that a unit of work took in the call noted last; before the first call those
    that `rate` says, if it is given.
    """

    def __init__(self, max_seconds: float, rate: float | None = None) -> None:
        self.max_seconds = max_seconds
        self._rate = rate

    def check(self, work: float) -> None:
        """Raise TooSlow if a call of this much work is expected to take longer than the limit."""
        if self._rate is not None and self._rate * work > self.max_seconds:
            raise TooSlow(f"expected to take {self._rate * work:,.0f} s a call, the limit is {self.max_seconds:g} s")

    def note(self, work: float, seconds: float) -> None:
        """Take in what a call of this much work took; raise TooSlow if it was longer than the limit."""
        self._rate = seconds / work
        if seconds > self.max_seconds:
            raise TooSlow(f"took {seconds:,.0f} s a call, the limit is {self.max_seconds:g} s")

    def repeats(self, wanted: int, seconds: float) -> int:
        """Return how many calls of so many seconds fit into the limit: as many as wanted, at least one."""
        return max(1, min(wanted, int(self.max_seconds / max(seconds, 1e-9))))


def time_calls(call: Callable[[], Any], repeats: int, limit: Limit, work: float, compiles: bool = False) -> Timing:
    """Time a call of so much `work`, after calls that warm up; one more, of any length, if it compiles then.

    Raises TooSlow.
    """
    limit.check(work)
    if compiles:
        call()
    first = seconds_of(call)
    limit.note(work, first)
    if first < limit.max_seconds / 4:  # the first also chooses kernels and fills caches
        first = seconds_of(call)
        limit.note(work, first)
    return Timing.of([seconds_of(call) for _ in range(limit.repeats(repeats, first))])


def seconds_per_operation(device: torch.device) -> float:
    """Return the seconds of a multiply-accumulate in a product of matrices: about the least it can be on a device."""
    matrix = torch.randn(512, 512, device=device)
    seconds = min(seconds_of(lambda: matrix @ matrix) for _ in range(5))
    return seconds / 512**3


def seconds_of(call: Callable[[], Any]) -> float:
    """Return the seconds of a call, to the end of what it gave a GPU to do."""
    synchronise()
    began = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - began


def synchronise() -> None:
    """Wait until the GPU, if there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Watched(NamedTuple):
    """A call to be watched: whose attribute it is, and the part it counts as: by its arguments, if a function."""

    owner: Any
    attribute: str
    part: str | Callable[..., str]


class Stopwatch:
    """Seconds by part, and the largest of what `peak` returns after each stretch of it.

    The time of a part inside another is the inner one's alone.
    """

    def __init__(self, peak: Callable[[], int] = lambda: 0) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.peaks: dict[str, int] = defaultdict(int)
        self._peak = peak
        self._open: list[str] = []
        self._mark = 0.0

    def measure(self, call: Callable[[], Any], watched: Iterable[Watched], rest: str) -> None:
        """Call once, the watched calls in it counted apart, everything else as `rest`."""
        with ExitStack() as stack:
            for owner, attribute, part in watched:
                timed = self._timing(part, getattr(owner, attribute))
                stack.enter_context(mock.patch.object(owner, attribute, timed))
            self._timing(rest, call)()

    def _timing(self, part: str | Callable[..., str], function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._lap()
            self._open.append(part if isinstance(part, str) else part(*args, **kwargs))
            try:
                return function(*args, **kwargs)
            finally:
                self._lap()
                self._open.pop()

        return timed

    def _lap(self) -> None:
        synchronise()
        now, peak = time.perf_counter(), self._peak()
        if self._open:
            part = self._open[-1]
            self.seconds[part] += now - self._mark
            self.peaks[part] = max(self.peaks[part], peak)
        self._mark = now
