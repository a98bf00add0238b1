"""Blocks of FLUX's transformer (Black Forest Labs, 2024), by its published parameter names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from aligntok.generators.dit_blocks import EPS, ModulatedNorm
from aligntok.ops.embeddings import as_complex, rotate, turn, wide_type
from aligntok.ops.packed import Present, attention_without


class VectorEmbedder(nn.Module):
    """Vectors (N, dim), such as an embedded time or a pooled text, to conditions (N, width)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(dim, width)
        self.out_layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x.to(self.in_layer.weight.dtype))))


class Modulation(nn.Module):
    """A condition (N, width), which has passed a SiLU, to `count` vectors (N, 1, width): shift, scale and gate each."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.lin = nn.Linear(width, count * width)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        return self.lin(c)[:, None].chunk(self.count, dim=-1)


class HeadNorm(nn.Module):
    """The weight of an RMS norm of queries or keys, which :func:`joint_heads` takes."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))


class QKNorm(nn.Module):
    """Of queries and of keys."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_norm = HeadNorm(dim)
        self.key_norm = HeadNorm(dim)

    @property
    def scales(self) -> tuple[Tensor, Tensor]:
        return self.query_norm.scale, self.key_norm.scale


#: Of one stream: queries, keys and values (N, tokens, 3, heads, dim), the norms' weights, and rotations if it turns.
Stream = tuple[Tensor, QKNorm, Tensor | None]


def joint_heads(streams: Sequence[Stream]) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v (N, heads, tokens, dim) of all streams' tokens, one stream after the other.

    Queries and keys pass an RMS norm over dim, in float32, and are turned by the rotations (2, tokens, dim).
    """
    if not torch.compiler.is_compiling():  # torch.compile makes passes of its own of what is below
        tables = [None if table is None else as_complex(table)[:, None] for *_, table in streams]
        return _JointHeads.apply(tables, *(x for qkv, norm, _ in streams for x in (qkv, *norm.scales)))
    parts = []
    for qkv, norm, table in streams:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = (F.rms_norm(x.float(), x.shape[-1:], eps=EPS) * w for x, w in zip((q, k), norm.scales, strict=True))
        q, k = (x if table is None else rotate(x, table) for x in (q, k))
        parts.append((q.to(v.dtype), k.to(v.dtype), v))
    return tuple(each[0] if len(each) == 1 else torch.cat(each, dim=2) for each in zip(*parts, strict=True))  # type: ignore[return-value]


class _JointHeads(torch.autograd.Function):
    """The same, of which queries and keys are kept once, as they came: PyTorch's own steps would keep them three times.

    On a CPU it is faster, too: PyTorch's norm goes over them five times there, and as often backward.
    """

    @staticmethod
    def forward(ctx: Any, tables: list[Tensor | None], *given: Tensor) -> tuple[Tensor, ...]:
        n, _, _, heads, dim = given[0].shape
        tokens = [qkv.shape[1] for qkv in given[::3]]
        joint = given[0].new_empty(3, n, sum(tokens), heads, dim)
        kept = []
        parts = zip(joint.split(tokens, dim=2), tables, given[::3], given[1::3], given[2::3], strict=True)
        for own, table, qkv, *weights in parts:
            own[2].copy_(qkv[:, :, 2])
            scales = torch.linalg.vector_norm(qkv[:, :, :2], dim=-1, keepdim=True, dtype=wide_type(qkv))
            scales.square_().div_(dim).add_(EPS).rsqrt_()  # (N, tokens, 2, heads, 1)
            for i, weight in enumerate(weights):
                x = (qkv[:, :, i] * scales[:, :, i]).mul_(weight)
                if table is None:
                    own[i].copy_(x)
                else:
                    turn(x, table, own[i])
            kept += [qkv, *weights, scales]
        ctx.save_for_backward(*kept)
        ctx.tables, ctx.tokens = tables, tokens
        q, k, v = joint.transpose(2, 3)
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None]
        saved, own = ctx.saved_tensors, (each.transpose(1, 2).split(ctx.tokens, dim=1) for each in gradients)
        parts = zip(ctx.tables, zip(*own, strict=True), *(saved[i::4] for i in range(4)), strict=True)
        for table, own, qkv, *weights, scales in parts:  # own: (N, tokens, heads, dim) each
            inward = torch.empty_like(qkv, memory_format=torch.contiguous_format)
            inward[:, :, 2].copy_(own[2])
            of_weights = []
            for i, weight in enumerate(weights):
                gradient = own[i]
                if table is not None:
                    gradient = gradient.new_empty(gradient.shape, dtype=scales.dtype)
                    turn(own[i].contiguous(), table.conj(), gradient)
                normed = qkv[:, :, i] * scales[:, :, i]
                product = gradient * normed
                of_weights.append(product.sum((0, 1, 2)).to(weight.dtype))
                along = (product @ weight.to(product.dtype)[:, None]).div_(qkv.shape[-1])
                inward[:, :, i] = torch.addcmul(gradient * weight, normed, along, value=-1).mul_(scales[:, :, i])
            found += [inward, *of_weights]
        return tuple(found)


