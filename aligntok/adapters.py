"""Adapters: features of an encoder to latents, one position at a time."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from aligntok.errors import ConfigError, at_least
from aligntok.settings import Width


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


class MLPAdapter(Adapter):
    """Two 1x1 layers with GELU between: (N, in_dim, h, w) to (N, latent_dim, h, w) (paper, Eq. 3 and App. A).

    hidden_dim: None for 2 * latent_dim, which gives the paper's 67,680 parameters for 1024 to 32.
    """

    def __init__(self, in_dim: Width, latent_dim: Width, hidden_dim: Width | None = None) -> None:
        super().__init__(in_dim=in_dim, latent_dim=latent_dim)
        hidden_dim = 2 * latent_dim if hidden_dim is None else hidden_dim
        at_least(1, "MLPAdapter", hidden_dim=hidden_dim)
        self.fc1 = nn.Conv2d(in_dim, hidden_dim, 1)
        self.fc2 = nn.Conv2d(hidden_dim, latent_dim, 1)

    def forward(self, features: Tensor) -> Tensor:  # (N, C, h, w)
        """Return latents (N, d, h, w)."""
        self.check_features(features)
        return self.fc2(F.gelu(self.fc1(features)))


class LinearAdapter(Adapter):
    """One 1x1 layer: (N, in_dim, h, w) to (N, latent_dim, h, w)."""

    def __init__(self, in_dim: Width, latent_dim: Width) -> None:
        super().__init__(in_dim=in_dim, latent_dim=latent_dim)
        self.fc = nn.Conv2d(in_dim, latent_dim, 1)

    def forward(self, features: Tensor) -> Tensor:  # (N, C, h, w)
        """Return latents (N, d, h, w)."""
        self.check_features(features)
        return self.fc(features)


class IdentityAdapter(Adapter):
    """Features as they are, for encoders that give the latent themselves. Raises ConfigError if the widths differ."""

    def __init__(self, in_dim: Width, latent_dim: Width) -> None:
        super().__init__(in_dim=in_dim, latent_dim=latent_dim)
        if in_dim != latent_dim:
            raise ConfigError(
                f"IdentityAdapter cannot turn {in_dim} channels into a latent of {latent_dim}; "
                f"set latent_dim={in_dim}, or use the adapter 'linear' or 'mlp'"
            )

    def forward(self, features: Tensor) -> Tensor:  # (N, C, h, w)
        """Return the features, unchanged."""
        self.check_features(features)
        return features
