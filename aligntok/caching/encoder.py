"""From images to shards of latents: reading, encoding, and writing each shard once its last image is in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from aligntok.caching.settings import CacheSettings, Posterior
from aligntok.data.latent_shards import LatentStatistics, Moments, Skipped, write_shard
from aligntok.data.loader import STUCK_SECONDS, explaining_loader_errors, make_loader
from aligntok.data.sampler import BucketIndices, batches_in_buckets, evenly_spaced
from aligntok.data.sources.base import ImageSource
from aligntok.data.transforms import cover_and_crop, parse_image_size, read_image, to_tensor
from aligntok.device import DTYPES, computing, device, explaining_out_of_memory
from aligntok.distributed import total, world
from aligntok.distributed.job import batched, shares
from aligntok.errors import ConfigError, DataError, ImageError, Preempted, multiples_of
from aligntok.registry import DATASETS
from aligntok.rng import batch_noise, rng
from aligntok.settings import Precision
from aligntok.tokenizer import Tokenizer

logger = logging.getLogger("aligntok.data")


def check_posterior(posterior: Posterior, tokenizer: Tokenizer) -> None:
    """Raise ConfigError for a sample where the tokenizer has no posterior."""
    if posterior == "sample" and not tokenizer.variational:
        raise ConfigError(
            "posterior 'sample' needs a variational tokenizer, and this one gives the latent itself; leave it out"
        )


def posterior_noise(seed: int, numbers: Iterable[int], copy: int, shape: Sequence[int]) -> Tensor:
    """Return standard normal numbers, float32 (N, *shape): each image's follow from (seed, its number, copy) alone."""
    return batch_noise((rng("posterior", seed, number, copy) for number in numbers), shape)


def latent_shape(tokenizer: Tokenizer, image_size: tuple[int, int]) -> tuple[int, int, int]:
    """Return (d, h, w) of an image's latent. Raises ConfigError for a size that is no multiple of the factor f."""
    (height, width), f = image_size, tokenizer.downsample_factor
    multiples_of(f, "image_size", image_size)
    return tokenizer.latent_dim, height // f, width // f


class Batch(NamedTuple):
    """What the loader hands over: images (N, 3, H, W), labels and indices (N,), and what cannot be read, and why."""

    images: Tensor
    labels: Tensor
    indices: Tensor
    skipped: list[Skipped]
    reasons: list[str]


class ImagesToEncode(Dataset[Any]):
    """The images as the tokenizer is to see them: (place, label, image (3, H, W) or the error instead of one)."""

    def __init__(self, source: ImageSource, image_size: tuple[int, int]) -> None:
        self.source = source
        self.image_size = image_size

    def __getitem__(self, index: int) -> tuple[int, int, Tensor | ImageError]:
        try:
            image = read_image(self.source, index)
        except ImageError as error:
            return index, -1, error
        image = cover_and_crop(image, self.image_size, self.image_size)
        return index, int(self.source.labels[index]), to_tensor(image)

    def collate(self, items: Sequence[tuple[int, int, Tensor | ImageError]]) -> Batch:
        """Return a batch of items, the images that cannot be read apart."""
        good = [(index, label, image) for index, label, image in items if isinstance(image, Tensor)]
        bad = [(index, error) for index, _, error in items if isinstance(error, ImageError)]
        images = torch.stack([image for *_, image in good]) if good else torch.empty(0, 3, *self.image_size)
        labels = torch.tensor([label for _, label, _ in good], dtype=torch.int32)
        indices = torch.tensor([index for index, *_ in good], dtype=torch.int64)
        skipped = [Skipped(i, self.source.names[i], type(error.__cause__ or error).__name__) for i, error in bad]
        return Batch(images, labels, indices, skipped, [str(error) for _, error in bad])


