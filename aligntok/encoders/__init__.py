"""Encoders: pretrained vision models, images -> features on the tokenizer's grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.checkpoint import checkpoint
from typing_extensions import Self

from aligntok.errors import ConfigError, multiples_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SIDE_PATHS = {"se", "downsample", "shortcut", "gate"}


class Encoder(nn.Module):
    """Base of all encoders: images (N, 3, H, W) in [-1, 1] to features (N, C, H/f, W/f).

    A subclass gives `backbone_features` and `last_layer`; normalising, resizing and checking are done here.

    downsample_factor: f, image pixels per latent position. stride: p, the backbone's own pixels per position; the
    backbone sees the image resized by p/f. out_dim: C. mean, std: what the backbone's pixels, in [0, 1], are
    normalised with, one number a channel. antialias: low-pass filter when the resize shrinks (it matters for large f).
    """

    def __init__(
        self,
        *,
        downsample_factor: int,
        stride: int,
        out_dim: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        antialias: bool = False,
    ) -> None:
        super().__init__()
        self.who = type(self).__name__  # in errors
        for name, value in {"downsample_factor": downsample_factor, "stride": stride, "out_dim": out_dim}.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{self.who}: {name}={value!r} must be a whole number of at least 1")
        self.downsample_factor = downsample_factor
        self.stride = stride
        self.out_dim = out_dim
        self.antialias = antialias
        self.grad_checkpointing = False
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:  # (N, 3, H, W) in [-1, 1]
        """Return features (N, C, H/f, W/f).

        Raises ConfigError unless H and W are multiples of f, and for a backbone that gives another C or grid for them.
        """
        self.check_images(images)
        x = self.resize(self.normalise(images))  # (N, 3, H*p/f, W*p/f)
        if self.grad_checkpointing and torch.is_grad_enabled():
            features: Tensor = checkpoint(self.backbone_features, x, use_reentrant=False)
        else:
            features = self.backbone_features(x)  # (N, C, H/f, W/f)
        self.check_features(features, x.shape[-2:])
        return features

    def check_features(self, features: Tensor, pixels: Sequence[int]) -> None:
        """Raise ConfigError unless a backbone's features of so many pixels are (N, C, h, w) of its C and stride."""
        promised = (self.out_dim, *(side // self.stride for side in pixels))
        if tuple(features.shape[1:]) != promised:
            raise ConfigError(
                f"{self.who}: its features of {pixels[0]} x {pixels[1]} pixels are {tuple(features.shape[1:])}, not "
                f"(C, h, w) = {promised} as its stride of {self.stride} says; choose another level (stride or "
                "out_index), image size or model"
            )

    def backbone_features(self, pixels: Tensor) -> Tensor:
        """Features (N, C, h, w) of normalised pixels (N, 3, h*p, w*p): the subclass's part."""
        raise NotImplementedError(f"{type(self).__name__} must define backbone_features(pixels)")

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight that gradient ratios are measured at: the last one whose output every loss passes through."""
        raise NotImplementedError(f"{type(self).__name__} must define the property last_layer")

    def normalise(self, images: Tensor) -> Tensor:
        """Take [-1, 1] to the backbone's own mean and standard deviation; exact for mean = std = 0.5."""
        return (images + (1 - 2 * self.mean)) / (2 * self.std)  # ((x + 1)/2 - mean) / std

    def resize(self, images: Tensor) -> Tensor:
        """Resize (N, 3, H, W) bilinearly by p/f to (N, 3, H*p/f, W*p/f); unchanged when p = f."""
        f, p = self.downsample_factor, self.stride
        if f == p:
            return images
        size = (images.shape[-2] * p // f, images.shape[-1] * p // f)
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=self.antialias)

    def check_images(self, images: Tensor) -> None:
        """Raise ConfigError unless images are (N, 3, H, W) with H and W multiples of f."""
        f, channels = self.downsample_factor, self.mean.shape[1]
        if images.dim() != 4 or images.shape[1] != channels:
            raise ConfigError(f"{self.who} takes images (N, {channels}, H, W), was given {tuple(images.shape)}")
        multiples_of(f, f"{self.who}: an image size of", images.shape[-2:])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass to save memory; gradients stay the same.

        Here the backbone is one segment; a subclass whose blocks can be segments of their own overrides this.
        """
        self.grad_checkpointing = enable

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, nn.Module):  # a module is born in training mode, before anybody calls train()
            hold_batch_norm(value)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, except for batch norm, which always uses its pretrained statistics.

        With batch statistics a feature would depend on the other images of the batch, and on how the batch is split
        over processes and accumulation steps; and the statistics the teacher was trained with would drift away.
        """
        super().train(mode)
        hold_batch_norm(self)
        return self


def hold_batch_norm(module: nn.Module) -> None:
    """Put every batch norm in `module` into eval mode: it uses its running statistics and leaves them alone."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.eval()


def last_weight(module: nn.Module) -> nn.Parameter:
    """The weight of the last linear or convolution on the main path: of a ViT the second of the last block's MLP.

    Gates and shortcuts, which stand beside that path, don't count. Raises ConfigError if there is none.
    """
    found: nn.Parameter | None = None
    for name, part in module.named_modules():
        on_path = isinstance(part, nn.Linear | _ConvNd) and not SIDE_PATHS & set(name.split("."))
        if on_path and isinstance(part.weight, nn.Parameter):
            found = part.weight
    if found is None:
        raise ConfigError(f"{type(module).__name__} has no linear or convolution whose weight losses could balance at")
    return found
