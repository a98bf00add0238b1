"""Metrics that mmengine evaluates in training, and the commands of this package offline: the same code for both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from aligntok.distributed import gather
from aligntok.errors import ConfigError, DataError
from aligntok.evaluation.metrics.features import INCEPTION, FeatureCollector, build_extractor, compare, extractor_config
from aligntok.evaluation.metrics.fid import frechet_distance
from aligntok.evaluation.metrics.image_quality import psnr, ssim, to_pixels
from aligntok.evaluation.references import check_fits, read_reference
from aligntok.extractors import Extractor
from aligntok.registry import LOSSES, without_weights
from aligntok.weights.hub import check_named


class ImageRow(NamedTuple):
    """What is measured of one image: its place in the data, PSNR (dB), SSIM, and each perceptual distance."""

    place: int
    psnr: float
    ssim: float
    distances: tuple[float, ...]


class ReconstructionMetric(BaseMetric):
    """mmengine metric of a tokenizer's reconstructions: ``psnr``, ``ssim``, perceptual distances, and rFID or rFD.

    perceptual: a loss config, or several, whose types name the distances in the results (``lpips``, ``st_lpips``);
    each takes (reconstruction, images); None for none. extractor: what :func:`build_extractor` takes, for the Fréchet
    distance between images and reconstructions, ``rFID`` on Inception-v3 and ``rFD-<extractor>`` on any other; None
    for none. PSNR, SSIM and features are of 8-bit pixels; all but the last are means over images. Independent of batch
    size and number of processes, but for the rounding of the extractor's arithmetic.
    """

    default_prefix = "reconstruction"

    def __init__(
        self,
        perceptual: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        extractor: str | Mapping[str, Any] | Extractor | None = None,
    ) -> None:
        super().__init__(collect_device="gpu")  # by exchange; mmengine's "cpu" writes files into the current folder
        given = [perceptual] if isinstance(perceptual, Mapping) else list(perceptual or ())
        self.distances = {config["type"]: LOSSES.build(dict(config)).eval() for config in given}
        self.extractor: Any = None if extractor is None else build_extractor(extractor)
        self.rows: list[ImageRow] = []
        self._begin()

    @staticmethod
    def check(perceptual: Any, extractor: Any, where: str) -> None:
        """Raise ConfigError for distances and features that cannot be; none is built with its weights."""
        given = perceptual if isinstance(perceptual, list | tuple) else [] if perceptual is None else [perceptual]
        for distance in given:
            LOSSES.check(distance, f"{where}.perceptual")
            with torch.device("meta"):
                takes = LOSSES.build(without_weights(LOSSES, distance)).inputs
            if not {*takes} <= {"images", "reconstruction"}:
                raise ConfigError(
                    f"{where}.perceptual: the loss '{distance['type']}' takes {', '.join(takes)}; a distance is a loss "
                    "of images and reconstruction, such as lpips"
                )
        if extractor is not None:
            registry, config = extractor_config(extractor)
            registry.check(config, f"{where}.extractor")
            check_named(config.get("pretrained"), f"{where}.extractor")
            with torch.device("meta"):
                registry.build(without_weights(registry, config))

    def _begin(self) -> None:
        """Forget everything that was taken in; mmengine evaluates one metric many times."""
        self.sides = [FeatureCollector(self.extractor, keep_features=False) for _ in range(2 if self.extractor else 0)]
        self.results: list[ImageRow] = []

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Take in a ``dict(images=(3, H, W), reconstruction=(3, H, W), index=place)`` an image, in [-1, 1].

        Raises DataError for a reconstruction that is not finite: its 8-bit pixels would be any.
        """
        for sample in data_samples:
            image, reconstruction = sample["images"], sample["reconstruction"]
            place = int(sample.get("index", len(self.results)))
            if not reconstruction.isfinite().all():
                raise DataError(
                    f"the reconstruction of image {place} is not finite; take --precision fp32. If it is not finite in "
                    "fp32 either, the tokenizer is broken: go on from an earlier checkpoint"
                )
            named = {"images": image[None], "reconstruction": reconstruction.clamp(-1, 1)[None]}
            with torch.no_grad():
                distances = tuple(
                    float(distance.to(image.device)(*(named[name] for name in distance.inputs)))
                    for distance in self.distances.values()
                )
            self.results.append(ImageRow(place, psnr(image, reconstruction), ssim(image, reconstruction), distances))
        for side, name in zip(self.sides, ("images", "reconstruction"), strict=False):
            for shape in dict.fromkeys(sample[name].shape for sample in data_samples):
                alike = [sample for sample in data_samples if sample[name].shape == shape]
                pixels = torch.stack([to_pixels(sample[name]) for sample in alike])
                side.add(pixels, [int(sample.get("index", 0)) for sample in alike])

    def evaluate(self, size: int) -> dict[str, float]:
        """Return the metrics, the same in every process, and keep the `rows` of all images; collective."""
        flat = [(row.place, row.psnr, row.ssim, *row.distances) for row in self.results]
        shared = torch.cat(gather(torch.tensor(flat, dtype=torch.float64).reshape(len(flat), 3 + len(self.distances))))
        rows = [ImageRow(int(place), psnr, ssim, tuple(rest)) for place, psnr, ssim, *rest in shared.tolist()]
        self.rows = sorted(rows, key=lambda row: row.place)
        metrics = self.compute_metrics(self.rows)
        if self.sides:
            images, reconstructions = (side.combine() for side in self.sides)
            name = "rFID" if images.title == INCEPTION else f"rFD-{images.title}"
            metrics = {name: frechet_distance(reconstructions.gaussian, images.gaussian), **metrics}
        self._begin()
        return {f"{self.prefix}/{name}": value for name, value in metrics.items()}

    def compute_metrics(self, results: Sequence[ImageRow]) -> dict[str, float]:
        """Return the means over all images, and their number."""
        metrics = {"psnr": mean([row.psnr for row in results])}
        similarity = mean([row.ssim for row in results])
        if not math.isnan(similarity):  # images too small for its window have none
            metrics["ssim"] = similarity
        for i, name in enumerate(self.distances):
            metrics[name] = mean([row.distances[i] for row in results])
        return {**metrics, "images": float(len(results))}


