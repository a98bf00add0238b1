"""Seconds and bytes, of a call and of its parts; and those of encoders and decoders, by resolution and batch size."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from aligntok.device import computing, is_out_of_memory
from aligntok.device import device as this_device
from aligntok.evaluation.cost.count import Counted, Part
from aligntok.evaluation.cost_settings import CostSettings
from aligntok.settings import Precision
from aligntok.training.rehearsal import LiveTensors

Row = dict[str, Any]
GB = 1e9  # bytes: what every "GB" here is
MEASURED = ("ms", "ms_lower_quartile", "ms_upper_quartile", "calls", "peak_gb")  # of an encoder or decoder
WORKING_SPACE = 1.2  # of what tensors take: what kernels allocate for themselves


class Timing(NamedTuple):
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


class LeftOut(Exception):
    """Why something is not measured: it takes, or would take, longer than a measurement may, or more memory."""


@contextmanager
def leaving_out(row: Row) -> Iterator[None]:
    """Note in `left_out` of the row why what runs inside cannot be measured, if so; other errors go on."""
    try:
        yield
    except LeftOut as error:
        row["left_out"] = str(error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        row["left_out"] = "out of memory"
    if row["left_out"]:
        torch.cuda.empty_cache()  # pieces of what did not fit; nothing without a GPU


class Limit:
    """The seconds that one measurement may take, and what a call is expected to take after those before it.

    Expected is the work times the seconds that a unit of work took in the last warm-up call; before the first call
    those that `rate` says, if it is given.
    """

    def __init__(self, max_seconds: float, rate: float | None = None) -> None:
        self.max_seconds = max_seconds
        self._rate = rate

    def check(self, work: float) -> None:
        """Raise LeftOut if a call of this much work is expected to take longer than the limit."""
        if self._rate is not None and self._rate * work > self.max_seconds:
            raise LeftOut(f"expected to take {self._rate * work:,.0f} s a call, the limit is {self.max_seconds:g} s")

    def time(self, call: Callable[[], Any], repeats: int, work: float, compiles: bool = False) -> Timing:
        """Time a call of so much `work`, after calls that warm up; one more, of any length, if it compiles then.

        As often as `repeats` says, or as fit into the limit, at least once. Raises LeftOut if it is expected to take
        longer than the limit, or did.
        """
        self.check(work)
        if compiles:
            call()
        for _ in range(2):  # the first also chooses kernels and fills caches
            seconds = seconds_of(call)
            self._rate = seconds / work
            if seconds > self.max_seconds:
                raise LeftOut(f"took {seconds:,.0f} s a call, the limit is {self.max_seconds:g} s")
            if seconds >= self.max_seconds / 4:
                break
        calls = max(1, min(repeats, int(self.max_seconds / max(seconds, 1e-9))))
        return Timing.of([seconds_of(call) for _ in range(calls)])


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return median and quartiles of at least one number, as benchmarks print them."""
    found = Timing.of(values)
    return f"{found.median:8.{digits}f} ({found.low:.{digits}f}-{found.high:.{digits}f})"


def now() -> float:
    """Return the time in seconds, when the GPU, if there is one, has done what it was given.

    On one thread of a CPU it is the processor's, whatever else runs on the machine.
    """
    synchronise()
    alone = torch.get_num_threads() == 1 and this_device().type == "cpu"
    return time.process_time() if alone else time.perf_counter()


def seconds_of(call: Callable[[], Any]) -> float:
    """Return the seconds of a call, to the end of what it gave a GPU to do."""
    synchronise()
    began = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - began


def seconds_per_operation(device: torch.device) -> float:
    """Return the seconds of a multiply-accumulate in a product of matrices: about the least it can be on a device."""
    matrix = torch.randn(512, 512, device=device)
    return min(seconds_of(lambda: matrix @ matrix) for _ in range(5)) / 512**3


