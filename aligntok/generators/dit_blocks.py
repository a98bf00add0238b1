"""Parts of a class-conditional diffusion transformer, by the parameter names of published LightningDiT checkpoints."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from aligntok import device
from aligntok.ops.attention import attention
from aligntok.ops.embeddings import embed_times, rotate, split_rotated, to_patches

EPS = 1e-6
TIME_CHANNELS = 256  # cosines and sines that a time is embedded in


class PatchEmbedder(nn.Module):
    """Latents (N, C, h*p, w*p) to tokens (N, h*w, width): one linear map of each p x p patch."""

    def __init__(self, in_channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        # Not as a convolution: its channels-first result would leave every later token operation with strided memory.
        return F.linear(to_patches(x, self.patch_size), self.proj.weight.flatten(1), self.proj.bias)


class TimeEmbedder(nn.Module):
    """Times (N,) to conditions (N, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(embed_times(t, TIME_CHANNELS).to(next(self.parameters()).dtype))


class LabelEmbedder(nn.Module):
    """Labels (N,) to conditions (N, width); the null class, if there is one, has the table's last row."""

    def __init__(self, num_classes: int, width: int, null_class: bool) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + null_class, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class ModulatedNorm(nn.Module):
    """RMS or layer norm, then the condition's scale and shift: x (N, tokens, width), both (N, 1, width)."""

    def __init__(self, width: int, use_rmsnorm: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if use_rmsnorm else None

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
        gain = 1 + scale
        if self.weight is not None:
            gain = gain * self.weight  # on (N, 1, width): one pass over the tokens less than on the norm's result
            if device.on_plain_cpu(x) and x.dtype == torch.float32:
                return _ModulatedRMSNorm.apply(x, gain, shift)
            x = F.rms_norm(x, x.shape[-1:], eps=EPS)
        else:
            x = F.layer_norm(x, x.shape[-1:], eps=EPS)
        return x * gain if shift is None else torch.addcmul(shift, x, gain)


class _ModulatedRMSNorm(torch.autograd.Function):
    """RMS norm of x (N, tokens, width), then gain and perhaps shift, (N, 1, width) each.

    PyTorch has a kernel for this norm on GPUs; on a CPU it goes over the tokens five times, and eleven times backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, shift: Tensor | None) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()  # in one pass; (N, tokens, 1)
        scale = squares.div_(x.shape[-1]).add_(EPS).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(normed, scale, gain)
        return normed * gain if shift is None else torch.addcmul(shift, normed, gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        normed, scale, gain = ctx.saved_tensors
        product = gradient * normed
        along = (product @ gain.mT).div_(normed.shape[-1])  # mean of gradient * gain * normed, (N, tokens, 1)
        inward = torch.addcmul(gradient * gain, normed, along, value=-1).mul_(scale)
        shift = gradient.sum(1, keepdim=True) if ctx.needs_input_grad[2] else None
        return inward, product.sum(1, keepdim=True), shift


class HeadNorm(nn.Module):
    """RMS norm of queries or keys (N, heads, tokens, dim), which keeps attention bounded in long training."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=EPS) * self.weight


class Attention(nn.Module):
    """Multi-head self-attention on tokens (N, tokens, width), queries and keys turned by `rotations` if there are."""

    def __init__(self, width: int, num_heads: int, use_qknorm: bool, use_rmsnorm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        norm = HeadNorm if use_rmsnorm else nn.LayerNorm
        self.q_norm = norm(width // num_heads) if use_qknorm else nn.Identity()
        self.k_norm = norm(width // num_heads) if use_qknorm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotations: Tensor | None) -> Tensor:  # (N, tokens, width), (2, tokens, dim)
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        plain = isinstance(self.q_norm, nn.Identity) and not torch.compiler.is_compiling()
        if rotations is not None and plain:
            q, k, v = split_rotated(qkv, rotations)
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (N, heads, tokens, dim)
            q, k = self.q_norm(q), self.k_norm(k)
            if rotations is not None:
                q, k = rotate(q, rotations), rotate(k, rotations)
        out = attention(q.to(v.dtype), k.to(v.dtype), v, who="generator")  # norms give float32 under autocast
        return self.proj(out.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Gated MLP of tokens (N, tokens, width), gate and value in one matrix: w3(silu(gate) * value)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        gate = F.silu(gate)
        return self.w3(gate * value if torch.is_grad_enabled() else gate.mul_(value))


class MLP(nn.Module):
    """Two-layer MLP of tokens (N, tokens, width) with GELU in its tanh form."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulation(width: int, count: int) -> nn.Sequential:
    """Return the linear map from a condition to `count` vectors of `width`, at index 1 as in published checkpoints.

    The SiLU that these have at index 0 the condition passes once, before all blocks.
    """
    return nn.Sequential(nn.Identity(), nn.Linear(width, count * width))


class DiTBlock(nn.Module):
    """Attention and MLP, both modulated by the condition: x (N, tokens, width), c (N, width), to tokens like x."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        use_swiglu: bool,
        use_rmsnorm: bool,
        use_qknorm: bool,
        wo_shift: bool,
    ) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.wo_shift = wo_shift
        self.norm1 = ModulatedNorm(width, use_rmsnorm)
        self.attn = Attention(width, num_heads, use_qknorm, use_rmsnorm)
        self.norm2 = ModulatedNorm(width, use_rmsnorm)
        # Two thirds of the width: a gated MLP's three matrices then weigh what the two of a plain one do.
        self.mlp = SwiGLU(width, 2 * hidden // 3) if use_swiglu else MLP(width, hidden)
        self.adaLN_modulation = modulation(width, 4 if wo_shift else 6)

    def forward(self, x: Tensor, c: Tensor, rotations: Tensor | None) -> Tensor:
        shift1 = shift2 = None
        if self.wo_shift:
            scale1, gate1, scale2, gate2 = self.adaLN_modulation(c)[:, None].chunk(4, dim=-1)  # (N, 1, width) each
        else:
            shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
        x = torch.addcmul(x, gate1, self.attn(self.norm1(x, scale1, shift1), rotations))
        return torch.addcmul(x, gate2, self.mlp(self.norm2(x, scale2, shift2)))


class FinalLayer(nn.Module):
    """Tokens (N, tokens, width) and condition (N, width) to patches (N, tokens, out)."""

    def __init__(self, width: int, out: int, use_rmsnorm: bool) -> None:
        super().__init__()
        self.norm_final = ModulatedNorm(width, use_rmsnorm)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm_final(x, scale, shift))
