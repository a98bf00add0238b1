"""ST-LPIPS: a perceptual distance that forgives shifts the eye does not see."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from aligntok.errors import ConfigError, check_same_shape
from aligntok.imports import folder_of
from aligntok.losses import Loss
from aligntok.weights.load import load_into, read_tensors
from aligntok_st_lpips.trunks import Trunk, alex, vgg


class Net(NamedTuple):
    """A trunk's channels at its five stages, and the smallest side of an image that gets through it."""

    widths: tuple[int, ...]
    min_size: int


NETS = {"vgg": Net((64, 128, 256, 512, 512), min_size=18), "alex": Net((64, 192, 384, 256, 256), min_size=21)}


class STLPIPSLoss(Loss):
    """Shift-tolerant LPIPS (Ghildyal and Liu 2022), mean over the batch. Not LPIPS: never to be reported as such.

    net: "vgg" (14.7 M parameters) or "alex" (2.5 M, quicker). pretrained: True for the published weights, False for
    random ones, or a local file with the published names. Frozen and always in eval mode; gradients go to the
    reconstruction only. Under autocast the trunk computes in its precision, the rest in float32. Raises ConfigError
    for another net, for tensors whose shapes differ and for images under 18 pixels a side ("alex": 21); WeightsError
    for weights that cannot be had.
    """

    at = "reconstruction"
    inputs = ("images", "reconstruction")

    def __init__(self, net: str = "vgg", pretrained: bool | str | Path = True) -> None:
        if net not in NETS:
            raise ConfigError(f"st_lpips: unknown net '{net}'; allowed: {', '.join(NETS)}")
        super().__init__()
        self.min_size = NETS[net].min_size
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.net = Trunk(vgg() if net == "vgg" else alex()).to(memory_format=torch.channels_last)  # pooling: faster
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in NETS[net].widths)
        if pretrained:
            self.load_pretrained(_packaged_file(net) if pretrained is True else pretrained)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:  # both (N, 3, H, W) in [-1, 1]
        """Return the loss, a float32 scalar, 0 for equal images."""
        check_same_shape("st_lpips", images=images, reconstruction=reconstruction)
        if min(images.shape[-2:]) < self.min_size:
            raise ConfigError(
                f"st_lpips needs sides of {self.min_size} pixels or more, was given {tuple(images.shape)}"
            )
        with torch.no_grad():
            targets = self.directions(images)
        stages = zip(self.heads.parameters(), self.directions(reconstruction), targets, strict=True)
        distances = [(weight * (own - target).square()).sum(dim=1).mean() for weight, own, target in stages]
        return torch.stack(distances).sum()

    def directions(self, images: Tensor) -> list[Tensor]:
        """Return each stage's activations, (N, C, h, w), scaled to unit length over the channels, in float32."""
        return [_unit_length(x.float()) for x in self.net((images - self.mean) / self.std)]

    def load_pretrained(self, path: str | Path) -> None:
        """Load a file with the published names. Raises WeightsError when it is missing or does not fit."""
        tensors = read_tensors(path, "st_lpips")
        renamed = {re.sub(r"^lin(\d)\.model\.1\.", r"heads.\1.", key): x for key, x in tensors.items()}
        load_into(self, renamed, "st_lpips", path, spare=True)  # the file also holds constants

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: the metric is frozen."""
        return super().train(False)


def _unit_length(x: Tensor, eps: float = 1e-10) -> Tensor:
    """x / (|x| + eps) over the channels; vector_norm's gradient is 0, not NaN, where all of them are 0."""
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + eps)


def _packaged_file(net: str) -> Path:
    # Found without importing the package, whose code needs IPython and torchsummary.
    folder = folder_of("stlpips_pytorch", "st_lpips: its weights")
    return folder / "weights" / "vST0.0" / f"{net}_shift_tolerant.pth"
