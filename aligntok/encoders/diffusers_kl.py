"""The encoders of diffusers' KL autoencoders: Stable Diffusion's, FLUX's and their kin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from aligntok.encoders import Encoder
from aligntok.errors import ConfigError
from aligntok.weights.diffusers import AutoencoderPart, build_autoencoder, complete_config, factor_of


class DiffusersKLEncoder(AutoencoderPart, Encoder):
    """Images (N, 3, H, W) to moments (N, 2*d, H/f, W/f) of diffusers' AutoencoderKL, in the generator's units.

    The posterior is that of z' = (z - shift_factor) * scaling_factor, so means and draws are what pipelines train on.
    config: what its config.json says; keys left out are Stable Diffusion 1's. latent_dim: replaces its latent channels.
    pretrained: False for random weights, or the folder or hub id of an autoencoder. downsample_factor: only checked.
    Raises ConfigError for what does not fit or without diffusers, WeightsError for weights that cannot be had.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        latent_dim: int | None = None,
        pretrained: bool | str = False,
        downsample_factor: int | None = None,
    ) -> None:
        whole = complete_config(config, latent_dim)
        factor = factor_of(whole)
        if downsample_factor not in (None, factor):
            raise ConfigError(
                f"DiffusersKLEncoder: downsample_factor={downsample_factor}, but its "
                f"{len(whole['block_out_channels'])} levels make {factor}; set that"
            )
        moments = 2 * whole["latent_channels"]
        super().__init__(downsample_factor=factor, stride=factor, out_dim=moments, mean=(0.5,) * 3, std=(0.5,) * 3)
        model = build_autoencoder(whole)
        self.encoder: Any = model.encoder
        self.quant_conv: nn.Module = model.quant_conv or nn.Identity()
        self.finish(whole, pretrained)

    def normalise(self, images: Tensor) -> Tensor:
        """Images as they are: this network takes [-1, 1]."""
        return images

    def backbone_features(self, pixels: Tensor) -> Tensor:  # (N, 3, H, W)
        mean, log_variance = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20) + 2 * self.scale.log()
        return torch.cat([(mean - self.shift) * self.scale, log_variance.expand_as(mean)], dim=1)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the last 3x3 convolution."""
        return cast(nn.Parameter, self.encoder.conv_out.weight)
