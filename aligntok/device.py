"""The device and its arithmetic: where it is, what a precision means, the same bits again, what a full memory says."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from aligntok.errors import ConfigError, unknown

# Of glibc's mallopt(3): how much free memory at the top of the heap, and of which size a piece, goes back to Linux.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: What libraries read once, when a process first uses them, and what adds up in one order: room of its own for each of
#: cuBLAS's streams, and no sums in the switch between GPUs.
_REPEATABLE = {"CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"), "NCCL_NVLS_ENABLE": ("0",)}
PRECISIONS = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTO = "auto"  # the precision that is bf16 where a device is fast in it, and fp32 elsewhere
#: What weights, latents and embeddings may be kept in, by our names.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device() -> torch.device:
    """Return this process's device: its current GPU, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def device_named(device: str | int | torch.device, who: str) -> torch.device:
    """Return a device of this machine by its name, such as "cpu", "cuda", "cuda:1" or "mps"; `who` asks, in errors.

    Raises ConfigError for a name that torch does not know, and for a device that is not here.
    """
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    here = ["cpu", *(f"{kind.type}:{i}" for i in range(torch.accelerator.device_count()))] if kind else ["cpu"]
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        found = torch.device("meta")
    if f"{found.type}:{found.index or 0}" not in here and found.type != "cpu":
        raise ConfigError(f"{who}: device={str(device)!r} is not here; PyTorch finds {', '.join(here)} on this machine")
    return found


def dtype_named(dtype: str | torch.dtype, who: str) -> torch.dtype:
    """Return a floating-point type by our name or torch's, "bf16" or "bfloat16"; `who` asks. Raises ConfigError."""
    names = {**DTYPES, **{str(each).removeprefix("torch."): each for each in DTYPES.values()}}
    found = names.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ConfigError(f"{who}: {unknown('dtype', dtype, names)}")
    return found


def is_traced() -> bool:
    """Tell whether torch.compile, torch.export or torch.jit.trace records what runs, so that no number may be asked."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def has_values(numbers: Any) -> bool:
    """Tell whether there are numbers to ask for: a tensor on the meta device, or of a rehearsal, has none."""
    from torch._subclasses.fake_tensor import FakeTensor  # which a start that rehearses nothing does without

    return not (isinstance(numbers, FakeTensor) or getattr(numbers, "is_meta", False))


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
    slow = "" if is_fast_in_bf16(torch.device("cpu")) else "; without avx512_bf16: bf16 is slower than fp32"
    found = {"cpu": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}{slow}"}
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        with torch.cuda.device(number):
            bf16 = "bf16" if precision_on(torch.device("cuda", number)) == "bf16" else "no bf16"
        found[f"cuda:{number}"] = f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, {gpu.major}.{gpu.minor}, {bf16}"
    return found


def on_plain_cpu(tensor: Tensor) -> bool:
    """Tell whether a tensor is computed with by a CPU, one operation after the other, not by a compiled block."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def precision_on(where: torch.device) -> str:
    """Return the precision of what is drawn on a device if none is asked for: "bf16" on GPUs that compute in it."""
    return "bf16" if where.type == "cuda" and is_fast_in_bf16(where) else "fp32"


def is_fast_in_bf16(where: torch.device) -> bool:
    """Tell whether a device multiplies bf16 itself: a GPU, a CPU with avx512_bf16 or AMX. Others are slower in it."""
    if where.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # of torch 2.6 on
    return where.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in asked)


def precision_taken(precision: str, where: torch.device | None = None) -> str:
    """Return what a precision means on a device (None: this process's): of "auto" bf16 or fp32, of others itself."""
    return precision if precision != AUTO else "bf16" if is_fast_in_bf16(where or device()) else "fp32"


