"""From encoded bytes to the tensor a model sees: decoding, resizing, cropping, flipping."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from aligntok.errors import ConfigError


def parse_image_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return (H, W) from a side or a pair. Raises ConfigError unless both are whole numbers above 0."""
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
        raise ConfigError(f"image_size {image_size!r} is neither a whole number of pixels nor a pair (height, width)")
    return sides


def decode_image(data: bytes, draft_side: int | None = None) -> Image.Image:
    """Decode to 8-bit RGB, upright as the EXIF orientation says, transparency laid on white.

    With `draft_side`, a large JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, its short side staying at or above
    `draft_side` pixels: much faster. 16-bit grey keeps its high byte; colour profiles are not applied. Raises what
    Pillow raises for damaged data, and ValueError for floating-point images, whose range is unknown.
    """
    with Image.open(io.BytesIO(data)) as opened:
        if draft_side is not None:
            opened.draft("RGB", (draft_side, draft_side))
        ImageOps.exif_transpose(opened, in_place=True)  # an image that needs no turning is not copied
        return _to_rgb(opened)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point images have no known range")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("LA", "PA", "La", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def resize_to_cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize to the smallest size of the same shape that covers (H, W): for a square, the short side becomes its side.

    Pillow's antialiased bicubic filter, both for shrinking and for enlarging.
    """
    (height, width), (w, h) = size, image.size
    target = (max(width, w * height // h), max(height, h * width // w))
    return image if target == image.size else image.resize(target, Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Cut (H, W) out of the middle; the odd pixel goes where round() sends it, as in torchvision."""
    return _crop(image, size, top=round((image.height - size[0]) / 2), left=round((image.width - size[1]) / 2))


def random_crop(image: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Cut (H, W) out of a place drawn uniformly."""
    top = int(rng.integers(image.height - size[0] + 1))
    return _crop(image, size, top, left=int(rng.integers(image.width - size[1] + 1)))


def random_hflip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Mirror left and right, every other time on average."""
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as float32 (3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image))  # (H, W, 3) uint8
    return pixels.permute(2, 0, 1).float().div_(127.5).sub_(1).contiguous()


def _crop(image: Image.Image, size: tuple[int, int], top: int, left: int) -> Image.Image:
    return image.crop((left, top, left + size[1], top + size[0]))
