"""The convolutional decoder of latent diffusion (Rombach et al. 2022), as VA-VAE and AlignTok use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aligntok.decoders import Decoder
from aligntok.ops.ldm_blocks import (
    BlockCheckpointing,
    Level,
    Middle,
    check_shape_options,
    group_norm,
    norm_silu,
    regroup,
)
from aligntok.settings import Depth, Share, Width


class LDMDecoder(BlockCheckpointing, Decoder):
    """Latents (N, d, h, w) to images (N, out_ch, h*f, w*f), f = 2**(len(ch_mult) - 1); 41.42 M parameters by default.

    ch: width at full resolution; ch_mult: its multiple at each level, full resolution first; num_res_blocks: residual
    blocks a level, plus one. Attention follows every block of the levels whose side, for square images of `resolution`
    pixels, is in `attn_resolutions`; it stays at those levels whatever the size of the images, and the middle part
    always has it. tanh_out: end in tanh, so that images cannot leave [-1, 1]. norm_groups: groups of every group norm,
    fewer for narrow networks. linear_path: add a 3x3 convolution of the latent to the picture, beside the network, by
    which short trainings of small networks begin to reconstruct; ours, not the paper's. Parameter names are those of
    published LDM and VA-VAE checkpoints under `decoder.`, plus `post_quant_conv` and `linear_path`. Raises ConfigError
    for widths that cannot be normalised in that many groups, and for latents of another width.
    """

    def __init__(
        self,
        latent_dim: Width = 32,
        ch: Width = 128,
        ch_mult: Sequence[Width] = (1, 1, 2, 2, 4),
        num_res_blocks: Depth = 2,
        attn_resolutions: Sequence[Width] = (16,),
        resolution: Width = 256,
        dropout: Share = 0.0,
        out_ch: Width = 3,
        tanh_out: bool = False,
        norm_groups: Width = 32,
        linear_path: bool = False,
    ) -> None:
        check_shape_options("LDMDecoder", ch_mult, num_res_blocks, latent_dim)
        super().__init__(latent_dim=latent_dim, upsample_factor=2 ** (len(ch_mult) - 1))
        self.tanh_out = tanh_out
        widths = [ch * mult for mult in ch_mult]
        self.post_quant_conv = nn.Conv2d(latent_dim, latent_dim, 1)
        self.conv_in = nn.Conv2d(latent_dim, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], dropout)
        self.up = nn.ModuleList(
            Level(
                widths[min(level + 1, len(widths) - 1)],
                width,
                num_res_blocks + 1,
                resolution // 2**level in attn_resolutions,
                dropout,
                resize="up" if level else "",
            )
            for level, width in enumerate(widths)
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_ch, 3, padding=1)
        regroup(self, norm_groups)
        pixels = out_ch * self.upsample_factor**2  # of a latent position; drawn last: the network starts as without it
        self.linear_path = nn.Conv2d(latent_dim, pixels, 3, padding=1) if linear_path else None

    def forward(self, latents: Tensor) -> Tensor:  # (N, d, h, w)
        self.check_latents(latents)
        x = self.mid(self.conv_in(self.post_quant_conv(latents)))  # (N, ch*ch_mult[-1], h, w)
        for level in reversed(self.up):
            x = level(x)
        x = self.conv_out(norm_silu(x, self.norm_out))  # (N, out_ch, h*f, w*f)
        if self.linear_path is not None:
            x = x + F.pixel_shuffle(self.linear_path(latents), self.upsample_factor)
        return torch.tanh(x) if self.tanh_out else x

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of `conv_out`, where LDM balances its adversarial loss."""
        return cast(nn.Parameter, self.conv_out.weight)
