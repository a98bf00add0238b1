"""Latents read a second: from our cache, and one `safetensors.safe_open` a sample as published readers do.

    python benchmarks/latent_reading.py --images 8192 --rounds 7 --workers 0 2
    python benchmarks/latent_reading.py --cold       # the files are dropped from the system's cache before each round

Both read the same random latents of 32 x 16 x 16 float32 with a mirrored copy, in the same random order, shuffled over
all shards, in batches from a DataLoader, flipped at random and normalised. The published layout is that of
LightningDiT: files with `latents`, `latents_flip` and `labels`, opened for each sample. Ours is read with the default
collation, and with `collate_fn=dataset.collate`. The three take turns; each line has the medians over rounds of latents
a second and, in brackets, of the rounds' ratios to the published way.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from copy import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from aligntok.data.latent_shards import LatentStatistics, Manifest, Moments, Shard, shard_path, write_shard
from aligntok.data.latents import LatentDataset
from aligntok.data.sampler import GlobalBatchSampler

SHAPE = (32, 16, 16)


class OpenedForEachSample(Dataset[Any]):
    """The published way: one file opened for each sample."""

    def __init__(self, files: list[Path], shard_size: int, normaliser: tuple[Tensor, Tensor]) -> None:
        self.files, self.shard_size = files, shard_size
        self.mean, self.std = normaliser

    def __getitem__(self, request: Any) -> tuple[Tensor, Tensor]:
        number, row = divmod(request.index, self.shard_size)
        with safe_open(self.files[number], framework="pt", device="cpu") as file:
            name = "latents" if np.random.uniform(0, 1) > 0.5 else "latents_flip"
            latents = file.get_slice(name)[row : row + 1]
            label = file.get_slice("labels")[row : row + 1]
        return ((latents - self.mean) / self.std).squeeze(0), label.squeeze(0)


def write_both(folder: Path, images: int, shard_size: int) -> tuple[OpenedForEachSample, LatentDataset]:
    """Write the same random latents in both layouts, and open them."""
    published, ours, random = [], [], torch.Generator().manual_seed(0)
    for number, start in enumerate(range(0, images, shard_size)):
        index = torch.arange(start, min(start + shard_size, images))  # fewer in the last
        latents, labels = torch.randn(len(index), 2, *SHAPE, generator=random), index % shard_size % 1000
        published.append(folder / f"published_{number}.safetensors")
        tensors = {"latents": latents[:, 0].contiguous(), "latents_flip": latents[:, 1].contiguous(), "labels": labels}
        save_file(tensors, published[-1])
        write_shard(shard_path(folder, number), latents, labels, index, [])
        ours.append(Shard(shard_path(folder, number)))
    found = LatentStatistics.of(Moments.merged([shard.moments for shard in ours]))
    settings = {"format": 1, "hflip": True, "dtype": "fp32", "tokenizer": {"identity": "none", "source": "random"}}
    entries = [{"file": shard.path.name, "images": shard.images, "bytes": shard.bytes} for shard in ours]
    manifest = Manifest(settings, images, SHAPE, found, (), entries, ())
    (folder / "manifest.json").write_text(json.dumps(manifest.as_json()))
    return OpenedForEachSample(published, shard_size, found.tensors()), LatentDataset(folder)


def drop_from_memory(folder: Path) -> None:
    """Let the system forget what it has read of the files, so that they come from disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rate(loader: DataLoader[Any], batches: int, batch_size: int) -> float:
    """Return the latents a second of a loader; the first batch, for which the workers start, is not timed."""
    arriving = iter(loader)
    next(arriving)
    start = time.perf_counter()
    for _ in arriving:
        pass
    return batches * batch_size / (time.perf_counter() - start)


def compare(folder: Path, published: Dataset[Any], ours: LatentDataset, workers: int, given: argparse.Namespace) -> str:
    """Let the ways take turns for some rounds; return a line about them."""
    ways = {
        "safe_open a sample": (published, default_collate, given.batches[0]),
        "ours, default collation": (ours, default_collate, given.batches[1]),
        "ours": (ours, ours.collate, given.batches[1]),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for seed in range(given.rounds):
        for name, (dataset, collate, batches) in ways.items():
            if given.cold:
                drop_from_memory(folder)
                dataset = copy(dataset)  # nothing is mapped in it yet, and what a process has mapped is not dropped
            sampler = GlobalBatchSampler(given.images, given.batch_size, seed, num_steps=batches + 1)
            loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate)
            rates[name].append(rate(loader, batches, given.batch_size))
            del dataset, loader
    line = f"{workers} workers"
    for name, found in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(found, rates["safe_open a sample"], strict=True)]
        line += f" | {name} {statistics.median(found):.0f}/s ({statistics.median(ratios):.1f} x)"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--shard-size", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs=2, default=[6, 30], help="of a round: published way, ours")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--cold", action="store_true", help="read from disk")
    given = parser.parse_args()
    with TemporaryDirectory(dir=".") as name:
        datasets = write_both(Path(name), given.images, given.shard_size)
        for workers in given.workers:
            print(compare(Path(name), *datasets, workers, given), flush=True)


if __name__ == "__main__":
    main()
