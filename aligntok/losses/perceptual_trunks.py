"""The networks under LPIPS, by the lpips package's names, without building a classifier or importing torchvision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


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