@contextmanager
def computing(precision: str, where: torch.device | None = None, whole: bool = False) -> Iterator[None]:
    """Compute in a precision on `where` (None: this process's device); inside of it, and as before afterwards.

    "bf16" and "fp16" are autocast; the others put an end to an autocast around them; "auto" is what
    :func:`precision_taken` says. How float32 is multiplied, see :func:`multiplying`, `whole` included.
    """
    precision = precision_taken(precision, where)
    low = PRECISIONS[precision]
    with multiplying(precision, whole), torch.autocast((where or device()).type, low, enabled=low is not None):
        yield


def whole_on_cpu() -> torch.autocast:
    """Compute on a CPU in the types of what is given, in spite of an autocast around."""
    return torch.autocast("cpu", enabled=False)


@contextmanager
def meeting(weights: torch.dtype, where: torch.device) -> Iterator[None]:
    """Bring float32 to the type of weights that are kept in 16 bits where the two meet; others are met as they are."""
    if weights in (torch.bfloat16, torch.float16):
        with torch.autocast(where.type, weights):
            yield
    else:
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
    precision = precision_taken(precision)
    rounded = precision != "fp32" if whole else precision == "tf32"
    torch.set_float32_matmul_precision("high" if rounded else "highest")
    if whole:
        torch.backends.cudnn.allow_tf32 = rounded
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        if whole:
            torch.backends.cudnn.allow_tf32 = before[1]


def allow_repeatable() -> None:
    """Have cuBLAS add up in one order, unless the environment says how: it reads that once, at its first product.

    So that a process may compute something on a GPU before what is to be :func:`repeatable`.
    """
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _REPEATABLE["CUBLAS_WORKSPACE_CONFIG"][0])


@contextmanager
def repeatable(asked: bool = True) -> Iterator[None]:
    """Compute to the same bits each time, on GPUs too, if that is `asked`; inside of it, and as before afterwards.

    torch takes the form of each operation that adds up in one order, cuDNN, cuBLAS, NCCL and Inductor with it, and
    some that have no such form on GPUs go backward in ours. On the CPU nothing changes. To be entered
    before the process uses a GPU, or after :func:`allow_repeatable` was called before that. Raises ConfigError for an
    environment that says otherwise, and inside of it for an operation that has no such form, by its name.
    """
    if not asked:
        yield
        return
    told = {name: os.environ.get(name) for name in _REPEATABLE}
    for name, allowed in _REPEATABLE.items():
        if told[name] not in (None, *allowed):
            raise ConfigError(
                f"deterministic=True, but the environment says {name}={told[name]}, with which sums differ from run to "
                f"run; unset it, or set it to {' or '.join(allowed)}"
            )
    mode = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        os.environ.update({name: allowed[0] for name, allowed in _REPEATABLE.items() if told[name] is None})
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        with ExitStack() as inside:
            if device().type == "cuda":
                inside.enter_context(going_back_repeatably())
            yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):  # torch's and xformers' errors of this kind all name it
            raise
        raise ConfigError(_what_varies(str(error))) from error
    finally:
        torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        for name, value in told.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


def _what_varies(message: str) -> str:
    """Say what has no deterministic form, and what to do, by an error of torch's or xformers'."""
    if named := re.search(r"(\S+) does not have a deterministic implementation", message):
        return varying(named[1])
    if "CUBLAS_WORKSPACE_CONFIG" in message:
        return (
            "deterministic=True, but cuBLAS was used in this process before; set CUBLAS_WORKSPACE_CONFIG=:4096:8 "
            "before it starts"
        )
    return (
        "deterministic=True, but xformers has no attention here whose backward pass is deterministic; set "
        "attention='sdpa'"
    )


def varying(operation: str) -> str:
    """Say that an operation has no deterministic form."""
    return (
        f"deterministic=True, but '{operation}' has no deterministic form on a GPU; take a component without it, or "
        "deterministic=False"
    )


