"""Whether a picture drawn of a name is like the picture of that name: its rank among all pictures of a captioned set.

    python benchmarks/retrieval_rank.py SAMPLES... DATA [--extractor efficientnet_lite0] [--out FILE]

SAMPLES are folders of `aligntok sample --prompts`, DATA one of tools/prepare_emoji.py, whose train/ and val/ together
are the set. Each sample and each picture, at the samples' size, goes through an image network that was trained
elsewhere; the pictures are ordered by the cosine of their features to the sample's, and the rank of the one with the
sample's prompt as its caption is 1 when it is first. Drawn at random, the median rank would be half of the set. Prints
the median rank, and the share of samples whose picture is among the first 10, as a line of JSON a folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aligntok.data.images import ImageDataset
from aligntok.data.transforms import open_image, to_tensor
from aligntok.distributed.job import batched
from aligntok.errors import DataError
from aligntok.evaluation.metrics.features import build_extractor
from aligntok.extractors import Extractor
from aligntok.io.files import read_bytes, write_json
from aligntok.io.pictures import to_uint8

AT_ONCE, FIRST = 16, 10


def samples_of(folder: Path) -> tuple[list[str], Tensor]:
    """Return the prompts of a folder of samples, and the pictures (N, 3, H, W) in [-1, 1]."""
    lines = [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    pictures = [to_tensor(open_image(read_bytes(folder / line["file"]))) for line in lines]
    return [line["prompt"] for line in lines], torch.stack(pictures)


def pictures_of(root: Path, size: tuple[int, int]) -> tuple[list[str], Tensor]:
    """Return the captions of both splits, and their pictures (N, 3, H, W) in [-1, 1]."""
    captions, pictures = list[str](), list[Tensor]()
    for split in ("train", "val"):
        data = ImageDataset(root, image_size=size, train=False, split=split, caption="auto")
        items = [data[i] for i in range(len(data))]
        captions += [item["caption"] for item in items]
        pictures += [item["images"] for item in items]
    return captions, torch.stack(pictures)


@torch.no_grad()
def features_of(extractor: Extractor, images: Tensor) -> Tensor:
    """Return features (N, D) of length 1."""
    return F.normalize(torch.cat([extractor(to_uint8(few)).pooled for few in batched(images, AT_ONCE)]), dim=1)


def ranks(drawn: Tensor, known: Tensor, right: Tensor) -> Tensor:
    """Return the rank (N,), 1 for the first, of known[right[i]] by its likeness to drawn[i]; ties count half."""
    likeness = drawn @ known.T
    own = likeness.gather(1, right[:, None])
    equal = (likeness == own).sum(1) - 1  # but for itself
    return 1 + (likeness > own).sum(1) + equal / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, nargs="+")
    parser.add_argument("data", type=Path)
    parser.add_argument("--extractor", default="efficientnet_lite0")
    parser.add_argument("--out", type=Path, default=None, help="write the numbers here, too")
    args = parser.parse_args()
    drawn = {folder: samples_of(folder) for folder in args.samples}
    height, width = next(iter(drawn.values()))[1].shape[-2:]
    captions, known = pictures_of(args.data, (height, width))
    if lacking := [prompt for prompts, _ in drawn.values() for prompt in prompts if prompt not in captions]:
        raise DataError(f"{args.data} has no picture of {lacking[0]!r}; give the data whose captions were drawn")
    extractor = build_extractor(args.extractor).to(memory_format=torch.channels_last)  # three times as fast on a CPU
    features, told = features_of(extractor, known), list[dict[str, Any]]()
    for folder, (prompts, pictures) in drawn.items():
        right = torch.tensor([captions.index(prompt) for prompt in prompts])
        found = ranks(features_of(extractor, pictures), features, right)
        told.append(
            {
                "folder": str(folder),
                "samples": len(prompts),
                "pictures": len(captions),
                "median_rank": float(found.quantile(0.5)),
                f"among_the_first_{FIRST}": round(float((found <= FIRST).double().mean()), 4),
                "extractor": extractor.title,
            }
        )
        print(json.dumps(told[-1]), flush=True)
    if args.out is not None:
        write_json(args.out, {"ranks": told})


if __name__ == "__main__":
    main()
