"""Reference statistics as files: what samples are compared with, under which name, and how it was made."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aligntok.data.transforms import parse_image_size
from aligntok.distributed import barrier, is_first, world
from aligntok.distributed.job import batched, job
from aligntok.errors import DataError, first_line
from aligntok.evaluation.images import RESIZE, EvaluationImages
from aligntok.evaluation.metrics.features import INCEPTION, FeatureCollector, FeatureSet, build_extractor
from aligntok.evaluation.metrics.fid import Gaussian
from aligntok.evaluation.metrics.image_quality import to_pixels
from aligntok.evaluation.results import check_out
from aligntok.evaluation.settings import ReferenceSettings
from aligntok.extractors import Extractor
from aligntok.io.arrays import read_npz
from aligntok.io.files import opened_tensors, reading, save_tensors
from aligntok.registry import with_keywords


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


FORMAT = "aligntok reference 1"
SUFFIX = ".safetensors"
CURE = "fetch or make it again"
BATCH = 64  # images of ADM's at once
#: ADM's statistics: what ours are called, and their shapes.
STATISTICS = {
    "mu": ("mean", (2048,)),
    "sigma": ("covariance", (2048, 2048)),
    "mu_s": ("spatial_mean", (2023,)),
    "sigma_s": ("spatial_covariance", (2023, 2023)),
}


def make_reference(asked: ReferenceSettings) -> Path:
    """Make reference statistics of images, write them to `out` (.safetensors), and return that path.

    Written, whole or not at all, are both Gaussians in float64 and the features in float32, without logits; under a
    checksum that is in the file.
    The images are what :class:`EvaluationImages` takes, the extractor what :func:`build_extractor` does. Collective
    under torchrun. Raises what those two raise, DataError for another ending and for fewer than two images, WriteError
    for a file that cannot be written.
    """
    path = Path(asked.out).expanduser()
    if path.suffix != SUFFIX:
        raise DataError(f"a reference is a {SUFFIX} file, out is {path}; give {path.with_suffix(SUFFIX)}")
    with job():
        check_out(path.parent)
        built = build_extractor(with_keywords(asked.extractor, asked.extractor_options, "extractor_options"))
        images = EvaluationImages(asked)
        kept = min(asked.keep_features, len(images))
        wanted = frozenset(images.indices[i * len(images) // kept] for i in range(kept))
        collector = FeatureCollector(built, wanted)
        for batch in images:
            collector.add(to_pixels(batch.images), batch.indices.tolist())
        found = collector.combine()
        tensors = {"mean": found.gaussian.mean, "covariance": found.gaussian.covariance}
        if found.spatial is not None:
            tensors |= {"spatial_mean": found.spatial.mean, "spatial_covariance": found.spatial.covariance}
        if found.features is not None:
            tensors["features"] = found.features
        described = {
            "name": asked.name or path.stem,
            "title": built.title,
            "identity": built.identity,
            "resize": built.resize,
            "image_resize": RESIZE,
            "image_size": images.image_size,
            "num_images": found.count,
        }
        if is_first():
            tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
            said = json.dumps(described, sort_keys=True)
            save_tensors(path, tensors, {"format": FORMAT, "reference": said, "checksum": checksum(tensors, said)})
        barrier()
    return path


def read_reference(path: str | os.PathLike[str], extractor: Extractor) -> Reference:
    """Read what `write_reference` wrote, or ADM's published .npz; for the latter, collective (it runs the extractor).

    Raises DataError for a file that is missing, damaged or something else, and for one of another extractor, naming
    both.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"no reference at {file}; make one with `tools/evaluate.py make-reference DATA {file}`")
    tensors, described = _read_adm(file, extractor) if file.suffix == ".npz" else _read_own(file)
    with reading(file, DataError, CURE):
        title, count, features = described["title"], described["num_images"], tensors.get("features")
        gaussian = _gaussian(tensors, count)
        spatial = _gaussian(tensors, count, "spatial_") if "spatial_mean" in tensors else None
        if features is not None:
            _check_sound("features", features, torch.float32, (len(features), len(gaussian.mean)))
        kept = FeatureSet(title, gaussian, spatial, features, logits=None, count=count)
        reference = Reference(**described, feature_set=kept)
    _check_extractor(reference, extractor)
    return reference


def _gaussian(tensors: Mapping[str, Tensor], count: int, of: str = "") -> Gaussian:
    mean, covariance = tensors[f"{of}mean"], tensors[f"{of}covariance"]
    _check_sound(f"{of}mean", mean, torch.float64, (mean.numel(),))
    _check_sound(f"{of}covariance", covariance, torch.float64, (mean.numel(), mean.numel()))
    return Gaussian(mean, covariance, count)


