"""The device and its arithmetic: where this process computes, what a precision means, what a full memory says."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from aligntok.errors import ConfigError

# Of glibc's mallopt(3): how much free memory at the top of the heap, and of which size a piece, goes back to Linux.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
PRECISIONS = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def device() -> torch.device:
    """Return this process's device: its current GPU, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def keep_freed_memory() -> None:
    """Have this process keep the memory of tensors that are freed for the next ones, where it computes on a CPU.

    glibc hands larger pieces back to Linux, which makes them anew, page by page, in each step. From then on a process
    takes the most that it ever needed. Environment variables of glibc's that say otherwise are heeded; other C
    libraries have no such habit, or no such switch.
    """
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if told or sys.platform != "linux" or device().type != "cpu":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_MMAP_THRESHOLD, 2**25)  # the highest that it takes


def devices() -> dict[str, str]:
    """Return what this machine can compute on, in words: kind, memory, and what matters to a choice of precision."""
    wide = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    slow = "" if wide else "; without avx512_bf16: bf16 is slower than fp32"
    found = {"cpu": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}{slow}"}
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        with torch.cuda.device(number):
            bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        found[f"cuda:{number}"] = f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, {gpu.major}.{gpu.minor}, {bf16}"
    return found


@contextmanager
def computing(precision: str, where: torch.device | None = None, whole: bool = False) -> Iterator[None]:
    """Compute in a precision on `where` (None: this process's device); inside of it, and as before afterwards.

    "bf16" and "fp16" are autocast; the others put an end to an autocast around them. How float32 is multiplied, see
    :func:`multiplying`, `whole` included.
    """
    low = PRECISIONS[precision]
    with multiplying(precision, whole), torch.autocast((where or device()).type, low, enabled=low is not None):
        yield


@contextmanager
def multiplying(precision: str, whole: bool = False) -> Iterator[None]:
    """Multiply float32 as a precision has it on GPUs, without autocast; as before afterwards.

    In training, encoding and reconstructing, matrix products round their factors to TF32 with "tf32" alone, and
    convolutions are left as torch has them (cuDNN rounds to TF32, unless told otherwise). `whole` settles convolutions
    too, and is for drawing samples and for the extractors of features: with "fp32" all of float32 is computed as it is
    written, and with any other precision, "bf16" and "fp16" included, all of it may round to TF32.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    rounded = precision != "fp32" if whole else precision == "tf32"
    torch.set_float32_matmul_precision("high" if rounded else "highest")
    if whole:
        torch.backends.cudnn.allow_tf32 = rounded
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@contextmanager
def explaining_out_of_memory(what: str, cure: str) -> Iterator[None]:
    """Turn a full memory of the device into a ConfigError: `what` was too much, and the `cure`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"{what} at once do not fit into the memory of this device; {cure}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is memory that there was not: of a GPU, or of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "not enough memory" in text)
