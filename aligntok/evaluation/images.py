"""The images of an evaluation: each read once, as the tokenizer is to see it, and shared out among the processes."""

from __future__ import annotations

import logging
import math
import os
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from aligntok.caching.encoder import Batch, ImagesToEncode
from aligntok.data.loader import explaining_loader_errors, make_loader
from aligntok.data.sampler import evenly_spaced
from aligntok.data.sources import open_source
from aligntok.data.sources.base import ImageSource
from aligntok.data.transforms import parse_image_size, read_image
from aligntok.distributed import total, world
from aligntok.distributed.job import batched, in_full_rounds, shares
from aligntok.errors import DataError, ImageError, Preempted, at_least, first_line
from aligntok.io.files import read_json
from aligntok.sampling.folder import DESCRIPTION, PICTURES

logger = logging.getLogger("aligntok.evaluation")


#: How :func:`aligntok.data.transforms.resize_to_cover` and `center_crop` bring an image to its size.
RESIZE = "bicubic antialiased (Pillow), centre crop"


class EvaluationImages:
    """Images at `data` (see :func:`aligntok.data.sources.open_source`), resized to cover `image_size` and cropped in
    the middle; iterating gives batches, and is collective.

    num: how many, evenly spread over the data (None: all). Batches are cut from the list of images in order and dealt
    to the processes in turn. Every process gets the same number of batches, the last perhaps empty, so that each may
    take part in an exchange after each. Images that cannot be read are left out, named in the log and counted in
    `skipped` (of all processes); more than 1 % of them is a DataError. Raises ConfigError for options that cannot be,
    DataError for data that is not there, Preempted after SIGTERM to any process.
    """

    def __init__(
        self,
        data: str | os.PathLike[str],
        image_size: int | Sequence[int],
        split: str | None = None,
        num: int | None = None,
        batch_size: int = 32,
        workers: int = 2,
    ) -> None:
        at_least(1, batch_size=batch_size, num=num)
        at_least(0, workers=workers)
        self.source: ImageSource = open_source(data, split)
        self.image_size = parse_image_size(image_size)
        self.places = evenly_spaced(len(self.source), num or len(self.source))
        self.batch_size, self.workers = batch_size, workers
        self.skipped = 0

    def __len__(self) -> int:
        """The number of images over all processes, those that cannot be read among them."""
        return len(self.places)

    def __iter__(self) -> Iterator[Batch]:
        self.skipped = 0
        dataset = ImagesToEncode(self.source, self.image_size)
        for batch in in_rounds(dataset, self.places, self.batch_size, self.workers):
            batch = batch or _no_images(self.image_size)
            self._note(batch)
            yield batch

    def read(self) -> Iterator[tuple[Tensor, Batch]]:
        """Yield this process's batches but for those without images, each with the rows (N,) that its images are of
        the list of all; collective, as iterating is, but nobody can take part in an exchange after each."""
        row_of = {place: row for row, place in enumerate(self.places)}
        for batch in self:
            if len(batch.images):
                yield torch.tensor([row_of[place] for place in batch.places.tolist()]), batch

    def _note(self, batch: Batch) -> None:
        name_unreadable(self.source, batch)
        self.skipped += int(total(torch.tensor(len(batch.skipped))))
        if self.skipped > math.ceil(len(self) / 100) or self.skipped == len(self):
            raise DataError(
                f"{self.source.where}: {self.skipped} of {len(self)} images cannot be read (named above), more than "
                "1 % of them; repair or remove them, so that the numbers are of the images that you mean"
            )


def name_unreadable(source: ImageSource, batch: Batch, named: Collection[str] = ()) -> None:
    """Name in the log those images of a batch that cannot be read, but for those that were `named` already."""
    for found, reason in zip(batch.skipped, batch.reasons, strict=True):
        if found.name not in named:
            logger.warning("%s: cannot read %s (%s), leaving it out", source.where, found.name, reason)


def in_rounds(dataset: Any, places: Sequence[int], batch_size: int, workers: int) -> Iterator[Any]:
    """Yield this process's batches of a data set, cut from `places` in order and dealt to the processes in turn.

    None in a round in which others alone have one: collective. Raises Preempted after SIGTERM to any process, and
    DataError when a data-loading process fails.
    """
    rank, processes = world()
    dealt = in_full_rounds(batched(places, batch_size), [])
    mine = [list(batch) for batch in dealt[rank::processes] if batch]
    loaded = iter(make_loader(dataset, mine, workers, dataset.collate))
    with explaining_loader_errors():
        for batch in shares(dealt, "evaluating", begins_anew()):
            yield next(loaded) if batch else None


def begins_anew() -> Preempted:
    """Return what ends an evaluation after SIGTERM."""
    return Preempted("stopped by SIGTERM; an evaluation is not gone on with, it begins anew")


def _no_images(size: tuple[int, int]) -> Batch:
    none = torch.empty(0, dtype=torch.int64)
    return Batch(torch.empty(0, 3, *size), none.int(), none, [], [])


Pixels = npt.NDArray[np.uint8]