class SelfAttention(nn.Module):
    """What a stream has of its own around the attention that both share."""

    def __init__(self, width: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.norm = QKNorm(width // num_heads)
        self.proj = nn.Linear(width, width)


class DoubleBlock(nn.Module):
    """Text and image in streams of their own, which attend together.

    img (N, tokens, width), txt (N, L, width), condition c (N, width), rotations (2, tokens, dim) of the image; there:
    which of text and image is no padding. Returns both streams.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        hidden = int(width * mlp_ratio)
        self.norm = ModulatedNorm(width, use_rmsnorm=False)
        self.img_mod, self.txt_mod = Modulation(width, 6), Modulation(width, 6)
        self.img_attn, self.txt_attn = (SelfAttention(width, num_heads, qkv_bias) for _ in range(2))
        self.img_mlp, self.txt_mlp = (
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
            for _ in range(2)
        )

    def forward(
        self, img: Tensor, txt: Tensor, c: Tensor, rotations: Tensor, there: Present | None
    ) -> tuple[Tensor, Tensor]:
        of_img, of_txt = self.img_mod(c), self.txt_mod(c)
        streams = [
            (self._heads(txt, self.txt_attn, of_txt), self.txt_attn.norm, None),
            (self._heads(img, self.img_attn, of_img), self.img_attn.norm, rotations),
        ]
        out = attention_without(*joint_heads(streams), there, who="generator").transpose(1, 2).flatten(2)
        to_txt, to_img = out.split([txt.shape[1], img.shape[1]], dim=1)
        img = self._updated(img, self.img_attn.proj(to_img), self.img_mlp, of_img)
        return img, self._updated(txt, self.txt_attn.proj(to_txt), self.txt_mlp, of_txt)

    def _heads(self, x: Tensor, attn: SelfAttention, modulation: Sequence[Tensor]) -> Tensor:
        shift, scale = modulation[:2]
        return attn.qkv(self.norm(x, scale, shift)).unflatten(-1, (3, self.num_heads, -1))

    def _updated(self, x: Tensor, attended: Tensor, mlp: nn.Module, modulation: Sequence[Tensor]) -> Tensor:
        gate1, shift, scale, gate2 = modulation[2:]
        x = torch.addcmul(x, gate1, attended)
        return torch.addcmul(x, gate2, mlp(self.norm(x, scale, shift)))


class SingleBlock(nn.Module):
    """Text and image as one sequence x (N, tokens, width); attention and MLP side by side, in two matrices.

    c (N, width), rotations (2, tokens, dim), which leave the text as it is, and which tokens are no padding.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.widths = 3 * width, int(width * mlp_ratio)
        self.pre_norm = ModulatedNorm(width, use_rmsnorm=False)
        self.linear1 = nn.Linear(width, sum(self.widths))
        self.linear2 = nn.Linear(width + self.widths[1], width)
        self.norm = QKNorm(width // num_heads)
        self.modulation = Modulation(width, 3)

    def forward(self, x: Tensor, c: Tensor, rotations: Tensor, there: Present | None) -> Tensor:
        shift, scale, gate = self.modulation(c)
        qkv, hidden = self.linear1(self.pre_norm(x, scale, shift)).split(self.widths, dim=-1)
        q, k, v = joint_heads([(qkv.unflatten(-1, (3, self.num_heads, -1)), self.norm, rotations)])
        out = attention_without(q, k, v, there, who="generator").transpose(1, 2).flatten(2)
        both = torch.cat([out, F.gelu(hidden, approximate="tanh")], dim=-1)
        return torch.addcmul(x, gate, self.linear2(both))
