"""Pictures in rows: of reconstructions, input | reconstruction | error, of samples, and under titles; as PNG files."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

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
    columns = 1 if len(tiles) <= 6 else 2
    rows = [_join(tiles[i : i + columns], dim=2, gap=3 * gap) for i in range(0, len(tiles), columns)]
    rows = [F.pad(row, (0, rows[0].shape[2] - row.shape[2]), value=1.0) for row in rows]
    return _join(rows, dim=1, gap=gap)


def image_grid(images: Sequence[Tensor], columns: int | None = None, gap: int = 2) -> Tensor:
    """Lay out images (3, H, W) in [-1, 1], all of one size, row by row; returns (3, H', W').

    columns: None makes the grid about square. White between them, and where the last row ends early.
    """
    across = columns or math.ceil(math.sqrt(len(images)))
    rows = [_join(images[i : i + across], dim=2, gap=gap) for i in range(0, len(images), across)]
    rows = [F.pad(row, (0, rows[0].shape[2] - row.shape[2]), value=1.0) for row in rows]
    return _join(rows, dim=1, gap=gap)


def _join(tiles: Sequence[Tensor], dim: int, gap: int) -> Tensor:
    """Concatenate tiles along rows (1) or columns (2), a white gap between them."""
    padding = (0, gap) if dim == 2 else (0, 0, 0, gap)
    padded = [F.pad(tile, padding, value=1.0) for tile in tiles[:-1]]
    return torch.cat([*padded, tiles[-1]], dim=dim)
