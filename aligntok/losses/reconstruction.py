"""Losses between an image and its reconstruction (paper, Eq. 1)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import Self

from aligntok.errors import ConfigError
from aligntok.losses import perceptual_weights
from aligntok.losses.contract import Loss, check_same_shape
from aligntok.losses.perceptual_trunks import TRUNKS, HeadLayer, ScalingLayer, Trunk


class L1Loss(Loss):
    """Mean absolute difference over all elements: |x - x_hat|_1 of Eq. 1."""

    at = "reconstruction"
    inputs = ("images", "reconstruction")

    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:  # both (N, 3, H, W)
        """Return the loss, a float32 scalar."""
        check_same_shape("L1Loss", images=images, reconstruction=reconstruction)
        return (images.float() - reconstruction.float()).abs().mean()


class LPIPSLoss(Loss):
    """Learned perceptual distance (Zhang et al. 2018, version 0.1), mean over the batch; 14.72 M frozen parameters.

    net: "vgg" (VGG-16) or "alex" (AlexNet). pretrained: True for torchvision's trunk, from the torch hub folder or, if
    it is not there, the network; a local file of the trunk, torchvision's or an lpips state dict; False leaves the
    trunk random and asks for no file. Always in eval mode and without gradients of its own. Names are those of the
    lpips package, whose calibrated heads are used. Raises WeightsError at once when the trunk cannot be had, and
    ConfigError for images under 16 pixels a side (31 for "alex").
    """

    at = "reconstruction"
    inputs = ("images", "reconstruction")

    def __init__(self, net: str = "vgg", pretrained: bool | str | Path = True) -> None:
        if net not in TRUNKS:
            raise ConfigError(f"LPIPSLoss: unknown net '{net}'; allowed: {', '.join(TRUNKS)}")
        super().__init__()
        shape = TRUNKS[net]
        self.min_size = shape.min_size
        self.scaling_layer = ScalingLayer()
        self.net = Trunk(shape)
        self.lins = torch.nn.ModuleList(HeadLayer(width) for width in shape.widths)
        self.requires_grad_(False).eval()
        self.net.to(memory_format=torch.channels_last)  # pooling and norms: faster there
        if pretrained:
            perceptual_weights.load_trunk(self.net, net, None if pretrained is True else pretrained)
        if not self.scaling_layer.shift.is_meta:
            perceptual_weights.load_heads(self.lins, net)

    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:  # both (N, 3, H, W) in [-1, 1]
        """Return the loss, a float32 scalar."""
        check_same_shape("LPIPSLoss", images=images, reconstruction=reconstruction)
        self.check_size(images)
        with torch.no_grad():  # images are data: only the reconstruction is learned
            targets = self.layers(images)
        layers = zip(self.layers(reconstruction), targets, self.lins, strict=True)
        return torch.stack([head((own - target).square()).float().mean() for own, target, head in layers]).sum()

    def layers(self, images: Tensor) -> list[Tensor]:
        """Activations of each trunk stage, of unit length over the channels: (N, width, h, w) each."""
        return [_unit_length(x.float()) for x in self.net(self.scaling_layer(images))]

    def check_size(self, images: Tensor) -> None:
        """Raise ConfigError for images that the trunk's pooling would shrink to nothing."""
        if min(images.shape[-2:]) < self.min_size:
            raise ConfigError(
                f"LPIPSLoss needs images of at least {self.min_size} pixels a side, was given {tuple(images.shape)}"
            )

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: the metric is frozen."""
        return super().train(False)


def _unit_length(x: Tensor, eps: float = 1e-10) -> Tensor:
    """x / (|x| + eps) over the channels; its gradient is finite where every channel is 0."""
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + eps)
