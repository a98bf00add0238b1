"""Seconds and bytes, of a call and of its parts; and those of encoders and decoders, by resolution and batch size."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from aligntok.device import computing, is_out_of_memory
from aligntok.device import device as this_device
from aligntok.evaluation.cost.count import Counted
from aligntok.evaluation.cost.memory import GB, free_bytes, metering
from aligntok.evaluation.settings import CostSettings

WORKING_SPACE = 1.2  # of what tensors take: what kernels allocate for themselves


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


@dataclass(frozen=True)
class CostRow:
    """One row: `what` was measured, its seconds and the peak of its bytes; or why it was not, in `left_out`.

    A training step of one device also has the `steps` of its schedule, whether it `reads` its data, and seconds and
    peaks by part.
    """

    what: Mapping[str, Any]
    timing: Timing | None = None
    peak: int | None = None
    left_out: str = ""
    steps: int = 0
    reads: bool = True
    seconds: Mapping[str, float] = field(default_factory=dict)
    peaks: Mapping[str, int] = field(default_factory=dict)

    @property
    def hours(self) -> float | None:
        """Steps of the schedule x seconds a step x devices, in hours; exchanges between devices are left out."""
        return None if self.timing is None else self.steps * self.timing.median * self.what["devices"] / 3600


class LeftOut(Exception):
    """Why something is not measured: it takes, or would take, longer than a measurement may, or more memory."""


@contextmanager
def leaving_out() -> Iterator[list[str]]:
    """Put into the list that it yields why what runs inside cannot be measured, if so; other errors go on."""
    reason: list[str] = []
    try:
        yield reason
    except LeftOut as error:
        reason.append(str(error))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason.append("out of memory")
    if reason:
        torch.cuda.empty_cache()  # pieces of what did not fit; nothing without a GPU


class Limit:
    """The seconds that one measurement may take, and what a call is expected to take after those before it.

    Expected is the work times the seconds that a unit of work took in the call noted last; before the first call those
    that `rate` says, if it is given.
    """

    def __init__(self, max_seconds: float, rate: float | None = None) -> None:
        self.max_seconds = max_seconds
        self._rate = rate

    def check(self, work: float) -> None:
        """Raise LeftOut if a call of this much work is expected to take longer than the limit."""
        if self._rate is not None and self._rate * work > self.max_seconds:
            raise LeftOut(f"expected to take {self._rate * work:,.0f} s a call, the limit is {self.max_seconds:g} s")

    def note(self, work: float, seconds: float) -> None:
        """Take in what a call of this much work took; raise LeftOut if it was longer than the limit."""
        self._rate = seconds / work
        if seconds > self.max_seconds:
            raise LeftOut(f"took {seconds:,.0f} s a call, the limit is {self.max_seconds:g} s")


def time_calls(call: Callable[[], Any], repeats: int, limit: Limit, work: float, compiles: bool = False) -> Timing:
    """Time a call of so much `work`, after calls that warm up; one more, of any length, if it compiles then.

    As often as `repeats` says, or as fit into the limit, at least once. Raises LeftOut.
    """
    limit.check(work)
    if compiles:
        call()
    first = seconds_of(call)
    limit.note(work, first)
    if first < limit.max_seconds / 4:  # the first also chooses kernels and fills caches
        first = seconds_of(call)
        limit.note(work, first)
    calls = max(1, min(repeats, int(limit.max_seconds / max(first, 1e-9))))
    return Timing.of([seconds_of(call) for _ in range(calls)])


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

    def begin(self, part: str) -> None:
        """Count what runs from now on as this part."""
        self._lap()
        self._open.append(part)

    def end(self) -> None:
        """End the part that was begun last."""
        self._lap()
        self._open.pop()

    @contextmanager
    def listening(self, parts: Collection[str]) -> Iterator[None]:
        """Count what runs inside under ``torch.profiler.record_function(part)``, for those parts."""
        enter, leave = record_function.__enter__, record_function.__exit__

        def entered(mark: record_function) -> Any:
            if mark.name in parts:
                self.begin(mark.name)
            return enter(mark)

        def left(mark: record_function, *error: Any) -> None:
            leave(mark, *error)
            if mark.name in parts:
                self.end()

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


def measure_tokenizer(tokenizer: Any, counted: Counted, settings: CostSettings, device: torch.device) -> list[CostRow]:
    """Measure encoder (with adapter: image to latent) and decoder (latent to image), each alone on the device."""
    f, d = tokenizer.downsample_factor, tokenizer.latent_dim

    def latents(batch: int, size: int) -> Tensor:
        return torch.randn(batch, d, size // f, size // f)

    encode = nn.Sequential(tokenizer.encoder, tokenizer.adapter)
    rows = measure_part("encoder", encode, random_images, counted, settings, device)
    return [*rows, *measure_part("decoder", tokenizer.decoder, latents, counted, settings, device)]


def random_images(batch: int, size: int) -> Tensor:
    """Return what an encoder takes: images (N, 3, H, W) in [-1, 1]."""
    return torch.rand(batch, 3, size, size) * 2 - 1


def measure_part(
    part: str,
    module: nn.Module,
    inputs: Callable[[int, int], Tensor],
    counted: Counted,
    settings: CostSettings,
    device: torch.device,
) -> list[CostRow]:
    """Measure a module on `inputs` (batch, resolution), from the least work to the most; off the device afterwards.

    What is expected to take longer than `settings.max_seconds` a call, or more memory than there is, is left out, which
    the row says.
    """
    rows: list[CostRow] = []
    limit = Limit(settings.max_seconds)
    weights = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    a_pixel = 0.0  # bytes of activations, in the row before
    with leaving_out() as no_room:  # for the weights themselves
        module.eval().requires_grad_(False).to(device)
    cells = ((size, batch) for size in settings.resolutions for batch in settings.batch_sizes)
    for size, batch in sorted(cells, key=lambda cell: cell[0] ** 2 * cell[1]):
        row = CostRow({"config": counted.name, "part": part, "resolution": size, "batch": batch})
        operations = counted.operations.get((part, str(size)))  # without them, work is in pixels
        work = float((operations.total if operations else size * size) * batch)
        with leaving_out() as reason:
            if no_room:
                raise LeftOut(*no_room)
            if device.type == "cpu":  # Linux would end the process
                check_room(weights + WORKING_SPACE * a_pixel * size**2 * batch, free_bytes(device), "expected to take")
            row = _measure_call(row, module, inputs(batch, size).to(device), settings, limit, work)
            a_pixel = max(0, (row.peak or 0) - weights) / (size**2 * batch)
        rows.append(replace(row, left_out="".join(reason)))
    if device.type == "cuda":
        module.to("cpu")
        torch.cuda.empty_cache()
    return rows


def _measure_call(
    row: CostRow, module: nn.Module, given: Tensor, settings: CostSettings, limit: Limit, work: float
) -> CostRow:

    def call() -> None:
        with torch.inference_mode(), computing(settings.precision, given.device):
            module(given)

    timing = time_calls(call, settings.repeats, limit, work)
    with metering(given.device) as peak:
        call()
        peak()  # everything that lives is known now
        call()
        return replace(row, timing=timing, peak=peak())


def check_room(needed: float, free: float, takes: str) -> None:
    """Raise LeftOut if more bytes are needed than are free."""
    if needed > free:
        raise LeftOut(f"out of memory: {takes} {needed / GB:.1f} GB, {free / GB:.1f} are free")
