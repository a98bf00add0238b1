"""Building blocks of latent diffusion's convolutional autoencoder (Rombach et al. 2022), by their published names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aligntok.errors import ConfigError, at_least
from aligntok.ops.attention import attention, computed_in
from aligntok.ops.embeddings import run_block

NORM_GROUPS = 32


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation; the network that holds it sets the groups (:func:`regroup`), 32 as published."""
    return nn.GroupNorm(math.gcd(NORM_GROUPS, channels), channels, eps=1e-6)


def regroup(module: nn.Module, groups: int) -> None:
    """Give every group normalisation inside `module` this number of groups; the weights stay what they are.

    In narrow networks the published 32 groups are one channel each, which takes a picture's overall colour away at
    every block. Raises ConfigError unless `groups` divides all widths.
    """
    for norm in module.modules():
        if not isinstance(norm, nn.GroupNorm):
            continue
        if groups < 1 or norm.num_channels % groups:
            raise ConfigError(
                f"{norm.num_channels} channels cannot be normalised in norm_groups={groups} groups; "
                f"choose ch and ch_mult so that each product is a multiple of it, or another norm_groups"
            )
        norm.num_groups = groups


def check_shape_options(who: str, ch_mult: Sequence[int], num_res_blocks: int, latent_dim: int) -> None:
    """Raise ConfigError when the options of an LDM encoder or decoder describe no network."""
    if not ch_mult or min(ch_mult) < 1:
        raise ConfigError(f"{who}: ch_mult={tuple(ch_mult)} must be one or more positive whole numbers")
    at_least(1, who, num_res_blocks=num_res_blocks, latent_dim=latent_dim)


def norm_silu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Normalise (N, C, h, w) in groups, then SiLU, the result in the precision at hand; numbers are the two layers'.

    Of both only what comes in is kept for the backward pass, which normalises once more: at full resolution that is
    less than half of what a decoder's step held.
    """
    if torch.is_grad_enabled() and (x.requires_grad or norm.weight.requires_grad):
        found: Tensor = _NormSiLU.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)
        return found
    return F.silu(norm(x), inplace=True)


class _NormSiLU(torch.autograd.Function):
    """Group norm and SiLU, in float32 at least, as autocast has them on a GPU; what is normalised is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        ctx.groups, ctx.eps = groups, eps
        normed, mean, rstd = _normalise(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return F.silu(normed, inplace=True).to(computed_in(x))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        normed = _normalise(x, weight, bias, ctx.groups, ctx.eps)[0]
        gradient = torch.ops.aten.silu_backward(gradient.to(normed.dtype), normed)
        gradient = gradient.contiguous()  # as torch's own formula has it: the kernel reads whatever lies there
        sizes = (x.shape[0], x.shape[1], x.shape[2] * x.shape[3], ctx.groups, [*ctx.needs_input_grad[:3]])
        found = torch.ops.aten.native_group_norm_backward(gradient, _wide(x), mean, rstd, _wide(weight), *sizes)
        given = zip(found, (x, weight, bias), strict=True)
        return *(own if own is None else own.to(each.dtype) for own, each in given), None, None


def _normalise(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias = map(_wide, (x, weight, bias))
    sizes = (x.shape[0], x.shape[1], x.shape[2] * x.shape[3])
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_group_norm(x, weight, bias, *sizes, groups, eps)
    return found


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with a residual path: (N, in, h, w) to (N, out, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.changes_width = in_channels != out_channels

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(norm_silu(x, self.norm1))
        h = self.conv2(self.dropout(norm_silu(h, self.norm2)))
        return h + (self.nin_shortcut(x) if self.changes_width else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, with a residual path: (N, C, h, w) to (N, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (_to_tokens(layer(h)) for layer in (self.q, self.k, self.v))  # (N, 1, h*w, C)
        out = attention(q, k, v, who="convolutional blocks")
        return x + self.proj_out(out.squeeze(1).transpose(1, 2).reshape(x.shape))


def _to_tokens(x: Tensor) -> Tensor:
    """(N, C, h, w) to (N, 1, h*w, C), laid out as the fused attention kernels need it."""
    return x.flatten(2).transpose(1, 2).contiguous().unsqueeze(1)


class Upsample(nn.Module):
    """Twice the size by repeating pixels, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    """Half the size by a strided 3x3 convolution, padded at the right and at the bottom only, as published."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention where `use_attention`: (N, in, h, w) to
    (N, out, h, w), at its end of half the size with resize="down", of twice the size with "up".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        use_attention: bool,
        dropout: float,
        resize: str = "",
    ) -> None:
        super().__init__()
        widths = [in_channels, *[out_channels] * num_blocks]
        self.block = nn.ModuleList(ResnetBlock(*pair, dropout) for pair in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(out_channels) for _ in range(num_blocks if use_attention else 0))
        self.downsample = Downsample(out_channels) if resize == "down" else None
        self.upsample = Upsample(out_channels) if resize == "up" else None
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = run_block(block, x, self.grad_checkpointing)
            if len(self.attn):
                x = run_block(self.attn[i], x, self.grad_checkpointing)
        resize = self.downsample or self.upsample
        return x if resize is None else resize(x)


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution: (N, C, h, w) to (N, C, h, w)."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels, dropout)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.block_1, self.attn_1, self.block_2):
            x = run_block(block, x, self.grad_checkpointing)
        return x


class BlockCheckpointing(nn.Module):
    """A network of levels and a middle part, whose gradient checkpointing is theirs."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, block by block, to save memory; gradients stay the same."""
        for part in self.modules():
            if isinstance(part, (Level, Middle)):
                part.grad_checkpointing = enable
