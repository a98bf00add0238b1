"""From encoded bytes to the tensor a model sees, and back to 8 bits: opening, resizing, cropping, flipping."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageOps, JpegImagePlugin, UnidentifiedImageError
from torch import Tensor

from aligntok.data.settings import MAX_ASPECT_RATIO
from aligntok.errors import ConfigError, ImageError, first_line
from aligntok.imports import FAILURES, import_failure
from aligntok.io.pictures import from_uint8

if TYPE_CHECKING:
    from aligntok.data.sources.base import ImageSource

logger = logging.getLogger("aligntok.data")

#: What is opened, whatever a file is called: Pillow's names. It may have no AVIF; the last two are of its plugins.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "HEIF", "JXL")
#: Times the pixels of what it covers: so large an image is made to be cropped, of larger ones the crop alone.
MOST_RESIZED = 50
#: How names of such files end, in any case.
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
    "JXL": (".jxl",),
}
_PLUGINS = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}  # packages of the last two
_TURNS = range(2, 9)  # EXIF orientations of images that are turned or mirrored
_QUARTER_TURNS = (5, 6, 7, 8)  # those that swap height and width
_STORED_SIZE = (256, 257)  # TIFF's tags ImageWidth and ImageLength
_BITS, _PHOTOMETRIC = 258, 262  # BitsPerSample; PhotometricInterpretation, 0 where the lowest number is white
_PROFILES = (b"Raw profile type", b"XML:com.adobe.xmp")  # keywords of a PNG's texts in which Pillow finds EXIF
_LONGEST_PROFILE = max(map(len, _PROFILES))
_CHUNKS = 2**16  # of a PNG, looked at for what is behind its pixels: 8 KB each, as libpng writes them, in 512 MB
_GREY_SCALES = {"L;2": 255 // 3, "L;4": 255 // 15}  # of a PNG's raw mode, by which Pillow brings its grey to 8 bits


def parse_image_size(image_size: int | Sequence[int], who: str = "image_size") -> tuple[int, int]:
    """Return (H, W) from a side or a pair. Raises ConfigError unless both are whole numbers above 0."""
    sides = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(sides) != 2 or any(not isinstance(side, int | np.integer) or side < 1 for side in sides):
        raise ConfigError(f"{who} {image_size!r} is neither a whole number of pixels nor a pair (height, width)")
    return int(sides[0]), int(sides[1])


def open_image(
    data: bytes, limit: int | None = None, draft_side: int | None = None, max_aspect_ratio: float | None = None
) -> Image.Image:
    """Decode to 8-bit RGB, upright as the EXIF orientation says, transparency laid on white.

    Opened are the FORMATS, by their content, of at most `limit` pixels (None: Pillow's bound, 179 million, which no
    `limit` raises), and no strips beyond `max_aspect_ratio` (None: any). With `draft_side`, a large JPEG may be decoded
    at 1/2, 1/4 or 1/8 of its size, its short side staying at or above `draft_side` pixels: much faster, and it is this
    size that the limit is of. Deeper grey keeps its highest 8 bits, and so does colour; a TIFF of 32-bit or signed
    numbers is 8-bit where none is above 255, else 16-bit; colour profiles are not applied. Raises ImageError for all
    else, images of floating-point numbers or of numbers above 65,535 among it, whose range is unknown.
    """
    with reading_image(), _opened(io.BytesIO(data), max_aspect_ratio) as opened:
        _scale_transparency(opened)
        if draft_side is not None:
            opened.draft("RGB", (draft_side, draft_side))
        _check_pixels(opened, limit)
        ImageOps.exif_transpose(opened, in_place=True)  # an image that needs no turning is not copied
        return _to_rgb(opened)


def rgb_of(image: Image.Image) -> Image.Image:
    """Return a Pillow image, opened or made, as `open_image` decodes files; it stays as it is.

    Raises ImageError for one that can't be decoded, or whose numbers have no known range.
    """
    with reading_image():
        _scale_transparency(image)
        turned: Any = ImageOps.exif_transpose(image)
        if hasattr(image, "tag_v2"):  # by which a TIFF's numbers are told; a copy has none
            turned.tag_v2 = image.tag_v2
        return _to_rgb(turned)


def read_image(
    source: ImageSource, index: int, draft_side: int | None = None, max_aspect_ratio: float = MAX_ASPECT_RATIO
) -> Image.Image:
    """Read an image of a source as `open_image` does. Raises ImageError when it cannot be had, too."""
    with reading_image():
        return open_image(source.read(index), draft_side=draft_side, max_aspect_ratio=max_aspect_ratio)


def read_upright_size(source: ImageSource, index: int, max_aspect_ratio: float = MAX_ASPECT_RATIO) -> tuple[int, int]:
    """Return (H, W) of an image as `read_image` would give it, from its header. Raises ImageError as that does."""
    with reading_image(), source.open(index) as file:
        return upright_size(file, max_aspect_ratio=max_aspect_ratio)


class Header(NamedTuple):
    """What an image's header says: its upright size, Pillow's names of its format and mode, whether EXIF turns it."""

    height: int
    width: int
    format: str
    mode: str
    turned: bool


def upright_size(file: BinaryIO, limit: int | None = None, max_aspect_ratio: float | None = None) -> tuple[int, int]:
    """Return (H, W) of an image as `open_image` would give it, from its header. Raises ImageError as that does."""
    return read_header(file, limit, max_aspect_ratio)[:2]


def read_header(file: BinaryIO, limit: int | None = None, max_aspect_ratio: float | None = None) -> Header:
    """Return what the header of an image says. Raises ImageError as `open_image` does.

    Only a PNG that says how it is turned behind its pixels is decoded. A JPEG that is too large but for a draft has a
    size.
    """
    with reading_image(), _opened(file, max_aspect_ratio) as image:
        if limit is not None:
            _check_pixels(image, limit)
        # TIFF's size is upright in some versions of Pillow, and stored in others.
        width, height = (image.tag_v2[tag] for tag in _STORED_SIZE) if hasattr(image, "tag_v2") else image.size
        if image.format == "PNG" and _turned_behind_pixels(file):
            image.load()
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)  # not a PNG's: it decodes
        if orientation in _QUARTER_TURNS:
            width, height = height, width
        return Header(height, width, image.format, image.mode, orientation in _TURNS)


def holds_image(open_file: Callable[[], BinaryIO]) -> bool:
    """Tell whether a file begins like an image that can be opened, whatever it is called."""
    try:
        with reading_image(), open_file() as file:
            upright_size(file)
    except ImageError:
        return False
    return True


def _turned_behind_pixels(file: BinaryIO) -> bool:
    """Tell whether a PNG has what may hold an orientation behind its pixels, where Pillow sees it once it decoded them.

    Of its chunks, as many as are looked at, only the heads are read. The file is left where it was.
    """
    before, pixels, found = file.tell(), False, False
    file.seek(len(b"\x89PNG\r\n\x1a\n"))
    for _ in range(_CHUNKS):
        head = file.read(8)
        pixels |= head[4:] == b"IDAT"
        begin = file.read(_LONGEST_PROFILE) if pixels and head[4:] in (b"tEXt", b"zTXt", b"iTXt") else b""
        found = (pixels and head[4:] == b"eXIf") or begin.startswith(_PROFILES)
        if found or len(head) < 8:
            break
        file.seek(int.from_bytes(head[:4], "big") + 4 - len(begin), io.SEEK_CUR)
    file.seek(before)
    return found


def _opened(file: BinaryIO, max_aspect_ratio: float | None) -> Any:
    """Return Pillow's image, its header read."""
    try:
        opened: Any = Image.open(file, formats=_formats())
    except Image.DecompressionBombError:  # said of what the header declares, before a draft could be asked for
        if (opened := _jpeg_in_rows(file)) is None:
            raise
    if max_aspect_ratio is not None and max(opened.size) > max_aspect_ratio * min(opened.size):
        opened.close()
        raise ImageError(
            f"its {opened.width} x {opened.height} pixels are a strip, beyond the max_aspect_ratio of "
            f"{max_aspect_ratio:g}"
        )
    return opened


