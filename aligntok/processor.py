"""Pictures as people have them, made into the tensor that a tokenizer encodes, and back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from aligntok.annotations import checked
from aligntok.data.transforms import (
    MOST_RESIZED,
    center_crop,
    cover_and_crop,
    covering,
    open_image,
    parse_image_size,
    rgb_of,
    to_tensor,
)
from aligntok.errors import ConfigError, ImageError, PluginError, first_line, multiples_of, unknown
from aligntok.io.files import read_bytes
from aligntok.io.pictures import from_uint8, to_picture
from aligntok.settings import Width

#: One picture: Pillow's, a path, an array (H, W), (H, W, C), a tensor (3, H, W); arrays and tensors may be of several.
Picture: TypeAlias = Image.Image | str | os.PathLike[str] | npt.NDArray[Any] | Tensor
Pictures: TypeAlias = Picture | Sequence[Picture]
Fit = Literal["crop", "resize"]
#: Beyond -1 and 1 is what resizing and noise add; farther out lie images that were never brought there.
REACH = 1.5
_MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 1 << 26)  # of an image that Pillow opens
_CHANNELS = (1, 2, 3, 4)  # grey, grey and transparency, RGB, RGBA
_TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CURE = "give uint8, or x/127.5 - 1"


class ImageProcessor:
    """Makes pictures into tensors and tensors into pictures; the names are those of diffusers' VaeImageProcessor.

    What goes in is upright and RGB afterwards, as a training sees its images: turned as EXIF says, transparency laid on
    white, grey in three channels, 16 bits and palettes as 8 bits.

    multiple: what the sides of a tensor are multiples of, a tokenizer's f.
    """

    @checked
    def __init__(self, multiple: Width = 16) -> None:
        self.multiple = multiple

    def __repr__(self) -> str:
        return f"ImageProcessor(multiple={self.multiple})"

    def preprocess(self, images: Pictures, size: int | Sequence[int] | None = None, fit: Fit = "crop") -> Tensor:
        """Return pictures as a tensor (N, 3, H, W), float32 in [-1, 1], the sides multiples of `multiple`.

        images: Pillow's; paths; arrays, uint8 (H, W), (H, W, C) or (N, H, W, C); tensors (3, H, W) or (N, 3, H, W),
        uint8 or floats in [-1, 1]; or a list of these, which then must come out at one size.
        size: a side or (H, W); None cuts each side to the next multiple, from the middle.
        fit: how `size` is reached. "crop" resizes until it is covered and cuts it out of the middle, "resize"
        stretches; both by antialiased bicubic filters, Pillow's for pictures, torch's for tensors.

        Raises ConfigError for what is no picture or does not come out at one size, ImageError for a file that can't be
        read.
        """
        if str(fit) not in get_args(Fit):
            raise ConfigError(unknown("fit", fit, get_args(Fit)))
        target = None if size is None else self.sides(size)
        several = isinstance(images, Sequence) and not isinstance(images, str | bytes)
        made = [self._one(each, target, fit) for each in (images if several else [images])]  # type: ignore[union-attr]
        if not made:
            raise ConfigError("an empty list of images; give one at least")
        for number, each in enumerate(made):
            if each.shape[1:] != made[0].shape[1:]:
                raise ConfigError(
                    f"image {number} of the list comes out at {_sides(each)}, image 0 at {_sides(made[0])}; give "
                    "size=, such as size=256, to all, or one at a time"
                )
        return torch.cat(made)

    def sides(self, size: int | Sequence[int]) -> tuple[int, int]:
        """Return (H, W) of a side or a pair. Raises ConfigError unless they are multiples, of no more than an image."""
        height, width = parse_image_size(size, "size")
        multiples_of(self.multiple, "size", (height, width))
        if height * width > _MOST_PIXELS:
            raise ConfigError(f"size {height} x {width} has more than {_MOST_PIXELS:,} pixels; give a smaller one")
        return height, width

    def to_pil(self, images: Tensor) -> list[Image.Image]:
        """Return images (N, 3, H, W), or one (3, H, W), in [-1, 1] as Pillow images; what is beyond is clamped.

        All 256 levels of a picture come back as they were. Raises ConfigError for other shapes, and for NaN.
        """
        batch = placed(as_batch(images).detach(), "images", "cpu")
        batch = batch.float() if batch.is_floating_point() else from_uint8(batch)
        if batch.isnan().any():
            raise _not_a_number()
        return [to_picture(image) for image in batch]

    def _one(self, picture: Any, size: tuple[int, int] | None, fit: str) -> Tensor:
        """Return one picture, or a tensor's or array's several, as (N, 3, H, W)."""
        if isinstance(picture, Tensor):
            return self._fit_tensor(as_floats(picture), size, fit)
        if isinstance(picture, np.ndarray) and picture.ndim == 4 and len(picture):
            return torch.cat([self._one(each, size, fit) for each in picture])
        image = _opened(picture)
        own = (image.height, image.width)
        if fit == "resize" and size is not None:
            image = image if own == size else image.resize(size[::-1], Image.Resampling.BICUBIC)
        else:
            image = center_crop(image, self._cut(own)) if size is None else cover_and_crop(image, size, size)
        return to_tensor(image)[None]

    def _fit_tensor(self, images: Tensor, size: tuple[int, int] | None, fit: str) -> Tensor:
        own = (images.shape[-2], images.shape[-1])
        target = self._cut(own) if size is None else size
        if size is not None:
            images = images if fit == "resize" else _middle_of_strip(images, target)
            own = (images.shape[-2], images.shape[-1])
            whole = target if fit == "resize" else covering(own[::-1], target)[::-1]
            if whole != own:
                images = F.interpolate(images, whole, mode="bicubic", antialias=True).clamp(-1, 1)
        top, left = (round((has - wants) / 2) for has, wants in zip(images.shape[-2:], target, strict=True))
        return images.narrow(-2, top, target[0]).narrow(-1, left, target[1])

    def _cut(self, own: tuple[int, int]) -> tuple[int, int]:
        """Return the sides (H, W) that are left of an image's own. Raises ConfigError where that is nothing."""
        if min(own) < self.multiple:
            raise ConfigError(
                f"an image of {own[0]} x {own[1]} pixels is smaller than f = {self.multiple}; give size=, such as "
                f"size={self.multiple}, or a larger image"
            )
        return own[0] // self.multiple * self.multiple, own[1] // self.multiple * self.multiple


