"""The convolutional encoder of latent diffusion (Rombach et al. 2022): the baseline that starts from random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from aligntok.encoders import Encoder
from aligntok.errors import ConfigError, WeightsError
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
from aligntok.weights.load import load_into, read_tensors


class LDMEncoder(BlockCheckpointing, Encoder):
    """Images (N, 3, H, W) to moments (N, 2*d, H/f, W/f), f = 2**(len(ch_mult) - 1); 28.41 M parameters by default.

    With double_z the channels are means, then log-variances, of the latent; without it they are the latent (N, d, ...).
    ch, ch_mult, num_res_blocks, attn_resolutions, resolution, dropout, norm_groups: as in the LDM decoder, with one
    residual block a level fewer. pretrained: False for random weights, or a local .safetensors, .pt, .ckpt or .pth
    file with this encoder's weights, by its own names or inside a published autoencoder (`encoder.*`, `quant_conv.*`).
    downsample_factor: f, only checked. linear_path: add a convolution of each position's f x f pixels to the moments,
    beside the network; ours, not the paper's. It starts at zero beside pretrained weights that have none. Raises
    ConfigError for options that do not fit one another, and WeightsError for weights that cannot be had.
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
        double_z: bool = True,
        pretrained: bool | str | Path = False,
        downsample_factor: Width | None = None,
        norm_groups: Width = 32,
        linear_path: bool = False,
    ) -> None:
        check_shape_options("LDMEncoder", ch_mult, num_res_blocks, latent_dim)
        factor = 2 ** (len(ch_mult) - 1)
        if downsample_factor not in (None, factor):
            raise ConfigError(
                f"LDMEncoder: downsample_factor={downsample_factor} does not fit ch_mult={tuple(ch_mult)}, whose "
                f"factor is {factor}; give one multiplier per halving, plus one"
            )
        moments = 2 * latent_dim if double_z else latent_dim
        super().__init__(downsample_factor=factor, stride=factor, out_dim=moments, mean=(0.5,) * 3, std=(0.5,) * 3)
        widths = [ch * mult for mult in ch_mult]
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                widths[level - 1] if level else ch,
                width,
                num_res_blocks,
                resolution // 2**level in attn_resolutions,
                dropout,
                resize="down" if level < len(widths) - 1 else "",
            )
            for level, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1], dropout)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], moments, 3, padding=1)
        self.quant_conv = nn.Conv2d(moments, moments, 1)
        regroup(self, norm_groups)
        # Drawn last: the network starts as without it.
        self.linear_path = nn.Conv2d(3, moments, factor, stride=factor) if linear_path else None
        if pretrained:
            self.load_pretrained(pretrained)

    def normalise(self, images: Tensor) -> Tensor:
        """Images as they are: this network takes [-1, 1]."""
        return images

    def backbone_features(self, pixels: Tensor) -> Tensor:  # (N, 3, H, W)
        x = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        x = self.quant_conv(self.conv_out(norm_silu(self.mid(x), self.norm_out)))  # (N, 2*d, H/f, W/f)
        return x if self.linear_path is None else x + self.linear_path(pixels)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of `conv_out`, where VA-VAE balances its losses (Yao et al. 2025)."""
        return cast(nn.Parameter, self.conv_out.weight)

    def load_pretrained(self, source: bool | str | Path) -> None:
        """Load weights from a local file: this encoder's, or its part of a published autoencoder.

        Raises WeightsError when there is none or it does not fit.
        """
        if source is True:
            raise WeightsError(
                "LDMEncoder has no weights on any hub; give pretrained=False for random weights, or a local file "
                "with the keys of a published LDM or VA-VAE checkpoint"
            )
        who = type(self).__name__
        tensors = read_tensors(str(source), who)
        own = {key.removeprefix("encoder."): value for key, value in tensors.items() if key.startswith("encoder.")}
        quant = {key: value for key, value in tensors.items() if key.startswith("quant_conv.")}
        given = {**own, **quant} if own else tensors
        if self.linear_path is not None:
            given = {f"linear_path.{k}": torch.zeros_like(v) for k, v in self.linear_path.state_dict().items()} | given
        load_into(self, given, who, source)
