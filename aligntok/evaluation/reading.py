"""The images of an evaluation: each read once, as the tokenizer is to see it, and shared out among the processes."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from aligntok.caching.encoder import Batch, ImagesToEncode
from aligntok.data.loader import explaining_loader_errors, make_loader
from aligntok.data.sampler import evenly_spaced
from aligntok.data.sources import open_source
from aligntok.data.sources.base import ImageSource
from aligntok.data.transforms import parse_image_size
from aligntok.distributed import total, world
from aligntok.distributed.job import batched, in_full_rounds, shares
from aligntok.errors import DataError, Preempted, at_least

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

    def _note(self, batch: Batch) -> None:
        for found, reason in zip(batch.skipped, batch.reasons, strict=True):
            logger.warning("%s: cannot read %s (%s), leaving it out", self.source.where, found.name, reason)
        self.skipped += int(total(torch.tensor(len(batch.skipped))))
        if self.skipped > math.ceil(len(self) / 100) or self.skipped == len(self):
            raise DataError(
                f"{self.source.where}: {self.skipped} of {len(self)} images cannot be read (named above), more than "
                "1 % of them; repair or remove them, so that the numbers are of the images that you mean"
            )


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
