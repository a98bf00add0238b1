"""The images of an evaluation: each read once, as the tokenizer is to see it, and shared out among the processes."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from aligntok.caching.encoder import Batch, ImagesToEncode
from aligntok.data.loader import explaining_loader_errors, make_loader
from aligntok.data.sampler import evenly_spaced
from aligntok.data.sources import open_source
from aligntok.data.sources.base import ImageSource
from aligntok.data.transforms import parse_image_size, read_image
from aligntok.device import computing, device, explaining_out_of_memory
from aligntok.distributed import total, world
from aligntok.distributed.job import batched, in_full_rounds, shares
from aligntok.errors import DataError, ImageError, Preempted, at_least, first_line
from aligntok.evaluation.settings import ImageSettings
from aligntok.io.arrays import read_npz
from aligntok.io.files import read_json
from aligntok.io.places import with_places
from aligntok.sampling.folder import DESCRIPTION, PICTURES
from aligntok.settings import Precision

logger = logging.getLogger("aligntok.evaluation")


#: How :func:`aligntok.data.transforms.cover_and_crop` brings an image to its size.
RESIZE = "bicubic antialiased (Pillow), centre crop"


class EvaluationImages:
    """Images of a data set, resized to cover their size and cropped in the middle; iterating is collective.

    Iterating gives this process's batches but for those without images. Batches are cut from the list of images in
    order and dealt to the processes in turn; nobody can take part in an exchange after each. Images that cannot be read
    are left out, named in the log and counted in `skipped` (of all processes); more than 1 % of them is a DataError.
    Raises DataError for data that is not there, Preempted after SIGTERM to any process.
    """

    def __init__(self, asked: ImageSettings) -> None:
        self.asked = asked
        fraction = asked.val_fraction
        self.source: ImageSource = open_source(asked.data, asked.split, asked.label, fraction, fraction is not None)
        self.image_size = parse_image_size(asked.image_size)
        self.indices = evenly_spaced(len(self.source), asked.num_images or len(self.source))
        self.dataset = ImagesToEncode(self.source, self.image_size)
        self.skipped = 0
        self._sorted = np.array(self.indices)

    def __len__(self) -> int:
        """The number of images over all processes, those that cannot be read among them."""
        return len(self.indices)

    def __iter__(self) -> Iterator[Batch]:
        self.skipped = 0
        for batch in in_rounds(self.dataset, self.indices, self.asked.batch_size, self.asked.workers):
            found = [] if batch is None else name_unreadable(self.source, batch)
            self.skipped += int(total(torch.tensor(len(found))))
            if self.skipped > math.ceil(len(self) / 100) or self.skipped == len(self):
                raise DataError(
                    f"{self.source.where}: {self.skipped} of {len(self)} images cannot be read (named above), more "
                    "than 1 % of them; repair or remove them, so that the numbers are of the images that you mean"
                )
            if batch is not None and len(batch.images):
                yield batch

    def rows(self, batch: Batch) -> Tensor:
        """Return which of the list of all images those of a batch are, (N,)."""
        return torch.from_numpy(np.searchsorted(self._sorted, batch.indices.numpy()))

    @property
    def described(self) -> dict[str, Any]:
        """What fixes them beside the data, as JSON types, once they are read."""
        fraction = self.asked.val_fraction
        return {
            "split": self.asked.split,
            **({} if fraction is None else {"val_fraction": fraction}),
            "image_size": list(self.image_size),
            "resize": RESIZE,
            "images": len(self) - self.skipped,
            "unreadable": self.skipped,
        }


def name_unreadable(source: ImageSource, batch: Batch, named: Collection[str] = ()) -> list[str]:
    """Name in the log those images of a batch that cannot be read, but for those that were `named` already.

    Returns the names of all of them.
    """
    for found, reason in zip(batch.skipped, batch.reasons, strict=True):
        if found.name not in named:
            logger.warning("%s: cannot read %s (%s), leaving it out", source.where, found.name, reason)
    return [found.name for found in batch.skipped]


def in_rounds(dataset: Any, indices: Sequence[int], batch_size: int, workers: int) -> Iterator[Any]:
    """Yield this process's batches of a data set, cut from `indices` in order and dealt to the processes in turn.

    None in a round in which others alone have one: collective. Raises Preempted after SIGTERM to any process, and
    DataError when a data-loading process fails.
    """
    rank, processes = world()
    dealt = in_full_rounds(batched(indices, batch_size), [])
    mine = [list(batch) for batch in dealt[rank::processes] if batch]
    loaded = iter(make_loader(dataset, mine, workers, dataset.collate))
    with explaining_loader_errors():
        for batch in shares(dealt, "evaluating", begins_anew()):
            yield next(loaded) if batch else None


def begins_anew() -> Preempted:
    """Return what ends an evaluation after SIGTERM."""
    return Preempted("stopped by SIGTERM; an evaluation is not gone on with, it begins anew")


def frozen(model: nn.Module, precision: Precision, method: str = "forward") -> Callable[[Tensor], Tensor]:
    """Return what a model does, frozen on this process's device, to images (N, 3, H, W) in [-1, 1]: float32, there.

    It is computed in the precision, and raises ConfigError when the device's memory is too small for the images.
    """
    compute = getattr(model.to(device()).eval().requires_grad_(False), method)

    @torch.inference_mode()
    def function(images: Tensor) -> Tensor:
        what = f"{len(images)} images of {' x '.join(map(str, images.shape[-2:]))}"
        with explaining_out_of_memory(what, "lower the batch size"), computing(precision):
            return compute(images.to(device(), non_blocking=True)).float()

    return function


Pixels = npt.NDArray[np.uint8]


class PixelBatch(NamedTuple):
    """Pixels, uint8 (N, 3, H, W), and the samples' numbers."""

    pixels: Tensor
    indices: list[int]


