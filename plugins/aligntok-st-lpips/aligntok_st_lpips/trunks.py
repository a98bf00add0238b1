"""The shift-tolerant trunks: VGG-16 and AlexNet that blur before they subsample (Ghildyal and Liu 2022, Sec. 4).

Layers are numbered as in the published weights, so that these load by name.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aligntok.ops.depthwise import depthwise_conv2d


class BlurPool(nn.Module):
    """Binomial 3x3 low-pass, then every second pixel: (N, C, h, w) to (N, C, h // 2 + 1, w // 2 + 1) or 1 more."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.kernel: Tensor
        self.register_buffer("kernel", (row[:, None] * row).expand(channels, 1, 3, 3).clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Blur and subsample; the border of 2 is reflected."""
        return depthwise_conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.kernel, stride=2)


def vgg() -> list[list[nn.Module]]:
    """Return VGG-16's five stages, the last pooling left out."""
    stages: list[list[nn.Module]] = []
    channels = 3
    for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        stage = [nn.MaxPool2d(2, stride=1), BlurPool(channels)] if stages else []
        for _ in range(convolutions):
            stage += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        stages.append(stage)
    return stages


def alex() -> list[list[nn.Module]]:
    """Return AlexNet's five stages, the last pooling left out."""
    return [
        [nn.Conv2d(3, 64, 11, padding=2), BlurPool(64), nn.ReLU(inplace=True)],
        [nn.MaxPool2d(3, stride=1), BlurPool(64), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True)],
        [nn.MaxPool2d(3, stride=1), BlurPool(192), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True)],
        [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True)],
        [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True)],
    ]


class Trunk(nn.Module):
    """Normalised images (N, 3, H, W) to the activations of five stages, each (N, C, h, w)."""

    def __init__(self, stages: list[list[nn.Module]]) -> None:
        super().__init__()
        numbers = itertools.count()
        for position, layers in enumerate(stages, start=1):
            named = OrderedDict((str(next(numbers)), layer) for layer in layers)
            self.add_module(f"slice{position}", nn.Sequential(named))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the five activations, the finest first."""
        activations = []
        for stage in self.children():
            x = stage(x)
            activations.append(x)
        return activations
