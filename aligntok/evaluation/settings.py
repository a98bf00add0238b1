"""What evaluations are told: the options of each, one field each, for Python and its command alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from aligntok.errors import ConfigError, distinct
from aligntok.settings import (
    BatchSize,
    Count,
    ImageSize,
    NotNegative,
    Positive,
    Precision,
    Workers,
    settings,
)

#: See :mod:`aligntok.evaluation.text_image.needs`.
TextImageMetric = Literal[
    "hpsv2", "hpsv2.1", "pickscore", "imagereward", "aesthetic", "clip", "vqascore", "geneval", "geneval2", "dpg"
]
FEWEST = 20  # images and points: below, neither neighbours nor densities mean anything

#: Keys of a training, or beginnings of them, that its numbers do not depend on, or not beyond rounding.
NEUTRAL = (
    *("checkpoint", "log", "validation", "compile", "grad_checkpointing", "attention", "parallel"),
    *("data.workers", "data.timeout", "data.val", "data.nominal_images"),
    *(f"data.train.{name}" for name in ("root", "index", "cache", "threads")),
)


@settings
class DataSettings:
    """Which images an evaluation is of, and what reads them."""

    data: str | Path
    """Images: a folder, a zip, shards, parquet files, or hf://owner/name."""
    image_size: ImageSize = 256
    """Pixels: a side, or height and width."""
    workers: Workers = 2
    """Processes that read images, for each that measures."""


@settings(renamed={"num": "num_images"})
class ImageSettings(DataSettings):
    """Which images of a data set an evaluation is of, and how they are read."""

    split: str | None = None
    """Of the data: a subfolder, or a word in the names of its files."""
    num_images: Positive | None = None
    """Images, evenly spread over the data; None: all."""
    batch_size: BatchSize = 32
    """Images at once, of one process."""
    label: str | None = None
    """Where the labels are, of several places: a column of a table, `cls` or a key of the JSON of shards."""
    val_fraction: float | None = None
    """Take only the images that a training with this `data.val.fraction` holds out."""


@settings
class LatentAnalysis(ImageSettings):
    """Measure and show the latent spaces of tokenizers on the same images, beside a pretrained encoder's: CKNNA,
    spatial variance, total variation, density on a t-SNE, PCA pictures. Under torchrun every process takes its share.

        aligntok analyze-latents work_dirs/my_run work_dirs/other /data/imagenet
        aligntok analyze-latents work_dirs/my_run /data/imagenet --num-images 1000
    """

    tokenizers: Annotated[tuple[str | Path, ...], Field(min_length=1)]
    """Work folders or stages, saved tokenizers, hub ids."""
    out: str | Path | None = None
    """The folder to write; None: evaluation/latent_space of the only tokenizer, or in the current folder."""
    encoder: str | dict[str, Any] = "dinov2"
    """Reference: an encoder's name, timm:MODEL, open_clip:MODEL; in Python also a config."""
    encoder_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keywords of the encoder, such as size=base; a factor that is not given is the tokenizers', if they have one."""
    names: tuple[str, ...] | None = None
    """Of the tokenizers in tables; None: from their paths."""
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
    pca_images: Annotated[int, Field(ge=1, le=1000)] = 6
    """Rows of the PCA picture."""
    precision: Precision = "fp32"
    """Of the models' arithmetic."""

    def __post_init__(self) -> None:
        distinct(seeds=self.seeds)


@settings
class ReconstructionSettings(ImageSettings):
    """Measure the reconstructions of images: PSNR, SSIM, perceptual distances and rFID. Under torchrun every process
    takes its share. Numbers go to the terminal, a JSON file, TensorBoard and a report to read.

        aligntok evaluate reconstruction work_dirs/my_run /data/imagenet
        aligntok evaluate reconstruction my_tokenizer /data/imagenet --num-images 5000 --json
    """

    tokenizer: str | Path
    """A work folder or stage, a saved tokenizer, a published checkpoint, a hub id."""
    out: str | Path | None = None
    """The folder to write; None: TOKENIZER/evaluation/reconstruction_<data>."""
    weights: Literal["raw", "ema"] | None = None
    """Of a work folder; None: averages where they are kept."""
    extractor: str | dict[str, Any] | None = "inception_v3"
    """Features to compare on: inception_v3, perhaps with :/path/to/its/weights, timm:MODEL, open_clip:MODEL/TAG, or the
    name of an extractor or encoder that a plugin adds; None: no Fréchet distance; in Python also a config."""
    extractor_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keywords of it, such as size=96."""
    perceptual: tuple[str | dict[str, Any], ...] | None = ("lpips",)
    """Distances: names of losses; in Python also configs."""
    perceptual_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keywords of each of them, such as net=alex."""
    precision: Precision = "fp32"
    """Of the tokenizer's arithmetic."""
    table: Literal["csv", "parquet"] = "csv"
    """Format of the table of every image's values."""