class Samples(Dataset[Any]):
    """All samples at `source`; iterating gives batches dealt to the processes in turn, and is collective.

    source: a folder that ``tools/sample.py`` wrote; any folder, zip or other data of pictures (see
    :func:`aligntok.data.sources.open_source`); or an .npz with arr_0, uint8 (N, H, W, 3). num: so many, evenly spread.
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
        pictures = self.path / PICTURES if self.description else self.path
        self.kept = _map_array(self.path) if self.path.suffix == ".npz" else open_source(pictures)
        there = int(self.description.get("num", len(self.kept)))  # as many as it says, whatever lies beside them
        if len(self.kept) < there:
            raise DataError(
                f"{self.path} should have {there} samples, and has {len(self.kept)}; start the command that drew them "
                "again: it draws what is missing"
            )
        if num is not None and num > there:
            raise DataError(
                f"{source} has {there} samples, fewer than the {num} asked for; draw more, or lower --num-samples"
            )
        self.indices, self.batch_size, self.workers = evenly_spaced(there, num or there), batch_size, workers
        height, width, _ = self._read(0).shape
        self.image_size = (height, width)

    def __len__(self) -> int:
        return len(self.indices)

    def _read(self, place: int) -> Pixels:
        """Return a picture (H, W, 3), the `place`-th of those chosen."""
        place = self.indices[place]
        if isinstance(self.kept, np.ndarray):
            return np.array(self.kept[place])
        try:
            return np.array(read_image(self.kept, place))
        except ImageError as error:
            raise DataError(
                f"{self.kept.where}: cannot read sample {self.kept.names[place]} ({error}); draw it again: "
                "leaving one out would change the numbers"
            ) from error

    def __getitem__(self, place: int) -> tuple[int, Pixels]:
        pixels = self._read(place)
        if pixels.shape != (*self.image_size, 3):
            raise DataError(
                f"{self.path}: sample {self.indices[place]} has {pixels.shape[0]} x {pixels.shape[1]} pixels, the "
                f"first one {self.image_size[0]} x {self.image_size[1]}; a distance is between images of one size: "
                "bring them to one, and say how when you report it"
            )
        return place, pixels

    def collate(self, items: Sequence[tuple[int, Pixels]]) -> PixelBatch:
        """Return a batch of items."""
        stacked = torch.from_numpy(np.stack([pixels for _, pixels in items]))
        return PixelBatch(stacked.permute(0, 3, 1, 2).contiguous(), [place for place, _ in items])

    def __iter__(self) -> Iterator[PixelBatch]:
        return filter(None, in_rounds(self, range(len(self)), self.batch_size, self.workers))


def _map_array(path: Path) -> Pixels:
    """Return arr_0 of an .npz; read where it lies if it is not compressed."""

    def check(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or not shape[0]:
            raise ValueError(f"{name} is {dtype} {shape}")

    try:
        found = read_npz(path, ["arr_0"], check, mapped=["arr_0"])
        if not found:
            raise ValueError("there is no arr_0")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} has no samples in ADM's format: arr_0, uint8 (N, H, W, 3) ({first_line(error)})"
        ) from error
    return np.asanyarray(found["arr_0"])


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
    found: dict[str, Any] = with_places(described, path)
    return found
