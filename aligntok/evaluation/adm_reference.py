"""ADM's published reference batches (Dhariwal and Nichol 2021): .npz files of Inception statistics and images."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from aligntok.distributed import world
from aligntok.distributed.job import batched
from aligntok.errors import DataError, first_line
from aligntok.evaluation.feature_sets import INCEPTION, FeatureCollector, FeatureSet
from aligntok.evaluation.statistics import Gaussian
from aligntok.extractors.base import Extractor

BATCH = 64
STATISTICS = (("mu", 1), ("sigma", 2), ("mu_s", 1), ("sigma_s", 2))


class ADMReference(NamedTuple):
    """What such a file holds; image_size (H, W) is None for one without images."""

    feature_set: FeatureSet
    image_size: tuple[int, int] | None


def read_adm(path: Path, extractor: Extractor) -> ADMReference:
    """Read `mu`, `sigma`, and, where they are there, `mu_s`, `sigma_s` and the images `arr_0` (N, H, W, 3).

    The features of the images are computed here, shared out over the processes: collective. The Gaussians are those of
    the file, of a number of images that it does not tell (that of `arr_0` is another). Raises DataError for a file that
    is damaged or something else, and for another extractor than Inception-v3.
    """
    if extractor.title != INCEPTION:
        raise DataError(
            f"the reference {path} is of the features of {INCEPTION}, as all of ADM's are, but this evaluation uses "
            f"{extractor.title}; use inception_v3, or make a reference with `tools/evaluate.py make-reference`"
        )
    arrays = _read(path)
    gaussian = _gaussian(arrays, "mu", "sigma")
    spatial = _gaussian(arrays, "mu_s", "sigma_s") if "mu_s" in arrays else None
    images = arrays.get("arr_0")
    features = None if images is None else _features(torch.from_numpy(images), extractor)
    found = FeatureSet(extractor.title, gaussian, spatial, features, logits=None, count=0)
    return ADMReference(found, None if images is None else (images.shape[1], images.shape[2]))


def _gaussian(arrays: dict[str, Any], mean: str, covariance: str) -> Gaussian:
    return Gaussian(torch.from_numpy(arrays[mean]).double(), torch.from_numpy(arrays[covariance]).double(), count=0)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, Mapping):
                raise ValueError("it is a single array")
            arrays = {name: file[name] for name in (*dict(STATISTICS), "arr_0") if name in file}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"the reference {path} is damaged ({first_line(error)}); fetch it again") from error
    fault = _fault(arrays)
    if fault:
        raise DataError(
            f"{path} is no reference of ADM's: {fault}; such a file holds mu (2048,), sigma (2048, 2048), and perhaps "
            "mu_s, sigma_s and images arr_0, uint8 (N, H, W, 3); of images alone, make a reference with "
            "`tools/evaluate.py make-reference`"
        )
    return arrays


def _fault(arrays: dict[str, Any]) -> str:
    if "mu" not in arrays or "sigma" not in arrays:
        return f"mu or sigma is missing, there is {', '.join(arrays) or 'nothing of it'}"
    if ("mu_s" in arrays) != ("sigma_s" in arrays):
        return "one of mu_s and sigma_s is missing"
    for name, dims in STATISTICS:
        shape = (2048 if name in ("mu", "sigma") else 2023,) * dims
        if name in arrays and (arrays[name].shape != shape or arrays[name].dtype.kind != "f"):
            return f"{name} is {arrays[name].dtype} {arrays[name].shape}"
    images = arrays.get("arr_0")
    if images is not None and (images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3):
        return f"arr_0 is {images.dtype} {images.shape}"
    return ""


def _features(images: Tensor, extractor: Extractor) -> Tensor | None:
    """Pooled features of uint8 images (N, H, W, 3), in their order; collective."""
    rank, processes = world()
    collector = FeatureCollector(extractor, keep_features=True)
    for places in batched(range(len(images)), BATCH)[rank::processes]:
        collector.add(images[places.start : places.stop].permute(0, 3, 1, 2), places)
    return collector.combine().features