def _jpeg_in_rows(file: BinaryIO) -> Any:
    """Return a JPEG that is decoded row by row, None for all else: one in several scans is held at its full size."""
    file.seek(0)
    if file.read(2) != b"\xff\xd8":
        return None
    file.seek(0)
    opened = JpegImagePlugin.JpegImageFile(file)
    file.seek(file.tell() - 8 - 2 * opened.layers)  # back to the marker of the first scan, which Pillow has skipped
    begin = file.read(5)
    in_one = begin[:2] == b"\xff\xda" and begin[4] == opened.layers and "progressive" not in opened.info
    return opened if in_one else None


def _check_pixels(opened: Any, limit: int | None) -> None:
    """Raise ImageError for an image with more pixels than the limit, or than Pillow's bound."""
    allowed = 2 * (Image.MAX_IMAGE_PIXELS or opened.width * opened.height) if limit is None else limit
    if opened.width * opened.height > allowed:
        raise ImageError(f"its {opened.width} x {opened.height} pixels are more than the {allowed} allowed")


def image_suffixes() -> tuple[str, ...]:
    """Return how names of files end that are taken for images: of the formats that can be opened here."""
    return tuple(suffix for name in _formats() for suffix in SUFFIXES[name])


def _formats() -> list[str]:
    """Return those of FORMATS that are here; a plugin of Pillow may add one at any time."""
    _load_plugins()
    return [name for name in FORMATS if name in Image.OPEN]