class LatentEncoder:
    """Encoder and adapter of a tokenizer on this process's device, and the latents they are to make.

    Raises ConfigError when the image size is no multiple of the tokenizer's factor, or a posterior is to be sampled
    that the tokenizer does not have.
    """

    def __init__(self, tokenizer: Tokenizer, encoding: CacheSettings) -> None:
        check_posterior(encoding.posterior, tokenizer)
        self.tokenizer, self.encoding = tokenizer, encoding
        self.image_size = parse_image_size(encoding.image_size)
        self.latent_shape = latent_shape(tokenizer, self.image_size)
        self.copies = 2 if encoding.hflip else 1
        self.dtype = DTYPES[encoding.dtype]
        self.device = device()

    def to_device(self) -> None:
        """Move the tokenizer."""
        self.tokenizer.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, images: Tensor, indices: Sequence[int] = ()) -> Tensor:
        """Return the latents (N, copies, C, h, w) of images (N, 3, H, W), on the CPU and in the type to be stored.

        `indices` are the images' numbers in the data set: a sample of the posterior follows from them, a mean does not.
        """
        what = f"{len(images)} images of {' x '.join(map(str, images.shape[-2:]))}"
        with explaining_out_of_memory(what, "lower the batch size"), computing(self.encoding.precision):
            images = images.to(self.device, non_blocking=True)
            latents = []
            for copy, view in enumerate([images, images.flip(-1)] if self.encoding.hflip else [images]):
                noise = None
                if self.encoding.posterior == "sample":
                    shape = latent_shape(self.tokenizer, (images.shape[-2], images.shape[-1]))
                    noise = posterior_noise(self.encoding.seed, indices, copy, shape).to(self.device)
                moments = self.tokenizer.moments(view)
                latents.append(self.tokenizer.latents_from(moments, noise=noise).to(self.dtype))
        return torch.stack(latents, dim=1).cpu()


@dataclass(frozen=True)
class ShardJob:
    """A shard to be made: its file, and the indices of its images in the data set."""

    path: Path
    indices: range


def encode_shards(
    jobs: Sequence[ShardJob],
    images: ImageSource,
    encoder: LatentEncoder,
    batch_size: int,
    workers: int,
    check_unreadable: Callable[[int], None],
    timeout: float,
) -> None:
    """Encode and write shards, shared out among the processes; collective.

    `check_unreadable` is called with the number of images that could not be read so far, and raises when it is too
    high. Raises Preempted in every process after SIGTERM to any of them, and DataError for what cannot be encoded.
    """
    rank, processes = world()
    dealt = [jobs[first::processes] for first in range(processes)]  # whole shards
    # The batches of a shard are the same whichever process encodes it, and how often.
    batches = [[batch for job in each for batch in batched(job.indices, batch_size)] for each in dealt]
    rounds = [batch for round in zip_longest(*batches, fillvalue=range(0)) for batch in round]
    mine, skipped = _encode_share(dealt[rank], batches[rank], images, encoder, workers, timeout), 0
    stopped = Preempted(
        f"stopped by SIGTERM while {jobs[0].path.parent} was written; the shards that are there are whole, and the "
        "same command goes on from them"
    )
    with explaining_loader_errors():
        for _ in shares(rounds, "encoding", stopped):
            skipped += next(mine, 0)
            check_unreadable(int(total(torch.tensor(skipped))))


def _encode_share(
    jobs: Sequence[ShardJob],
    numbers: Sequence[range],
    images: ImageSource,
    encoder: LatentEncoder,
    workers: int,
    timeout: float,
) -> Iterator[int]:
    """Encode the shards of this process; yield after each batch how many of its images could not be read.

    A shard is in memory until its last image is in. Raises WriteError when it cannot be written.
    """
    if not jobs:
        return
    dataset = ImagesToEncode(images, encoder.image_size)
    encoder.to_device()
    batches = iter(make_loader(dataset, [list(batch) for batch in numbers], workers, dataset.collate, timeout))
    for job in jobs:
        most, filled, skipped = len(job.indices), 0, list[Skipped]()
        latents = torch.empty(most, encoder.copies, *encoder.latent_shape, dtype=encoder.dtype)
        labels, index = torch.empty(most, dtype=torch.int32), torch.empty(most, dtype=torch.int64)
        while filled + len(skipped) < most:
            batch = next(batches)
            for found, reason in zip(batch.skipped, batch.reasons, strict=True):
                logger.warning("%s: cannot read %s (%s), leaving it out", images.where, found.name, reason)
            skipped += batch.skipped
            rows = slice(filled, filled + len(batch.indices))
            if len(batch.indices):
                latents[rows] = _finite(encoder(batch.images, batch.indices.tolist()), batch, images, encoder.encoding)
                labels[rows], index[rows] = batch.labels, batch.indices
            filled = rows.stop
            if filled + len(skipped) == most:
                kept = index[:filled]
                captions = None if images.captions is None else images.captions.of(kept.numpy())
                rows_of = latents[:filled], labels[:filled], kept
                write_shard(job.path, *rows_of, skipped, captions, encoder.encoding.layout)
            yield len(batch.skipped)


