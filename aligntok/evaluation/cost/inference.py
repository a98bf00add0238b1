"""Seconds and bytes of a tokenizer's encoder and decoder, by resolution and batch size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from aligntok.device import PRECISIONS
from aligntok.evaluation.cost.counting import Counted
from aligntok.evaluation.cost.memory import GB, free_bytes, is_out_of_memory, metering
from aligntok.evaluation.cost.timing import Limit, Timing, TooSlow, time_calls

WORKING_SPACE = 1.2  # of what tensors take: what kernels allocate for themselves


@dataclass(frozen=True)
class How:
    """How to measure: sizes of the inputs, calls, arithmetic, seconds a measurement may take, devices of a training."""

    resolutions: Sequence[int] = (256, 512, 1024)
    batch_sizes: Sequence[int] = (1, 4, 8)
    repeats: int = 10
    precision: str = "fp32"
    max_seconds: float = 30.0
    devices: int = 1


@dataclass(frozen=True)
class Measured:
    """One row: what was measured, its seconds and the peak of its bytes; or why it was not, in `left_out`."""

    config: str
    part: str
    resolution: int
    batch: int
    timing: Timing | None = None
    peak: int | None = None
    left_out: str = ""

    def row(self) -> dict[str, Any]:
        """Return it as JSON types: milliseconds and GB."""
        timing = {} if self.timing is None else asdict(self.timing)
        calls = timing.pop("calls", None)
        named = {"median": "ms", "low": "ms_lower_quartile", "high": "ms_upper_quartile"}
        spread = {title: timing[name] * 1e3 if timing else None for name, title in named.items()}
        what = {key: getattr(self, key) for key in ("config", "part", "resolution", "batch")}
        peak = None if self.peak is None else self.peak / GB
        return {**what, **spread, "calls": calls, "peak_gb": peak, "left_out": self.left_out}


def measure_tokenizer(tokenizer: Any, counted: Counted, how: How, device: torch.device) -> list[Measured]:
    """Measure encoder (with adapter: image to latent) and decoder (latent to image), each alone on the device."""
    f, d = tokenizer.downsample_factor, tokenizer.latent_dim
    encode = nn.Sequential(tokenizer.encoder, tokenizer.adapter)
    rows = measure_encoder(encode, counted, how, device)

    def latents(batch: int, size: int) -> Tensor:
        return torch.randn(batch, d, size // f, size // f, device=device)

    return [*rows, *measure_part("decoder", tokenizer.decoder, latents, counted, how, device)]


def measure_encoder(encoder: nn.Module, counted: Counted, how: How, device: torch.device) -> list[Measured]:
    """Measure what takes images (N, 3, H, W) in [-1, 1]."""

    def images(batch: int, size: int) -> Tensor:
        return torch.rand(batch, 3, size, size, device=device) * 2 - 1

    return measure_part("encoder", encoder, images, counted, how, device)


def measure_part(
    part: str,
    module: nn.Module,
    inputs: Callable[[int, int], Tensor],
    counted: Counted,
    how: How,
    device: torch.device,
) -> list[Measured]:
    """Measure a module on `inputs` (batch, resolution), from the least work to the most; off the device afterwards.

    What is expected to take longer than `how.max_seconds` a call, or more memory than there is, is left out, which the
    row says.
    """
    rows: list[Measured] = []
    limit = Limit(how.max_seconds)
    weights = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    activations = 0.0  # bytes a unit of work, of the row before
    cells = sorted(((size, batch) for size in how.resolutions for batch in how.batch_sizes), key=_pixels)
    try:
        module.eval().requires_grad_(False).to(device)
        for size, batch in cells:
            work = float(_work(counted, part, size) * batch)
            row = Measured(counted.name, part, size, batch)
            expected = weights + WORKING_SPACE * activations * _pixels((size, batch))
            free = free_bytes(device)
            if device.type == "cpu" and expected > free:  # Linux would end the process
                reason = f"out of memory: expected to take {expected / GB:.1f} GB, {free / GB:.1f} are free"
                rows.append(replace(row, left_out=reason))
                continue
            row = _measure(row, module, functools.partial(inputs, batch, size), how, limit, work)
            if row.peak is not None:
                activations = max(0, row.peak - weights) / _pixels((size, batch))
            rows.append(row)
    except (RuntimeError, MemoryError) as error:  # the weights themselves had no room
        if not is_out_of_memory(error):
            raise
        rows += [Measured(counted.name, part, *cell, left_out="out of memory") for cell in cells[len(rows) :]]
    finally:
        if device.type == "cuda":
            module.to("cpu")
            torch.cuda.empty_cache()
    return rows


def _measure(
    row: Measured, module: nn.Module, inputs: Callable[[], Tensor], how: How, limit: Limit, work: float
) -> Measured:
    try:
        given = inputs()
        call = _calling(module, given, how.precision)
        timing = time_calls(call, how.repeats, limit, work)
        with metering(given.device) as meter:
            call()
            meter.peak()  # everything that lives is known now
            call()
            return replace(row, timing=timing, peak=meter.peak())
    except TooSlow as error:
        return replace(row, left_out=str(error))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # pieces of what did not fit
        return replace(row, left_out="out of memory")


def _calling(module: nn.Module, given: Tensor, precision: str) -> Callable[[], None]:
    dtype = PRECISIONS[precision]

    def call() -> None:
        with torch.inference_mode(), torch.autocast(given.device.type, dtype=dtype, enabled=dtype is not None):
            module(given)

    return call


def _pixels(cell: tuple[int, int]) -> int:
    size, batch = cell
    return size * size * batch


def _work(counted: Counted, part: str, size: int) -> int:
    """Return the operations of one image, or its pixels where operations could not be counted."""
    operations = counted.operations.get((part, str(size)))
    return operations.total if operations else size * size


def left_out(rows: Sequence[Measured]) -> list[str]:
    """Return what was not measured, and why, a line each."""
    return [f"{r.config}: {r.part} at {r.resolution}, batch {r.batch}: {r.left_out}" for r in rows if r.left_out]


def as_metrics(rows: Sequence[Measured]) -> Mapping[str, float]:
    """Return milliseconds and GB by name."""
    found: dict[str, float] = {}
    for row in rows:
        where = f"{row.config}/{row.part}_{row.resolution}_batch{row.batch}"
        if row.timing is not None and row.peak is not None:
            found |= {f"{where}/ms": row.timing.median * 1e3, f"{where}/peak_gb": row.peak / GB}
    return found
