"""Dropout that follows the sample: what is dropped of one does not depend on how its batch is split."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_TOP = 2**31


class SampleDropout(nn.Dropout):
    """nn.Dropout whose mask is a hash of the sample's seed, the layer's number and the element's place.

    `seeds` (N,) int32 are the samples'; without, or for an input whose first dimension is not made of them, it draws
    from torch's generator as its base does.
    """

    seeds: Tensor | None = None
    number = 0

    def forward(self, input: Tensor) -> Tensor:
        """Return the input (N k, ...), parts of it zero and the rest scaled up."""
        seeds = self.seeds
        if not self.training or self.p == 0 or seeds is None or input.shape[0] % len(seeds):
            return super().forward(input)
        drawn = _hashed(seeds + self.number, input.numel() // len(seeds))
        return input * (drawn >= int(self.p * _TOP)).reshape(input.shape).to(input.dtype) / (1 - self.p)


class SampleDropPath(nn.Module):
    """timm's DropPath, stochastic depth, with a mask from the sample's seed as :class:`SampleDropout`'s."""

    seeds: Tensor | None = None
    number = 0
    drop_prob: float
    scale_by_keep: bool

    def forward(self, x: Tensor) -> Tensor:
        """Return the input (N k, ...), zero for whole samples and the rest scaled up."""
        if not self.training or not self.drop_prob:
            return x
        seeds = self.seeds
        if seeds is None or x.shape[0] % len(seeds):
            keep = torch.rand(x.shape[0], device=x.device) >= self.drop_prob
        else:
            keep = (_hashed(seeds + self.number, x.shape[0] // len(seeds)) >= int(self.drop_prob * _TOP)).flatten()
        kept = keep.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
        return x * (kept / (1 - self.drop_prob) if self.scale_by_keep and self.drop_prob < 1 else kept)


def follow_samples(model: nn.Module) -> list[Any]:
    """Make the dropouts inside a model follow the sample, and return them; their `seeds` are still to be set.

    timm's attention drops weights in a layer of its own, and not in the fused kernel, which draws as it likes.
    """
    found: list[Any] = []
    module: Any
    for module in model.modules():
        if getattr(getattr(module, "attn_drop", None), "p", 0) and hasattr(module, "fused_attn"):
            module.fused_attn = False
        if type(module) is nn.Dropout and module.p:
            module.__class__ = SampleDropout
        elif type(module).__name__ == "DropPath" and getattr(module, "drop_prob", None):
            module.__class__ = SampleDropPath
        if isinstance(module, SampleDropout | SampleDropPath):
            module.number = _wrapped(len(found) * 0x9E3779B9)
            found.append(module)
    return found


def set_seeds(dropouts: Iterable[Any], seeds: Tensor | None) -> None:
    """Tell dropouts the seeds (N,) int32 of the samples that they are going to see."""
    for module in dropouts:
        module.seeds = seeds


def _hashed(seeds: Tensor, count: int) -> Tensor:
    """Return `count` numbers in [0, 2^31) of each seed, (N, count) int32: the finaliser of MurmurHash3, twice."""
    places = torch.arange(1, count + 1, dtype=torch.int32, device=seeds.device)
    return _mixed(_mixed(seeds)[:, None] ^ _mixed(places)) & (_TOP - 1)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 16)) * _wrapped(0x85EBCA6B)
    x = (x ^ _shifted(x, 13)) * _wrapped(0xC2B2AE35)
    return x ^ _shifted(x, 16)


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (32 - bits)) - 1)  # int32's own shift copies the sign


def _wrapped(number: int) -> int:
    return (number + _TOP) % 2**32 - _TOP
