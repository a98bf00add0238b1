"""Pictures inside the page, as data URIs: small ones as they are, enlarged without blur, large ones reduced."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligntok.evaluation.report.names import TIMES

LARGEST_BYTES = 1_500_000  # of a file that is taken as it is
LARGEST_SIDE = 2000  # pixels of one that is not
SMALL_WIDTH = 700  # pixels: narrower pictures are enlarged, by whole factors
_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}


@dataclass(frozen=True)
class Picture:
    """A picture to embed: its address (a data URI), its own size, the width it is shown at, and its words."""

    uri: str
    width: int
    height: int
    shown: int
    alt: str
    caption: str = ""
    note: str = ""

    @property
    def is_enlarged(self) -> bool:
        """Whether pixels are drawn as squares of several."""
        return self.shown > self.width


def embed(path: Path, alt: str, caption: str = "", side: int = LARGEST_SIDE, limit: int = LARGEST_BYTES) -> Picture:
    """Read a picture and check that it is whole; one of over `limit` bytes is reduced to `side` pixels, as WebP.

    Raises OSError or ValueError for a file that is missing, damaged or no picture.
    """
    from PIL import Image

    content = path.read_bytes()
    note = ""
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        kind, (width, height) = _TYPES.get(image.format or ""), image.size
        if kind is None or len(content) > limit:
            content, kind, (width, height) = _reduced(image, side)
            note = f"shown at {width} {TIMES} {height} pixels; the file has {image.width} {TIMES} {image.height}"
    uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return Picture(uri, width, height, width * _times(width), alt, caption, note if side == LARGEST_SIDE else "")


def _reduced(image: Any, side: int) -> tuple[bytes, str, tuple[int, int]]:
    smaller = image.convert("RGB")
    smaller.thumbnail((side, side))
    written = io.BytesIO()
    smaller.save(written, format="WEBP", quality=88)
    return written.getvalue(), "image/webp", smaller.size


def _times(width: int) -> int:
    return max(1, min(4, SMALL_WIDTH // max(width, 1)))


def contact_sheet(paths: Sequence[Path], alt: str, caption: str) -> Picture:
    """Lay out pictures of one size in about a square. Raises OSError or ValueError for one that is damaged."""
    from PIL import Image

    tiles = []
    for path in paths:
        with Image.open(path) as image:
            tiles.append(image.convert("RGB"))
    across = max(1, round(len(tiles) ** 0.5 + 0.4))
    width, height = tiles[0].size
    down = -(-len(tiles) // across)
    sheet = Image.new("RGB", (across * (width + 2) - 2, down * (height + 2) - 2), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % across * (width + 2), i // across * (height + 2)))
    content, kind, (wide, high) = _reduced(sheet, LARGEST_SIDE)
    uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return Picture(uri, wide, high, wide * _times(wide), alt, caption)


def spread(items: Sequence[Any], number: int) -> list[Any]:
    """Return at most `number` of the items, evenly spread, the first and the last among them."""
    if len(items) <= number:
        return list(items)
    return [items[round(i * (len(items) - 1) / (number - 1))] for i in range(number)]
