"""Mean and deviation of latents that are not cached: of a part of the images, encoded once before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from aligntok.data.latent_shards import LatentStatistics, Moments
from aligntok.data.loader import explaining_loader_errors, make_loader
from aligntok.data.sampler import evenly_spaced
from aligntok.distributed import total, world
from aligntok.distributed.job import batched, shares
from aligntok.errors import DataError, Preempted
from aligntok.registry import DATASETS
from aligntok.tokenizer import Tokenizer
from aligntok.training.latent_encoding import Encoding, LatentEncoder

BATCH = 16


def latent_statistics(
    tokenizer: Tokenizer,
    data: Mapping[str, Any],
    images: int | None,
    precision: str,
    workers: int,
    posterior: str = "mean",
    seed: int = 0,
) -> LatentStatistics:
    """Return the statistics of the latents of `images` images of a data set (None: all), evenly spaced; collective.

    `data` is the training data's config; the images are cropped in the middle, and not mirrored. `posterior` "sample"
    draws latents, from `seed` and the image's place. The result does not depend on the number of processes. Raises
    DataError for latents that are not finite, or do not vary.
    """
    dataset = DATASETS.build({**data, "train": False})
    places = evenly_spaced(len(dataset), images or len(dataset))
    rank, processes = world()
    batches = batched(range(len(places)), BATCH)
    size = dataset[places[0]]["images"].shape[1:]
    encoding = Encoding(image_size=tuple(size), hflip=False, precision=precision, posterior=posterior, seed=seed)
    encoder = LatentEncoder(tokenizer, encoding)
    encoder.to_device()
    table = torch.zeros(len(places), 1 + 2 * tokenizer.latent_dim, dtype=torch.float64)
    stopped = Preempted("stopped by SIGTERM while latents were measured; the same command begins with that again")
    loaded = iter(make_loader(Subset(dataset, places), [list(rows) for rows in batches[rank::processes]], workers))
    with explaining_loader_errors():
        for rows in shares(batches, "statistics", stopped):
            encoded = encoder(next(loaded)["images"], [places[row] for row in rows])
            for row, latents in zip(rows, encoded, strict=True):
                found = Moments.of(latents)
                table[row] = torch.from_numpy(np.concatenate([[found.count], found.mean, found.m2]))
    rows_of_all = total(table).numpy()
    means, squares = np.split(rows_of_all[:, 1:], 2, axis=1)
    parts = [Moments(int(n), m, s) for n, m, s in zip(rows_of_all[:, 0], means, squares, strict=True)]
    statistics = LatentStatistics.of(Moments.merged(parts))
    if not (np.isfinite(statistics.mean).all() and min(statistics.std) > 0):
        raise DataError(
            f"the latents of {len(places)} images are not finite, or a channel of them is constant (deviations "
            f"{', '.join(f'{s:.3g}' for s in statistics.std)}); this tokenizer cannot be trained on"
        )
    return statistics
