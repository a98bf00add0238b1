"""Inception-v3 with the weights that FID is defined by, ported from TensorFlow."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as blocks
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from aligntok.extractors import Extractor, Features
from aligntok.weights.hub import fetch, placed_url
from aligntok.weights.load import load_into, read_tensors

WHO = "extractor 'inception_v3'"
SIZE = 299
SPATIAL_CHANNELS = 7  # ADM's sFID takes the first seven of the 192, so that there are about as many as pooled features
#: The same file, byte by byte, under the names that torch-fidelity and pytorch-fid keep it by.
URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
OTHER_NAME = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class InceptionV3(Extractor):
    """The Inception-v3 of TensorFlow's 2015-12-05 release: FID, sFID, IS, KID and ADM's precision and recall are on it.

    pooled (N, 2048) of the last average pooling; spatial (N, 2023), ADM's: the first 7 channels of TensorFlow's
    ``mixed_6/conv`` (the 1x1 branch of `Mixed_6d`, after its ReLU), in the order (y, x, channel); logits (N, 1008)
    without the bias, as the Inception Score takes them. The network's parts are torch-fidelity's, with TensorFlow 1's
    bilinear resize to 299 x 299, which does not filter.

    pretrained: True for the usual file, from torch hub's checkpoint folder under torch-fidelity's or pytorch-fid's name
    or else downloaded; a local file; False for random weights. Only the published file, by its SHA-256, has the title
    that gives an FID; any other weights have another title. Raises WeightsError, within seconds, for a file that cannot
    be had or does not fit.
    """

    resize = f"bilinear of TensorFlow 1 (not antialiased) to {SIZE} x {SIZE}, (x - 128) / 128"

    def __init__(self, pretrained: bool | str | os.PathLike[str] = True) -> None:
        super().__init__()
        self.title = "Inception-v3-random"
        self._build()
        if pretrained is False:
            for module in self.modules():  # random weights that keep the size of activations
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
        else:
            if pretrained is True:  # where either library keeps it, or else downloaded
                placed = [placed_url(name) for name in (URL, OTHER_NAME) if placed_url(name).is_file()]
                file = placed[0] if placed else fetch(URL, WHO, sha256=SHA256)
            else:
                file = Path(pretrained)
            tensors = {k: v for k, v in read_tensors(file, WHO).items() if not k.startswith("AuxLogits.")}
            # What batch norm counts changes no feature, and not every copy of the file has it.
            counters = {key: torch.tensor(0) for key in self.state_dict() if key.endswith("num_batches_tracked")}
            load_into(self, {**tensors, **counters}, WHO, file)
            with file.open("rb") as opened:
                published = hashlib.file_digest(opened, "sha256").hexdigest() == SHA256
            self.title = "Inception-v3" if published else "Inception-v3-other"
        self.freeze()

    def _build(self) -> None:
        conv = blocks.BasicConv2d
        self.Conv2d_1a_3x3 = conv(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = conv(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = conv(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = conv(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = conv(80, 192, kernel_size=3)
        self.Mixed_5b = blocks.InceptionA(192, pool_features=32)
        self.Mixed_5c = blocks.InceptionA(256, pool_features=64)
        self.Mixed_5d = blocks.InceptionA(288, pool_features=64)
        self.Mixed_6a = blocks.InceptionB(288)
        self.Mixed_6b = blocks.InceptionC(768, channels_7x7=128)
        self.Mixed_6c = blocks.InceptionC(768, channels_7x7=160)
        self.Mixed_6d = blocks.InceptionC(768, channels_7x7=160)
        self.Mixed_6e = blocks.InceptionC(768, channels_7x7=192)
        self.Mixed_7a = blocks.InceptionD(768)
        self.Mixed_7b = blocks.InceptionE_1(1280)
        self.Mixed_7c = blocks.InceptionE_2(2048)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, pixels: Tensor) -> Features:  # uint8 (N, 3, H, W)
        """Return pooled, spatial and logits of 8-bit images of any size."""
        x = interpolate_bilinear_2d_like_tensorflow1x(pixels.float(), size=(SIZE, SIZE), align_corners=False)
        x = (x - 128) / 128  # (N, 3, 299, 299)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (N, 64, 147, 147)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))  # (N, 192, 71, 71)
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (N, 288, 35, 35)
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # (N, 768, 17, 17)
        spatial = self.Mixed_6d.branch1x1(x)[:, :SPATIAL_CHANNELS]  # TensorFlow's mixed_6/conv
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (N, 2048, 8, 8)
        pooled = x.mean(dim=(2, 3))
        return Features(pooled, spatial.permute(0, 2, 3, 1).flatten(1), pooled @ self.fc.weight.T)
