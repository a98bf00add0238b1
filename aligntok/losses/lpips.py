"""LPIPS: the distance of two images in a classifier's features, and where its weights come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from aligntok.errors import ConfigError, check_same_shape, unknown
from aligntok.imports import folder_of
from aligntok.losses import Loss
from aligntok.weights.hub import fetch
from aligntok.weights.load import load_into, read_tensors


class TrunkShape(NamedTuple):
    """A trunk: torchvision's file of its weights, with the beginning of their SHA-256, its layers, and their least.

    stages: five of them, each a list of convolutions, (in, out, kernel, stride, padding) with a ReLU after each, and
    poolings, (kernel, stride). min_size: the smallest side that survives the poolings.
    """

    url: str
    sha256: str
    stages: Sequence[Sequence[Any]]
    min_size: int


TRUNKS = {
    "vgg": TrunkShape(
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af",
        (
            ((3, 64, 3, 1, 1), (64, 64, 3, 1, 1)),
            ((2, 2), (64, 128, 3, 1, 1), (128, 128, 3, 1, 1)),
            ((2, 2), (128, 256, 3, 1, 1), (256, 256, 3, 1, 1), (256, 256, 3, 1, 1)),
            ((2, 2), (256, 512, 3, 1, 1), (512, 512, 3, 1, 1), (512, 512, 3, 1, 1)),
            ((2, 2), (512, 512, 3, 1, 1), (512, 512, 3, 1, 1), (512, 512, 3, 1, 1)),
        ),
        min_size=16,
    ),
    "alex": TrunkShape(
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "7be5be79",
        (
            ((3, 64, 11, 4, 2),),
            ((3, 2), (64, 192, 5, 1, 2)),
            ((3, 2), (192, 384, 3, 1, 1)),
            ((384, 256, 3, 1, 1),),
            ((256, 256, 3, 1, 1),),
        ),
        min_size=31,
    ),
}


class LPIPSLoss(Loss):
    """Learned perceptual distance (Zhang et al. 2018, version 0.1), mean over the batch; 14.72 M frozen parameters.

    net: "vgg" (VGG-16) or "alex" (AlexNet). pretrained: True for torchvision's trunk, from the torch hub folder or, if
    it is not there, the network; a local file of the trunk, torchvision's or an lpips state dict; False leaves the
    trunk random and asks for no file. Always in eval mode and without gradients of its own. Under autocast trunk and
    heads run in its precision; lengths, means and the sum are float32 in any. Names are those of the lpips package,
    whose calibrated heads are used. Raises WeightsError at once when the trunk cannot be had, and ConfigError for
    images under 16 pixels a side (31 for "alex").
    """

    at = "reconstruction"
    inputs = ("images", "reconstruction")

    def __init__(self, net: str = "vgg", pretrained: bool | str | Path = True) -> None:
        if net not in TRUNKS:
            raise ConfigError(f"LPIPSLoss: {unknown('net', net, TRUNKS)}")
        super().__init__()
        shape = TRUNKS[net]
        self.min_size = shape.min_size
        self.scaling_layer = ScalingLayer()
        self.net = Trunk(shape.stages)
        self.lins = torch.nn.ModuleList(HeadLayer(stage[-1][1]) for stage in shape.stages)
        self.requires_grad_(False).eval()
        self.net.to(memory_format=torch.channels_last)  # pooling and norms: faster there
        if pretrained:
            path = fetch(shape.url, "LPIPSLoss", sha256=shape.sha256) if pretrained is True else pretrained
            load_into(self.net, _trunk_names(self.net, read_tensors(path, "LPIPSLoss")), "LPIPSLoss", path)
        if not self.scaling_layer.shift.is_meta:  # the calibrated channel weights, version 0.1
            path = folder_of("lpips", "LPIPSLoss: its calibrated heads") / "weights" / "v0.1" / f"{net}.pth"
            heads = {key.removeprefix("lin"): value for key, value in read_tensors(path, "LPIPSLoss").items()}
            load_into(self.lins, heads, "LPIPSLoss", path)

    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:  # both (N, 3, H, W) in [-1, 1]
        """Return the loss, a float32 scalar."""
        check_same_shape("LPIPSLoss", images=images, reconstruction=reconstruction)
        if min(images.shape[-2:]) < self.min_size:  # the trunk's pooling would shrink them to nothing
            raise ConfigError(
                f"LPIPSLoss needs images of at least {self.min_size} pixels a side, was given {tuple(images.shape)}"
            )
        with torch.no_grad():  # images are data: only the reconstruction is learned
            targets = self.layers(images)
        layers = zip(self.layers(reconstruction), targets, self.lins, strict=True)
        return torch.stack([head((own - target).square()).float().mean() for own, target, head in layers]).sum()

    def layers(self, images: Tensor) -> list[Tensor]:
        """Activations of each trunk stage, of unit length over the channels: (N, width, h, w) each."""
        return [_unit_length(x.float()) for x in self.net(self.scaling_layer(images))]

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: the metric is frozen."""
        return super().train(False)


def _unit_length(x: Tensor, eps: float = 1e-10) -> Tensor:
    """x / (|x| + eps) over the channels; its gradient is finite where every channel is 0."""
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + eps)


class Trunk(nn.Module):
    """Five stages of a classifier's convolutions: images (N, 3, H, W), scaled, to one activation a stage."""

    def __init__(self, stages: Sequence[Sequence[Any]]) -> None:
        super().__init__()
        number = 0  # of a layer, as torchvision has it
        for i, shapes in enumerate(stages, start=1):
            stage = nn.Sequential()
            for shape in shapes:
                pooling = len(shape) == 2
                for layer in [nn.MaxPool2d(*shape)] if pooling else [nn.Conv2d(*shape), nn.ReLU(inplace=True)]:
                    stage.add_module(str(number), layer)
                    number += 1
            self.add_module(f"slice{i}", stage)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the activations after each stage: (N, width, h, w) each."""
        outputs = []
        for stage in self.children():
            x = stage(x)
            outputs.append(x)
        return outputs


class ScalingLayer(nn.Module):
    """From [-1, 1] to the trunk's normalised pixels; the constants are the lpips package's."""

    def __init__(self) -> None:
        super().__init__()
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 3, H, W)."""
        return (images - self.shift) / self.scale


class HeadLayer(nn.Module):
    """Weighs the channels of one stage: squared differences (N, width, h, w) to (N, 1, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The place 0 of the published names is a dropout, which is off in this frozen metric.
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted sum over channels."""
        return self.model(x)


def _trunk_names(trunk: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's `features.N.*` or a whole lpips' `net.sliceM.N.*` to the trunk's `sliceM.N.*`."""
    own = {key.partition(".")[2]: key for key in trunk.state_dict()}  # N.weight -> sliceM.N.weight
    if any(key.startswith("features.") for key in tensors):
        features = {key.removeprefix("features."): value for key, value in tensors.items() if "features." in key}
        return {own.get(key, key): value for key, value in features.items()}
    published = {key.removeprefix("net."): value for key, value in tensors.items() if key.startswith("net.")}
    return published or dict(tensors)
