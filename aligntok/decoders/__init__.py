"""Decoders: a picture from a latent, at any grid."""

from __future__ import annotations

from torch import Tensor, nn

from aligntok.errors import ConfigError


class Decoder(nn.Module):
    """Base of all decoders: latents (N, d, h, w) to images (N, 3, h*f, w*f), about [-1, 1], h and w free.

    A subclass gives `forward`, `last_layer` and `set_grad_checkpointing`. latent_dim: d. upsample_factor: f.
    """

    def __init__(self, *, latent_dim: int, upsample_factor: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.upsample_factor = upsample_factor

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight that gradient ratios are measured at: the last one before the image."""
        raise NotImplementedError(f"{type(self).__name__} must define the property last_layer")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass to save memory; gradients stay the same."""
        raise NotImplementedError(f"{type(self).__name__} must define set_grad_checkpointing(enable)")

    def check_latents(self, latents: Tensor) -> None:
        """Raise ConfigError unless latents are (N, d, h, w)."""
        if latents.dim() != 4 or latents.shape[1] != self.latent_dim:
            raise ConfigError(
                f"{type(self).__name__} takes latents (N, {self.latent_dim}, h, w), was given {tuple(latents.shape)}; "
                "its latent_dim must be the adapter's"
            )
