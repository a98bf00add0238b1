"""What the distances of samples are read against: those of real images themselves, and of their reconstructions.

All are measured against the same reference and on as many images as there are samples, so that a finite set's bias is
in each of them: what a generator adds is its distance less that of its tokenizer's reconstructions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from aligntok.distributed import barrier, is_first
from aligntok.evaluation.comparison.plan import Arm, Comparison
from aligntok.evaluation.images import EvaluationImages
from aligntok.evaluation.metrics.image_quality import to_pixels
from aligntok.evaluation.metrics.online import GenerationMetric
from aligntok.evaluation.reconstruction import Reconstruction
from aligntok.evaluation.results import Result
from aligntok.loading import load_tokenizer

RECONSTRUCTIONS = "reconstructions"  # begins the names of both: images are what a perfect tokenizer makes of them


def measure_images(comparison: Comparison, metrics: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write how far held-out images themselves are from the references: no generator can be expected nearer."""
    _write(comparison, metrics, folder, lambda images: images)


def measure_reconstructions(
    comparison: Comparison, arm: Arm, metrics: Sequence[Mapping[str, Any]], folder: Path
) -> None:
    """Write how far an arm's reconstructions of held-out images are from the references."""
    _write(comparison, metrics, folder, Reconstruction(load_tokenizer(arm.folder / "tokenizer" / "tokenizer")))


def _write(
    comparison: Comparison,
    metrics: Sequence[Mapping[str, Any]],
    folder: Path,
    made_of: Callable[[Tensor], Tensor],
) -> None:
    samples = comparison["samples"]
    images = EvaluationImages(
        comparison["data_root"],
        comparison["image_size"],
        comparison["val_split"],
        samples["num"],
        samples["batch_size"],
        comparison["workers"],
    )
    built = [
        GenerationMetric(each["reference"], each["extractor"], (RECONSTRUCTIONS,), features=False) for each in metrics
    ]
    for batch in images:
        if len(batch.images):
            pixels = to_pixels(made_of(batch.images))
            rows = [dict(pixels=x, index=place) for x, place in zip(pixels, batch.places.tolist(), strict=True)]
            for metric in built:
                metric.process(batch, rows)
    found = {name: value for metric in built for name, value in metric.evaluate(len(images)).items()}
    if is_first():
        settings = {"split": comparison["val_split"], "images": len(images) - images.skipped}
        Result("generation", RECONSTRUCTIONS, found, settings).write(folder)
    barrier()
