"""The shapes that images are cropped to: which of them is nearest to an image's own, and how it is cropped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from aligntok.data.sampler import BucketIndices
from aligntok.data.settings import AspectRatio
from aligntok.data.transforms import cover_and_crop, parse_image_size, random_hflip, to_tensor
from aligntok.errors import ConfigError
from aligntok.settings import Width, read, settings

#: In place of a bucket: the image's header cannot be read.
UNREADABLE = 255
#: Log aspect ratios whose distances differ by less may tie once they are rounded.
_NEAR = 1e-8


@settings
class EqualArea:
    """Shapes of about the area of a square, so that steps of any of them take as long: for each height the nearest
    width.
    """

    side: Width
    """Pixels of the square's side."""
    multiple_of: Width = 16
    """Pixels of which every side is a multiple."""
    max_aspect_ratio: AspectRatio = 2.0
    """How many times as long as the other a side may be."""

    def sizes(self) -> list[tuple[int, int]]:
        """Return them, (H, W), the lowest first."""
        cells, unit = (self.side / self.multiple_of) ** 2, self.multiple_of
        most = math.ceil(self.max_aspect_ratio / 2 + math.sqrt(cells * self.max_aspect_ratio))
        found = ((height, round(cells / height)) for height in range(1, most + 1))
        return [(h * unit, w * unit) for h, w in found if w and max(h, w) <= self.max_aspect_ratio * min(h, w)]


class AspectBuckets:
    """The shapes that images may be cropped to: one, or several to choose from by aspect ratio.

    `image_size` is a side, a pair (H, W), a list of pairs, or keywords of :class:`EqualArea`; `sizes` are the pairs.
    Raises ConfigError for anything else, for a pair given twice, and for more than 254 pairs.
    """

    def __init__(self, image_size: int | Sequence[int] | Sequence[Sequence[int]] | Mapping[str, Any]) -> None:
        given: Any = image_size
        if isinstance(given, Mapping):
            given = read(EqualArea, given, "image_size").sizes()
        several = isinstance(given, (list, tuple)) and all(isinstance(size, (list, tuple)) for size in given)
        self.sizes = tuple(parse_image_size(size) for size in (given if several else [given]))
        if not 0 < len(self.sizes) < UNREADABLE or len(set(self.sizes)) < len(self.sizes):
            raise ConfigError(
                f"image_size={image_size!r}: give one to {UNREADABLE - 1} different (height, width) pairs"
            )
        self._log_ratios = [math.log(height / width) for height, width in self.sizes]

    def __len__(self) -> int:
        return len(self.sizes)

    def check_short_side(self, short_side: int | None) -> None:
        """Raise ConfigError for a short side of whole images that is smaller than a side of a crop."""
        longest = max(map(max, self.sizes))
        if short_side is not None and short_side < longest:
            raise ConfigError(f"short_side {short_side} is smaller than a side of the crop, {longest}; raise it")

    def nearest(self, height: int, width: int) -> int:
        """Return the bucket whose log aspect ratio is nearest; the first of those that are equally near."""
        return self._nearest(math.log(height / width))

    def nearest_of(self, heights: npt.NDArray[Any], widths: npt.NDArray[Any]) -> BucketIndices:
        """Return the bucket of each of many sizes, (n,) each and above 0, as :meth:`nearest` has them one by one."""
        ratios = np.asarray(heights, dtype=np.float64) / widths
        wanted, found = np.log(ratios), np.zeros(len(ratios), dtype=np.uint8)
        least, second = np.full(len(ratios), np.inf), np.full(len(ratios), np.inf)
        for bucket, log_ratio in enumerate(self._log_ratios):
            distance = np.abs(log_ratio - wanted)
            is_nearer = distance < least
            second = np.where(is_nearer, least, np.minimum(second, distance))
            found[is_nearer], least[is_nearer] = bucket, distance[is_nearer]
        ties = np.flatnonzero(second - least < _NEAR)
        each, places = np.unique(ratios[ties], return_inverse=True)
        found[ties] = np.array([self._nearest(math.log(ratio)) for ratio in each.tolist()], dtype=np.uint8)[places]
        return found

    def _nearest(self, wanted: float) -> int:
        # Rounded, so that mirrored ratios (4:5 and 5:4 for a square) tie in spite of floating point.
        return min(range(len(self)), key=lambda b: round(abs(self._log_ratios[b] - wanted), 9))


class CropTally:
    """What a training that crops to `shapes` would do to images, of whose sizes some are added at a time.

    images: how many were.
    """

    def __init__(self, shapes: AspectBuckets) -> None:
        self._shapes = shapes
        self._buckets = np.zeros(len(shapes), dtype=np.int64)
        self._short, self._long = np.zeros((2, 1), dtype=np.int64)  # how many sides are of so many pixels
        self.images, self._enlarged, self._kept = 0, 0, 0.0

    def add(self, sizes: npt.NDArray[Any]) -> None:
        """Add images of `sizes`, (n, 2): height and width, above 0."""
        buckets = self._shapes.nearest_of(sizes[:, 0], sizes[:, 1])
        scales = np.array(self._shapes.sizes)[buckets].reshape(-1, 2) / sizes
        self.images += len(sizes)
        self._buckets += np.bincount(buckets, minlength=len(self._shapes))
        self._short, self._long = (
            _counted(sizes.min(axis=1), self._short),
            _counted(sizes.max(axis=1), self._long),
        )
        self._enlarged += int((scales > 1).any(axis=1).sum())
        self._kept += float((scales.min(axis=1) / scales.max(axis=1)).sum())  # of an image that covers its shape

    def told(self) -> dict[str, Any]:
        """Return least, middle and greatest of their short and long sides in pixels, how many are smaller than their
        shape, how many come to each, and the share of the pixels that is cropped away, on an average of the images.
        """
        return {
            "short_side": _spread(self._short),
            "long_side": _spread(self._long),
            "enlarged": self._enlarged,
            "shapes": {f"{h}x{w}": int(n) for (h, w), n in zip(self._shapes.sizes, self._buckets, strict=True)},
            "cropped_away": round(1 - self._kept / self.images, 4) if self.images else 0.0,
        }


def _counted(values: npt.NDArray[Any], before: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how often each number comes among `values`, and did `before`."""
    found = np.bincount(values, minlength=len(before))
    found[: len(before)] += before
    return found


def _spread(counts: npt.NDArray[np.int64]) -> list[float]:
    """Return the least, the middle and the greatest number of which there are so many of each; nothing of nothing."""
    ends = np.cumsum(counts)
    places = (0, (int(ends[-1]) - 1) // 2, int(ends[-1]) - 1)
    return [float(np.searchsorted(ends, place, side="right")) for place in places] if ends[-1] else []


def draft_side(size: tuple[int, int], short_side: int | None) -> int:
    """Return the pixels below which a JPEG's short side is not decoded to be cropped at random to (H, W)."""
    return 2 * (max(size) if short_side is None else short_side)


def crop_to_tensor(
    image: Image.Image,
    size: tuple[int, int],
    short_side: int | None = None,
    hflip: bool = False,
    rng: np.random.Generator | None = None,
) -> Tensor:
    """Return what a model sees of an image: float32 (3, H, W) in [-1, 1], cut out of what covers (H, W), or of what has
    a `short_side`. With `rng` at a random place, and with `hflip` mirrored every other time; else in the middle.
    """
    image = cover_and_crop(image, size if short_side is None else (short_side, short_side), size, rng)
    return to_tensor(random_hflip(image, rng) if hflip and rng is not None else image)