@settings(renamed={"num": "num_samples"})
class GenerationSettings:
    """Measure samples against a reference: FID, sFID, IS, precision, recall, KID, density, coverage. Under torchrun
    every process takes its share. Numbers go to the terminal, a JSON file, TensorBoard and a report to read.

        aligntok evaluate generation samples --reference reference.safetensors
        aligntok evaluate generation samples --reference VIRTUAL_imagenet256_labeled.npz
    """

    samples: str | Path
    """A folder that tools/sample.py wrote, a folder or zip of pictures, or an .npz with arr_0."""
    reference: str | Path
    """A file of make-reference, or ADM's .npz."""
    out: str | Path | None = None
    """The folder to write; None: evaluation/... in tools/sample.py's folder, else here."""
    extractor: str | dict[str, Any] = "inception_v3"
    """The reference's features; as for reconstructions."""
    extractor_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keywords of it, such as size=96."""
    num_samples: Positive | None = None
    """Samples, evenly spread over those there are; None: all."""
    batch_size: BatchSize = 32
    """Samples at once, of one process."""
    workers: Workers = 2
    """Processes that read samples, for each that measures."""


@settings
class TextImageSettings:
    """Measure pictures against the prompts that they were drawn from: HPSv2, PickScore, ImageReward, aesthetic, CLIP
    score, VQAScore, GenEval, GenEval 2 and DPG-Bench, each on weights of yours. Under torchrun every process takes its
    share. Of two folders also who wins.

        aligntok evaluate text-image samples --metrics clip --weights clip=/weights/clip-vit-large-patch14
        aligntok evaluate text-image samples --metrics hpsv2.1 --weights hpsv2.1=/weights/HPS_v2.1_compressed.pt
    """

    samples: Annotated[tuple[str | Path, ...], Field(min_length=1, max_length=2)]
    """A folder of pictures with a prompts.jsonl, as sample --prompts writes it, or two."""
    metrics: Annotated[tuple[TextImageMetric, ...], Field(min_length=1)]
    """What to measure."""
    weights: dict[str, str] = dataclasses.field(default_factory=dict)
    """Where the weights are: hpsv2, hpsv2.1 and aesthetic are files; pickscore, imagereward, clip, vqa and detector
    folders."""
    prompt_set: tuple[str | Path, ...] = ()
    """Files of the prompts with their categories; of GenEval, GenEval 2 and DPG-Bench their files of questions."""
    out: str | Path | None = None
    """The folder to write; None: evaluation/text_image in the first folder of samples, else here."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the model that answers questions; all others are float32."""
    batch_size: BatchSize = 32
    """Pictures at once, of one process."""
    workers: Workers = 2
    """Processes that read pictures, for each that measures."""


