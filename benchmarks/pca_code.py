"""What a linear code of the same compression reaches: a principal component analysis of patches.

    python benchmarks/pca_code.py work_dirs/demo/photographs --patch 8 --dim 16 --image-size 160

fits it to the patches of f x f pixels of `train/`, each cut to the middle as `val/` is, keeps d numbers a patch, and
prints the mean PSNR of the images of `val/` and that of each. A tokenizer f8d16 keeps as many numbers of an image, so
one that was trained well is above. Several values of --patch and --dim give a line each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aligntok.data.images import ImageDataset

Floats = npt.NDArray[np.float64]


def patches(images: Floats, patch: int) -> Floats:
    """Cut images, (N, 3, H, W), into patches: (N, H / f * W / f, 3 * f * f)."""
    number, colours, height, width = images.shape
    grid = images.reshape(number, colours, height // patch, patch, width // patch, patch)
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(number, -1, colours * patch * patch)


def psnr_of_code(train: Floats, held_out: Floats, patch: int, dim: int) -> Floats:
    """Return the PSNR of each held-out image, in dB, after a code of `dim` numbers a patch; images are in [-1, 1]."""
    seen, new = patches(train, patch).reshape(-1, 3 * patch * patch), patches(held_out, patch)
    mean = seen.mean(axis=0)
    _, axes = np.linalg.eigh((seen - mean).T @ (seen - mean))  # in ascending order
    kept = axes[:, -dim:]
    again = np.clip((new - mean) @ kept @ kept.T + mean, -1, 1)
    return np.asarray(10 * np.log10(4 / ((again - new) ** 2).mean(axis=(1, 2))))


def read(folder: Path, split: str, size: int) -> Floats:
    """Return all images of a split, cut to the middle: (N, 3, size, size) in [-1, 1]."""
    images = ImageDataset(folder, image_size=size, short_side=size, train=False, split=split)
    return np.stack([images[number]["images"].numpy() for number in range(len(images))]).astype(np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="images in train/ and val/")
    parser.add_argument("--patch", type=int, nargs="+", default=[8], help="f, pixels a side")
    parser.add_argument("--dim", type=int, nargs="+", default=[16], help="d, numbers kept of a patch")
    parser.add_argument("--image-size", type=int, default=160, help="pixels a side, a multiple of f")
    given = parser.parse_args()
    train, held_out = (read(given.folder, split, given.image_size) for split in ("train", "val"))
    for patch, dim in [(patch, dim) for patch in given.patch for dim in given.dim]:
        found = psnr_of_code(train, held_out, patch, dim)
        each = ", ".join(f"{value:.1f}" for value in found)
        print(f"f{patch}d{dim}, {3 * patch * patch / dim:.4g} : 1   {found.mean():.2f} dB   ({each})")


if __name__ == "__main__":
    main()
