"""Latents to look at: PCA pictures side by side (paper, Fig. 7), and the points of a t-SNE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from aligntok.data.transforms import to_picture
from aligntok.io.pictures import sheet

TILE = 128  # pixels: smaller images are shown enlarged by a whole number
OUTLIERS = (0.02, 0.98)  # quantiles of a component that become black and full colour


def pca_pictures(latents: Tensor) -> Tensor:
    """Return latents (M, C, h, w) as colours (M, 3, h, w) in [0, 1]: their three leading principal components.

    The components are those of all positions of all M images together. Each is scaled so that its 2 % and 98 %
    quantiles are 0 and 1; its sign makes the largest of its weights positive. Fewer than three that vary: grey.
    """
    count, channels, height, width = latents.shape
    flat = latents.double().permute(0, 2, 3, 1).reshape(-1, channels)
    centred = flat - flat.mean(dim=0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    leading = vectors[:, -3:].flip(1)
    leading = leading * leading.gather(0, leading.abs().argmax(dim=0, keepdim=True)).sign()
    components = centred @ leading  # (M h w, at most 3)
    low, high = torch.quantile(components, torch.tensor(OUTLIERS, dtype=components.dtype), dim=0)
    spread = (high - low).clamp(min=1e-12)
    varies = (high - low) > 1e-6 * (high - low).max()
    scaled = torch.where(varies, ((components - low) / spread).clamp(0, 1), 0.5)
    if scaled.shape[1] < 3:
        scaled = torch.cat([scaled, scaled.new_full((len(scaled), 3 - scaled.shape[1]), 0.5)], dim=1)
    return scaled.view(count, height, width, 3).permute(0, 3, 1, 2).float()


def pca_sheet(inputs: Tensor, titles: Sequence[str], columns: Sequence[Tensor]) -> Image.Image:
    """Return a Pillow image: a row an image, the input (M, 3, H, W) in [-1, 1] first, then each column's colours.

    columns: each (M, 3, h, w) in [0, 1], under its title; shown in the input's size, a position a block of one colour.
    """
    times = max(1, math.ceil(TILE / max(inputs.shape[2:])))
    height, width = (side * times for side in inputs.shape[2:])
    shown = [inputs, *(2 * colours - 1 for colours in columns)]
    rows = [
        [to_picture(picture).resize((width, height), Image.Resampling.NEAREST) for picture in row]
        for row in zip(*shown, strict=True)
    ]
    return sheet(rows, ["input", *titles], letters=13, gap=6)


def tsne_plot(points: npt.NDArray[Any], labels: npt.NDArray[Any], title: str) -> Any:
    """Return a matplotlib figure of points (N, 2), coloured by class; -1 is no class."""
    from matplotlib.figure import Figure  # not pyplot: no window, and no state that others share

    width, height = np.ptp(points, axis=0) + 1e-9
    size = (6, 6 * min(1.5, max(0.4, height / width)) + 0.3)  # 0.3: the title
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.subplots()
    known = np.unique(labels[labels >= 0])
    colours: dict[str, Any] = {"s": min(12.0, max(2.0, 12000 / len(points))), "c": "tab:blue"}
    if len(known) and (labels >= 0).all():
        colours |= {"c": np.searchsorted(known, labels), "cmap": "tab10" if len(known) <= 10 else "gist_rainbow"}
    axes.scatter(points[:, 0], points[:, 1], linewidths=0, **colours)
    axes.set(xticks=[], yticks=[], title=title)
    axes.set_aspect("equal", adjustable="datalim")
    return figure
