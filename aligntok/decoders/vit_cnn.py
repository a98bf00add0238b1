"""The larger decoder of the paper's ablation: a ViT on the latent tokens, then the convolutional decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from aligntok.decoders import Decoder
from aligntok.decoders.ldm_cnn import LDMDecoder
from aligntok.errors import ConfigError
from aligntok.ops.attention import attention
from aligntok.ops.embeddings import axial_rotations, rotate, run_block
from aligntok.settings import AboveZero, Depth, Share, Width


class ViTBlock(nn.Module):
    """Pre-norm transformer block with rotary positions: (N, tokens, width) to (N, tokens, width)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, int(width * mlp_ratio))
        self.fc2 = nn.Linear(int(width * mlp_ratio), width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rotations: Tensor) -> Tensor:  # (N, tokens, width), (2, tokens, width/heads)
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, rotations), rotate(k, rotations)
        attended = attention(q, k, v, who="decoder")  # (N, heads, tokens, width/heads)
        x = x + self.dropout(self.proj(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class ViTCNNDecoder(Decoder):
    """Latents (N, d, h, w) to images (N, 3, h*f, w*f); 351 M parameters by default (paper, App. A, "Larger Decoder").

    After GigaTok (Xiong et al. 2025): a linear embedding, a ViT-L whose rotary positions are those of the grid at hand
    (any h and w), a 3x3 convolution to `token_dim` channels, the LDM decoder. The paper gives the total only; widths
    and depth are chosen here to meet it. token_dim: None for the CNN's widest level. depth, width, num_heads,
    mlp_ratio: the ViT's. ch, ch_mult, num_res_blocks, attn_resolutions, resolution, out_ch, tanh_out: the CNN's.
    dropout: both parts'. Raises ConfigError when a head's width is not a multiple of 4.
    """

    def __init__(
        self,
        latent_dim: Width = 32,
        width: Width = 1024,
        depth: Depth = 24,
        num_heads: Depth = 16,
        mlp_ratio: AboveZero = 4.0,
        token_dim: Width | None = None,
        ch: Width = 128,
        ch_mult: Sequence[Width] = (1, 1, 2, 2, 4),
        num_res_blocks: Depth = 2,
        attn_resolutions: Sequence[Width] = (16,),
        resolution: Width = 256,
        dropout: Share = 0.0,
        out_ch: Width = 3,
        tanh_out: bool = False,
    ) -> None:
        if width % (4 * num_heads):
            raise ConfigError(f"ViTCNNDecoder: width={width} must be a multiple of 4 * num_heads = {4 * num_heads}")
        super().__init__(latent_dim=latent_dim, upsample_factor=2 ** (len(ch_mult) - 1))
        token_dim = token_dim or ch * ch_mult[-1]
        self.head_dim = width // num_heads
        self.embed = nn.Linear(latent_dim, width)
        self.blocks = nn.ModuleList(ViTBlock(width, num_heads, mlp_ratio, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Conv2d(width, token_dim, 3, padding=1)
        self.cnn = LDMDecoder(
            token_dim, ch, ch_mult, num_res_blocks, attn_resolutions, resolution, dropout, out_ch, tanh_out
        )
        self.grad_checkpointing = False
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, latents: Tensor) -> Tensor:  # (N, d, h, w)
        self.check_latents(latents)
        height, width = latents.shape[-2:]
        rotations = axial_rotations(height, width, self.head_dim, device=latents.device)
        x = self.embed(latents.flatten(2).transpose(1, 2))  # (N, h*w, width)
        for block in self.blocks:
            x = run_block(block, x, self.grad_checkpointing, rotations)
        x = self.norm(x).transpose(1, 2).unflatten(2, (height, width))  # (N, width, h, w)
        return self.cnn(self.proj(x))  # (N, 3, h*f, w*f)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.cnn.last_layer

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, block by block, to save memory; gradients stay the same."""
        self.grad_checkpointing = enable
        self.cnn.set_grad_checkpointing(enable)