@contextmanager
def going_back_repeatably(key: str = "CUDA") -> Iterator[None]:
    """Have the gradients of what torch adds up in any order on GPUs computed by products of matrices and by slices.

    Of antialiased resampling, as of tables of positions, of pooling to a given size, and of reflected edges. key:
    torch's, of the device.
    """
    aten = torch.ops.aten
    bicubic, bilinear = aten._upsample_bicubic2d_aa.default, aten._upsample_bilinear2d_aa.default
    forms = {
        "_upsample_bicubic2d_aa_backward": partial(_resampled_back, bicubic),
        "_upsample_bilinear2d_aa_backward": partial(_resampled_back, bilinear),
        "_adaptive_avg_pool2d_backward": _pooled_back,
        "reflection_pad2d_backward": _reflected_back,
    }
    with torch.library._scoped_library("aten", "IMPL") as library, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
        for name, form in forms.items():
            library.impl(name, form, key)
        yield


def _resampled_back(
    resample: Callable[..., Tensor],
    gradient: Tensor,
    output_size: Sequence[int],
    input_size: Sequence[int],
    align_corners: bool,
    scale_h: float | None = None,
    scale_w: float | None = None,
) -> Tensor:
    """Return the gradient (N, C, h, w) of what was resampled, of that of the result: rows and columns are apart."""

    def weights(side: int, into: int, scale: float | None) -> Tensor:  # (side, into): what each pixel alone becomes
        alone = torch.eye(side, device=gradient.device)[:, None, None]
        return resample(alone, [1, into], align_corners, None, scale)[:, 0, 0]

    rows, columns = map(weights, input_size[-2:], output_size, (scale_h, scale_w))
    return (rows @ gradient.float() @ columns.mT).to(gradient.dtype)


def _pooled_back(gradient: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of x (..., h, w), of that of its means over as many parts as the gradient has."""

    def pool(alone: Tensor, size: Sequence[int], *_: Any) -> Tensor:
        return torch.ops.aten._adaptive_avg_pool2d(alone, size)

    return _resampled_back(pool, gradient, gradient.shape[-2:], x.shape, False)


def _reflected_back(gradient: Tensor, x: Tensor, padding: Sequence[int]) -> Tensor:
    """Return the gradient of x (..., h, w), of that of x with so many pixels reflected at its left, right, ..."""
    left, right, top, bottom = padding
    for before, after in ((left, right), (top, bottom)):
        end = gradient.shape[-1] - after
        own = gradient[..., before:end].clone()
        own[..., 1 : before + 1] += gradient[..., :before].flip(-1)
        own[..., own.shape[-1] - after - 1 : -1] += gradient[..., end:].flip(-1)
        gradient = own.mT  # rows next, and back
    return gradient


@contextmanager
def explaining_out_of_memory(what: str, cure: str) -> Iterator[None]:
    """Turn a full memory, of the device or the machine, into a ConfigError: `what` was too much, and the `cure`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's for a device is a RuntimeError, too
        if not is_out_of_memory(error):
            raise
        raise ConfigError(f"{what} at once do not fit into the memory of this device; {cure}") from error


_Module = TypeVar("_Module", bound=nn.Module)


def put(module: _Module, device: torch.device | None = None, dtype: torch.dtype | None = None) -> _Module:
    """Return a module moved to a device and cast, as its ``to`` does; raise ConfigError where it does not fit there."""
    if device is None and dtype is None:
        return module
    held = sum(each.numel() * each.element_size() for each in module.state_dict().values())
    cure = "another device may have more, and dtype='bfloat16' takes half of float32's"
    with explaining_out_of_memory(f"{held / 1e9:,.2f} GB of weights", cure):
        return module.to(device=device, dtype=dtype)


def memory_bytes() -> int:
    """Return the size of this process's device's memory: a GPU's, or the machine's."""
    if device().type == "cuda":
        return int(torch.cuda.get_device_properties(device()).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is memory that there was not: of a GPU, or of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "not enough memory" in text)
