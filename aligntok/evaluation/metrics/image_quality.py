"""How near a reconstruction is to its image: PSNR and SSIM of one pair, on the 8-bit pixels that are saved and seen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aligntok.io.pictures import round_to_8bit, to_uint8

SSIM_WINDOW, SSIM_DEVIATION = 11, 1.5  # pixels: of the Gaussian window (Wang et al. 2004)


def to_8bit(images: Tensor) -> Tensor:
    """Round images in [-1, 1] to the 8-bit grid and return them as float64 in [0, 255], any shape."""
    return round_to_8bit(images.double())


def to_pixels(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as they would be saved: uint8, the same shape."""
    return to_uint8(images.double())


def psnr(image: Tensor, reconstruction: Tensor) -> float:
    """Peak signal-to-noise ratio, in dB, of one pair (3, H, W) in [-1, 1], measured on 8-bit pixels.

    Capped at 100 dB, which identical images reach, and those whose mean squared error is at most 255² / 10^10: one
    value of a 256 x 256 image that is off by one. NaN for images that are not finite.
    """
    error = (to_8bit(image) - to_8bit(reconstruction)).square().mean()
    return float((10 * torch.log10(255**2 / error.clamp(min=1e-12))).clamp(max=100))  # min(100, nan) would be 100


def ssim(image: Tensor, reconstruction: Tensor) -> float:
    """Structural similarity of one pair (3, H, W) in [-1, 1], measured on 8-bit pixels: 1 for identical images.

    Wang et al. 2004: Gaussian window of deviation 1.5 over 11 x 11 pixels, K = 0.01 and 0.03, mean over the positions
    that the whole window fits into and over the colours. NaN for images with a side below 11 pixels.
    """
    if min(image.shape[-2:]) < SSIM_WINDOW:
        return float("nan")
    x, y = to_8bit(image)[:, None], to_8bit(reconstruction)[:, None]  # (3, 1, H, W): a colour is a sample
    offsets = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SSIM_DEVIATION**2))
    weights = weights / weights.sum()

    def smooth(values: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(values, weights[None, None, :, None]), weights[None, None, None, :])

    mean_x, mean_y = smooth(x), smooth(y)
    variance_x, variance_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return float((luminance * structure).mean())
