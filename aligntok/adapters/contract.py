"""What every adapter is: the step from the encoder's channels to the latent's."""

from __future__ import annotations

from torch import Tensor, nn

from aligntok.errors import ConfigError, at_least


class Adapter(nn.Module):
    """Base of all adapters: features (N, C, h, w) to latents (N, d, h, w). in_dim: C. latent_dim: d."""

    def __init__(self, *, in_dim: int, latent_dim: int) -> None:
        super().__init__()
        at_least(1, type(self).__name__, in_dim=in_dim, latent_dim=latent_dim)
        self.in_dim = in_dim
        self.latent_dim = latent_dim

    def check_features(self, features: Tensor) -> None:
        """Raise ConfigError unless features are (N, C, h, w)."""
        if features.dim() != 4 or features.shape[1] != self.in_dim:
            raise ConfigError(
                f"{type(self).__name__} takes features (N, {self.in_dim}, h, w), was given {tuple(features.shape)}; "
                "its in_dim must be the encoder's out_dim"
            )
