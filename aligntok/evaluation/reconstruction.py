"""Reconstruction quality: PSNR and a perceptual distance, each the mean over images of a per-image value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from aligntok.registry import LOSSES


def to_8bit(images: Tensor) -> Tensor:
    """Round images in [-1, 1] to the 8-bit grid and return them as float64 in [0, 255], any shape."""
    return ((images.double().clamp(-1, 1) + 1) * 127.5).round()


def psnr(image: Tensor, reconstruction: Tensor) -> float:
    """Peak signal-to-noise ratio, in dB, of one pair (3, H, W) in [-1, 1], measured on 8-bit pixels.

    Capped at 100 dB, which only identical images reach.
    """
    error = (to_8bit(image) - to_8bit(reconstruction)).square().mean()
    return min(100.0, float(10 * torch.log10(255**2 / error.clamp(min=1e-12))))


class ReconstructionMetric(BaseMetric):
    """mmengine metric of a tokenizer's reconstructions: ``psnr`` and one perceptual distance, means over images.

    `perceptual` is a loss config whose type names the distance in the results (``lpips``, ``st_lpips``); it takes
    (reconstruction, images). None leaves it out. Independent of batch size and number of processes.
    """

    default_prefix = "reconstruction"

    def __init__(self, perceptual: Mapping[str, Any] | None = None) -> None:
        super().__init__(collect_device="gpu")  # by exchange; mmengine's "cpu" writes files into the current folder
        self.perceptual_name = perceptual["type"] if perceptual else None
        self.distance = LOSSES.build(dict(perceptual)).eval() if perceptual else None

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Tensor]]) -> None:
        """Take in one ``dict(images=(3, H, W), reconstruction=(3, H, W))`` an image."""
        for sample in data_samples:
            image, reconstruction = sample["images"], sample["reconstruction"]
            self.results.append((psnr(image, reconstruction), self._perceptual(image, reconstruction)))

    @torch.no_grad()
    def _perceptual(self, image: Tensor, reconstruction: Tensor) -> float:
        if self.distance is None:
            return 0.0
        self.distance.to(image.device)
        named = {"images": image[None], "reconstruction": reconstruction.clamp(-1, 1)[None]}
        return float(self.distance(*(named[name] for name in self.distance.inputs)))

    def compute_metrics(self, results: Sequence[tuple[float, float]]) -> dict[str, float]:
        """Return the means over all images, and their number."""
        metrics = {"psnr": sum(r[0] for r in results) / len(results), "images": float(len(results))}
        if self.perceptual_name:
            metrics[self.perceptual_name] = sum(r[1] for r in results) / len(results)
        return metrics
