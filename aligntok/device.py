"""The device and its arithmetic: where this process computes, what a precision means, what a full memory says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from aligntok.errors import ConfigError

PRECISIONS = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def device() -> torch.device:
    """Return this process's device: its current GPU, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def on_plain_cpu(tensor: Tensor) -> bool:
    """Tell whether a tensor is computed with by a CPU, one operation after the other, not by a compiled block."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def precision_on(where: torch.device) -> str:
    """Return the precision of what is drawn on a device if none is asked for: "bf16" on GPUs that compute in it."""
    native = where.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp32"


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
