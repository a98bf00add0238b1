"""The features of a set of images, gathered over batches and processes, and every number that two sets allow."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aligntok.device import computing, device
from aligntok.distributed import gather, total
from aligntok.errors import ConfigError, DataError, unknown
from aligntok.evaluation.metrics.fid import (
    Gaussian,
    RunningMoments,
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from aligntok.extractors import EncoderFeatures, Extractor, Features
from aligntok.registry import ENCODERS, EXTRACTORS, ComponentRegistry

INCEPTION = "Inception-v3"  # the title whose distances have the names FID, sFID, IS and KID
SPLITS, PRECISION_K, COVERAGE_K = 10, 3, 5


@dataclass(frozen=True)
class FeatureSet:
    """What an extractor of that title says of `count` images.

    gaussian: of the pooled features. spatial: of the spatial ones. features (n, D), logits (n, K): one row an image in
    the order of their indices, float32, on the CPU; None where they were not kept or the extractor has none.
    """

    title: str
    gaussian: Gaussian
    spatial: Gaussian | None
    features: Tensor | None
    logits: Tensor | None
    count: int


class FeatureCollector:
    """Runs an extractor over batches of images, in every process over other ones, and gathers what is compared.

    keep_features: keep the features and logits of each image (4 KB each for 1000 numbers); a collection of indices
    keeps the features of the images at those, and no logits. It runs in float32, without TF32 and autocast,
    whatever surrounds it.
    """

    def __init__(self, extractor: Extractor, keep_features: bool | Collection[int]) -> None:
        self.device = device()
        self.extractor = extractor.eval().requires_grad_(False).to(self.device)
        self.wanted = keep_features
        self.pooled, self.spatial = RunningMoments(), RunningMoments()
        self.indices: list[int] = []  # of the images whose rows are kept
        self.features: list[Tensor] = []
        self.logits: list[Tensor] = []

    def add(self, pixels: Tensor, indices: Sequence[int]) -> None:
        """Take in uint8 images (N, 3, H, W), each with its place in the whole set; N may be 0, and a place comes once.

        Raises DataError for features that are not finite.
        """
        if not len(pixels):
            return
        with torch.inference_mode(), computing("fp32", self.device, whole=True):
            inside = self.extractor(pixels.to(self.device, non_blocking=True))
        spatial, logits = (None if part is None else part.float().clone() for part in inside[1:])
        found = Features(inside.pooled.float().clone(), spatial, logits)  # copies may be used outside inference mode
        for part in found:
            if part is not None and not part.isfinite().all():
                raise DataError(
                    f"{self.extractor.title} gives features that are not finite for some of the images at places "
                    f"{min(indices)} to {max(indices)}; look at those images, and at the extractor's weights"
                )
        self.pooled.add(found.pooled)
        if found.spatial is not None:
            self.spatial.add(found.spatial)
        if not self.wanted:
            return
        kept = [i for i, place in enumerate(indices) if self.wanted is True or int(place) in self.wanted]
        self.indices += [int(indices[i]) for i in kept]
        self.features.append(found.pooled[kept].cpu())
        if self.wanted is True and found.logits is not None:
            self.logits.append(found.logits.cpu())

    def combine(self) -> FeatureSet:
        """Return the features of all processes; collective. Raises DataError for fewer than two images in all."""
        gaussian = self.pooled.combine()
        seen = total(torch.tensor(self.spatial.count))
        spatial = self.spatial.combine() if seen else None
        order = torch.cat(gather(torch.tensor(self.indices, dtype=torch.int64))).argsort(stable=True)
        features, logits = (_gathered(rows, order) for rows in (self.features, self.logits))
        return FeatureSet(self.extractor.title, gaussian, spatial, features, logits, gaussian.count)


def _gathered(kept: list[Tensor], order: Tensor) -> Tensor | None:
    """Every process's rows, in an order of all of them; None where no process has any. Collective."""
    dim = int(torch.cat(gather(torch.tensor([kept[0].shape[1] if kept else 0]))).max())
    rows = torch.cat(gather(torch.cat(kept) if kept else torch.empty(0, dim))) if dim else torch.empty(0)
    return rows[order] if len(rows) else None