@settings
class ReferenceSettings(ImageSettings):
    """Make the statistics of real images that samples are held to. Under torchrun every process takes its share.

    aligntok evaluate make-reference /data/imagenet reference.safetensors
    aligntok evaluate make-reference /data/imagenet reference.safetensors --image-size 256
    """

    out: str | Path
    """The file to write, such as imagenet256.safetensors."""
    name: str | None = None
    """What results call it; None: the file's name."""
    extractor: str | dict[str, Any] = "inception_v3"
    """Features to keep; as for reconstructions."""
    extractor_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keywords of it, such as size=96."""
    keep_features: Count = 10_000
    """Images, evenly spread, whose features are kept for KID, precision, recall, density and coverage."""


@settings
class ProbeSettings(DataSettings):
    """Train a linear classifier on a tokenizer's frozen latents and measure it: top-1 and top-5. The defaults are the
    paper's. Under torchrun every process takes its share.

        aligntok evaluate linear-probe work_dirs/my_run /data/imagenet
        aligntok evaluate linear-probe my_tokenizer /data/imagenet --epochs 10 --batch-size 256
    """

    tokenizer: str | Path
    """A work folder or stage, a saved tokenizer, a published checkpoint, a hub id."""
    data: str | Path
    """Images with classes: a folder, a zip, shards, parquet files, or hf://owner/name."""
    out: str | Path | None = None
    """The folder to write; None: TOKENIZER/evaluation/linear_probe."""
    train_split: str = "train"
    """The images to train on."""
    val_split: str = "val"
    """The images to measure on."""
    label: str | None = None
    """Where the labels are, of several places: a column of a table, `cls` or a key of the JSON of shards."""
    num_train: Positive | None = None
    """Only so many, evenly spread; None: all."""
    num_val: Positive | None = None
    """Only so many, evenly spread; None: all."""
    weights: Literal["raw", "ema"] | None = None
    """Of a work folder; None: averages where they are kept."""
    precision: Precision = "fp32"
    """Of the tokenizer's and the probe's arithmetic."""
    encode_batch_size: BatchSize = 32
    """Images encoded at once, of one process."""
    memory_gb: NotNegative = 16.0
    """For features, of one process; what takes more is encoded anew each epoch, with the same result."""
    epochs: Positive = 3
    """Over the training images."""
    lr: Annotated[float, Field(ge=1e-12, le=100)] = 1e-3
    """Of Adam, constant."""
    batch_size: BatchSize = 256
    """Images of a step, all processes; the last of an epoch perhaps fewer."""
    seed: Count = 0
    """Of the order and the first weights."""
    pool: bool = False
    """Take the latents' means over positions instead of all their numbers."""
    standardize: bool = False
    """Bring features to mean 0 and deviation 1 over the training images."""

    def __post_init__(self) -> None:
        if self.train_split == self.val_split:
            raise ConfigError(
                f"train_split and val_split are both '{self.val_split}'; a probe is measured on other images"
            )


@settings
class ReconstructRequest:
    """Encode and decode pictures of your own: a file each in a folder, and the PSNR of each.

    aligntok reconstruct my_tokenizer cat.png --out reconstructions
    aligntok reconstruct work_dirs/my_run photographs --out reconstructions --size 256 --side-by-side
    """

    tokenizer: str | Path
    """A work folder or stage, a saved tokenizer, a published checkpoint, a hub id."""
    images: Annotated[tuple[str | Path, ...], Field(min_length=1)]
    """Images, and folders of images, which are searched to any depth."""
    out: str | Path
    """The folder to write; what is of a folder lies in it as in that."""
    size: ImageSize | None = None
    """Resize and cut to this side, or HxW; None: only cut the sides to multiples of f."""
    side_by_side: bool = False
    """Show the image, what comes back, and the error."""
    device: str | None = None
    """Such as cpu, cuda:1, mps; None: a GPU if there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """What is computed in; None: float32."""
    force: bool = False
    """Overwrite what is there."""


@settings
class ComparisonRequest:
    """Train the tokenizers that a comparison's config names, at one budget of images, the same generator on each, and
    measure all of them alike. Says beforehand what it takes. The same command started again goes on where it stopped;
    under torchrun every process takes its share.

        aligntok compare configs/small/comparison.py --dry-run
        aligntok compare configs/small/comparison.py --only aligntok
    """

    config: str | Path
    """A comparison's config file, such as my_comparison.py."""
    work_dir: str | Path | None = None
    """Where everything is written; None: work_dirs/<config name>."""
    dry_run: bool = False
    """Say what it takes, and stop."""
    only: tuple[str, ...] | None = None
    """Train and measure only these tokenizers, so that several share the work."""
    cfg_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Override the comparison's keys."""


@settings
class ReportSettings:
    """Write one self-contained HTML page about everything found in work folders: training curves, reconstructions,
    samples, guidance sweeps and results of evaluations; several are shown side by side.

        aligntok report work_dirs/my_run
        aligntok report work_dirs/my_run work_dirs/other --out report.html
    """

    runs: tuple[str | Path, ...]
    """Work folders, samples, sweeps, evaluations, or results' JSON files."""
    out: str | Path | None = None
    """The page to write; None: report.html in the first of the runs."""
    title: str | None = None
    """Of the page; None: the names of the runs."""
