"""The decoders of diffusers' KL autoencoders: Stable Diffusion's, FLUX's and their kin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from aligntok.decoders import Decoder
from aligntok.weights.diffusers import AutoencoderPart, build_autoencoder, complete_config, factor_of


class DiffusersKLDecoder(AutoencoderPart, Decoder):
    """Latents (N, d, h, w) in a generator's units to images (N, 3, h*f, w*f), by diffusers' AutoencoderKL.

    Decodes z = z' / scaling_factor + shift_factor. config: what its config.json says; keys left out are Stable
    Diffusion 1's. latent_dim: replaces its latent channels. pretrained: False for random weights, or the folder or hub
    id of an autoencoder. Raises ConfigError for what diffusers cannot build, WeightsError for weights that cannot be
    had.
    """

    def __init__(
        self, config: Mapping[str, Any] | None = None, latent_dim: int | None = None, pretrained: bool | str = False
    ) -> None:
        whole = complete_config(config, latent_dim)
        super().__init__(latent_dim=whole["latent_channels"], upsample_factor=factor_of(whole))
        model = build_autoencoder(whole)
        self.decoder: Any = model.decoder
        self.post_quant_conv: nn.Module = model.post_quant_conv or nn.Identity()
        self.finish(whole, pretrained)

    def forward(self, latents: Tensor) -> Tensor:  # (N, d, h, w)
        self.check_latents(latents)
        return self.decoder(self.post_quant_conv(latents / self.scale + self.shift))

    @property
    def last_layer(self) -> nn.Parameter:
        return cast(nn.Parameter, self.decoder.conv_out.weight)
