"""Attention behind one function: xformers on CUDA when it can run, PyTorch's own otherwise."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from aligntok.errors import ConfigError, unknown

BACKENDS = ("xformers", "sdpa")
ENVIRONMENT_VARIABLE = "ALIGNTOK_ATTENTION"

# Head widths and dtypes that xformers has refused in this process, so that each is tried once.
_refused: set[tuple[torch.dtype, int]] = set()
_forced: list[str] = []  # by force_backend, at most one


def force_backend(backend: str | None) -> None:
    """Force "xformers" or "sdpa" in this process, as a config does; None leaves the choice open again.

    Raises ConfigError for an unknown one.
    """
    if backend is not None and backend not in BACKENDS:
        raise ConfigError(unknown("attention backend", backend, BACKENDS))
    _forced[:] = [] if backend is None else [backend]


def attention(q: Tensor, k: Tensor, v: Tensor, *, backend: str | None = None) -> Tensor:
    """Softmax attention, scaled by 1/sqrt(dim): q, k, v (B, heads, tokens, dim) to (B, heads, tokens, dim).

    backend: "xformers" or "sdpa" to force one; None takes what `force_backend` said, then the environment variable
    ALIGNTOK_ATTENTION, and without either xformers on CUDA when it has an operator for these tensors. Raises
    ConfigError for an unknown backend, and when xformers is forced where it cannot run.
    """
    forced = backend or (_forced[0] if _forced else os.environ.get(ENVIRONMENT_VARIABLE)) or None
    if _choose(forced, q) == "sdpa":
        return F.scaled_dot_product_attention(q, k, v)
    fused = memory_efficient_attention()
    assert fused is not None
    try:  # xformers wants (B, tokens, heads, dim)
        return fused(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    except NotImplementedError as error:
        if forced:
            raise ConfigError(
                f"attention backend 'xformers' was forced, but has no operator for {q.dtype} heads of width "
                f"{q.shape[-1]} here: {str(error).strip().splitlines()[0]}\n  use 'sdpa', or leave the choice open"
            ) from error
        _refused.add((q.dtype, q.shape[-1]))
        return F.scaled_dot_product_attention(q, k, v)


def _device_type(q: Tensor) -> str:
    return q.device.type


def _choose(forced: str | None, q: Tensor) -> str:
    """Name the backend for a query, or raise ConfigError when the forced one is unknown or cannot run there."""
    device = _device_type(q)
    if forced is None:
        suits = device == "cuda" and (q.dtype, q.shape[-1]) not in _refused and memory_efficient_attention()
        return "xformers" if suits else "sdpa"
    if forced not in BACKENDS:
        raise ConfigError(unknown("attention backend", forced, BACKENDS))
    if forced == "sdpa":
        return forced
    if device != "cuda":
        raise ConfigError(
            f"attention backend 'xformers' was forced (argument or {ENVIRONMENT_VARIABLE}), but it has no operator for "
            f"the device '{device}'; use 'sdpa', or leave the choice open"
        )
    if memory_efficient_attention() is None:
        raise ConfigError(
            f"attention backend 'xformers' was forced (argument or {ENVIRONMENT_VARIABLE}), but xformers cannot be "
            "imported; install it (pip install xformers), or use 'sdpa'"
        )
    return forced


@cache
def memory_efficient_attention() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Return xformers' attention function, or None when it cannot be imported. Imported at the first call only."""
    # xformers 0.0.35 logs six lines at import when it was built for another torch; its operators may still run.
    logger = logging.getLogger("xformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from xformers.ops import memory_efficient_attention as found
    except Exception:  # a build for another torch can fail in any way; SDPA does the same work
        return None
    finally:
        logger.setLevel(level)
    return found
