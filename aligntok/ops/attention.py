"""Attention behind one function: xformers on CUDA when it can run, PyTorch's own otherwise.

The layers of timm's and open_clip's models call PyTorch's function; :func:`route_attention` has them call this one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aligntok.device import device, is_out_of_memory, whole_on_cpu
from aligntok.errors import ConfigError, first_line, unknown
from aligntok.imports import FAILURES, import_failure, quietly, version_of

BACKENDS = ("xformers", "sdpa")
ENVIRONMENT_VARIABLE = "ALIGNTOK_ATTENTION"

# Head widths and dtypes that xformers has refused in this process, so that each is tried once, and why.
_refused: dict[tuple[torch.dtype, int], str] = {}
_taken: dict[str, dict[str, None]] = {}  # by who attends: the kernels, in words
_forced: list[str] = []  # by force_backend, at most one
_unimported: list[str] = []  # why xformers cannot be imported, once that was tried


def force_backend(backend: str | None) -> None:
    """Force "xformers" or "sdpa" in this process, as a config does; None leaves the choice open again.

    Raises ConfigError for an unknown one.
    """
    if backend is not None and backend not in BACKENDS:
        raise ConfigError(unknown("attention backend", backend, BACKENDS))
    _forced[:] = [] if backend is None else [backend]


@torch.compiler.assume_constant_result  # called as a block is compiled; else a compiled block holds for this note alone
def note(who: str, kernel: str) -> None:
    """Note by which kernel somebody's attention was computed, for :func:`kernels_taken`."""
    _taken.setdefault(who, {})[kernel] = None


def kernels_taken() -> str:
    """Say which kernels attention was computed by since the last time, by whom, and why by no other."""
    by_kernel: dict[str, list[str]] = {}
    for who, kernels in _taken.items():
        by_kernel.setdefault(" and ".join(kernels), []).append(who)
    _taken.clear()
    return "; ".join(f"{', '.join(who)}: {kernel}" for kernel, who in by_kernel.items())


def attention(q: Tensor, k: Tensor, v: Tensor, *, backend: str | None = None, who: str = "others") -> Tensor:
    """Softmax attention, scaled by 1/sqrt(dim): q, k, v (..., B, heads, tokens, dim) to the shape of q.

    backend: "xformers" or "sdpa" to force one; None takes what `force_backend` said, then the environment variable
    ALIGNTOK_ATTENTION, and without either xformers on CUDA when it has an operator for these tensors. who: what
    the log calls it (:func:`kernels_taken`). Raises ConfigError for an unknown backend, and when xformers is forced
    where it cannot run.
    """
    forced = asked_for(backend)
    if _choose(forced, q) == "sdpa":
        if not q.is_meta:
            note(who, f"torch's, {_why_not(forced, q)}")
        return _torchs(q, k, v)
    fused = memory_efficient_attention()
    assert fused is not None
    dtype = computed_in(q)
    if torch.is_autocast_enabled(q.device.type):  # which casts what PyTorch's own is given
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    try:  # xformers wants (B, tokens, heads, dim)
        rows = (x.flatten(0, -4).transpose(1, 2) for x in (q, k, v))
        found = fused(*rows).transpose(1, 2).unflatten(0, q.shape[:-3])
    except Exception as error:  # beside having no operator, a kernel for another torch or GPU can fail in any way
        if is_out_of_memory(error):
            raise
        if forced:
            raise ConfigError(
                f"attention backend 'xformers' was forced, but cannot attend with {q.dtype} heads of width "
                f"{q.shape[-1]} here: {first_line(error)}\n  use 'sdpa', or leave the choice open"
            ) from error
        _refused[dtype, q.shape[-1]] = first_line(error)
        return attention(q, k, v, who=who)
    note(who, f"xformers {version_of('xformers') or 'of no known version'}")
    return found


def asked_for(backend: str | None) -> str | None:
    """Return the kernel that is forced: by the argument, by `force_backend`, or by the environment; None: none is."""
    return backend or (_forced[0] if _forced else os.environ.get(ENVIRONMENT_VARIABLE)) or None


def _why_not(forced: str | None, q: Tensor) -> str:
    """Say why xformers does not attend to a query."""
    if forced:
        return "as was asked"
    if _device_type(q) != "cuda":
        return "as xformers runs on CUDA alone"
    if torch.compiler.is_compiling():
        return "as it is compiled"
    if memory_efficient_attention() is None:
        return f"as xformers cannot be imported ({''.join(_unimported)})"
    dtype, width = computed_in(q), q.shape[-1]
    reason = _refused.get((dtype, width), "")
    return f"as xformers refuses {str(dtype).removeprefix('torch.')} heads of {width} ({reason})"


def _device_type(q: Tensor) -> str:
    return q.device.type


def computed_in(q: Tensor) -> torch.dtype:
    """Return the type that a query's attention is computed in, that of an autocast around it."""
    kind = q.device.type
    autocast = not q.is_meta and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if autocast else q.dtype


