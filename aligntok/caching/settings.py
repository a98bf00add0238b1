"""What a cache of latents is told: what fixes its content, and where and how it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from aligntok.settings import BatchSize, Count, ImageSize, Positive, Precision, Workers, settings

Posterior = Literal["mean", "sample"]


@settings
class CacheContent:
    """What fixes the content of a cache, beside tokenizer, images and seed.

    Images are resized to cover their size (Pillow's antialiased bicubic) and cropped in the middle.
    """

    image_size: ImageSize = 256
    """Pixels: a side, or height and width."""
    hflip: bool = True
    """Encode the mirrored image, too."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the stored latents."""
    precision: Precision = "fp32"
    """Of the tokenizer's arithmetic."""
    shard_size: Positive | None = None
    """Images in a file; None: 4096, of LightningDiT's layout 10000."""
    posterior: Posterior = "mean"
    """What is taken of a variational tokenizer's posterior."""
    label: str | None = None
    """Where the labels are, of several places: a column of a table, `cls` or a key of the JSON of shards."""
    caption: str | None = None
    """Keep captions: "auto" finds where they are, of several places one is named; None: keep none."""
    max_uncaptioned: Count = 0
    """So many images without a caption are left out, where captions are kept; more are an error."""
    val_fraction: float | None = None
    """Leave out the images that a tokenizer's training with this `data.val.fraction` holds out."""


@settings
class LatentCacheSettings(CacheContent):
    """A cache of latents that is made before the training."""

    split: str | None = None
    """Which part of `data_root` is encoded, as `tools/cache_latents.py --split`."""
    batch_size: BatchSize = 32
    """Images at once, of one process."""
    workers: Workers = 4
    """Processes that read images, for each that encodes."""


@settings
class CacheSettings(CacheContent):
    """What fixes the content of a cache, beside tokenizer and images."""

    seed: Count = 0
    """Of a sample of the posterior, which follows from it, the image's place and its copy alone."""
    layout: Literal["aligntok", "lightningdit"] = "aligntok"
    """Of the files: ours, or what LightningDiT trains on, which generators here do, too."""

    @property
    def images_a_shard(self) -> int:
        """Images in a file."""
        return self.shard_size or (4096 if self.layout == "aligntok" else 10_000)


@settings(renamed={"no_flip": "no_hflip"})
class CacheRequest(CacheSettings):
    """Encode a data set into shards of latents with their mean and deviation. The same command started again goes on
    where it stopped; under torchrun every process takes its share.

        aligntok cache-latents work_dirs/my_run /data/imagenet latents
        aligntok cache-latents work_dirs/my_run /data/imagenet latents --image-size 256 --dtype bf16
    """

    tokenizer: str | Path
    """A work folder or stage, a saved tokenizer, a published checkpoint, a hub id."""
    data: str | Path
    """Images: a folder, a zip, shards, parquet files, or hf://owner/name."""
    out: str | Path
    """The folder to write."""
    split: str | None = None
    """Of the data: a subfolder, or a word in the names of its files."""
    weights: Literal["raw", "ema"] | None = None
    """Of a work folder; None: averages where they are kept."""
    batch_size: BatchSize = 32
    """Images at once, of one process."""
    workers: Workers = 4
    """Processes that read images, for each that encodes."""
    max_unreadable: Count | None = None
    """Images that may be left out; None: 1 % of them, rounded up."""
