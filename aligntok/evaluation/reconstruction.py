"""How well a tokenizer reconstructs a set of images: numbers, a table of every image, the worst and the best."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from aligntok.caching.encoder import latent_shape
from aligntok.device import precision_taken
from aligntok.errors import ConfigError
from aligntok.evaluation.images import EvaluationImages, frozen
from aligntok.evaluation.metrics.online import ImageRow, ReconstructionMetric
from aligntok.evaluation.results import Result, evaluating, identity, publish, result_folder
from aligntok.evaluation.settings import ReconstructionSettings
from aligntok.imports import FAILURES, import_failure
from aligntok.io.files import replacing, writing_text
from aligntok.io.pictures import reconstruction_grid, save_picture, to_picture
from aligntok.loading import load_tokenizer
from aligntok.registry import with_keywords

SHOWN = 8  # images in each of the pictures of the worst and the best
PICTURES = {"The worst reconstructions by PSNR": "worst.png", "The best reconstructions by PSNR": "best.png"}


def evaluate_reconstruction(asked: ReconstructionSettings) -> Result:
    """Measure the reconstructions of images: PSNR, SSIM, perceptual distances and rFID (paper, Tables 3 and 10).

    The tokenizer is what :func:`load_tokenizer` takes, data what :class:`EvaluationImages` does, perceptual and
    extractor what :class:`ReconstructionMetric` does.

    Writes into `out` (None: ``evaluation/`` in the tokenizer's folder) ``reconstruction.json``, ``per_image.csv``,
    ``worst.png`` and ``best.png`` (input | reconstruction | error, by PSNR) and ``report.html``. Collective under
    torchrun. Raises ConfigError and WeightsError for what cannot be measured with, DataError for the images,
    Preempted after SIGTERM.
    """
    if asked.table == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except FAILURES as error:
            raise ConfigError(f"table 'parquet' needs pyarrow, or take csv: {import_failure(error)}") from error
    name = f"reconstruction_{Path(str(asked.data)).stem}" + (f"_{asked.split}" if asked.split else "")
    folder = result_folder(asked.out, asked.tokenizer, name)
    with evaluating(folder, asked.precision):
        images = EvaluationImages(asked)
        model = load_tokenizer(asked.tokenizer, weights=asked.weights)
        latent_shape(model, images.image_size)
        reconstruct = frozen(model, asked.precision)
        perceptual = [
            {**({"type": each} if isinstance(each, str) else each), **asked.perceptual_options}
            for each in asked.perceptual or ()
        ]
        extractor = with_keywords(asked.extractor, asked.extractor_options, "extractor_options")
        metric = ReconstructionMetric(perceptual, extractor)
        for batch in images:
            made = reconstruct(batch.images)
            rows = zip(batch.images.to(made.device), made, batch.indices.tolist(), strict=True)
            metric.process(batch, [dict(images=x, reconstruction=y, index=place) for x, y, place in rows])
        metrics = {name.rpartition("/")[2]: value for name, value in metric.evaluate(len(images)).items()}
        settings = {
            "data": str(asked.data),
            **images.described,
            "tokenizer": {"identity": identity(model), "weights": asked.weights},
            "precision": precision_taken(asked.precision),
            "perceptual": perceptual,
            "extractor": metric.extractor and {"title": metric.extractor.title, "identity": metric.extractor.identity},
        }

        def write(folder: Path) -> None:
            write_table(folder / f"per_image.{asked.table}", metric, images)
            write_extremes(folder, metric.rows, reconstruct, images)

        return publish(
            Result("reconstruction", str(asked.tokenizer), metrics, settings, pictures=PICTURES), folder, write
        )


def write_table(path: Path, metric: ReconstructionMetric, images: EvaluationImages) -> None:
    """Write a row an image, in the order of the data: its name, PSNR, SSIM and distances; as CSV, or Parquet."""
    columns = ["name", "psnr", "ssim", *metric.distances]
    names = [images.source.names[row.place].encode(errors="backslashreplace").decode() for row in metric.rows]
    rows = [[name, row.psnr, row.ssim, *row.distances] for name, row in zip(names, metric.rows, strict=True)]
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        with replacing(path) as temporary:
            pq.write_table(pa.table({column: [row[i] for row in rows] for i, column in enumerate(columns)}), temporary)
        return
    with writing_text(path) as file:
        csv.writer(file).writerows([columns, *rows])


def write_extremes(
    folder: Path, rows: Sequence[ImageRow], reconstruct: Callable[[Tensor], Tensor], images: EvaluationImages
) -> None:
    """Write ``worst.png`` and ``best.png``: input | reconstruction | error of the images of lowest and highest PSNR."""
    ordered = sorted(rows, key=lambda row: (row.psnr, row.place))
    each = min(SHOWN, max(1, len(ordered) // 2))  # of a few images none is among both
    for name, chosen in (("worst", ordered[:each]), ("best", ordered[::-1][:each])):
        shown = [torch.as_tensor(images.dataset[row.place][2]) for row in chosen]
        made = [reconstruct(image[None])[0].cpu() for image in shown]
        save_picture(folder / f"{name}.png", to_picture(reconstruction_grid(shown, made)))