def _finite(latents: Tensor, batch: Batch, images: ImageSource, made: CacheSettings) -> Tensor:
    """Return the latents of a batch. Raises DataError when some are not finite."""
    finite = latents.isfinite().flatten(1).all(1)
    if not finite.all():
        name = images.names[int(batch.indices[~finite][0])]
        raise DataError(
            f"{images.where}: the latents of {name} are not finite, computed in {made.precision} and stored "
            f"as {made.dtype}; fp16 ends at 65504, so take --dtype bf16 or fp32 and --precision fp32. "
            "If they are not finite in fp32 either, the tokenizer is broken"
        )
    return latents


BATCH = 16


def latent_statistics(
    tokenizer: Tokenizer,
    data: Mapping[str, Any],
    images: int | None,
    precision: Precision,
    workers: int,
    posterior: Posterior = "mean",
    seed: int = 0,
    buckets: BucketIndices | None = None,
    timeout: float = STUCK_SECONDS,
) -> LatentStatistics:
    """Return the statistics of the latents of `images` images of a data set (None: all), evenly spaced; collective.

    `data` is the training data's config; the images are cropped in the middle, and not mirrored, to the sizes that
    `buckets` (n,) say, where there are several. `posterior` "sample" draws latents, from `seed` and the image's place.
    `timeout` is that of :func:`aligntok.data.loader.make_loader`.
    The result does not depend on the number of processes. Raises DataError for latents that are not finite, or do not
    vary.
    """
    dataset = DATASETS.build({**data, "train": False})
    indices = evenly_spaced(len(dataset), images or len(dataset))
    rank, processes = world()
    batches: list[Any] = batched(range(len(indices)), BATCH)
    if buckets is not None:  # found for the training, which reads no header twice
        dataset.buckets = buckets
    if (several := getattr(dataset, "buckets", None)) is not None:  # a batch has images of one size
        batches = [*batches_in_buckets(several[indices], BATCH)]
    size = dataset[indices[0]]["images"].shape[1:]
    encoding = CacheSettings(image_size=tuple(size), hflip=False, precision=precision, posterior=posterior, seed=seed)
    encoder = LatentEncoder(tokenizer, encoding)
    encoder.to_device()
    table = torch.zeros(len(indices), 1 + 2 * tokenizer.latent_dim, dtype=torch.float64)
    stopped = Preempted("stopped by SIGTERM while latents were measured; the same command begins with that again")
    mine = [list(rows) for rows in batches[rank::processes]]
    loaded = iter(make_loader(Subset(dataset, indices), mine, workers, timeout=timeout))
    with explaining_loader_errors():
        for rows in shares(batches, "statistics", stopped):
            encoded = encoder(next(loaded)["images"], [indices[row] for row in rows])
            for row, latents in zip(rows, encoded, strict=True):
                found = Moments.of(latents)
                table[row] = torch.from_numpy(np.concatenate([[found.count], found.mean, found.m2]))
    rows_of_all = total(table).numpy()
    means, squares = np.split(rows_of_all[:, 1:], 2, axis=1)
    parts = [Moments(int(n), m, s) for n, m, s in zip(rows_of_all[:, 0], means, squares, strict=True)]
    statistics = LatentStatistics.of(Moments.merged(parts))
    check_varies(statistics, len(indices))
    return statistics


def check_varies(statistics: LatentStatistics, images: int) -> None:
    """Raise DataError unless the latents of so many images can be normalised: finite, and no channel constant."""
    if not (np.isfinite(statistics.mean).all() and min(statistics.std) > 0):
        raise DataError(
            f"the latents of {images} images are not finite, or a channel of them is constant (deviations "
            f"{', '.join(f'{s:.3g}' for s in statistics.std)}); this tokenizer cannot be trained on"
        )
