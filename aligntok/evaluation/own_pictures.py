"""Pictures of one's own through a tokenizer: a file each of what comes back, and how near it is."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from aligntok.data.sources.base import find_images, in_numbers, say_passed_over, walk
from aligntok.data.transforms import image_suffixes
from aligntok.device import device, explaining_out_of_memory
from aligntok.distributed.job import progress_bar
from aligntok.errors import ConfigError, ImageError, some_of
from aligntok.evaluation.metrics.image_quality import psnr
from aligntok.evaluation.settings import ReconstructRequest
from aligntok.io.console import print_line
from aligntok.io.files import regular
from aligntok.io.folders import check_writable, real, told_apart
from aligntok.io.pictures import reconstruction_grid, save_picture, to_picture
from aligntok.loading import load_tokenizer
from aligntok.tokenizer import Tokenizer


def reconstruct_pictures(asked: ReconstructRequest) -> dict[str, Any]:
    """Write the reconstruction of every picture into a folder, print its name and PSNR, last the mean; return these.

    What cannot be read, or comes back as what is not finite, is named on stderr and under "unreadable", and the others
    are done. The PSNR is of the pixels that the tokenizer was given: cut to multiples of f, or of `size`. Raises
    ConfigError, before anything is written, where there is no picture, where one would take the place of a given one
    and, without `force`, of any file.
    """
    check_writable(asked.out)
    targets = name_targets(find_pictures(asked.images, Path(asked.out)))
    paths = {source: Path(asked.out, name.parent, f"{name.name}.png") for source, name in targets.items()}
    given = {real(source) for source in paths}
    if own := [str(path) for path in paths.values() if real(path) in given]:
        raise ConfigError(f"{some_of(own)} would be reconstructed in its own place, and lost; give another --out")
    there = [str(path) for path in paths.values() if path.exists()]
    if there and not asked.force:
        raise ConfigError(f"{some_of(there)} would be overwritten; give another --out, or --force")
    tokenizer = load_tokenizer(asked.tokenizer, device=asked.device or device(), dtype=asked.dtype)
    if asked.size is not None:
        tokenizer.processor.sides(asked.size)
    done, unreadable = list[dict[str, Any]](), dict[str, str]()
    with progress_bar(len(paths), "reconstructing", "image") as bar:
        for source, path in paths.items():
            bar.update()
            try:
                images = tokenizer.processor.preprocess(source, asked.size)
                made = _again(tokenizer, images)
            except (ImageError, ConfigError) as error:
                reason = str(error)
                unreadable[str(source)] = reason if str(source) in reason else f"{source}: {reason}"
                print(f"left out: {unreadable[str(source)]}", file=sys.stderr, flush=True)
                continue
            near = psnr(images[0], made[0])
            shown = reconstruction_grid([images[0]], [made[0]]) if asked.side_by_side else made[0]
            save_picture(path, to_picture(shown))
            name = path.relative_to(asked.out).as_posix()
            print_line(f"{name} {near:.2f}")
            done.append({"name": name, "image": str(source), "psnr": near})
    mean = sum(each["psnr"] for each in done) / len(done) if done else None
    if mean is not None:
        print_line(f"mean {mean:.2f}")
    return {"images": done, "mean_psnr": mean, "unreadable": unreadable}


@torch.no_grad()
def _again(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    what = "the {} x {} pixels of a picture".format(*images.shape[-2:])
    with explaining_out_of_memory(what, "a smaller --size, --dtype bfloat16 or --device cpu takes less of it"):
        made = tokenizer.decode(tokenizer.encode(images)).float().cpu()
    if not made.isfinite().all():
        raise ImageError(
            "its reconstruction is not finite; take --dtype float32. If it is not finite in float32 either, the "
            "tokenizer is broken"
        )
    return made


def find_pictures(given: Iterable[str | os.PathLike[str]], out: Path) -> dict[Path, Path]:
    """Return each picture that is given, or lies at any depth of a folder that is, with its name below that.

    What lies in `out` is none, unless the folder itself does. Raises ConfigError for a place where nothing is, and
    where there is no picture at all.
    """
    found, others = dict[Path, Path](), Counter[str]()
    for place in map(Path, given):
        if not place.exists():
            raise ConfigError(f"there is no {place}; give images, or folders of images")
        if not place.is_dir():
            found.setdefault(place, Path(place.name))
            continue
        files = [f"{inside}/{name}" if inside else name for inside, names in walk(place) for name in sorted(names)]
        images, passed = find_images(files, partial(_open, place))
        others += passed
        paths = [place / name for name in sorted(images)]
        if real(place) in real(out).parents:
            paths = [path for path in paths if not real(path).is_relative_to(real(out))]
        found |= {path: path.relative_to(place) for path in paths if path not in found}
    where = ", ".join(map(str, given))
    if not found:
        there = f"; there are {in_numbers(others)}" if others else ""
        raise ConfigError(f"no images in {where}; they end in {', '.join(image_suffixes())}{there}")
    say_passed_over(where, others)
    return found


def _open(top: Path, name: str) -> BinaryIO:
    return open(top / name, "rb", opener=regular)


def name_targets(pictures: dict[Path, Path]) -> dict[Path, Path]:
    """Return the name of what is made of each picture, without its suffix: its own, or that and a number, from _2 on,
    where another of that name comes before it (see :func:`told_apart`).
    """
    own = told_apart([str(name.with_suffix("")) for name in pictures.values()])
    return dict(zip(pictures, map(Path, own), strict=True))
