"""The features of a set of images, gathered over batches and processes, and every number that two sets allow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aligntok.device import computing
from aligntok.device import device as own_device
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
from aligntok.extractors.base import EncoderFeatures, Extractor, Features
from aligntok.registry import ENCODERS, EXTRACTORS

INCEPTION = "Inception-v3"  # the title whose distances have the names FID, sFID, IS and KID
SPLITS, PRECISION_K, COVERAGE_K = 10, 3, 5


@dataclass(frozen=True)
class FeatureSet:
    """What an extractor of that title says of `count` images.

    gaussian: of the pooled features. spatial: of the spatial ones. features (n, D), logits (n, K): one row an image in
    the order of their places, float32, on the CPU; None where they were not kept or the extractor has none.
    """

    title: str
    gaussian: Gaussian
    spatial: Gaussian | None
    features: Tensor | None
    logits: Tensor | None
    count: int


@dataclass
class _Kept:
    """Rows of this process, and the places of their images."""

    places: list[int] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)

    def add(self, places: Sequence[int], rows: Tensor) -> None:
        self.places += places
        self.rows.append(rows.cpu())


class FeatureCollector:
    """Runs an extractor over batches of images, in every process over other ones, and gathers what is compared.

    keep_features: keep the features and logits of each image (4 KB each for 1000 numbers); a collection of places keeps
    the features of the images at those, and no logits. device: where the extractor runs, by default on the GPU if there
    is one. The extractor runs in float32, without TF32 and autocast, whatever surrounds it.
    """

    def __init__(
        self,
        extractor: Extractor,
        keep_features: bool | Collection[int],
        device: torch.device | str | None = None,
    ) -> None:
        self.device = torch.device(device or own_device())
        self.extractor = extractor.eval().requires_grad_(False).to(self.device)
        self.wanted = keep_features
        self.pooled, self.spatial = RunningMoments(), RunningMoments()
        self.features, self.logits = _Kept(), _Kept()

    def add(self, pixels: Tensor, places: Sequence[int]) -> None:
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
                    f"{min(places)} to {max(places)}; look at those images, and at the extractor's weights"
                )
        self.pooled.add(found.pooled)
        if found.spatial is not None:
            self.spatial.add(found.spatial)
        self._keep(list(map(int, places)), found.pooled, found.logits)

    def _keep(self, places: list[int], features: Tensor, logits: Tensor | None) -> None:
        if self.wanted is True:
            self.features.add(places, features)
            if logits is not None:
                self.logits.add(places, logits)
        elif self.wanted:
            rows = [i for i, place in enumerate(places) if place in self.wanted]
            self.features.add([places[i] for i in rows], features[rows])

    def combine(self) -> FeatureSet:
        """Return the features of all processes; collective. Raises DataError for fewer than two images in all."""
        gaussian = self.pooled.combine()
        spatial = self.spatial.combine() if _anywhere(self.spatial.count) else None
        return FeatureSet(
            title=self.extractor.title,
            gaussian=gaussian,
            spatial=spatial,
            features=_gathered(self.features),
            logits=_gathered(self.logits),
            count=gaussian.count,
        )


def _anywhere(count: int) -> bool:
    return bool(total(torch.tensor(count)))


def _gathered(kept: _Kept) -> Tensor | None:
    """Every process's rows, in the order of their places; None where no process has any. Collective."""
    dim = torch.tensor([kept.rows[0].shape[1] if kept.places else 0])
    dims = torch.cat(gather(dim))
    if not dims.any():
        return None
    rows = torch.cat(kept.rows) if kept.places else torch.empty(0, int(dims.max()))
    order = torch.cat(gather(torch.tensor(kept.places, dtype=torch.int64))).argsort(stable=True)
    return torch.cat(gather(rows))[order]