def _middle_of_strip(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images (N, 3, h, w), of strips what covers (H, W), `size`, in the middle, and what a filter sees beside.

    As :func:`cover_and_crop` does of pictures: what would get much larger than what is cut out of it.
    """
    own = (images.shape[-2], images.shape[-1])
    whole = covering(own[::-1], size)[::-1]
    if whole[0] * whole[1] <= MOST_RESIZED * size[0] * size[1]:
        return images
    for axis, (has, grown, wants) in enumerate(zip(own, whole, size, strict=True)):
        needs = -(-wants * has // grown) + 2 * (-(-2 * has // grown) + 2)  # bicubic filters reach 2 pixels to each side
        needs += (has - needs) % 2  # so that the middle stays where it is
        images = images.narrow(axis - 2, (has - needs) // 2, needs) if needs < has else images
    return images


def as_batch(images: Tensor) -> Tensor:
    """Return images (3, H, W) or (N, 3, H, W), floats or uint8, as the latter. Raises ConfigError for all else."""
    if not isinstance(images, Tensor):
        raise ConfigError(f"{type(images).__name__} is no tensor; give images (N, 3, H, W) or (3, H, W)")
    batch = images[None] if images.ndim == 3 else images
    if batch.ndim != 4 or batch.shape[1] != 3 or not batch.numel():
        turned = "; channels stand before height and width: images.movedim(-1, -3)" if images.shape[-1:] == (3,) else ""
        raise ConfigError(
            f"a tensor of shape {tuple(images.shape)}; images are (N, 3, H, W) or (3, H, W), none of them 0{turned}"
        )
    if batch.dtype not in _TYPES or batch.layout != torch.strided:
        kind = batch.dtype if batch.layout == torch.strided else batch.layout
        raise ConfigError(f"a tensor of {kind}; images are uint8 from 0 to 255, or floats in [-1, 1]: {_CURE}")
    return batch


def check_latents(latents: Any, channels: int, what: str = "latents", beside: Tensor | None = None) -> None:
    """Raise ConfigError unless latents, or noise for some, are a tensor of floats (N, d, h, w) of so many channels.

    beside: another tensor, whose N, h, w they must have, too.
    """
    if not isinstance(latents, Tensor):
        raise ConfigError(f"{type(latents).__name__} is no tensor; give {what} (N, {channels}, h, w)")
    sizes = ("N", "h", "w") if beside is None else (len(beside), *beside.shape[2:])
    fits = beside is None or (len(latents), *latents.shape[2:]) == sizes if latents.ndim == 4 else False
    if latents.layout != torch.strided:
        raise ConfigError(f"{what} are a tensor of {latents.layout}; give {what}.to_dense()")
    if not fits or latents.shape[1] != channels or not latents.numel() or not latents.is_floating_point():
        raise ConfigError(
            f"{what} are a tensor of {latents.dtype} and shape {tuple(latents.shape)}; they must be floats "
            f"({sizes[0]}, {channels}, {sizes[1]}, {sizes[2]}), none of these 0"
        )
    if beside is not None and latents.is_meta:
        placed(latents, what, beside.device)


def placed(given: Tensor, what: str, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor on a device, of a type. Raises ConfigError if it has no numbers, which are wanted there."""
    if given.is_meta and torch.device(device).type != "meta":
        raise ConfigError(f"{what} are on the meta device, where no numbers are; give them on the CPU or a GPU")
    return given.to(device, dtype)


def output(part: str, module: nn.Module, given: Tensor) -> Tensor:
    """Return what a part of a tokenizer gives. Raises PluginError where that is no tensor."""
    made = module(given)
    if not isinstance(made, Tensor):
        raise PluginError(f"{part} {type(module).__name__} gives {type(made).__name__}; it must return a tensor")
    return made


def as_floats(images: Tensor) -> Tensor:
    """Return images as :func:`as_batch` does, in [-1, 1], float32. Raises ConfigError for floats far beyond, too."""
    batch = as_batch(images)
    if batch.dtype == torch.uint8:
        return from_uint8(batch)
    check_reach(batch)
    return batch.float()


def check_reach(images: Tensor) -> None:
    """Raise ConfigError for images that reach far beyond [-1, 1], as those from 0 to 255 do, or hold NaN.

    On an accelerator this waits for it. What has no numbers, as on the meta device, passes.
    """
    if images.is_meta or type(images) not in (Tensor, nn.Parameter):
        return
    low, high = (float(each) for each in images.detach().aminmax())
    if low != low or high != high:
        raise _not_a_number()
    if low < -REACH or high > REACH:
        raise ConfigError(
            f"images reach from {round(low, 3)} to {round(high, 3)}, and must lie in [-1, 1], no farther out than "
            f"{REACH}: {_CURE}"
        )


def _not_a_number() -> ConfigError:
    return ConfigError("images hold NaN, which is no number; look for where it comes from, for it spreads")


def _sides(images: Tensor) -> str:
    return f"{images.shape[-2]} x {images.shape[-1]}"


def _opened(picture: Any) -> Image.Image:
    """Return a picture that is no tensor as upright 8-bit RGB. Raises ConfigError for what is none, ImageError."""
    if isinstance(picture, str | os.PathLike):
        try:
            return open_image(read_bytes(picture))
        except (ImageError, OSError, ValueError) as error:  # the last of a NUL in its name
            reason = getattr(error, "strerror", None) or first_line(error)
            raise ImageError(f"{os.fspath(picture)[:500]!s} cannot be opened as an image: {reason}") from error
    if isinstance(picture, np.ndarray):
        picture = _from_array(picture)
    if not isinstance(picture, Image.Image):
        raise ConfigError(
            f"{type(picture).__name__} is no image; give Pillow's, a path, a uint8 array (H, W, 3), a tensor, or a list"
        )
    if not all(picture.size):
        raise ConfigError(f"an image of {picture.height} x {picture.width} pixels; no side may be 0")
    try:
        return rgb_of(picture)
    except ImageError as error:
        raise ImageError(f"a Pillow image of mode {picture.mode} cannot be taken: {error}") from error


def _from_array(pixels: npt.NDArray[Any]) -> Image.Image:
    """Return an array as a Pillow image. Raises ConfigError unless it is one: uint8 (H, W), (H, W, C)."""
    shape = pixels.shape
    if not pixels.size:
        raise ConfigError(f"an empty array of images, of shape {shape}; no side may be 0")
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and shape[2] not in _CHANNELS):
        raise ConfigError(
            f"an array of {pixels.dtype} and shape {shape}; arrays are uint8 (H, W), (H, W, C) or (N, H, W, C) with C "
            "of 1 to 4. Floats are taken as tensors (N, 3, H, W) in [-1, 1]"
        )
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if shape[2:] == (1,) else pixels))
