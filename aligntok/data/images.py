"""The data set of images: in a folder, a zip archive, tar shards, parquet files or a Hugging Face data set."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset

from aligntok.data.buckets import UNREADABLE, AspectBuckets, crop_to_tensor, draft_side
from aligntok.data.listing import Listing
from aligntok.data.sampler import BucketIndices, SampleIndex
from aligntok.data.settings import MAX_ASPECT_RATIO, AspectRatio
from aligntok.data.sources import open_source
from aligntok.data.sources.base import ImageSource
from aligntok.data.sources.held_out import check_apart
from aligntok.data.transforms import read_image, read_upright_size
from aligntok.distributed import any_process, barrier, broadcast, is_first, total, world
from aligntok.distributed.job import batched, progress_bar
from aligntok.errors import ConfigError, DataError, ImageError, at_least
from aligntok.io.arrays import map_column
from aligntok.io.files import check_file, discard, reading, replacing
from aligntok.rng import rng
from aligntok.settings import Count, ImageSize, Width

logger = logging.getLogger("aligntok.data")
_THREADS, _CHUNK = 16, 256


def assign_buckets(
    source: ImageSource,
    buckets: AspectBuckets,
    indices: Sequence[int] | None = None,
    progress: bool = True,
    max_aspect_ratio: float = MAX_ASPECT_RATIO,
) -> BucketIndices:
    """Return the bucket of each image of `indices` (None: all), UNREADABLE where the header cannot be read.

    Reads headers with a pool of threads, and with `progress` shows how far it is on stderr after the first seconds.
    """
    indices = range(len(source)) if indices is None else indices

    def assign(index: int) -> int:
        try:
            return buckets.nearest(*read_upright_size(source, index, max_aspect_ratio))
        except ImageError:  # reading the image will say what is wrong, and count it
            return UNREADABLE

    found = bytearray()
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        progress_bar(len(indices), "reading image sizes", "image", progress) as bar,
    ):
        for chunk in pool.map(lambda part: bytes(map(assign, part)), batched(indices, _CHUNK)):
            found += chunk
            bar.update(len(chunk))
    return np.frombuffer(found, dtype=np.uint8)


def place_unreadable(found: BucketIndices) -> BucketIndices:
    """Put unreadable images into the first bucket that has a readable one, which can take their place in a batch."""
    used = found[found != UNREADABLE]
    return np.where(found == UNREADABLE, used.min() if len(used) else 0, found).astype(np.uint8)


class ImageDataset(Dataset[dict[str, Any]]):
    """Images at `root`: a folder (class folders or flat, any depth), a .zip of the same, WebDataset shards, parquet
    files, or a Hugging Face data set, ``hf://owner/name`` among them; see :func:`aligntok.data.sources.open_source`.

    An item is ``dict(images=float32 (3, H, W) in [-1, 1], label=class index or -1, index=place in the data set)``. With
    a `caption`, which says where captions are ("auto": at the one place that there is; None: none are looked for; see
    :func:`aligntok.data.sources.open_source`), it has ``caption``, a text: of several, the one that `seed` and the
    sample number draw when `train`, else the first; for a plain integer the first. Up to `max_uncaptioned` images that
    have none are left out; more are an error.
    The image is resized to cover `image_size` (a side, or (H, W); Pillow's antialiased bicubic) and cropped: at random
    and mirrored half of the time (`hflip`) when `train`, in the middle otherwise. With `short_side` the image's short
    side is resized to that instead, so that crops are parts of a larger picture. `split` chooses a subfolder, or the
    files or the part of that name; `label`, of several places, where the labels are. With a `fraction`, about so many
    images are left out, which are held out by name: with `held_out` these are the data set. Random choices follow from
    `seed` and the sample number of the :class:`SampleIndex` asked for; a plain integer asks for that image with the
    same integer as its sample number.

    With a list of (H, W) pairs as `image_size`, or ``dict(side=256)`` for those of its area (:class:`EqualArea`), each
    image is cropped to that of the nearest aspect ratio (`buckets` says which), so batches must be of one bucket: give
    `buckets` to :class:`GlobalBatchSampler`.

    An unreadable image is replaced by the next readable one of its bucket (its label and index come with it), logged
    once, and counted in `num_unreadable`, across the workers of this process. More than `max_unreadable` different
    ones (None: 1 % of the images, rounded up) are an error. Large JPEGs are decoded at a fraction of their size for
    training, never below twice the target, and in full for evaluation. A strip, more than `max_aspect_ratio` times as
    long as wide, counts as unreadable.

    Raises DataError for a missing or empty source, an unknown split, an empty class folder, a damaged archive, too
    many unreadable images; ConfigError for a wrong `image_size`, `max_unreadable`, `max_aspect_ratio`, `fraction` or
    `seed`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        image_size: ImageSize | Sequence[tuple[Width, Width]] | dict[str, Any] = 256,
        train: bool = True,
        split: str | None = None,
        hflip: bool = True,
        max_unreadable: Count | None = None,
        seed: Count = 0,
        short_side: Width | None = None,
        max_aspect_ratio: AspectRatio = MAX_ASPECT_RATIO,
        label: str | None = None,
        fraction: float | None = None,
        held_out: bool = False,
        caption: str | None = None,
        max_uncaptioned: Count = 0,
    ) -> None:
        self.shapes = AspectBuckets(image_size)
        self.short_side = short_side
        self.shapes.check_short_side(short_side)
        at_least(1, max_aspect_ratio=max_aspect_ratio)
        self.max_aspect_ratio = max_aspect_ratio
        self.train = train
        self.hflip = hflip
        self.seed = seed
        self.source = open_source(root, split, label, fraction, held_out, caption, max_uncaptioned)
        self.class_names = self.source.class_names
        self.max_unreadable = math.ceil(len(self) / 100) if max_unreadable is None else max_unreadable
        at_least(0, max_unreadable=max_unreadable, seed=seed)
        self._buckets: BucketIndices | None = None
        # One flag an image in shared memory: workers set them without a lock, and setting one twice counts once.
        self._unreadable = torch.zeros(len(self), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.source)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "listing"}  # workers have no use for it

    @cached_property
    def listing(self) -> Listing:
        """What the images are now; looked at once."""
        return Listing.of(self.source)

    @property
    def num_unreadable(self) -> int:
        """How many different images could not be read so far, in this process and its workers."""
        return int(self._unreadable.sum(dtype=torch.int64))

    @property
    def buckets(self) -> BucketIndices | None:
        """Which of ``shapes.sizes`` each image is cropped to; None when there is only one.

        Found from the images' headers at the first use, unless it was set. Images without a readable one count as of
        the first bucket in use. Raises ConfigError when set for another number of images.
        """
        if self._buckets is None and len(self.shapes) > 1:
            self._buckets = place_unreadable(self.assign_buckets())
        return self._buckets

    @buckets.setter
    def buckets(self, found: BucketIndices) -> None:
        if len(found) != len(self) or found.max() >= len(self.shapes):
            raise ConfigError(
                f"{self.source.where}: buckets for {len(found)} images, of {len(self)} with {self.shapes.sizes}"
            )
        self._buckets = found

    def __getitem__(self, request: SampleIndex | int) -> dict[str, Any]:
        index, sample_number = request if isinstance(request, SampleIndex) else (request, None)
        index = range(len(self))[index]
        size = self._size(index)
        image, shown = self._read_or_next(index, draft_side(size, self.short_side) if self.train else None)
        own = rng("sample", self.seed, index if sample_number is None else sample_number) if self.train else None
        pixels = crop_to_tensor(image, size, self.short_side, self.hflip, own)
        item = {"images": pixels, "label": int(self.source.labels[shown]), "index": shown}
        if self.source.captions is not None:
            item["caption"] = self.source.captions.pick(shown, self.seed, sample_number if self.train else None)
        return item

    @property
    def placed(self) -> ImageSource:
        """What says where the images lie."""
        return self.source

    def check_apart(self, val: Any, cure: str) -> None:
        """Raise DataError, which ends with a `cure`, when images are measured on that are also trained on.

        val: such a data set, or a stream.
        """
        check_apart(self.source, val.placed, cure)

    def assign_buckets(self, indices: Sequence[int] | None = None, progress: bool = True) -> BucketIndices:
        """Return the bucket of each image of `indices`, as :func:`assign_buckets` does."""
        return assign_buckets(self.source, self.shapes, indices, progress, self.max_aspect_ratio)

    def _size(self, index: int) -> tuple[int, int]:
        return self.shapes.sizes[0 if self.buckets is None else int(self.buckets[index])]

    def _read_or_next(self, index: int, draft_side: int | None) -> tuple[Image.Image, int]:
        buckets = self.buckets
        for candidate in chain(range(index, len(self)), range(index)):
            if buckets is not None and buckets[candidate] != buckets[index]:
                continue
            try:
                return read_image(self.source, candidate, draft_side, self.max_aspect_ratio), candidate
            except ImageError as error:
                self._note_unreadable(candidate, error)
        which = f"{len(self)} images" if buckets is None else f"the images cropped to {self._size(index)}"
        raise DataError(f"{self.source.where}: not one of {which} can be read")

    def _note_unreadable(self, index: int, error: ImageError) -> None:
        if self._unreadable[index]:
            return
        self._unreadable[index] = 1
        name, count = self.source.names[index], self.num_unreadable
        logger.warning("%s: cannot read %s (%s), taking the next image instead", self.source.where, name, error)
        if count > self.max_unreadable:
            raise DataError(
                f"{self.source.where}: {count} of {len(self)} images cannot be read, {name} the latest ({error}); "
                f"{self.max_unreadable} are allowed: repair or remove the files, or raise `max_unreadable`"
            ) from error