def compare(generated: FeatureSet, reference: FeatureSet, seed: int = 0) -> dict[str, float]:
    """Return every number that both sides allow, by name.

    On Inception-v3: FID, sFID, IS, IS_std, KID, KID_se, precision, recall, density and coverage. On features of any
    other title T: FD-T, sFD-T, IS-T, IS_std-T, KD-T, KD_se-T, precision-T, ... sFID needs spatial features on both
    sides, IS logits of the generated images, the others the features of single images on both; a number that there are
    too few images for is left out. `seed` chooses subsets and splits. Raises DataError for sets of different features.
    """
    sides = [f"{one.title} ({len(one.gaussian.mean)} numbers an image)" for one in (generated, reference)]
    if sides[0] != sides[1]:
        raise DataError(
            f"features of {sides[0]} cannot be compared with features of {sides[1]}; use one extractor for both"
        )
    metrics = {"FID": frechet_distance(generated.gaussian, reference.gaussian)}
    if generated.spatial is not None and reference.spatial is not None:
        metrics["sFID"] = frechet_distance(generated.spatial, reference.spatial)
    if generated.logits is not None and len(generated.logits) >= SPLITS:
        metrics["IS"], metrics["IS_std"] = inception_score(generated.logits, SPLITS, seed)
    if generated.features is not None and reference.features is not None:
        x, y = generated.features.to(device()), reference.features.to(device())
        fewest = min(len(x), len(y))
        if fewest >= 4:
            metrics["KID"], metrics["KID_se"] = kernel_distance(x, y, seed=seed)
        if fewest > PRECISION_K:
            metrics["precision"], metrics["recall"] = precision_recall(x, y, PRECISION_K)
        if fewest > COVERAGE_K:
            metrics["density"], metrics["coverage"] = density_coverage(x, y, COVERAGE_K)
    if generated.title == INCEPTION:  # whose alone are called FID, sFID and KID
        return metrics
    return {f"{n.replace('FID', 'FD').replace('KID', 'KD')}-{generated.title}": v for n, v in metrics.items()}


def build_extractor(given: str | Mapping[str, Any] | Extractor) -> Extractor:
    """Build a frozen extractor from a config ``dict(type=word, ...)`` or a word; one that is built stays as it is.

    A word is an extractor's name (``inception_v3``), perhaps with a local file of its weights
    (``inception_v3:/path/file.pth``); ``timm:MODEL``; ``open_clip:MODEL`` or ``open_clip:MODEL/TAG``; or the name of a
    registered encoder, whose features are averaged over the grid under that title, with its keywords if it has any.

    Raises ConfigError for a name that is neither, listing both, and whatever the component raises.
    """
    if isinstance(given, Extractor):
        return given
    registry, config = extractor_config(given)
    built = registry.build(config)
    if registry is ENCODERS:
        built = EncoderFeatures(built, title_of_encoder(config))
    extractor: Extractor = built
    extractor.title = title_with_weights(extractor.title, config.get("pretrained"))
    return extractor.eval().requires_grad_(False)


def title_with_weights(title: str, pretrained: Any) -> str:
    """Return the title of an extractor of a file of weights, whose name ends it, or of one of several sets of them.

    Inception-v3 has looked into the file, and has the title of the published weights only where these are in it.
    """
    if not isinstance(pretrained, str | os.PathLike) or title.startswith(INCEPTION):
        return title
    path = Path(pretrained)
    ending = "-" + in_file_names(path.stem)
    is_file = bool(path.suffix) or len(path.parts) > 1  # a set's name may be in the title already, as open_clip's is
    return (title if is_file else title.removesuffix(ending)) + ending


def in_file_names(text: str) -> str:
    """Return text with an underscore for whatever has no place in a file's name."""
    return re.sub(r"[^\w.=-]+", "_", text)


def title_of_encoder(config: Mapping[str, Any]) -> str:
    """Return what numbers on an encoder's features are called after: its name, its keywords, ``-random`` or a file.

    Of a file of weights the name alone. All of it can stand in a file's name.
    """
    keywords = [f"{key}={config[key]}" for key in sorted(config) if key not in ("type", "pretrained")]
    weights = config.get("pretrained")
    title = in_file_names("-".join([config["type"], *keywords, *(["random"] if weights is False else [])]))
    return title_with_weights(title, weights)


def extractor_config(given: str | Mapping[str, Any]) -> tuple[ComponentRegistry, dict[str, Any]]:
    """Return which registry builds an extractor, and of what. Raises ConfigError for a word that is none."""
    if isinstance(given, Mapping):
        word = given.get("type")
        if not isinstance(word, str) or word in EXTRACTORS:
            return EXTRACTORS, dict(given)
        registry, config = extractor_config(word)
        return registry, {**config, **given, "type": config["type"]}
    name, colon, argument = given.partition(":")
    if name in EXTRACTORS or "." in name:  # with a dot: any class that can be imported
        options: dict[str, Any] = {"pretrained": argument} if colon else {}
        if name in ("timm", "open_clip"):
            if not argument:
                raise ConfigError(f"extractor '{name}' needs a model; write {name}:MODEL")
            options = {"model": argument}
        if name == "open_clip":
            model, _, tag = argument.partition("/")
            options = {"model": model, "pretrained": tag or True}
        return EXTRACTORS, {"type": name, **options}
    if given in ENCODERS:
        return ENCODERS, {"type": given}
    raise ConfigError(
        f"{unknown('extractor or encoder', name, [*EXTRACTORS, *ENCODERS])}; extractors also as timm:MODEL, "
        "open_clip:MODEL[/TAG] and NAME:/path/to/weights"
    )
