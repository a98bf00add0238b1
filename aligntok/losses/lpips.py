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
from aligntok.settings import Width
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


_EPS = 1e-10
_LIFT = 2.0**14  # gradients of a mean over places are too small for float16; a power of two changes no digit


class LPIPSLoss(Loss):
    """Learned perceptual distance (Zhang et al. 2018, version 0.1), mean over the batch; 14.72 M frozen parameters.

    net: "vgg" (VGG-16) or "alex" (AlexNet). pretrained: True for torchvision's trunk, from the torch hub folder or, if
    it is not there, the network; a local file of the trunk, torchvision's or an lpips state dict; False leaves the
    trunk random and asks for no file. slice_images: so many go through the trunk at once, forward and backward, before
    the next; it bounds memory, and the loss is the same. Always in eval mode and without gradients of its own. Under
    autocast the trunk runs in its precision; lengths, heads and means are float32 in any. Names are those of the lpips
    package, whose calibrated heads are used. Raises WeightsError at once when the trunk cannot be had, and ConfigError
    for images under 16 pixels a side (31 for "alex").
    """

    at = "reconstruction"
    inputs = ("images", "reconstruction")

    def __init__(self, net: str = "vgg", pretrained: bool | str | Path = True, slice_images: Width = 8) -> None:
        if net not in TRUNKS:
            raise ConfigError(f"LPIPSLoss: {unknown('net', net, TRUNKS)}")
        super().__init__()
        shape = TRUNKS[net]
        self.min_size = shape.min_size
        self.slice_images = slice_images
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
        value: Tensor = _BySlices.apply(reconstruction, images, self.distance, self.slice_images)
        return value

    def distance(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the loss of some images, without slices."""
        with torch.no_grad():  # images are data: only the reconstruction is learned
            targets = self.net(self.scaling_layer(images))
        found = self.net(self.scaling_layer(reconstruction))
        layers = zip(found, targets, self.lins, strict=True)
        return torch.stack([_Distance.apply(own, target, head.weight) for own, target, head in layers]).sum()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: the metric is frozen."""
        return super().train(False)


class _BySlices(torch.autograd.Function):
    """The mean of a value over images, slice by slice, each walked backward at once: one slice's activations live.

    The gradient of a mean is the mean of gradients, times what arrives, so nothing is computed twice.
    """

    @staticmethod
    def forward(ctx: Any, reconstruction: Tensor, images: Tensor, value: Any, size: int) -> Tensor:
        slices = [*zip(reconstruction.split(size), images.split(size), strict=True)]
        if not ctx.needs_input_grad[0]:
            return sum(value(image, own) * (len(own) / len(images)) for own, image in slices)
        values, gradients = [], []
        for own, image in slices:
            leaf = own.detach().requires_grad_()
            with torch.enable_grad():
                found = value(image, leaf) * (len(own) / len(images))
                (pull,) = torch.autograd.grad(found * _LIFT, leaf)
            values.append(found.detach())
            gradients.append(pull / _LIFT)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.stack(values).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (pull,) = ctx.saved_tensors
        return gradient * pull, None, None, None


class _Distance(torch.autograd.Function):
    """The mean over images and places of squared differences of activations of unit length, weighed by channel.

    own, target: (N, C, h, w); weight: (1, C, 1, 1), or any shape of C. In float32, in one walk over the channels: as
    layers on their own, which each go through memory, lengths and differences took as long as a convolution.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        own_rows, lengths = _of_unit_length(own)
        difference = own_rows - _of_unit_length(target)[0]
        pull = difference * weight.float().view(1, -1)
        places = len(difference)
        if ctx.needs_input_grad[0]:
            along = (own_rows * pull).sum(1, keepdim=True)
            # Where all is zero there is no direction, and the part along it is none.
            along = along * ((lengths + _EPS) / lengths.clamp_min(torch.finfo(lengths.dtype).tiny))
            own_gradient = torch.addcmul(pull, own_rows, along, value=-1).mul_(2 / places / (lengths + _EPS))
            ctx.save_for_backward(own_gradient)
            ctx.like = own.shape, own.dtype
        return torch.dot(pull.flatten(), difference.flatten()) / places

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (pull,) = ctx.saved_tensors
        (images, channels, height, width), dtype = ctx.like
        pull = (gradient * pull).view(images, height, width, channels).permute(0, 3, 1, 2)
        return pull.to(dtype), None, None


def _of_unit_length(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x / (|x| + eps) over the channels of (N, C, h, w), and |x|: rows (N * h * w, C) and (N * h * w, 1)."""
    rows = x.float().permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / (lengths + _EPS), lengths


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
    """The weights of the channels of one stage, by their published name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The place 0 of the published names is a dropout, which is off in this frozen metric.
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))

    @property
    def weight(self) -> Tensor:
        """They: (1, width, 1, 1)."""
        return self.get_parameter("model.1.weight")


def _trunk_names(trunk: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's `features.N.*` or a whole lpips' `net.sliceM.N.*` to the trunk's `sliceM.N.*`."""
    own = {key.partition(".")[2]: key for key in trunk.state_dict()}  # N.weight -> sliceM.N.weight
    if any(key.startswith("features.") for key in tensors):
        features = {key.removeprefix("features."): value for key, value in tensors.items() if "features." in key}
        return {own.get(key, key): value for key, value in features.items()}
    published = {key.removeprefix("net."): value for key, value in tensors.items() if key.startswith("net.")}
    return published or dict(tensors)
