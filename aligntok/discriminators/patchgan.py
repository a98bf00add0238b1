"""The patch discriminator of pix2pix (Isola et al. 2017), as LDM and the paper use it."""

from __future__ import annotations

from torch import Tensor, nn

from aligntok.discriminators.batch_norm import GlobalBatchNorm2d
from aligntok.discriminators.contract import Discriminator
from aligntok.errors import ConfigError, at_least, unknown

NORMS = ("batch", "group", "none")


class PatchGAN(Discriminator):
    """Images (N, 3, H, W) to logits (N, 1, h', w'), about H/2**num_layers; 2,765,633 parameters by default.

    base_channels: width of the first layer, doubled by each strided layer up to eight times. num_layers: strided
    layers; 3 judge patches of 70 pixels. norm: "batch", over the batches of all processes; "group", 32 groups of one
    image, which does not depend on how a batch is split over processes or accumulation steps; "none". Names are those
    of the published checkpoints (`main.N.weight`), convolutions start at N(0, 0.02). Raises ConfigError for unknown
    norms, widths that do not divide into 32 groups, and images too small.
    """

    def __init__(self, in_channels: int = 3, base_channels: int = 64, num_layers: int = 3, norm: str = "batch") -> None:
        at_least(1, "PatchGAN", num_layers=num_layers)
        # Each strided layer halves the side; the two unstrided ones then take one pixel each.
        super().__init__(in_channels=in_channels, min_size=3 * 2**num_layers)
        widths = [base_channels * min(2**i, 8) for i in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        for i in range(1, num_layers + 1):
            stride = 2 if i < num_layers else 1
            layers += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride, 1, bias=norm == "none"),
                _norm_layer(norm, widths[i]),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.main = nn.Sequential(*layers)
        self.apply(_init_pix2pix)

    def forward(self, images: Tensor) -> Tensor:  # (N, 3, H, W) in [-1, 1]
        """Return logits (N, 1, h', w')."""
        self.check_images(images)
        return self.main(images)


def _norm_layer(norm: str, channels: int) -> nn.Module:
    if norm == "batch":
        return GlobalBatchNorm2d(channels)
    if norm == "group":
        if channels % 32:
            raise ConfigError(f"PatchGAN: norm='group' needs widths that are multiples of 32, not {channels}")
        return nn.GroupNorm(32, channels)
    if norm == "none":
        return nn.Identity()
    raise ConfigError(f"PatchGAN: {unknown('norm', norm, NORMS)}")


def _init_pix2pix(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, (GlobalBatchNorm2d, nn.GroupNorm)):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
