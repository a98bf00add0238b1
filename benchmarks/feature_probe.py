"""What class an image is, read off frozen features by ridge regression: which encoder and grid are worth aligning.

    python benchmarks/feature_probe.py tiny_imagenet.zip --image-size 32 --grids 16/8 32/8 8/4 --dim 64

takes EfficientNet-Lite0 at each stride p for a factor f (p/f: images are enlarged p / f times; 32/8 is stride 32 of
images enlarged four times), and pixels in patches of f. It fits to images of `train/`, and prints the share of images
of `val/` that are told right: by all features, by d principal components a position, as many as a latent would have,
and by their means over positions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from aligntok.evaluation.images import EvaluationImages
from aligntok.evaluation.settings import ImageSettings
from aligntok.registry import ENCODERS

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
FITTED_TO = 50_000  # positions, for the principal components


def features(images: EvaluationImages, encode: Callable[[Tensor], Tensor]) -> tuple[Floats, Labels]:
    """Return features, (N, h, w, C), and labels, (N,)."""
    found, labels = [], []
    with torch.no_grad():
        for batch in images:
            found.append(encode(batch.images).permute(0, 2, 3, 1).float().numpy())
            labels.append(np.asarray(images.source.labels)[batch.indices.numpy()])
    return np.concatenate(found), np.concatenate(labels)


def accuracy(train: tuple[Floats, Labels], val: tuple[Floats, Labels]) -> float:
    """Return the share of `val` that a ridge classifier, fitted to `train`, tells right; its strength is by folds."""
    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=(1e2, 1e3, 1e4, 1e5)))
    (x, y), (new, told) = ((each.reshape(len(each), -1), labels) for each, labels in (train, val))
    return float(probe.fit(x, y).score(new, told))


def reduced(train: Floats, val: Floats, dim: int) -> list[Floats]:
    """Return both with `dim` principal components a position, those of `train`."""
    flat = train.reshape(-1, train.shape[-1])
    fitted = PCA(dim, random_state=0).fit(flat[:: max(1, len(flat) // FITTED_TO)])
    return [fitted.transform(each.reshape(-1, each.shape[-1])).reshape(*each.shape[:3], dim) for each in (train, val)]


def told(train: tuple[Floats, Labels], val: tuple[Floats, Labels], dim: int) -> str:
    """Return a line of numbers: all features, `dim` components of each position, their means over positions."""
    sides, labels = (train[0], val[0]), (train[1], val[1])
    kept = sides if dim >= train[0].shape[-1] else reduced(*sides, dim)
    means = [each.mean(axis=(1, 2)) for each in kept]
    numbers = [accuracy(*zip(each, labels, strict=True)) for each in (sides, kept, means)]
    return "".join(f"{number:12.1%}" for number in numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="images in classes, in train/ and val/")
    parser.add_argument("--encoder", default="efficientnet_lite0", help="one that takes stride and downsample_factor")
    parser.add_argument("--grids", nargs="+", default=["16/8"], help="stride / factor")
    parser.add_argument("--dim", type=int, default=64, help="d, components kept of a position")
    parser.add_argument("--image-size", type=int, default=32, help="pixels a side")
    parser.add_argument("--num-train", type=int, default=6000, help="images")
    given = parser.parse_args()
    how = dict(data=given.data, image_size=given.image_size, workers=0, batch_size=100)
    train, val = (
        EvaluationImages(ImageSettings(split=split, num_images=number, **how))
        for split, number in (("train", given.num_train), ("val", None))
    )
    print(
        f"{len(train):,} + {len(val):,} images of {given.image_size} pixels      all   d={given.dim:<4}     means of d"
    )
    for stride, factor in ((int(part) for part in grid.split("/")) for grid in given.grids):
        encoder = ENCODERS.build(dict(type=given.encoder, stride=stride, downsample_factor=factor)).eval()
        unshuffle = torch.nn.PixelUnshuffle(factor)
        for name, encode in ((f"f{factor} pixels", unshuffle), (f"f{factor} stride {stride}", encoder)):
            print(f"{name:32}{told(features(train, encode), features(val, encode), given.dim)}", flush=True)


if __name__ == "__main__":
    main()
