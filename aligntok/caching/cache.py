"""A cache of latents in the making: which shards its folder lacks, and its manifest once all are there."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from aligntok.caching.encoder import LatentEncoder, ShardJob, encode_shards
from aligntok.caching.settings import CacheRequest
from aligntok.data.latent_shards import (
    ENCODING,
    FORMAT,
    MANIFEST,
    LatentStatistics,
    Manifest,
    Moments,
    Shard,
    shard_path,
)
from aligntok.data.sources import open_source
from aligntok.data.sources.base import ImageSource
from aligntok.distributed import barrier, broadcast, is_first, must_agree
from aligntok.distributed.job import batched, job
from aligntok.errors import ConfigError, DataError
from aligntok.io.files import check_space, check_tensors, lock_folder, read_json, remove_leftovers, write_json
from aligntok.loading import load_tokenizer
from aligntok.tokenizer import Tokenizer

logger = logging.getLogger("aligntok.data")


def cache_latents(request: CacheRequest) -> Path:
    """Encode the images of a request once, and return the folder that it names.

    The tokenizer is what :func:`aligntok.loading.load_tokenizer` takes, the data what
    :func:`aligntok.data.sources.open_source` does. Started again, it goes on where it was; of a finished cache it only
    looks at the files. Images that cannot be read are left out, and named in the manifest. Collective under torchrun.

    Raises DataError for images or a cache that cannot be used and latents that are not finite; WriteError for too
    little disk; ConfigError for other options than the cache was begun with; WeightsError or CheckpointError for the
    tokenizer; Preempted after SIGTERM.
    """
    with job():
        encoder = LatentEncoder(_load(request.tokenizer, request.weights), request)
        images = open_source(request.data, request.split)
        cache = LatentCache(Path(request.out).expanduser(), images, encoder, request.max_unreadable)
        fill(cache, os.fspath(request.tokenizer), request.batch_size, request.workers)
    return cache.folder


def fill(cache: LatentCache, source: str, batch_size: int, workers: int) -> None:
    """Encode what a cache lacks, and finish it; `source` is where its tokenizer is. Collective."""
    settings = cache.describe(source)
    must_agree(_compared(settings), "another tokenizer, other images")
    if is_first():
        cache.check_folder(settings)
    with lock_folder(cache.folder, wanted=is_first()):
        jobs, skipped = cache.begin_together(settings)
        if jobs:
            encode_shards(
                jobs, cache.images, cache.encoder, batch_size, workers, lambda found: cache.check(skipped + found)
            )
        if is_first():
            print(cache.finish(settings))
        barrier()


def _load(source: str | os.PathLike[str], weights: str | None) -> Tokenizer:
    path = Path(source)
    if weights is not None and (not path.is_dir() or (path / "config.json").is_file()):
        raise ConfigError(f"--weights chooses among a work folder's weights; {source} is none")
    return load_tokenizer(source) if weights is None else load_tokenizer(source, weights=weights)


class LatentCache:
    """The folder of a cache that is being made: which files it is to have, and which of them are there."""

    def __init__(self, folder: Path, images: ImageSource, encoder: LatentEncoder, max_unreadable: int | None) -> None:
        self.folder = folder
        self.images = images
        self.encoder = encoder
        self.max_unreadable = math.ceil(len(images) / 100) if max_unreadable is None else max_unreadable

    @property
    def jobs(self) -> list[ShardJob]:
        """Every shard of the cache, there or not."""
        shards = batched(range(len(self.images)), self.encoder.encoding.shard_size)
        return [ShardJob(shard_path(self.folder, i), places) for i, places in enumerate(shards)]

    def describe(self, source: str) -> dict[str, Any]:
        """Return what encoding.json is to hold."""
        encoding = self.encoder.encoding
        return {
            "format": FORMAT,
            "tokenizer": {"identity": self.encoder.tokenizer.identity, "source": source},
            "data": {"images": len(self.images), "names": self.images.names.digest(), "where": self.images.where},
            "image_size": list(self.encoder.image_size),
            **{name: getattr(encoding, name) for name in ("hflip", "dtype", "precision", "shard_size")},
            **encoding.posterior_settings,
        }

    def check_folder(self, settings: Mapping[str, Any]) -> None:
        """Raise ConfigError unless the folder is new or empty, or this very cache was begun in it."""
        begun = self.folder / ENCODING
        if not begun.is_file():
            if self.folder.is_file() or (self.folder.is_dir() and {*os.listdir(self.folder)} - {".lock"}):
                raise ConfigError(f"{self.folder} has other things in it, and no {ENCODING}; give a new folder")
            return
        cure = "so how the shards beside it were encoded is unknown: restore that file, or give another folder"
        before, now = read_json(begun, DataError, cure, _compared), _compared(settings)
        changed = [f"{key} {before.get(key)}, now {now[key]}" for key in now if now[key] != before.get(key)]
        if changed:
            raise ConfigError(
                f"the latent cache in {self.folder} was begun otherwise ({'; '.join(changed)}); "
                "give what it was begun with, or another folder"
            )

    def begin_together(self, settings: Mapping[str, Any]) -> tuple[list[ShardJob], int]:
        """Return the shards to encode, and how many images are left out of the others; collective.

        The first process looks, and settles what the folder is for. Raises WriteError when there is no room.
        """
        jobs = self.jobs
        state = torch.zeros(len(jobs) + 1, dtype=torch.int64)  # for each shard whether it is left; images left out
        if is_first():
            state.copy_(torch.tensor(self._begin(jobs, settings)))
        broadcast([state])
        *is_left, skipped = state.tolist()
        return [job for job, left in zip(jobs, is_left, strict=True) if left], skipped

    def _begin(self, jobs: Sequence[ShardJob], settings: Mapping[str, Any]) -> list[int]:
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        finished = (self.folder / MANIFEST).is_file()  # of a finished one only headers are looked at: it may be large
        shards = [_whole_shard(job, check=not finished) for job in jobs]
        left = [job for job, shard in zip(jobs, shards, strict=True) if shard is None]
        if left:
            (self.folder / MANIFEST).unlink(missing_ok=True)  # of a cache that has lost a shard since
            self._check_space(left)
            write_json(self.folder / ENCODING, settings)
        return [*(int(shard is None) for shard in shards), sum(len(shard.skipped) for shard in shards if shard)]

    def _check_space(self, jobs: Sequence[ShardJob]) -> None:
        images, numbers = (
            sum(len(job.places) for job in jobs),
            self.encoder.copies * math.prod(self.encoder.latent_shape),
        )
        needed = images * (numbers * self.encoder.dtype.itemsize + 12)  # and a label and a place
        cure = "give another folder, or take --dtype bf16 or --no-hflip"
        check_space(self.folder / ENCODING, needed, f"the latents of {images} images", cure)

    def check(self, unreadable: int) -> None:
        """Raise DataError when more images cannot be read than may be left out."""
        if unreadable > self.max_unreadable:
            raise DataError(
                f"{self.images.where}: {unreadable} of {len(self.images)} images cannot be read, as the output of this "
                f"start or an earlier one says; {self.max_unreadable} may be left out: repair or remove the files and "
                "encode them into another folder, or raise --max-unreadable"
            )

    def finish(self, settings: Mapping[str, Any]) -> str:
        """Write the manifest from the shards; return a line about the cache.

        Raises DataError when too much was left out, or a shard is missing.
        """
        shards = [Shard(job.path) for job in self.jobs]
        skipped = [found for shard in shards for found in shard.skipped]
        self.check(len(skipped))
        moments = Moments.merged([shard.moments for shard in shards])
        if not moments.count:
            raise DataError(f"{self.images.where}: not one of {len(self.images)} images can be read")
        manifest = Manifest(
            encoding=settings,
            images=len(self.images) - len(skipped),
            latent_shape=self.encoder.latent_shape,
            statistics=LatentStatistics.of(moments),
            class_names=self.images.class_names,
            shards=[{"file": s.path.name, "images": s.images, "bytes": s.bytes} for s in shards],
            skipped=skipped,
        )
        write_json(self.folder / MANIFEST, manifest.as_json())
        shape, copies = " x ".join(map(str, manifest.latent_shape)), ", mirrored too" if manifest.copies == 2 else ""
        return f"Latents: {self.folder}   ({manifest.images} images{copies}, {shape}; {len(skipped)} left out)"


def _whole_shard(job: ShardJob, check: bool) -> Shard | None:
    """Return a shard that is there; None for one to encode. A damaged one is reported; `check` its checksum, too."""
    if not job.path.exists():
        return None
    try:
        if check:
            check_tensors(job.path, DataError, "it is encoded again")
        return Shard(job.path)
    except DataError as error:
        logger.warning("%s is encoded again: it is damaged (%s)", job.path, error.__cause__)
        return None


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may not change between two starts: which tokenizer and images they are, not where they lie."""
    data = settings["data"]
    return {
        "posterior": "mean",  # of caches that were begun before there was a choice
        **settings,
        "tokenizer": settings["tokenizer"]["identity"][:16],
        "data": f"of {data['images']} images ({data['names'][:16]})",
    }