def synchronise() -> None:
    """Wait until the GPU, if there is one, has done what it was given."""
    if this_device().type == "cuda":
        torch.cuda.synchronize()


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

    @contextmanager
    def listening(self, parts: Collection[str]) -> Iterator[None]:
        """Count what runs inside under ``torch.profiler.record_function(part)``, for those parts."""
        enter, leave = record_function.__enter__, record_function.__exit__

        def entered(mark: record_function) -> Any:
            if mark.name in parts:
                self._lap()
                self._open.append(mark.name)
            return enter(mark)

        def left(mark: record_function, *error: Any) -> None:
            leave(mark, *error)
            if mark.name in parts:
                self._lap()
                self._open.pop()

        with mock.patch.multiple(record_function, __enter__=entered, __exit__=left):
            yield

    def _lap(self) -> None:
        synchronise()
        now, peak = time.perf_counter(), self._peak()
        if self._open:
            part = self._open[-1]
            self.seconds[part] += now - self._mark
            self.peaks[part] = max(self.peaks[part], peak)
        self._mark = now


@contextmanager
def metering(device: torch.device) -> Iterator[Callable[[], int]]:
    """Yield what returns the peak of bytes, since its last call, of what runs inside, on a GPU or a CPU."""

    def allocated() -> int:  # as CUDA's allocator counts
        torch.cuda.synchronize()
        most = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return most

    if device.type == "cuda":
        allocated()
        yield allocated
        return
    with LiveTensors() as live:
        yield live.peak


def free_bytes(
    device: torch.device, meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")
) -> float:
    """Return what can still be allocated on a device; infinity where that is unknown.

    On a CPU the least of what Linux says it could give without swapping, and what is left of a container's limit
    (cgroup v2), where the cache of files can be given back.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    free = math.inf
    with suppress(OSError, ValueError, IndexError):  # no Linux
        (available,) = (line.split()[1] for line in meminfo.read_text().splitlines() if "MemAvailable:" in line)
        free = int(available) * 1024
    with suppress(OSError, ValueError):  # no container, or "max": none that limits
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        told = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(told.get("inactive_file", 0)))
    return free


def check_room(needed: float, free: float, takes: str) -> None:
    """Raise LeftOut if more bytes are needed than are free."""
    if needed > free:
        raise LeftOut(f"out of memory: {takes} {needed / GB:.1f} GB, {free / GB:.1f} are free")


def measure_part(part: Part, counted: Counted, settings: CostSettings, device: torch.device) -> list[Row]:
    """Measure encoder or decoder, alone on the device, from the least work to the most; off the device afterwards.

    What is expected to take longer than `settings.max_seconds` a call, or more memory than there is, is left out, which
    the row says.
    """
    rows: list[Row] = []
    name, module, inputs = part
    limit = Limit(settings.max_seconds)
    weights = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    a_pixel = 0.0  # bytes of activations, in the row before
    unfit: Row = {"left_out": ""}
    with leaving_out(unfit):  # for the weights themselves
        module.eval().requires_grad_(False).to(device)
    cells = ((size, batch) for size in settings.resolutions for batch in settings.batch_sizes)
    for size, batch in sorted(cells, key=lambda cell: cell[0] ** 2 * cell[1]):
        what = {"config": counted.name, "part": name, "resolution": size, "batch": batch}
        row: Row = {**what, **dict.fromkeys(MEASURED), **unfit}
        rows.append(row)
        if unfit["left_out"]:
            continue
        operations = counted.operations.get((name, str(size)))  # without them, work is in pixels
        work = float((operations.total if operations else size * size) * batch)
        with leaving_out(row):
            if device.type == "cpu":  # Linux would end the process
                check_room(weights + WORKING_SPACE * a_pixel * size**2 * batch, free_bytes(device), "expected to take")
            call = partial(_call, module, [each.to(device) for each in inputs(batch, size)], settings.precision)
            *seconds, calls = limit.time(call, settings.repeats, work)
            with metering(device) as peak:
                call()
                peak()  # everything that lives is known now
                call()
                most = peak()
            row.update(zip(MEASURED, (*(1e3 * each for each in seconds), calls, most / GB), strict=True))
            a_pixel = max(0, most - weights) / (size**2 * batch)
    if device.type == "cuda":
        module.to("cpu")
        torch.cuda.empty_cache()
    return rows


def _call(module: nn.Module, given: Sequence[Tensor], precision: Precision) -> None:
    with torch.inference_mode(), computing(precision, given[0].device):
        module(*given)
