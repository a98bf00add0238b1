"""Discriminators: whether images look real, patch by patch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aligntok.distributed import Group, groups_of, mean_over_processes, number_of_groups, total, world
from aligntok.errors import ConfigError, at_least, unknown
from aligntok.settings import Depth, Positive, Width


class Discriminator(nn.Module):
    """Base of all discriminators: images (N, in_channels, H, W) in [-1, 1] to logits (N, 1, h', w'), high for real."""

    def __init__(self, *, in_channels: int, min_size: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.min_size = min_size

    def check_images(self, images: Tensor) -> None:
        """Raise ConfigError for images of another number of channels, or too small to hold a patch."""
        if images.dim() != 4 or images.shape[1] != self.in_channels or min(images.shape[-2:]) < self.min_size:
            raise ConfigError(
                f"{type(self).__name__} takes images (N, {self.in_channels}, H, W) of at least {self.min_size} pixels "
                f"a side, was given {tuple(images.shape)}; use larger images or fewer layers"
            )


class GlobalBatchNorm2d(nn.SyncBatchNorm):
    """Batch norm over the batches of all processes together, or over groups of it: (N, C, h, w) to (N, C, h, w).

    Outputs, input gradients and running statistics are those of one process with the whole batch, whatever each
    process's share. Weight and bias get the gradient of the process's own share, to be summed as for any parameter.
    group_images: neighbours in that batch that are normalised together, so that it does not matter either how many
    there are; running statistics are then the mean of the groups'. Without it, without a process group, with one
    process, or in eval mode it is ``nn.BatchNorm2d``; names are the same.
    """

    def __init__(self, width: int, group_images: int | None = None, momentum: float | None = 0.1) -> None:
        super().__init__(width, momentum=momentum)
        self.group_images = group_images

    def forward(self, input: Tensor) -> Tensor:
        processes, images = world()[1], len(input)
        if not self.training or (processes == 1 and self.group_images is None):
            return nn.BatchNorm2d.forward(self, input)
        if input.is_cuda and self.group_images is None:
            return super().forward(input)
        groups = groups_of(images, self.group_images or processes * images)
        if processes == 1 or (self.group_images is not None and images % self.group_images == 0):
            normed, mean, variance = self._of_own(input, groups)
        else:
            normed, mean, variance = self._of_all(input, groups)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance, momentum)
        return normed

    def _of_own(self, input: Tensor, groups: Sequence[Group]) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise groups that each lie in one process; return that, and the mean of all their statistics."""
        statistics = torch.zeros(len(groups), 2, input.shape[1], device=input.device)
        normed = [
            F.batch_norm(input[group.images], own[0], own[1], self.weight, self.bias, True, 1.0, self.eps)
            for group, own in zip(groups, statistics, strict=True)
        ]
        mean, variance = mean_over_processes(statistics.mean(dim=0))
        return torch.cat(normed), mean, variance

    def _of_all(self, input: Tensor, groups: Sequence[Group]) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise groups that processes share; return that, and the mean of all their statistics.

        nn.SyncBatchNorm has kernels for accelerators only, and knows no groups; this is the same in plain sums.
        """
        x, images = input.float(), len(input)
        number = number_of_groups(images, self.group_images) if self.group_images else 1

        def summed(own: Sequence[Tensor]) -> Tensor:  # (number, ...), of all processes
            before = groups[0].number
            return _Total.apply(F.pad(torch.stack([*own]), (0, 0, before, number - before - len(own))))

        parts = [x[group.images] for group in groups]
        counts = [x.new_full((1,), part.numel() / part.shape[1]) for part in parts]
        sums = summed([torch.cat([part.sum((0, 2, 3)), count]) for part, count in zip(parts, counts, strict=True)])
        count = sums[:, -1:]
        means = sums[:, :-1] / count
        centred = [part - means[group.number][:, None, None] for part, group in zip(parts, groups, strict=True)]
        variances = summed([part.square().sum((0, 2, 3)) for part in centred]) / count
        scales = (variances + self.eps).rsqrt() * self.weight
        normed = torch.cat([c * scales[group.number][:, None, None] for c, group in zip(centred, groups, strict=True)])
        normed = normed + self.bias[:, None, None]
        unbiased = variances * count / (count - 1)
        return normed.to(input.dtype), means.detach().mean(dim=0), unbiased.detach().mean(dim=0)


class _Total(torch.autograd.Function):
    """Sum over processes, whose gradient is the sum over processes of the sum's gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return total(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": GlobalBatchNorm2d,
    "group": partial(nn.GroupNorm, 32),
    "none": nn.Identity,
}


class PatchGAN(Discriminator):
    """Images (N, 3, H, W) to logits (N, 1, h', w'), about H/2**num_layers; 2,765,633 parameters by default.

    base_channels: width of the first layer, doubled by each strided layer up to eight times. num_layers: strided
    layers; 3 judge patches of 70 pixels. norm: "batch", over the batches of all processes; "group", 32 groups of one
    image, which does not depend on how a batch is split over processes or accumulation steps; "none". group_images: of
    norm="batch", neighbours of the batch that are normalised together; None: the whole batch. Names are those
    of the published checkpoints (`main.N.weight`), convolutions start at N(0, 0.02). Raises ConfigError for unknown
    norms, widths that do not divide into 32 groups, and images too small.
    """

    def __init__(
        self,
        in_channels: Width = 3,
        base_channels: Width = 64,
        num_layers: Depth = 3,
        norm: str = "batch",
        group_images: Positive | None = None,
    ) -> None:
        at_least(1, "PatchGAN", num_layers=num_layers)
        if norm not in NORMS:
            raise ConfigError(f"PatchGAN: {unknown('norm', norm, NORMS)}")
        if group_images is not None and norm != "batch":
            raise ConfigError(f"PatchGAN: group_images={group_images} is for norm='batch', not '{norm}'; leave it out")
        make = partial(GlobalBatchNorm2d, group_images=group_images) if norm == "batch" else NORMS[norm]
        self.group_images = group_images
        # Each strided layer halves the side; the two unstrided ones then take one pixel each.
        super().__init__(in_channels=in_channels, min_size=3 * 2**num_layers)
        widths = [base_channels * min(2**i, 8) for i in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        for i in range(1, num_layers + 1):
            stride = 2 if i < num_layers else 1
            if norm == "group" and widths[i] % 32:
                raise ConfigError(f"PatchGAN: norm='group' needs widths that are multiples of 32, not {widths[i]}")
            layers += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride, 1, bias=norm == "none"),
                make(widths[i]),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.main = nn.Sequential(*layers)
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, (GlobalBatchNorm2d, nn.GroupNorm)):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:  # (N, 3, H, W) in [-1, 1]
        """Return logits (N, 1, h', w')."""
        self.check_images(images)
        return self.main(images)