def square_size(dataset: Any) -> tuple[int, int] | None:
    """Return (H, W) of the shape nearest to a square that a data set crops images to; None where it does not say."""
    shapes = getattr(dataset, "shapes", None)
    return shapes.sizes[shapes.nearest(1, 1)] if isinstance(shapes, AspectBuckets) else None


def find_buckets(dataset: Any, folder: Path) -> BucketIndices | None:
    """Return the bucket of each image of a data set, or of a subset of one; None when all have one size.

    Those of an :class:`ImageDataset` are read from a file in `folder` that an earlier call wrote for the same images,
    as big and as old, and sizes, so that stages and restarts need not look again; without one, or with a damaged one,
    each process reads the headers of its share. Another data set has an attribute `buckets`, or one size. Collective.
    """
    if isinstance(dataset, Subset):
        found = find_buckets(dataset.dataset, folder)
        return None if found is None else found[np.asarray(dataset.indices)]
    if isinstance(dataset, ImageDataset) and len(dataset.shapes) > 1:
        what = f"{dataset.source.where} {dataset.source.names.digest()} {dataset.shapes.sizes}"
        what += f" {dataset.max_aspect_ratio}" * (dataset.max_aspect_ratio != MAX_ASPECT_RATIO)
        images = hashlib.sha256(what.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        state = torch.tensor([int(dataset.listing.digest[:15], 16) if is_first() else 0])
        broadcast([state])  # times of change may differ from node to node
        file = folder / f"buckets_{images}_{int(state):015x}.npy"
        there = _read_buckets(file, dataset)
        if there is not None:
            dataset.buckets = there
        else:
            found = _find_together(dataset)  # an exchange: the first does not write before the others looked
            if is_first():
                for old in folder.glob(f"buckets_{images}*.npy"):  # of the same names, when they had other content
                    discard(old)
                with replacing(file, checksum=True) as temporary, temporary.open("wb") as opened:
                    np.save(opened, found)  # which would add a suffix to a name
            barrier()
            dataset.buckets = found  # not read again: another node may not see the new file yet
    buckets: BucketIndices | None = getattr(dataset, "buckets", None)
    return buckets


def _read_buckets(file: Path, dataset: ImageDataset) -> BucketIndices | None:
    """Return the buckets in a file; None without one, and for a damaged one in any process, which is reported."""
    found: BucketIndices | None = None
    if file.is_file():
        try:
            check_file(file, DataError, "")
            with reading(file, DataError, ""):
                read = np.array(map_column(file, "u1", len(dataset)))
                if read.max(initial=0) >= len(dataset.shapes):
                    raise ValueError(f"it has {read.max()} for one of {len(dataset.shapes)} buckets")
                found = read
        except DataError as error:
            logger.warning("sizes of images are read again: %s is damaged (%s)", file, error.__cause__)
    return None if any_process(found is None) else found


def _find_together(dataset: ImageDataset) -> BucketIndices:
    rank, processes = world()
    found = np.zeros(len(dataset), dtype=np.uint8)
    share = range(rank, len(dataset), processes)
    found[rank::processes] = dataset.assign_buckets(share, progress=is_first())
    return place_unreadable(total(torch.from_numpy(found)).numpy())
