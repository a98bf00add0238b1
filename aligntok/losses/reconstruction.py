"""How far a reconstruction is from its image, pixel by pixel, and a posterior from its prior."""

from __future__ import annotations

from torch import Tensor

from aligntok.errors import check_same_shape
from aligntok.losses import Loss


class L1Loss(Loss):
    """Mean absolute difference over all elements: |x - x_hat|_1 of Eq. 1."""

    at = "reconstruction"
    inputs = ("images", "reconstruction")

    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:  # both (N, 3, H, W)
        """Return the loss, a float32 scalar."""
        check_same_shape("L1Loss", images=images, reconstruction=reconstruction)
        return (images.float() - reconstruction.float()).abs().mean()


class KLLoss(Loss):
    """KL divergence of the encoder's diagonal Gaussian from N(0, 1): summed over an image, mean over the batch.

    As in LDM (Rombach et al. 2022): log-variances are clamped to [-30, 20]. The baselines weigh it 1e-6.
    """

    at = "moments"
    inputs = ("moments",)

    def forward(self, moments: Tensor) -> Tensor:  # (N, 2*d, h, w)
        """Return the loss, a float32 scalar."""
        mean, logvar = moments.float().chunk(2, dim=1)
        logvar = logvar.clamp(-30.0, 20.0)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)  # KL(N(m, s^2) || N(0, 1)) per element
        return divergence.flatten(1).sum(dim=1).mean()
