"""Pictures inside the page, as data URIs: small ones as they are, enlarged without blur, large ones reduced."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from aligntok.data.transforms import open_image, to_tensor
from aligntok.errors import AlignTokError, DataError
from aligntok.evaluation.report.blocks import TIMES, Block, not_found
from aligntok.io.files import inside
from aligntok.io.pictures import image_grid, to_picture

LARGEST_BYTES = 1_500_000  # of a file that is taken as it is
LARGEST_SIDE = 2000  # pixels of one that is not
SMALL_WIDTH = 700  # pixels: narrower pictures are enlarged, by whole factors
THUMBNAIL_BYTES, THUMBNAIL_SIDE = 250_000, 520  # of pictures in a strip
SHEET = 36  # pictures of a set that are laid out
#: What browsers show as it is, by how such files begin.
_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8": "image/jpeg", b"RIFF": "image/webp", b"GIF8": "image/gif"}


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


def gallery(shown: Sequence[tuple[Path, str, str]], title: str = "", strip: bool = False) -> list[Block]:
    """Return pictures, each of a folder, a name in it and words, and notes on those that are missing or damaged.

    A name that leads out of its folder, also by way of a link, is not followed: a folder that came from elsewhere must
    not bring files of this machine into a page. strip: reduced, in a row, under what stands before the colon of their
    words.
    """
    pictures: list[Picture] = []
    missing: list[Block] = []
    for folder, name, words in shown:
        try:
            path = inside(folder, name, DataError, "it is not shown")
            if strip:
                pictures.append(embed(path, words, words.partition(": ")[0], THUMBNAIL_SIDE, THUMBNAIL_BYTES))
            else:
                pictures.append(embed(path, words, words))
        except (OSError, AlignTokError) as error:
            missing.append(not_found(f"{folder / str(name)} ({type(error).__name__}), {words}"))
    return [*([Gallery(pictures, title, strip)] if pictures else []), *missing]


def embed(path: Path, alt: str, caption: str = "", side: int = LARGEST_SIDE, limit: int = LARGEST_BYTES) -> Picture:
    """Read a picture and check that it is whole; one of over `limit` bytes is reduced to `side` pixels, as WebP.

    Raises OSError for a file that is missing, and ImageError for one that is damaged or no picture.
    """
    content = path.read_bytes()
    image = open_image(content)
    kind = next((kind for beginning, kind in _TYPES.items() if content.startswith(beginning)), None)
    if kind is None or len(content) > limit:
        return _reduced(image, side, alt, caption, note=side == LARGEST_SIDE)
    return _picture(content, kind, image.size, alt, caption)


def _reduced(image: Image.Image, side: int, alt: str, caption: str, note: bool = False) -> Picture:
    smaller = image.copy()
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
    paths = sorted(folder.glob("*.png"))[:SHEET]
    if not paths:
        return not_found(f"{folder}, the samples themselves")
    try:
        tiles = [open_image(inside(folder, path.name, DataError, "it is not shown").read_bytes()) for path in paths]
    except (OSError, AlignTokError) as error:
        return not_found(f"a picture among the first of {folder} ({type(error).__name__})")
    if len({tile.size for tile in tiles}) > 1:
        return not_found(f"pictures of one size among the first of {folder}")
    sheet = to_picture(image_grid([to_tensor(tile) for tile in tiles]))
    return Gallery([_reduced(sheet, LARGEST_SIDE, caption, f"{caption}; the first {len(paths)}")])


def spread(items: Sequence[Any], number: int) -> list[Any]:
    """Return at most `number` of the items, evenly spread, the first and the last among them."""
    if len(items) <= number:
        return list(items)
    return [items[round(i * (len(items) - 1) / (number - 1))] for i in range(number)]
