"""What every discriminator is: a judgement of each patch of an image."""

from __future__ import annotations

from torch import Tensor, nn

from aligntok.errors import ConfigError


class Discriminator(nn.Module):
    """Base of all discriminators: images (N, in_channels, H, W) in [-1, 1] to logits (N, 1, h', w'), high for real."""

    def __init__(self, *, in_channels: int, min_size: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.min_size = min_size

    def check_images(self, images: Tensor) -> None:
        """Raise ConfigError for images of another number of channels, or too small to hold a patch."""
        if images.dim() != 4 or images.shape[1] != self.in_channels or min(images.shape[-2:]) < self.min_size:
            raise ConfigError(
                f"{type(self).__name__} takes images (N, {self.in_channels}, H, W) of at least {self.min_size} pixels "
                f"a side, was given {tuple(images.shape)}; use larger images or fewer layers"
            )