@cache
def _load_plugins() -> None:
    """Let those plugins of Pillow that are installed say that they are there, as they do when they are imported."""
    Image.init()
    for name, package in _PLUGINS.items():
        if name not in Image.OPEN and find_spec(package) is not None:
            try:
                register = getattr(import_module(package), f"register_{name.lower()}_opener", None)
                if register is not None:
                    register()
            except FAILURES as error:  # others than these are read all the same
                logger.warning("images of format %s cannot be opened: %s", name, import_failure(error))


@contextmanager
def reading_image() -> Iterator[None]:
    """Raise ImageError for whatever goes wrong inside."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"neither {' nor '.join(_formats())}, or damaged in its first bytes") from error
    except Exception as error:  # Pillow raises nearly anything for a damaged file
        raise ImageError(first_line(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point images have no known range")
    if image.mode.startswith("I"):
        return Image.fromarray(_to_eight_bits(image)).convert("RGB")
    if "transparency" in image.info or image.mode in ("LA", "PA", "La", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the highest 8 bits of deeper grey, the transparent one white. Raises ValueError for an unknown range."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    bits = 16
    if tags and image.mode == "I":  # of 32 bits, or signed: nothing says how many of them are used
        bits = 8 if values.max() <= 255 else 16
    elif tags:
        (bits,) = tags.get(_BITS, (16,))
    if values.min() < 0 or values.max() >= 2**bits:
        raise ValueError(f"its numbers reach from {values.min()} to {values.max()}, a range that is not known")
    grey = (values >> (bits - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # Pillow inverts 8 bits alone
        grey = 255 - grey
    transparent = image.info.get("transparency")
    return grey if transparent is None else np.where(values == transparent, np.uint8(255), grey)


def _scale_transparency(image: Any) -> None:
    """Bring the transparent colour of a PNG that is not decoded yet to 8 bits, as Pillow will bring its pixels."""
    transparent = image.info.get("transparency")
    if image.format == "PNG" and transparent is not None and image.tile:
        raw = image.tile[0][3]
        if raw in _GREY_SCALES:
            image.info["transparency"] = transparent * _GREY_SCALES[raw]
        elif raw == "RGB;16B":
            image.info["transparency"] = tuple(value >> 8 for value in transparent)


def cover_and_crop(
    image: Image.Image, cover: tuple[int, int], size: tuple[int, int], rng: np.random.Generator | None = None
) -> Image.Image:
    """Resize as `resize_to_cover` does and cut (H, W), `size`, out: at a random place with `rng`, else in the middle.

    Of a strip that would get much larger than what it covers only what is cut out is made: the same pixels but for
    rounding, in memory of a few times theirs.
    """
    width, height = covering(image.size, cover)
    if width * height <= MOST_RESIZED * cover[0] * cover[1]:
        whole = resize_to_cover(image, cover)
        return center_crop(whole, size) if rng is None else random_crop(whole, size, rng)
    left, top, right, bottom = _place((width, height), size, rng)
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box)


def resize_to_cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize to the smallest size of the same shape that covers (H, W): for a square, the short side becomes its side.

    Pillow's antialiased bicubic filter, both for shrinking and for enlarging.
    """
    target = covering(image.size, size)
    return image if target == image.size else image.resize(target, Image.Resampling.BICUBIC)


def covering(whole: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest (width, height) of the shape of (width, height) that covers (H, W)."""
    (height, width), (w, h) = size, whole
    return max(width, w * height // h), max(height, h * width // w)


def center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Cut (H, W) out of the middle; the odd pixel goes where round() sends it, as in torchvision."""
    return image.crop(_place(image.size, size))


def random_crop(image: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Cut (H, W) out of a place drawn uniformly."""
    return image.crop(_place(image.size, size, rng))


def _place(
    whole: tuple[int, int], size: tuple[int, int], rng: np.random.Generator | None = None
) -> tuple[int, int, int, int]:
    """Return where (H, W) is cut out of (width, height), as Pillow's box."""
    (w, h), (height, width) = whole, size
    top = round((h - height) / 2) if rng is None else int(rng.integers(h - height + 1))
    left = round((w - width) / 2) if rng is None else int(rng.integers(w - width + 1))
    return left, top, left + width, top + height


def random_hflip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Mirror left and right, every other time on average."""
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def to_tensor(image: Image.Image | npt.NDArray[np.uint8]) -> Tensor:
    """Return an RGB image, Pillow's or (H, W, 3), as float32 (3, H, W) in [-1, 1]."""
    return from_uint8(torch.from_numpy(np.array(image)).permute(2, 0, 1)).contiguous()
