"""Attention over sequences of different lengths that lie one after another, without padding, behind one function.

Those who train on captions of different lengths, or on images of different sizes, compute nothing of what is not there:

    packed_attention(q, k, v, lengths)  # (tokens, heads, width) each, such as lengths=[77, 12, 256]

Sequences that were padded to one length are attended to without their padding by :func:`attention_without`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from aligntok.device import has_values, is_out_of_memory
from aligntok.errors import ConfigError, at_least, first_line, unknown
from aligntok.ops import attention as plain

#: In the order in which they are tried, and what the log calls each: xformers' block-diagonal mask,
#: torch.nn.attention.varlen, FlexAttention's mask of blocks, and PyTorch's attention of what is padded.
BACKENDS = {
    "xformers": "xformers",
    "varlen": "torch's varlen",
    "flex": "FlexAttention",
    "sdpa": "torch's of what is padded",
}

_refused: dict[tuple[str, torch.dtype, int], str] = {}  # as in plain attention: each kind is tried once


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], *, backend: str | None = None, who: str = "others"
) -> Tensor:
    """Softmax attention, scaled by 1/sqrt(width), within each of the sequences that are packed into q, k and v.

    q, k, v: (tokens, heads, width), to the shape of q. lengths: tokens of each sequence in order, at least 1 each.
    backend: one of `BACKENDS` to force it; None takes what :func:`aligntok.ops.attention.attention` would, and without
    a word of anybody the first that runs here. Sequences of one length are plain attention. who: what the log calls it.
    Raises ConfigError for other shapes or lengths, an unknown backend, and one that is forced where it cannot run.
    """
    _check(q, k, v, lengths)
    forced = plain.asked_for(backend)
    if forced not in (None, *BACKENDS):
        raise ConfigError(unknown("backend of packed attention", forced, BACKENDS))
    if len({*lengths}) == 1 and forced in (None, *plain.BACKENDS):
        q, k, v = (x.unflatten(0, (len(lengths), -1)).transpose(1, 2) for x in (q, k, v))
        return plain.attention(q, k, v, backend=backend, who=who).transpose(1, 2).flatten(0, 1)
    if (dtype := plain.computed_in(q)) != q.dtype:  # of autocast, which casts what PyTorch's own are given
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    reasons: dict[str, list[str]] = {}
    for name in BACKENDS if forced is None else [forced]:
        found, why = _tried(name, q, k, v, tuple(lengths))
        if found is not None:
            others = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
            because = "as was asked" if forced else others
            plain.note(who, f"packed by {BACKENDS[name]}" + f" ({because})" * bool(because))
            return found
        if forced:
            raise ConfigError(
                f"packed attention by '{forced}' was asked for, but it cannot run here: {why}; use 'sdpa', or leave "
                "the choice open"
            )
        reasons.setdefault(why, []).append(name)
    raise AssertionError("PyTorch's attention refuses nothing")


class Packing:
    """Where tokens that are there lie in (N T), and how many each sequence has."""

    def __init__(self, places: Tensor, lengths: tuple[int, ...]) -> None:
        self.places, self.lengths = places, lengths


class Present:
    """Which tokens of padded sequences are there, `mask` (N, T), and where they are packed how they lie.

    Plain classes, of which a compiled block looks at what it touches alone: it is not compiled anew for other lengths.
    """

    def __init__(self, mask: Tensor, packing: Packing | None) -> None:
        self.mask, self.packing = mask, packing


def present(mask: Tensor, where: torch.device) -> Present | None:
    """Look once, for all layers, at a mask (N, T), True where a token is there; None: none is padding.

    where: the device that attends; a mask on the CPU is looked at without waiting for it. Each sequence has a token.
    """
    if not has_values(mask):
        return Present(mask, None)
    lengths = tuple(mask.sum(1).tolist())
    if min(lengths, default=mask.shape[1]) == mask.shape[1]:
        return None
    moved = mask.to(where, non_blocking=True)
    if plain._device_type(moved) != "cuda":
        return Present(moved, None)
    return Present(moved, Packing(mask.flatten().nonzero()[:, 0].to(where, non_blocking=True), lengths))


def attention_without(q: Tensor, k: Tensor, v: Tensor, there: Present | None, *, who: str) -> Tensor:
    """Softmax attention of padded sequences, q, k, v (N, heads, T, width) to the shape of q, to what is there alone.

    What padding itself attends to is not defined, but finite. On CUDA what is there is packed; elsewhere padding is
    masked. who: what the log calls it. Raises ConfigError for a kernel that is forced where it cannot run.
    """
    if there is None:
        return plain.attention(q, k, v, who=who)
    if there.packing is not None:
        return _packed(q, k, v, there.packing, who)
    plain._choose(plain.asked_for(None), q)
    if not q.is_meta:
        plain.note(who, "torch's with padding masked, as packed kernels run on CUDA alone")
    return F.scaled_dot_product_attention(q, k, v, attn_mask=there.mask[:, None, None])


@torch.compiler.disable  # whose code would be made anew for other lengths
def _packed(q: Tensor, k: Tensor, v: Tensor, packing: Packing, who: str) -> Tensor:
    # By index_select, whose way back adds; that of x[places] would sort the places first, in each layer.
    a, b, c = (x.transpose(1, 2).flatten(0, 1).index_select(0, packing.places) for x in (q, k, v))
    found = packed_attention(a, b, c, packing.lengths, who=who)
    whole = found.new_zeros(len(q) * q.shape[2], *found.shape[1:])
    return whole.index_copy(0, packing.places, found).unflatten(0, (len(q), -1)).transpose(1, 2)


def _check(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> None:
    if q.dim() != 3 or not q.shape == k.shape == v.shape:
        raise ConfigError(
            f"packed_attention takes q, k and v of one shape (tokens, heads, width), was given {tuple(q.shape)}, "
            f"{tuple(k.shape)}, {tuple(v.shape)}"
        )
    at_least(1, "packed_attention", lengths=min(lengths, default=0))
    if sum(lengths) != len(q):
        raise ConfigError(f"packed_attention was given {len(q)} tokens, but lengths of {sum(lengths)} together")


def _tried(name: str, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> tuple[Tensor | None, str]:
    """Return what a backend computes, or None and why it does not."""
    kind = (name, q.dtype, q.shape[-1])
    if why := _refused.get(kind) or _why_not(name, q):
        return None, why
    try:
        return _KERNELS[name](q, k, v, lengths), ""
    except Exception as error:  # a kernel or its compiler for another torch or GPU can fail in any way
        if is_out_of_memory(error) or name == "sdpa":
            raise
        _refused[kind] = first_line(error)
        return None, _refused[kind]


def _why_not(name: str, q: Tensor) -> str:
    """Say why a backend is not even tried with a query."""
    if name == "sdpa":
        return ""
    if (where := plain._device_type(q)) != "cuda":
        return f"on CUDA alone, not on '{where}'"
    if name == "xformers" and plain.memory_efficient_attention() is None:
        return "xformers cannot be imported"
    if name == "varlen" and q.dtype not in (torch.float16, torch.bfloat16):
        return f"it has no kernel for {str(q.dtype).removeprefix('torch.')}"
    if name == "varlen" and q.requires_grad and torch.are_deterministic_algorithms_enabled():
        return "its backward pass is not deterministic"  # by cuDNN, which it takes without asking
    return ""


def _by_xformers(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    fused: Any = plain.memory_efficient_attention()
    found: Tensor = fused(q[None], k[None], v[None], attn_bias=_blocks(lengths, q.device))[0]
    return found


@lru_cache(8)
def _blocks(lengths: tuple[int, ...], device: torch.device) -> Any:
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    with torch.inference_mode(False):
        return BlockDiagonalMask.from_seqlens(list(lengths), device=device)


def _by_varlen(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # torch 2.10

    attend: Any = varlen_attn  # gives more only where more is asked for
    ends, longest = _ends(lengths, q.device), max(lengths)
    found: Tensor = attend(q, k, v, ends, ends, longest, longest)
    return found


@lru_cache(8)
def _ends(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each sequence ends, and 0 before the first."""
    with torch.inference_mode(False):
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def _by_flex(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    rows = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, heads, tokens, width)
    found: Tensor = _flex_attention()(*rows, block_mask=_block_mask(lengths, q.device))
    return found[0].transpose(0, 1)


@cache
def _flex_attention() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


@lru_cache(8)
def _block_mask(lengths: tuple[int, ...], device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    tokens = sum(lengths)
    with torch.inference_mode(False):  # what is kept may be of use in a training
        number = torch.arange(len(lengths), device=device).repeat_interleave(torch.tensor(lengths, device=device))

    def together(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return number[query] == number[key]

    with torch.inference_mode(False):
        return create_block_mask(together, None, None, tokens, tokens, device)


def _by_padding(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """By PyTorch's attention over sequences as long as the longest, of which padding is masked as keys."""
    q, k, v = (pad_sequence(list(x.split(lengths)), batch_first=True).transpose(1, 2) for x in (q, k, v))
    there = torch.arange(max(lengths), device=q.device) < torch.tensor(lengths, device=q.device)[:, None]
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=there[:, None, None]).transpose(1, 2)
    return torch.cat([row[:length] for row, length in zip(found, lengths, strict=True)])


_KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor, tuple[int, ...]], Tensor]]
_KERNELS = {"xformers": _by_xformers, "varlen": _by_varlen, "flex": _by_flex, "sdpa": _by_padding}
