"""The aspect-ratio buckets of a data set: found once a run, by all processes together, and kept in its folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from aligntok.data.buckets import BucketIndices, assign_buckets, place_unreadable
from aligntok.data.images import ImageDataset
from aligntok.distributed import barrier, is_first, total, world
from aligntok.io.files import replacing


def find_buckets(dataset: Any, folder: Path) -> BucketIndices | None:
    """Return the bucket of each image of a data set, or of a subset of one; None when all have one size.

    Those of an :class:`ImageDataset` are read from a file in `folder` that an earlier call wrote for the same images
    and sizes, so that stages and restarts need not look again; without one, each process reads the headers of its
    share. Another data set has an attribute `buckets`, or one size. Collective.
    """
    if isinstance(dataset, Subset):
        found = find_buckets(dataset.dataset, folder)
        return None if found is None else found[np.asarray(dataset.indices)]
    if isinstance(dataset, ImageDataset) and len(dataset.shapes) > 1:
        file = folder / f"buckets_{_fingerprint(dataset)}.npy"
        if not file.is_file():  # the exchange keeps the first process from writing before the others looked
            found = _find_together(dataset)
            _write(file, found)
            dataset.buckets = found  # not read again: another node may not see the new file yet
        else:
            dataset.buckets = np.load(file)
    buckets: BucketIndices | None = getattr(dataset, "buckets", None)
    return buckets


def _find_together(dataset: ImageDataset) -> BucketIndices:
    rank, processes = world()
    found = np.zeros(len(dataset), dtype=np.uint8)
    share = range(rank, len(dataset), processes)
    found[rank::processes] = assign_buckets(dataset.source, dataset.shapes, share, progress=is_first())
    return place_unreadable(total(torch.from_numpy(found)).numpy())


def _write(file: Path, buckets: BucketIndices) -> None:
    if is_first():
        with replacing(file) as temporary, temporary.open("wb") as opened:  # np.save would add a suffix to a name
            np.save(opened, buckets)
    barrier()


def _fingerprint(dataset: ImageDataset) -> str:
    what = f"{dataset.source.where} {dataset.source.names.digest()} {dataset.shapes.sizes}"
    return hashlib.sha256(what.encode("utf-8", "surrogateescape")).hexdigest()[:16]