class PixelBatch(NamedTuple):
    """Pixels, uint8 (N, 3, H, W), and the samples' numbers; N may be 0."""

    pixels: Tensor
    places: list[int]


class Samples(Dataset[Any]):
    """All samples at `source`; iterating gives batches dealt to the processes in turn, and is collective.

    source: a folder that ``tools/sample.py`` wrote; any folder, zip or other data of pictures (see
    :func:`aligntok.data.sources.open_source`); or an .npz with arr_0, uint8 (N, H, W, 3). num: the first so many.
    Pictures are taken as they are, never resized. Raises DataError when there are none, they are not all of one size,
    a picture cannot be read, or the folder's samples are not all drawn yet.
    """

    def __init__(
        self, source: str | os.PathLike[str], num: int | None = None, batch_size: int = 32, workers: int = 2
    ) -> None:
        at_least(1, batch_size=batch_size, num=num)
        at_least(0, workers=workers)
        self.path = Path(source).expanduser()
        self.description = read_description(self.path)
        self.reader: _Array | _Pictures
        if self.path.suffix == ".npz":
            self.reader = _Array(self.path)
        else:
            own = self.path / PICTURES
            self.reader = _Pictures(open_source(own if self.description else self.path))
        there = self._there()
        if num is not None and num > there:
            raise DataError(
                f"{source} has {there} samples, fewer than the {num} asked for; draw more, or lower --num-samples"
            )
        self.num = num or there
        self.batch_size, self.workers = batch_size, workers
        height, width = self.reader.read(0).shape[:2]
        self.image_size = (int(height), int(width))

    def _there(self) -> int:
        """Return how many there are: of a folder with a description as many as it says, whatever lies beside them."""
        there = len(self.reader)
        if self.description and there < self.description["num"]:
            raise DataError(
                f"{self.path} should have {self.description['num']} samples, and has {there}; start the command that "
                "drew them again: it draws what is missing"
            )
        return int(self.description["num"]) if self.description else there

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, place: int) -> tuple[int, Pixels]:
        pixels = self.reader.read(place)
        if pixels.shape != (*self.image_size, 3):
            raise DataError(
                f"{self.path}: sample {place} has {pixels.shape[0]} x {pixels.shape[1]} pixels, the first one "
                f"{self.image_size[0]} x {self.image_size[1]}; a distance is between images of one size: bring them "
                "to one, and say how when you report it"
            )
        return place, pixels

    def collate(self, items: Sequence[tuple[int, Pixels]]) -> PixelBatch:
        """Return a batch of items."""
        stacked = torch.from_numpy(np.stack([pixels for _, pixels in items]))
        return PixelBatch(stacked.permute(0, 3, 1, 2).contiguous(), [place for place, _ in items])

    def __iter__(self) -> Iterator[PixelBatch]:
        nothing = PixelBatch(torch.empty(0, 3, *self.image_size, dtype=torch.uint8), [])
        for batch in in_rounds(self, range(self.num), self.batch_size, self.workers):
            yield batch or nothing


class _Pictures:
    """Pictures of a data source, in the order of their names."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def read(self, place: int) -> Pixels:
        """Return a picture (H, W, 3)."""
        try:
            return np.array(read_image(self.source, place))
        except ImageError as error:
            raise DataError(
                f"{self.source.where}: cannot read sample {self.source.names[place]} ({error}); draw it again: "
                "leaving one out would change the numbers"
            ) from error


class _Array:
    """The rows of arr_0 of an .npz; read where they lie if it is not compressed."""

    def __init__(self, path: Path) -> None:
        try:
            self.rows = _map_array(path)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path} has no samples in ADM's format: arr_0, uint8 (N, H, W, 3) ({first_line(error)})"
            ) from error

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, place: int) -> Pixels:
        """Return a row (H, W, 3)."""
        return np.array(self.rows[place])


def _map_array(path: Path) -> Pixels:
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("arr_0.npy")
        with archive.open(entry) as file:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, fortran, dtype = read_header[version](file)
            header_length = file.tell()
        if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or fortran or not shape[0]:
            raise ValueError(f"arr_0 is {dtype} {shape}")
        if entry.compress_type != zipfile.ZIP_STORED:
            with np.load(path) as arrays:
                return np.asarray(arrays["arr_0"])
    with path.open("rb") as file:  # the local header repeats the name, and has an extra field of its own length
        file.seek(entry.header_offset + 26)
        name_length, extra_length = np.frombuffer(file.read(4), dtype="<u2")
    start = entry.header_offset + 30 + int(name_length) + int(extra_length) + header_length
    return np.memmap(path, dtype=np.uint8, mode="r", offset=start, shape=shape)


def read_description(path: Path) -> dict[str, Any]:
    """Return what samples.json says of a folder, empty without one. Raises DataError unless all samples are drawn."""
    file = path / DESCRIPTION
    if not file.is_file():
        return {}
    finished, described = read_json(
        file, DataError, "draw the samples again", lambda said: (said["finished"] and said["num"] > 0, said)
    )
    if not finished:
        raise DataError(
            f"{path} has not all of its {described['num']} samples yet; start the command that drew them again, "
            "then this"
        )
    return described