class GenerationMetric(BaseMetric):
    """mmengine metric of generated images against a reference: FID and its kin, named after the extractor.

    reference: a file that ``tools/evaluate.py make-reference`` wrote, or ADM's .npz. extractor: what
    :func:`build_extractor` takes; it must be the reference's. variants: the kinds of samples there are, each measured
    by itself; their names begin the metrics' names. features: keep every image's features, for all
    metrics but the Fréchet distances.
    """

    default_prefix = "generation"

    def __init__(
        self,
        reference: str,
        extractor: str | Mapping[str, Any] | Extractor = "inception_v3",
        variants: Sequence[str] = ("generation",),
        features: bool = True,
    ) -> None:
        super().__init__(collect_device="gpu")
        self.extractor = build_extractor(extractor)
        self.reference = read_reference(reference, self.extractor)
        self.variants, self.features = tuple(variants), features
        self._begin()

    def _begin(self) -> None:
        self.collectors = {name: FeatureCollector(self.extractor, self.features) for name in self.variants}
        self.results: list[Any] = []
        self._size: tuple[int, int] | None = None

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Take in a ``dict(pixels=uint8 (3, H, W), index=number, variant=name)`` an image.

        Raises DataError for images of another size than the reference's.
        """
        for variant in self.collectors:
            alike = [sample for sample in data_samples if sample.get("variant", self.variants[0]) == variant]
            if alike:
                pixels = torch.stack([sample["pixels"] for sample in alike])
                self.add(pixels, [int(sample["index"]) for sample in alike], variant)

    def add(self, pixels: Tensor, indices: Sequence[int], variant: str | None = None) -> None:
        """Take in images of one variant (None: the first), uint8 (N, 3, H, W), each with its place; N may be 0.

        Raises DataError for images of another size than the reference's.
        """
        if not len(pixels):
            return
        if self._size is None:
            height, width = pixels.shape[-2:]
            self._size = (height, width)
            check_fits(self.reference, self.extractor, self._size)
        self.collectors[variant or self.variants[0]].add(pixels, indices)

    def evaluate(self, size: int) -> dict[str, float]:
        """Return every metric that the features and the reference allow, of each variant; collective."""
        metrics = self.compute_metrics([])
        self._begin()
        return metrics

    def compute_metrics(self, results: Sequence[Any]) -> dict[str, float]:
        """Return ``<variant>/<metric>`` -> value."""
        found: dict[str, float] = {}
        for variant, collector in self.collectors.items():
            metrics = compare(collector.combine(), self.reference.feature_set)
            found.update({f"{variant}/{name}": value for name, value in metrics.items()})
        return found


def mean(values: Sequence[float]) -> float:
    """Return the mean, summed exactly, so that the order of the values does not matter; NaN of none."""
    return math.fsum(values) / len(values) if values else math.nan
