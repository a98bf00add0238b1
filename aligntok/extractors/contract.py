"""What every feature extractor promises."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from aligntok.weights.load import weights_hash


class Features(NamedTuple):
    """What an extractor says of N images, float32: pooled (N, D), spatial (N, S) and logits (N, K), or None."""

    pooled: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


class Extractor(nn.Module):
    """A frozen network whose features sets of images are compared on; a component of the extractor registry.

    title: what metrics on it are called after (``FD-<title>``; that of Inception-v3 alone gives ``FID``). resize: in
    words, how it brings images to its own input size. Both are part of what a reference file is checked by.

    A component resizes and normalises by itself, and ends building with :meth:`freeze`. Where its weights are random
    its title says so, so that no metric on them has the name of one that others publish.

    ``forward`` takes images as they would be saved, uint8 (N, 3, H, W), and returns :class:`Features`; an image's
    features depend on it alone. It takes `pretrained` (True, False for random weights, or a local file) as encoders do.
    """

    title: str
    resize: str

    @property
    def identity(self) -> str:
        """SHA-256 of the title, the way of resizing and the weights, 64 hexadecimal digits."""
        return weights_hash(f"{self.title} {self.resize}", self)

    def freeze(self) -> None:
        """Go into eval mode, and take no gradient for any parameter."""
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Features:
        """Return the features of uint8 images (N, 3, H, W)."""
        raise NotImplementedError