def half_on_cpu(x: Tensor) -> bool:
    """Say whether `x` is computed with in half a precision on a CPU, where some gradients have no quick kernel."""
    return _device_type(x) == "cpu" and computed_in(x).itemsize < torch.float32.itemsize


def _torchs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's own attention; on a CPU in float32, whose gradient is quicker (`benchmarks/half_on_cpu.py`)."""
    if not half_on_cpu(q):
        return F.scaled_dot_product_attention(q, k, v)
    with whole_on_cpu():
        found = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    return found.to(computed_in(q))


def _choose(forced: str | None, q: Tensor) -> str:
    """Name the backend for a query, or raise ConfigError when the forced one is unknown or cannot run there."""
    where = _device_type(q)
    if where == "meta":  # nothing is computed
        return "sdpa"
    if forced is None:
        if torch.compiler.is_compiling():  # of which xformers is no part: each attention would end the graph
            return "sdpa"
        suits = where == "cuda" and (computed_in(q), q.shape[-1]) not in _refused and memory_efficient_attention()
        return "xformers" if suits else "sdpa"
    if forced not in BACKENDS:
        raise ConfigError(unknown("attention backend", forced, BACKENDS))
    if forced == "sdpa":
        return forced
    if where != "cuda":
        raise ConfigError(
            f"attention backend 'xformers' was forced (argument or {ENVIRONMENT_VARIABLE}), but it has no operator for "
            f"the device '{where}'; use 'sdpa', or leave the choice open"
        )
    if memory_efficient_attention() is None:
        raise ConfigError(
            f"attention backend 'xformers' was forced (argument or {ENVIRONMENT_VARIABLE}), but xformers cannot be "
            f"imported: {''.join(_unimported)}\n  or use 'sdpa'"
        )
    return forced


@cache
def memory_efficient_attention() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Return xformers' attention function, or None when it cannot be imported. Imported at the first call only."""
    try:
        with quietly():
            from xformers.ops import memory_efficient_attention as found
    except FAILURES as error:  # a build for another torch can fail in any way; SDPA does the same work
        _unimported[:] = [import_failure(error)]
        return None
    return found


def route_attention(model: nn.Module) -> None:
    """Have all layers of a library's model that call PyTorch's attention call :func:`attention`, in place.

    Whatever masks, drops or scales otherwise still goes to PyTorch. Weights, names and results stay.
    """
    for layer in model.modules():
        kind: Any = type(layer)
        if (routed := _routed(kind)) is not kind:
            layer.__class__ = routed


def _as_pytorch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **others: Any,
) -> Tensor:
    """PyTorch's function of any arguments, by :func:`attention` where it is plain attention over heads."""
    alike = query.shape[:-2] == key.shape[:-2] == value.shape[:-2] and query.shape[-1] == value.shape[-1]
    plain = attn_mask is None and not dropout_p and not is_causal and not any(others.values())
    if alike and plain and query.dim() > 3:
        return attention(query, key, value, who="encoders")
    options = dict(attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, **others)
    return F.scaled_dot_product_attention(query, key, value, **options)


@cache
def _routed(kind: Any) -> Any:
    """Return a subclass whose methods see :func:`_as_pytorch` where PyTorch's function stood, or the class itself."""
    own: dict[str, Any] = {}
    for base in reversed(kind.__mro__[: kind.__mro__.index(nn.Module)]):
        methods = {name: each for name, each in vars(base).items() if isinstance(each, FunctionType)}
        own |= {name: _seeing_ours(each) for name, each in methods.items() if _NAMES & {*each.__code__.co_names}}
    if not own:
        return kind
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "__qualname__": kind.__qualname__, **own})


_NAMES = {"scaled_dot_product_attention", "multi_head_attention_forward"}


def _seeing_ours(function: FunctionType) -> FunctionType:
    """Return a function that finds our attention by PyTorch's name, however its module calls PyTorch."""
    seen = {name: each for name, each in _ours().items() if name in function.__globals__}
    own = FunctionType(
        function.__code__,
        {**function.__globals__, **seen},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    own.__kwdefaults__ = function.__kwdefaults__
    return own


@cache
def _ours() -> dict[str, Any]:
    """Return what a module may call PyTorch's attention by, with ours in its place."""
    attends = {"scaled_dot_product_attention": _as_pytorch}
    whole = F.multi_head_attention_forward
    heads = FunctionType(whole.__code__, {**whole.__globals__, **attends}, whole.__name__, whole.__defaults__)
    functional = _standing_for(F, **attends, multi_head_attention_forward=heads)
    layers = _standing_for(nn, functional=functional)
    # nn.MultiheadAttention in inference has a kernel of its own, which would not be the one that was asked for.
    mha = _standing_for(torch.backends.mha, get_fastpath_enabled=lambda: not (_forced or device().type == "cuda"))
    return {
        **attends,
        "F": functional,
        "nn": layers,
        "torch": _standing_for(torch, nn=layers, backends=_standing_for(torch.backends, mha=mha)),
    }


def _standing_for(module: ModuleType, **others: Any) -> ModuleType:
    """Return a module like another but for some names."""
    own = ModuleType(module.__name__)
    own.__dict__.update({**vars(module), **others})
    return own
