"""LPIPS: the distance of two images in a classifier's features, and where its weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import Self

from aligntok.errors import ConfigError, WeightsError, unknown
from aligntok.losses.base import Loss, check_same_shape
from aligntok.weights.hub import fetch
from aligntok.weights.load import load_into, read_tensors

#: torchvision's files of the trunks, with the beginning of their SHA-256.
TRUNK_FILES = {
    "vgg": ("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"),
    "alex": ("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79"),
}


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
            raise ConfigError(f"LPIPSLoss: {unknown('net', net, TRUNKS)}")
        super().__init__()
        shape = TRUNKS[net]
        self.min_size = shape.min_size
        self.scaling_layer = ScalingLayer()
        self.net = Trunk(shape)
        self.lins = torch.nn.ModuleList(HeadLayer(width) for width in shape.widths)
        self.requires_grad_(False).eval()
        self.net.to(memory_format=torch.channels_last)  # pooling and norms: faster there
        if pretrained:
            load_trunk(self.net, net, None if pretrained is True else pretrained)
        if not self.scaling_layer.shift.is_meta:
            load_heads(self.lins, net)

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


@dataclass(frozen=True)
class TrunkShape:
    """A trunk as torchvision numbers its layers: convolutions, poolings, and where each of the five stages ends.

    convolutions: layer number to (in, out, kernel, stride, padding); a ReLU follows each. poolings: layer number to
    (kernel, stride). ends: the layer after each stage. min_size: the smallest side that survives the poolings.
    """

    convolutions: dict[int, tuple[int, int, int, int, int]]
    poolings: dict[int, tuple[int, int]]
    ends: tuple[int, ...]
    widths: tuple[int, ...]
    min_size: int


def _vgg16() -> TrunkShape:
    widths = (64, 128, 256, 512, 512)
    convolutions, poolings, ends = {}, {}, []
    layer, channels = 0, 3
    for width, repeats in zip(widths, (2, 2, 3, 3, 3), strict=True):
        if layer:
            poolings[layer] = (2, 2)
            layer += 1
        for _ in range(repeats):
            convolutions[layer] = (channels, width, 3, 1, 1)
            layer, channels = layer + 2, width
        ends.append(layer)
    return TrunkShape(convolutions, poolings, tuple(ends), widths, min_size=16)


def _alexnet() -> TrunkShape:
    convolutions = {
        0: (3, 64, 11, 4, 2),
        3: (64, 192, 5, 1, 2),
        6: (192, 384, 3, 1, 1),
        8: (384, 256, 3, 1, 1),
        10: (256, 256, 3, 1, 1),
    }
    widths = (64, 192, 384, 256, 256)
    return TrunkShape(convolutions, {2: (3, 2), 5: (3, 2)}, (2, 5, 8, 10, 12), widths, min_size=31)


TRUNKS = {"vgg": _vgg16(), "alex": _alexnet()}


class Trunk(nn.Module):
    """Five stages of a classifier's convolutions: images (N, 3, H, W), scaled, to one activation a stage."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__()
        starts = (0, *shape.ends[:-1])
        for i, (start, end) in enumerate(zip(starts, shape.ends, strict=True)):
            stage = nn.Sequential()
            for number in range(start, end):
                stage.add_module(str(number), _layer(shape, number))
            self.add_module(f"slice{i + 1}", stage)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the activations after each stage: (N, width, h, w) each."""
        outputs = []
        for stage in self.children():
            x = stage(x)
            outputs.append(x)
        return outputs


def _layer(shape: TrunkShape, number: int) -> nn.Module:
    if number in shape.convolutions:
        return nn.Conv2d(*shape.convolutions[number])
    if number in shape.poolings:
        return nn.MaxPool2d(*shape.poolings[number])
    return nn.ReLU(inplace=True)


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


def load_trunk(trunk: nn.Module, net: str, source: str | Path | None) -> None:
    """Load ImageNet weights from `source`, or, for None, from the torch hub folder or the network.

    Raises WeightsError, within seconds, when they cannot be had or do not fit.
    """
    url, begin_of_hash = TRUNK_FILES[net]
    path = fetch(url, "LPIPSLoss", sha256=begin_of_hash) if source is None else source
    load_into(trunk, _trunk_names(trunk, read_tensors(path, "LPIPSLoss")), "LPIPSLoss", path)


def load_heads(heads: nn.ModuleList, net: str) -> None:
    """Load the calibrated channel weights (version 0.1) that the lpips package ships."""
    spec = find_spec("lpips")
    if spec is None or spec.origin is None:
        raise WeightsError("LPIPSLoss takes its calibrated heads from the package lpips: pip install lpips")
    path = Path(spec.origin).parent / "weights" / "v0.1" / f"{net}.pth"
    tensors = {key.removeprefix("lin"): value for key, value in read_tensors(path, "LPIPSLoss").items()}
    load_into(heads, tensors, "LPIPSLoss", path)


def _trunk_names(trunk: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's `features.N.*` or a whole lpips' `net.sliceM.N.*` to the trunk's `sliceM.N.*`."""
    own = {key.partition(".")[2]: key for key in trunk.state_dict()}  # N.weight -> sliceM.N.weight
    if any(key.startswith("features.") for key in tensors):
        features = {key.removeprefix("features."): value for key, value in tensors.items() if "features." in key}
        return {own.get(key, key): value for key, value in features.items()}
    published = {key.removeprefix("net."): value for key, value in tensors.items() if key.startswith("net.")}
    return published or dict(tensors)
