"""Samples beside real images of the same classes, in one picture to look at."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from aligntok.data.sources import open_source
from aligntok.data.sources.base import ImageSource
from aligntok.data.transforms import center_crop, read_image, resize_to_cover, to_tensor
from aligntok.distributed.job import batched
from aligntok.errors import DataError, ImageError
from aligntok.io.pictures import image_grid, save_picture, to_picture
from aligntok.sampling.folder import SampleFolder

PICTURE = "beside_real.png"
EACH, MOST = 2, 27  # real images, and samples, of a class; classes in the picture
COLUMNS = 3  # of classes


def open_real(data: str | os.PathLike[str], split: str | None, labels: Sequence[int] | None) -> ImageSource:
    """Open the images at `data`. Raises DataError when there are none of a class that samples are of."""
    source = open_source(data, split)
    lacking = sorted({*labels} - {*source.labels.tolist()}) if labels is not None else []
    if lacking:
        raise DataError(
            f"{source.where} has no images of class {lacking[0]}, of which there are samples; "
            "give the data that the generator was trained on"
        )
    return source


def write_beside(folder: SampleFolder, source: ImageSource) -> None:
    """Write ``beside_real.png``: for each class, first in the samples' order, real images on the left, samples right.

    Real images are cropped in the middle, and spread over the data of the class. Without classes, samples in order.
    """
    tiles = []
    for places, numbers in _groups(folder, source):
        real = [_real(source, place, folder.image_size) for place in places]
        drawn = [to_tensor(folder.read(number)) for number in numbers]
        white = torch.ones(3, *folder.image_size)
        tiles.append(image_grid([*(real + [white] * EACH)[:EACH], *(drawn + [white] * EACH)[:EACH]], columns=2 * EACH))
    picture = to_picture(image_grid(tiles, columns=min(COLUMNS, len(tiles)), gap=10))
    save_picture(folder.path / PICTURE, picture)


def _groups(folder: SampleFolder, source: ImageSource) -> list[tuple[list[int], list[int]]]:
    """Return the places of real images and the numbers of samples that belong beside one another."""
    if folder.labels is None:
        sets = batched(range(min(folder.num, EACH * MOST)), EACH)
        spread = _spread(np.arange(len(source)), EACH * len(sets))
        return [(spread[EACH * i : EACH * (i + 1)], list(numbers)) for i, numbers in enumerate(sets)]
    numbers_of: dict[int, list[int]] = defaultdict(list)
    for number, label in enumerate(folder.labels[: folder.num]):
        numbers_of[label].append(number)
    chosen = list(numbers_of)[:MOST]
    return [(_spread(np.flatnonzero(source.labels == c), EACH), numbers_of[c][:EACH]) for c in chosen]


def _spread(places: np.ndarray, wanted: int) -> list[int]:
    number = min(wanted, len(places))
    return [int(places[(2 * i + 1) * len(places) // (2 * number)]) for i in range(number)]


def _real(source: ImageSource, place: int, size: tuple[int, int]) -> Tensor:
    try:
        image = read_image(source, place)
    except ImageError as error:
        raise DataError(f"{source.where}: cannot read {source.names[place]} ({error}); repair or remove it") from error
    return to_tensor(center_crop(resize_to_cover(image, size), size))
