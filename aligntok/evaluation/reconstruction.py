"""How well a tokenizer reconstructs a set of images: numbers, a table of every image, the worst and the best."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from aligntok.caching.encoder import ImagesToEncode, latent_shape
from aligntok.device import computing, device, explaining_out_of_memory, multiplying
from aligntok.distributed import barrier, is_first
from aligntok.distributed.job import job
from aligntok.errors import ConfigError
from aligntok.evaluation.images import RESIZE, EvaluationImages
from aligntok.evaluation.metrics.online import ImageRow, ReconstructionMetric
from aligntok.evaluation.results import Result, check_out, default_folder, identity, publish
from aligntok.evaluation.settings import ReconstructionSettings
from aligntok.io.files import replacing
from aligntok.io.pictures import reconstruction_grid, save_picture, to_picture
from aligntok.loading import load_tokenizer
from aligntok.tokenizer import Tokenizer

SHOWN = 8  # images in each of the pictures of the worst and the best


def evaluate_reconstruction(asked: ReconstructionSettings) -> Result:
    """Measure the reconstructions of images: PSNR, SSIM, perceptual distances and rFID (paper, Tables 3 and 10).

    The tokenizer is what :func:`load_tokenizer` takes, data what :class:`EvaluationImages` does, perceptual and
    extractor what :class:`ReconstructionMetric` does.

    Writes into `out` (None: ``evaluation/`` in the tokenizer's folder) ``reconstruction.json``, ``per_image.csv``,
    ``worst.png`` and ``best.png`` (input | reconstruction | error, by PSNR) and ``report.html``. Collective under
    torchrun. Raises ConfigError and WeightsError for what cannot be measured with, DataError for the images,
    Preempted after SIGTERM.
    """
    check_table(asked.table)
    name = folder_name(asked.data, asked.split)
    folder = default_folder(asked.tokenizer, name) if asked.out is None else Path(asked.out).expanduser()
    with job(), multiplying(asked.precision):  # perceptual distances as the tokenizer
        check_out(folder)
        images = EvaluationImages(
            asked.data, asked.image_size, asked.split, asked.num_images, asked.batch_size, asked.workers
        )
        weights: dict[str, Any] = {} if asked.weights is None else {"weights": asked.weights}
        model = load_tokenizer(asked.tokenizer, **weights)
        latent_shape(model, images.image_size)
        reconstruct = Reconstruction(model, asked.precision)
        perceptual = [
            {**({"type": each} if isinstance(each, str) else each), **asked.perceptual_options}
            for each in asked.perceptual or ()
        ]
        metric = ReconstructionMetric(perceptual, asked.extractor)
        metrics = measure(reconstruct, images, metric)
        settings = {
            "data": str(asked.data),
            "split": asked.split,
            "image_size": list(images.image_size),
            "resize": RESIZE,
            "images": len(metric.rows),
            "unreadable": images.skipped,
            "tokenizer": {"identity": identity(model), "weights": asked.weights},
            "precision": asked.precision,
            "perceptual": perceptual,
            "extractor": None if metric.extractor is None else metric.extractor.title,
        }
        result = Result("reconstruction", str(asked.tokenizer), metrics, settings, pictures=PICTURES)
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
            write_table(folder, metric, images, asked.table)
            write_extremes(folder, metric.rows, reconstruct, images)
            publish(result, folder)
        barrier()
    return result


PICTURES = {"The worst reconstructions by PSNR": "worst.png", "The best reconstructions by PSNR": "best.png"}


def folder_name(data: str | os.PathLike[str], split: str | None) -> str:
    """Return the name of the folder of a result on `data`."""
    return f"reconstruction_{Path(str(data)).stem}" + (f"_{split}" if split else "")


def check_table(table: str) -> None:
    """Raise ConfigError for a format that tables are not written in without a library."""
    if table == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ConfigError("table 'parquet' needs pyarrow: pip install aligntok[parquet], or take csv") from error


class Reconstruction:
    """A tokenizer on this process's device, as what turns images (N, 3, H, W) in [-1, 1] into reconstructions."""

    def __init__(self, tokenizer: Tokenizer, precision: str = "fp32") -> None:
        self.tokenizer = tokenizer.to(device()).eval()
        self.precision = precision

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        what = f"{len(images)} images of {' x '.join(map(str, images.shape[-2:]))}"
        with explaining_out_of_memory(what, "lower the batch size"), computing(self.precision):
            return self.tokenizer.reconstruct(images.to(device())).float()


def measure(reconstruct: Reconstruction, images: EvaluationImages, metric: ReconstructionMetric) -> dict[str, float]:
    """Reconstruct and measure all images; collective. Returns the metrics without mmengine's prefix."""
    for _, batch in images.read():
        made = reconstruct(batch.images)
        rows = zip(batch.images.to(made.device), made, batch.places.tolist(), strict=True)
        metric.process(batch, [dict(images=x, reconstruction=y, index=place) for x, y, place in rows])
    return {name.rpartition("/")[2]: value for name, value in metric.evaluate(len(images)).items()}


def write_table(folder: Path, metric: ReconstructionMetric, images: EvaluationImages, form: str) -> Path:
    """Write a row an image, in the order of the data: its name, PSNR, SSIM and distances."""
    columns = ["name", "psnr", "ssim", *metric.distances]
    rows = [[images.source.names[row.place], row.psnr, row.ssim, *row.distances] for row in metric.rows]
    path = folder / f"per_image.{form}"
    if form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        content = pa.table({column: [row[i] for row in rows] for i, column in enumerate(columns)})
        with replacing(path) as temporary:
            pq.write_table(content, temporary)
        return path
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def write_extremes(
    folder: Path, rows: Sequence[ImageRow], reconstruct: Reconstruction, images: EvaluationImages
) -> None:
    """Write ``worst.png`` and ``best.png``: input | reconstruction | error of the images of lowest and highest PSNR."""
    ordered = sorted(rows, key=lambda row: (row.psnr, row.place))
    pixels = ImagesToEncode(images.source, images.image_size)
    each = min(SHOWN, max(1, len(ordered) // 2))  # of a few images none is among both
    for name, chosen in (("worst", ordered[:each]), ("best", ordered[::-1][:each])):
        shown = [torch.as_tensor(pixels[row.place][2]) for row in chosen]
        made = [reconstruct(image[None])[0].cpu() for image in shown]
        save_picture(folder / f"{name}.png", to_picture(reconstruction_grid(shown, made)))
