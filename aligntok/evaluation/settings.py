"""What evaluations are told: the options of each, one field each, for Python and its command alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from aligntok.settings import Count, ImageSize, Positive, Precision, settings

FEWEST = 20  # images and points: below, neither neighbours nor densities mean anything


@settings(renamed={"num": "num_images"})
class LatentAnalysis:
    """Measure and show the latent spaces of tokenizers on the same images, beside a pretrained encoder's: CKNNA,
    spatial variance, total variation, density on a t-SNE, PCA pictures. Under torchrun every process takes its share.
    """

    tokenizers: Annotated[tuple[str | Path, ...], Field(min_length=1)]
    """Work folders or stages, saved tokenizers, hub ids."""
    data: str | Path
    """Images: a folder, a zip, shards, parquet files, or hf://owner/name."""
    out: str | Path | None = None
    """The folder to write; None: evaluation/latent_space of the only tokenizer, or in the current folder."""
    encoder: str | dict[str, Any] = "dinov2"
    """Reference: an encoder's name, timm:MODEL, open_clip:MODEL; in Python also a config."""
    encoder_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keywords of the encoder, such as size=base; a factor that is not given is the tokenizers', if they have one."""
    names: tuple[str, ...] | None = None
    """Of the tokenizers in tables; None: from their paths."""
    image_size: ImageSize = 256
    """Pixels: a side, or height and width."""
    split: str | None = None
    """Of the data: a subfolder, or a word in the names of its files."""
    num_images: Annotated[int, Field(ge=FEWEST)] | None = 10_000
    """Images, evenly spread over the data; None: all."""
    weights: Literal["raw", "ema"] | None = None
    """Of work folders; None: averages where they are kept."""
    topk: Positive = 10
    """Neighbours of CKNNA."""
    tsne_points: Annotated[int, Field(ge=FEWEST)] = 5000
    """Latents in a t-SNE, one an image, drawn anew for each seed."""
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)] = (0, 1, 2)
    """Of the t-SNEs."""
    pca_images: Positive = 6
    """Rows of the PCA picture."""
    precision: Precision = "fp32"
    """Of the models' arithmetic."""
    batch_size: Positive = 32
    """Images at once, of one process."""
    workers: Count = 2
    """Processes that read images, for each that encodes."""