def _check_sound(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.isfinite().all():
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {dtype} {shape}, or not finite")


def _read_own(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file of ours, and what it says of them."""
    try:
        with opened_tensors(path) as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    except (OSError, ValueError) as error:
        raise DataError(f"the reference {path} is damaged ({first_line(error)}); fetch or make it again") from error
    if metadata.get("format") != FORMAT:
        raise DataError(
            f"{path} is no reference of this version (its format is {metadata.get('format')!r}, not {FORMAT!r}); make "
            "one with `tools/evaluate.py make-reference`"
        )
    with reading(path, DataError, CURE):
        if checksum(tensors, metadata["reference"]) != metadata["checksum"]:
            raise DataError(f"the reference {path} is damaged (its checksum differs); fetch or make it again")
        described = json.loads(metadata["reference"])
        height, width = map(int, described["image_size"])
        words = {name: str(described[name]) for name in ("name", "title", "resize")}
        return tensors, {
            **described,
            **words,
            "image_size": (height, width),
            "num_images": int(described["num_images"]),
        }


def _check_extractor(reference: Reference, extractor: Extractor) -> None:
    if reference.identity is None or reference.identity == extractor.identity:
        return
    theirs, ours = (
        f"{side.title} (weights and resizing {str(side.identity)[:12]}, {side.resize})"
        for side in (reference, extractor)
    )
    raise DataError(
        f"the reference '{reference.name}' is of the features of {theirs}\n  but this evaluation uses {ours}\n"
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


def checksum(tensors: Mapping[str, Tensor], said: str) -> str:
    """SHA-256 of tensors (CPU, contiguous), their names, types and shapes, and of what is said about them."""
    digest = hashlib.sha256(said.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_adm(path: Path, extractor: Extractor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return ADM's `mu`, `sigma`, and, where they are there, `mu_s`, `sigma_s` as a file of ours has them.

    The features of the images `arr_0` (N, H, W, 3), if there are any, are computed here, shared out over the processes:
    collective. The Gaussians are those of the file, of a number of images that it does not tell (that of `arr_0` is
    another).
    """
    if extractor.title != INCEPTION:
        raise DataError(
            f"the reference {path} is of the features of {INCEPTION}, as all of ADM's are, but this evaluation uses "
            f"{extractor.title}; use inception_v3, or make a reference with `tools/evaluate.py make-reference`"
        )
    arrays = _read_arrays(path)
    images = arrays.pop("arr_0", None)
    tensors = {STATISTICS[name][0]: torch.from_numpy(array).double() for name, array in arrays.items()}
    if images is not None:
        rank, processes = world()
        collector = FeatureCollector(extractor, keep_features=True)
        for indices in batched(range(len(images)), BATCH)[rank::processes]:
            pixels = torch.from_numpy(np.array(images[indices.start : indices.stop]))
            collector.add(pixels.permute(0, 3, 1, 2), indices)
        features = collector.combine().features
        tensors |= {} if features is None else {"features": features}
    return tensors, {
        "name": path.stem,
        "title": extractor.title,
        "identity": None,
        "resize": extractor.resize,
        "image_resize": None,
        "image_size": None if images is None else (images.shape[1], images.shape[2]),
        "num_images": 0,
    }


def _read_arrays(path: Path) -> dict[str, Any]:
    def check(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        sound = dtype == np.uint8 and len(shape) == 4 and shape[3] == 3
        if name in STATISTICS:
            sound = dtype.kind == "f" and shape == STATISTICS[name][1]
        if not sound:
            raise _NoReference(f"{name} is {dtype} {shape}")

    try:
        arrays = read_npz(path, (*STATISTICS, "arr_0"), check, mapped=["arr_0"])
        if fault := _fault(arrays):
            raise _NoReference(fault)
    except _NoReference as error:
        raise DataError(
            f"{path} is no reference of ADM's: {error}; such a file holds mu (2048,), sigma (2048, 2048), and perhaps "
            "mu_s, sigma_s and images arr_0, uint8 (N, H, W, 3); of images alone, make a reference with "
            "`tools/evaluate.py make-reference`"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"the reference {path} is damaged ({first_line(error)}); fetch it again") from error
    return arrays


class _NoReference(ValueError):
    """Arrays that are sound, and not ADM's."""


def _fault(arrays: dict[str, Any]) -> str:
    if "mu" not in arrays or "sigma" not in arrays:
        return f"mu or sigma is missing, there is {', '.join(arrays) or 'nothing of it'}"
    return "one of mu_s and sigma_s is missing" if ("mu_s" in arrays) != ("sigma_s" in arrays) else ""
