"""Pictures inside the page, as data URIs: small ones as they are, enlarged without blur, large ones reduced."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligntok.evaluation.report.blocks import TIMES, Block, not_found

LARGEST_BYTES = 1_500_000  # of a file that is taken as it is
LARGEST_SIDE = 2000  # pixels of one that is not
SMALL_WIDTH = 700  # pixels: narrower pictures are enlarged, by whole factors
THUMBNAIL_BYTES, THUMBNAIL_SIDE = 250_000, 520  # of pictures in a strip
SHEET = 36  # pictures of a set that are laid out
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


@dataclass(frozen=True)
class Gallery(Block):
    """Pictures below one another, or in a strip to be scrolled."""

    pictures: Sequence[Picture]
    title: str = ""
    strip: bool = False


def gallery(shown: Sequence[tuple[Path, str]], title: str = "", strip: bool = False) -> list[Block]:
    """Return pictures with their words, and notes on those that are missing or damaged.

    strip: reduced, in a row, under what stands before the colon of their words.
    """
    pictures: list[Picture] = []
    missing: list[Block] = []
    for path, words in shown:
        try:
            if strip:
                pictures.append(embed(path, words, words.partition(": ")[0], THUMBNAIL_SIDE, THUMBNAIL_BYTES))
            else:
                pictures.append(embed(path, words, words))
        except (OSError, ValueError) as error:
            missing.append(not_found(f"{path} ({type(error).__name__}), {words}"))
    return [*([Gallery(pictures, title, strip)] if pictures else []), *missing]


def embed(path: Path, alt: str, caption: str = "", side: int = LARGEST_SIDE, limit: int = LARGEST_BYTES) -> Picture:
    """Read a picture and check that it is whole; one of over `limit` bytes is reduced to `side` pixels, as WebP.

    Raises OSError or ValueError for a file that is missing, damaged or no picture.
    """
    from PIL import Image

    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        kind = _TYPES.get(image.format or "")
        if kind is None or len(content) > limit:
            return _reduced(image, side, alt, caption, note=side == LARGEST_SIDE)
        return _picture(content, kind, image.size, alt, caption)


def _reduced(image: Any, side: int, alt: str, caption: str, note: bool = False) -> Picture:
    smaller = image.convert("RGB")
    smaller.thumbnail((side, side))
    written = io.BytesIO()
    smaller.save(written, format="WEBP", quality=88)
    size = "{0} {2} {1} pixels; the file has {3} {2} {4}".format(*smaller.size, TIMES, *image.size)
    return _picture(written.getvalue(), "image/webp", smaller.size, alt, caption, f"shown at {size}" if note else "")


def _picture(content: bytes, kind: str, size: tuple[int, int], alt: str, caption: str, note: str = "") -> Picture:
    uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    times = max(1, min(4, SMALL_WIDTH // max(size[0], 1)))
    return Picture(uri, *size, size[0] * times, alt, caption, note)


def contact_sheet(folder: Path, caption: str) -> Block:
    """Lay out the first pictures of a folder, of one size, in about a square; a note where one is damaged."""
    from PIL import Image

    paths = sorted(folder.glob("*.png"))[:SHEET]
    if not paths:
        return not_found(f"{folder}, the samples themselves")
    tiles = []
    try:
        for path in paths:
            with Image.open(path) as image:
                tiles.append(image.convert("RGB"))
    except (OSError, ValueError) as error:
        return not_found(f"a picture among the first of {folder} ({type(error).__name__})")
    across = max(1, round(len(tiles) ** 0.5 + 0.4))
    width, height = tiles[0].size
    sheet = Image.new("RGB", (across * (width + 2) - 2, -(-len(tiles) // across) * (height + 2) - 2), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % across * (width + 2), i // across * (height + 2)))
    return Gallery([_reduced(sheet, LARGEST_SIDE, caption, f"{caption}; the first {len(paths)}")])


def spread(items: Sequence[Any], number: int) -> list[Any]:
    """Return at most `number` of the items, evenly spread, the first and the last among them."""
    if len(items) <= number:
        return list(items)
    return [items[round(i * (len(items) - 1) / (number - 1))] for i in range(number)]
