"""A cache of latents in the making: which shards its folder lacks, and its manifest once all are there."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

from aligntok.caching.encoder import LatentEncoder, ShardJob, check_varies, encode_shards
from aligntok.caching.settings import CacheRequest, LatentCacheSettings
from aligntok.data.latent_shards import (
    ENCODING,
    FORMAT,
    MANIFEST,
    LatentStatistics,
    Manifest,
    Moments,
    Shard,
    damaged,
    shard_path,
)
from aligntok.data.lightningdit import write_statistics
from aligntok.data.listing import must_not_change
from aligntok.data.loader import STUCK_SECONDS
from aligntok.data.sources import open_source
from aligntok.data.sources.base import ImageSource
from aligntok.device import precision_taken
from aligntok.distributed import is_first
from aligntok.distributed.job import batched, job
from aligntok.distributed.output_folder import found_by_first, output_folder
from aligntok.errors import ConfigError, DataError
from aligntok.io.checksums import CHECKSUMS
from aligntok.io.files import write_checksums, write_json, writing
from aligntok.io.folders import check_space, remove_leftovers
from aligntok.io.places import without_places
from aligntok.loading import load_tokenizer

logger = logging.getLogger("aligntok.data")


def cache_latents(request: CacheRequest) -> Path:
    """Encode the images of a request once, and return the folder that it names.

    The tokenizer is what :func:`aligntok.loading.load_tokenizer` takes, the data what
    :func:`aligntok.data.sources.open_source` does. Started again, it goes on where it was, if the images are the same;
    of a finished cache it checks the files. Images that cannot be read are left out, and named in the manifest.
    Collective under torchrun.

    Raises DataError for images or a cache that cannot be used and latents that are not finite, or do not vary;
    WriteError for too little disk; ConfigError for other options than the cache was begun with; WeightsError or
    CheckpointError for the tokenizer; Preempted after SIGTERM.
    """
    with job():
        encoder = LatentEncoder(load_tokenizer(request.tokenizer, weights=request.weights), request)
        images = images_to_cache(request.data, request)
        source = os.fspath(request.tokenizer)
        cache = LatentCache(Path(request.out).expanduser(), images, encoder, source, request.max_unreadable)
        cache.fill(request.batch_size, request.workers)
    return cache.folder


def images_to_cache(data: str | os.PathLike[str], how: CacheRequest | LatentCacheSettings) -> ImageSource:
    """Open the images that a cache is made of, with the captions that it keeps. Raises DataError."""
    return open_source(data, how.split, how.label, how.val_fraction, False, how.caption, how.max_uncaptioned)


class LatentCache:
    """The folder of a cache that is being made: which files it is to have, and which of them are there.

    `source` is where its tokenizer is.
    """

    def __init__(
        self, folder: Path, images: ImageSource, encoder: LatentEncoder, source: str, max_unreadable: int | None = None
    ) -> None:
        self.folder, self.images, self.encoder = folder, images, encoder
        self.max_unreadable = math.ceil(len(images) / 100) if max_unreadable is None else max_unreadable
        self.layout, size = encoder.encoding.layout, encoder.encoding.images_a_shard
        if self.layout != "aligntok":
            _check_for_lightningdit(images, encoder)
        shards = batched(range(len(images)), size)
        #: Every shard, there or not.
        self.jobs = [ShardJob(shard_path(folder, i, self.layout), indices) for i, indices in enumerate(shards)]
        names = ["hflip", "dtype", "precision", "posterior"]
        names += ["seed"] * (encoder.encoding.posterior == "sample")  # nothing else depends on it
        chosen = {name: getattr(images, name) for name in ("label", "caption") if getattr(images, name) is not None}
        source, where = without_places([source, images.where], folder)
        #: What encoding.json is to hold.
        self.settings = {
            "format": FORMAT,
            "tokenizer": {"identity": encoder.tokenizer.identity, "source": source},
            "data": {"images": len(images), "names": images.names.digest(), "where": where, **chosen},
            "image_size": list(encoder.image_size),
            **{name: getattr(encoder.encoding, name) for name in names},
            "precision": precision_taken(encoder.encoding.precision),
            "shard_size": size,
            **({} if self.layout == "aligntok" else {"layout": self.layout}),
        }

    def fill(self, batch_size: int, workers: int, timeout: float = STUCK_SECONDS) -> None:
        """Encode what the cache lacks, and finish it; collective."""
        what = "another tokenizer, other images"
        with output_folder(self.folder, ENCODING, self.settings, _compared, what):
            # Of each shard whether it is left; last, how many images are left out of the others.
            *is_left, skipped = found_by_first(self._begin, len(self.jobs) + 1)
            left = list(compress(self.jobs, is_left))
            if left:
                check = partial(self.check, skipped)
                encode_shards(left, self.images, self.encoder, batch_size, workers, check, timeout)
            if is_first():
                print(self._finish())

    def _begin(self) -> list[int]:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        if (self.folder / ENCODING).is_file():
            must_not_change(self.folder, self.images)
        bad = damaged([job.path for job in self.jobs if job.path.exists()])
        shards = [_whole_shard(job, bad.get(job.path)) for job in self.jobs]
        images = sum(len(job.indices) for job, shard in zip(self.jobs, shards, strict=True) if shard is None)
        if images:
            for name in (CHECKSUMS, MANIFEST):  # of a cache that has lost a shard since
                (self.folder / name).unlink(missing_ok=True)
            numbers = self.encoder.copies * math.prod(self.encoder.latent_shape)
            needed = images * (numbers * self.encoder.dtype.itemsize + 12)  # and a label and a place
            cure = "give another folder, or take --dtype bf16 or --no-hflip"
            check_space(self.folder / ENCODING, needed, f"the latents of {images} images", cure)
            write_json(self.folder / ENCODING, self.settings)
            must_not_change(self.folder, self.images)
        return [*(int(shard is None) for shard in shards), sum(len(shard.skipped) for shard in shards if shard)]

    def check(self, *found: int) -> None:
        """Raise DataError when more images, all `found` together, cannot be read than may be left out."""
        unreadable = sum(found)
        if unreadable > self.max_unreadable:
            raise DataError(
                f"{self.images.where}: {unreadable} of {len(self.images)} images cannot be read, as the output of this "
                f"start or an earlier one says; {self.max_unreadable} may be left out: repair or remove the files and "
                "encode them into another folder, or raise --max-unreadable"
            )

    def _finish(self) -> str:
        """Write the manifest from the shards; return a line about the cache.

        Raises DataError when too much was left out, a shard is missing, or a channel of the latents is constant.
        """
        shards = [Shard(job.path) for job in self.jobs]
        skipped = [found for shard in shards for found in shard.skipped]
        self.check(len(skipped))
        moments = Moments.merged([shard.moments for shard in shards])
        if not moments.count:
            raise DataError(f"{self.images.where}: not one of {len(self.images)} images can be read")
        statistics = LatentStatistics.of(moments)
        check_varies(statistics, len(self.images) - len(skipped))
        manifest = Manifest(
            encoding=self.settings,
            images=len(self.images) - len(skipped),
            latent_shape=self.encoder.latent_shape,
            statistics=statistics,
            class_names=self.images.class_names,
            shards=[{"file": s.path.name, "images": s.images, "bytes": s.bytes} for s in shards],
            skipped=skipped,
        )
        if self.layout != "aligntok":
            write_statistics(self.folder, manifest.statistics)
        write_json(self.folder / MANIFEST, manifest.as_json())
        write_checksums(self.folder, [ENCODING, MANIFEST])  # each shard has its own
        shape, copies = " x ".join(map(str, manifest.latent_shape)), ", mirrored too" if manifest.copies == 2 else ""
        return f"Latents: {self.folder}   ({manifest.images} images{copies}, {shape}; {len(skipped)} left out)"


def _whole_shard(job: ShardJob, error: DataError | None) -> Shard | None:
    """Return a shard that is there; None for one to encode. A damaged one, by `error` or its header, is reported."""
    if not job.path.exists():
        return None
    try:
        if error is not None:
            raise error
        return Shard(job.path)
    except DataError as found:
        logger.warning("%s is encoded again: it is damaged (%s)", job.path, found.__cause__)
        return None


def _check_for_lightningdit(images: ImageSource, encoder: LatentEncoder) -> None:
    """Raise ConfigError or DataError for what its data set has no place for: it draws mirrored images, with classes."""
    if not encoder.encoding.hflip:
        raise ConfigError("--layout lightningdit has every image mirrored, too; leave --no-hflip out")
    if len(images) and int(images.labels.min()) < 0:
        raise DataError(
            f"{images.where}: {int((images.labels < 0).sum())} of {len(images)} images have no class, which "
            "--layout lightningdit needs; give folders of classes, or --label"
        )


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may not change between two starts: which tokenizer and images they are, not where they lie."""
    data = settings["data"]
    return {
        "posterior": "mean",  # of caches that were begun before there was a choice
        "layout": "aligntok",
        **settings,
        "tokenizer": settings["tokenizer"]["identity"][:16],
        "data": f"of {data['images']} images ({data['names'][:16]})",
        "label": data.get("label"),
        "caption": data.get("caption"),
    }
