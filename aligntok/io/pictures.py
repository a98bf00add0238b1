"""Pictures in rows: of reconstructions, input | reconstruction | error, of samples, and under titles; as PNG files."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from aligntok.io.files import MAKE_ROOM, replacing


def save_picture(path: str | os.PathLike[str], picture: Any, cure: str = MAKE_ROOM) -> None:
    """Write a Pillow image, or a matplotlib figure at its own resolution, as a PNG that is whole or absent.

    Raises WriteError, which ends with `cure`, when it cannot be written.
    """
    with replacing(path, cure) as temporary:
        if isinstance(picture, Image.Image):
            picture.save(temporary, format="PNG")
        else:
            picture.savefig(temporary, format="png", dpi="figure")


def sheet(
    rows: Sequence[Sequence[Image.Image]],
    titles: Sequence[str],
    labels: Sequence[str] = (),
    letters: int = 16,
    gap: int = 8,
) -> Image.Image:
    """Lay out rows of pictures, all of one size, on white, each column under its title.

    Titles that are too wide lose their beginnings. labels: what stands left of each row, if anything. letters: the
    size of the font, in pixels as `gap` is.
    """
    font = _font(letters)
    width, height = rows[0][0].size
    left = math.ceil(max(map(font.getlength, labels))) + 2 * gap if labels else gap
    top = letters + 2 * gap
    size = (left + len(titles) * (width + gap), top + len(rows) * (height + gap))
    drawn = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(drawn)
    for column, title in enumerate(titles):
        middle = left + column * (width + gap) + width / 2
        pen.text((middle, top / 2), _shortened(title, font, width), "black", font, anchor="mm")
    for number, row in enumerate(rows):
        y = top + number * (height + gap)
        if labels:
            pen.text((gap, y + height / 2), labels[number], "black", font, anchor="lm")
        for column, picture in enumerate(row):
            drawn.paste(picture, (left + column * (width + gap), y))
    return drawn


def captioned(images: Sequence[Tensor], captions: Sequence[str], columns: int | None = None) -> Image.Image:
    """Lay out images (3, H, W) in [-1, 1] of one size row by row on white, each above its caption.

    columns: None makes the sheet about square. Small images are enlarged; a caption has three lines at most.
    """
    letters, gap = 12, 8
    font, tiles = _font(letters), [to_picture(image) for image in images]
    times = math.ceil(TILE / min(tiles[0].size))
    width, height = (side * times for side in tiles[0].size)
    across = min(columns or math.ceil(math.sqrt(len(tiles))), len(tiles))
    below = CAPTION_LINES * (letters + 3) + gap
    rows = math.ceil(len(tiles) / across)
    drawn = Image.new("RGB", (across * (width + gap) + gap, rows * (height + below + gap) + gap), "white")
    pen = ImageDraw.Draw(drawn)
    for number, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        x, y = gap + number % across * (width + gap), gap + number // across * (height + below + gap)
        drawn.paste(tile.resize((width, height), Image.Resampling.NEAREST), (x, y))
        lines = "\n".join(_wrapped(caption, font, width))
        pen.multiline_text((x, y + height + gap // 2), lines, "black", font, spacing=3)
    return drawn


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """Return a text's first lines, as wide as they may be, an ellipsis where there are more."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > CAPTION_LINES:
        lines = [*lines[: CAPTION_LINES - 1], f"{lines[CAPTION_LINES - 1]} …"]
    return [_cut(line, font, width) for line in lines]


def _cut(line: str, font: Any, width: int) -> str:
    """Return a line that fits, its end left out where it does not."""
    if font.getlength(line) <= width:
        return line
    while len(line) > 1 and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line.rstrip()}…"


def _font(size: int) -> Any:
    import matplotlib

    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _shortened(text: str, font: Any, width: int) -> str:
    """Return text that fits, its beginning left out where it does not: paths differ at their ends."""
    while font.getlength(text) > width and len(text) > 2:
        text = "…" + text[2:]
    return text


def reconstruction_grid(images: Sequence[Tensor], reconstructions: Sequence[Tensor], gap: int = 4) -> Tensor:
    """Lay out pairs (3, H, W) in [-1, 1] as rows input | reconstruction | error; returns (3, H', W') in [-1, 1].

    The error is twice the absolute difference, black where there is none. Images of different sizes are padded with
    white; several rows stand side by side when there are more than six.
    """
    tiles = []
    for image, reconstruction in zip(images, reconstructions, strict=True):
        shown = reconstruction.clamp(-1, 1)
        error = ((image - shown).abs() * 2 - 1).clamp(max=1)
        tiles.append(_join([image, shown, error], dim=2, gap=gap))
    height, width = (max(tile.shape[d] for tile in tiles) for d in (1, 2))
    tiles = [F.pad(t, (0, width - t.shape[2], 0, height - t.shape[1]), value=1.0) for t in tiles]
    return _grid(tiles, 1 if len(tiles) <= 6 else 2, 3 * gap, gap)


def image_grid(images: Sequence[Tensor], columns: int | None = None, gap: int = 2) -> Tensor:
    """Lay out images (3, H, W) in [-1, 1], all of one size, row by row; returns (3, H', W').

    columns: None makes the grid about square. White between them, and where the last row ends early.
    """
    return _grid(images, columns or math.ceil(math.sqrt(len(images))), gap, gap)


def _grid(tiles: Sequence[Tensor], across: int, beside: int, below: int) -> Tensor:
    """Lay out tiles row by row, with white gaps `beside` and `below` them, and where the last row ends early."""
    rows = [_join(tiles[i : i + across], dim=2, gap=beside) for i in range(0, len(tiles), across)]
    rows = [F.pad(row, (0, rows[0].shape[2] - row.shape[2]), value=1.0) for row in rows]
    return _join(rows, dim=1, gap=below)


def _join(tiles: Sequence[Tensor], dim: int, gap: int) -> Tensor:
    """Concatenate tiles along rows (1) or columns (2), a white gap between them."""
    padding = (0, gap) if dim == 2 else (0, 0, 0, gap)
    padded = [F.pad(tile, padding, value=1.0) for tile in tiles[:-1]]
    return torch.cat([*padded, tiles[-1]], dim=dim)


def from_uint8(pixels: Tensor) -> Tensor:
    """Return uint8 pixels of any shape as float32 in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Return images in [-1, 1], any shape, as they are saved: clamped, rounded, uint8."""
    return round_to_8bit(images).to(torch.uint8)


def round_to_8bit(images: Tensor) -> Tensor:
    """Clamp images in [-1, 1] and round them to 0, 1, ..., 255, in their own precision; NaN stays."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round()


def to_picture(image: Tensor) -> Image.Image:
    """Return an image (3, H, W) in [-1, 1] as a Pillow image."""
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).numpy())


TILE = 128  # pixels: smaller images are shown enlarged by a whole number
CAPTION_LINES = 3  # of text below a picture
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
