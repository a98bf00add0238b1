"""Reference statistics as files: what samples are compared with, under which name, and how it was made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligntok.data.transforms import parse_image_size
from aligntok.distributed import barrier, is_first
from aligntok.distributed.job import job
from aligntok.errors import DataError, at_least
from aligntok.evaluation.adm_reference import read_adm
from aligntok.evaluation.extraction import build_extractor
from aligntok.evaluation.feature_sets import FeatureCollector, FeatureSet
from aligntok.evaluation.image_quality import to_pixels
from aligntok.evaluation.publishing import check_out
from aligntok.evaluation.reading import RESIZE, EvaluationImages
from aligntok.evaluation.reference_files import SUFFIX, read_checked, write_checked
from aligntok.evaluation.statistics import Gaussian
from aligntok.extractors.base import Extractor


@dataclass(frozen=True)
class Reference:
    """Features of a set of real images, and what fixes them.

    name: of the set. title, identity, resize: of the extractor (see its contract). image_resize: how the images were
    brought to image_size (H, W); None for what nobody wrote down. num_images: how many the Gaussians are of, 0 where
    that is not known. feature_set: with the features of some or all of the images, or none.
    """

    name: str
    title: str
    identity: str | None
    resize: str
    image_resize: str | None
    image_size: tuple[int, int] | None
    num_images: int
    feature_set: FeatureSet


def write_reference(
    path: str | os.PathLike[str],
    feature_set: FeatureSet,
    extractor: Extractor,
    *,
    name: str,
    image_size: int | Sequence[int],
    image_resize: str = RESIZE,
) -> Path:
    """Write a reference to `path` (.safetensors), whole or not at all, and return it.

    With both Gaussians in float64 and the features in float32, without logits. Raises DataError for another ending,
    WriteError when the disk does not take it.
    """
    tensors = {"mean": feature_set.gaussian.mean, "covariance": feature_set.gaussian.covariance}
    if feature_set.spatial is not None:
        tensors |= {"spatial_mean": feature_set.spatial.mean, "spatial_covariance": feature_set.spatial.covariance}
    if feature_set.features is not None:
        tensors["features"] = feature_set.features
    described = {
        "name": name,
        "title": extractor.title,
        "identity": extractor.identity,
        "resize": extractor.resize,
        "image_resize": image_resize,
        "image_size": parse_image_size(image_size),
        "num_images": feature_set.count,
    }
    return write_checked(Path(path), tensors, described)


def read_reference(path: str | os.PathLike[str], extractor: Extractor) -> Reference:
    """Read what `write_reference` wrote, or ADM's published .npz; for the latter, collective (it runs the extractor).

    Raises DataError for a file that is missing, damaged or something else, and for one of another extractor, naming
    both.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"no reference at {file}; make one with `tools/evaluate.py make-reference DATA {file}`")
    if file.suffix == ".npz":
        return _of_adm(file, extractor)
    tensors, described = read_checked(file)
    described["image_size"] = tuple(described["image_size"])
    title, count = described["title"], described["num_images"]
    spatial = None
    if "spatial_mean" in tensors:
        spatial = Gaussian(tensors["spatial_mean"], tensors["spatial_covariance"], count)
    gaussian = Gaussian(tensors["mean"], tensors["covariance"], count)
    features = FeatureSet(title, gaussian, spatial, tensors.get("features"), logits=None, count=count)
    reference = Reference(**described, feature_set=features)
    _check_extractor(reference, extractor)
    return reference


def _of_adm(file: Path, extractor: Extractor) -> Reference:
    found = read_adm(file, extractor)
    return Reference(
        name=file.stem,
        title=extractor.title,
        identity=None,
        resize=extractor.resize,
        image_resize=None,
        image_size=found.image_size,
        num_images=found.feature_set.count,
        feature_set=found.feature_set,
    )


def _check_extractor(reference: Reference, extractor: Extractor) -> None:
    if reference.identity is None or reference.identity == extractor.identity:
        return
    sides = [
        f"{title} (weights and resizing {identity[:12]}, {resize})"
        for title, identity, resize in (
            (reference.title, reference.identity, reference.resize),
            (extractor.title, extractor.identity, extractor.resize),
        )
    ]
    raise DataError(
        f"the reference '{reference.name}' is of the features of {sides[0]}\n  but this evaluation uses {sides[1]}\n"
        "  use that extractor, or make a reference with this one (tools/evaluate.py make-reference)"
    )


def check_fits(
    reference: Reference, extractor: Extractor, image_size: int | Sequence[int], image_resize: str | None = None
) -> None:
    """Raise DataError, naming both sides, unless images may be compared with a reference.

    image_size: theirs. image_resize: how they were brought to it; None for images that were made at that size. What
    a reference does not say (ADM's its resizing) is not checked.
    """
    _check_extractor(reference, extractor)
    size, theirs = parse_image_size(image_size), reference.image_size
    if theirs is not None and theirs != size:
        raise DataError(
            f"the reference '{reference.name}' is of images of {theirs[0]} x {theirs[1]} pixels, these have "
            f"{size[0]} x {size[1]}; make a reference of that size, or samples of the reference's"
        )
    if None not in (image_resize, reference.image_resize) and image_resize != reference.image_resize:
        raise DataError(
            f"the images of the reference '{reference.name}' were resized with {reference.image_resize}, these with "
            f"{image_resize}; make a reference of images that are resized alike"
        )


def make_reference(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    extractor: str | Mapping[str, Any] | Extractor = "inception_v3",
    image_size: int | Sequence[int] = 256,
    split: str | None = None,
    name: str | None = None,
    num: int | None = None,
    batch_size: int = 32,
    workers: int = 2,
    keep_features: int = 10_000,
) -> Path:
    """Make reference statistics of the images at `data`, write them to `out` (.safetensors), and return that path.

    data, split, num, batch_size, workers: see :class:`EvaluationImages`. extractor: see :func:`build_extractor`. name:
    by default the file's. keep_features: of how many images, evenly spread, the features are kept too, for KID,
    precision, recall, density and coverage. Collective under torchrun. Raises what those two raise, DataError for fewer
    than two images, WriteError for a file that cannot be written.
    """
    at_least(0, keep_features=keep_features)
    path = Path(out).expanduser()
    if path.suffix != SUFFIX:
        raise DataError(f"a reference is a {SUFFIX} file, out is {path}; give {path.with_suffix(SUFFIX)}")
    with job():
        check_out(path.parent)
        built = extractor if isinstance(extractor, Extractor) else build_extractor(extractor)
        images = EvaluationImages(data, image_size, split, num, batch_size, workers)
        kept = min(keep_features, len(images))
        wanted = frozenset(images.places[i * len(images) // kept] for i in range(kept))
        collector = FeatureCollector(built, wanted)
        for batch in images:
            collector.add(to_pixels(batch.images), batch.places.tolist())
        features = collector.combine()
        if is_first():
            write_reference(path, features, built, name=name or path.stem, image_size=images.image_size)
        barrier()
    return path


def describe(reference: Reference) -> dict[str, Any]:
    """Return what fixes a reference, as JSON types: for the settings of a result."""
    kept = reference.feature_set.features
    said = {key: value for key, value in vars(reference).items() if key != "feature_set"}
    return json.loads(json.dumps({**said, "features_kept": 0 if kept is None else len(kept)}))
