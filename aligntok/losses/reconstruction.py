"""Losses between an image and its reconstruction (paper, Eq. 1)."""

from __future__ import annotations

from torch import Tensor

from aligntok.losses.contract import Loss, check_same_shape


class L1Loss(Loss):
    """Mean absolute difference over all elements: |x - x_hat|_1 of Eq. 1."""

    at = "reconstruction"
    inputs = ("images", "reconstruction")

    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:  # both (N, 3, H, W)
        """Return the loss, a float32 scalar."""
        check_same_shape("L1Loss", images=images, reconstruction=reconstruction)
        return (images.float() - reconstruction.float()).abs().mean()