def compare(generated: FeatureSet, reference: FeatureSet, seed: int = 0) -> dict[str, float]:
    """Return every number that both sides allow, by name.

    On Inception-v3: FID, sFID, IS, IS_std, KID, KID_se, precision, recall, density and coverage. On features of any
    other title T: FD-T, sFD-T, IS-T, IS_std-T, KD-T, KD_se-T, precision-T, ... sFID needs spatial features on both
    sides, IS logits of the generated images, the others the features of single images on both; a number that there are
    too few images for is left out. `seed` chooses subsets and splits. Raises DataError for sets of different features.
    """
    _check_alike(generated, reference)
    metrics = {"FID": frechet_distance(generated.gaussian, reference.gaussian)}
    if generated.spatial is not None and reference.spatial is not None:
        metrics["sFID"] = frechet_distance(generated.spatial, reference.spatial)
    if generated.logits is not None and len(generated.logits) >= SPLITS:
        metrics["IS"], metrics["IS_std"] = inception_score(generated.logits, SPLITS, seed)
    if generated.features is not None and reference.features is not None:
        metrics |= _of_single_images(generated.features, reference.features, seed)
    return {_named(name, generated.title): value for name, value in metrics.items()}


def _of_single_images(features: Tensor, reference: Tensor, seed: int) -> dict[str, float]:
    x, y = features.to(own_device()), reference.to(own_device())
    known: list[tuple[int, tuple[str, str], Callable[[], tuple[float, float]]]] = [
        (4, ("KID", "KID_se"), lambda: kernel_distance(x, y, seed=seed)),
        (PRECISION_K + 1, ("precision", "recall"), lambda: precision_recall(x, y, PRECISION_K)),
        (COVERAGE_K + 1, ("density", "coverage"), lambda: density_coverage(x, y, COVERAGE_K)),
    ]
    enough = [(names, compute) for least, names, compute in known if min(len(x), len(y)) >= least]
    return {name: value for names, compute in enough for name, value in zip(names, compute(), strict=True)}


def _named(name: str, title: str) -> str:
    """A metric's name on the features of `title`; only Inception's are called FID, sFID and KID."""
    if title == INCEPTION:
        return name
    return f"{name.replace('FID', 'FD').replace('KID', 'KD')}-{title}"


def _check_alike(generated: FeatureSet, reference: FeatureSet) -> None:
    sides = [f"{one.title} ({len(one.gaussian.mean)} numbers an image)" for one in (generated, reference)]
    if sides[0] != sides[1]:
        raise DataError(
            f"features of {sides[0]} cannot be compared with features of {sides[1]}; use one extractor for both"
        )


def _timm(argument: str) -> dict[str, Any]:
    return {"model": argument}


def _open_clip(argument: str) -> dict[str, Any]:
    model, _, tag = argument.partition("/")
    return {"model": model, "pretrained": tag or True}


def _local_file(argument: str) -> dict[str, Any]:
    return {"pretrained": argument}


#: What stands behind the colon of a word, by the extractor's name; for any other it is a local file of weights.
ARGUMENTS: dict[str, Callable[[str], dict[str, Any]]] = {"timm": _timm, "open_clip": _open_clip}


def build_extractor(given: str | Mapping[str, Any]) -> Extractor:
    """Build a frozen extractor from a config ``dict(type=name, ...)`` or a word.

    A word is an extractor's name (``inception_v3``), perhaps with a local file of its weights
    (``inception_v3:/path/file.pth``); ``timm:MODEL``; ``open_clip:MODEL`` or ``open_clip:MODEL/TAG``; or the name of a
    registered encoder, whose features are averaged over the grid under that title.

    Raises ConfigError for a name that is neither, listing both, and whatever the component raises.
    """
    built = EXTRACTORS.build(dict(given)) if isinstance(given, Mapping) else _of_word(given)
    return built.eval().requires_grad_(False)


def _of_word(word: str) -> Any:
    name, colon, argument = word.partition(":")
    if name in EXTRACTORS or "." in name:  # with a dot: any class that can be imported
        if name in ARGUMENTS and not argument:
            raise ConfigError(f"extractor '{name}' needs a model; write {name}:MODEL")
        options = ARGUMENTS.get(name, _local_file)(argument) if colon else {}
        return EXTRACTORS.build({"type": name, **options})
    if word in ENCODERS:
        return EncoderFeatures(ENCODERS.build({"type": word}), title=word)
    known = [*EXTRACTORS, *ENCODERS]
    raise ConfigError(
        f"{unknown('extractor or encoder', name, known)}; extractors also as timm:MODEL, open_clip:MODEL[/TAG] and "
        "NAME:/path/to/weights"
    )
