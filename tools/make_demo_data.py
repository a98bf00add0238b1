"""Write the demo's photographs: real ones that installed packages ship, so nothing is downloaded.

    python tools/make_demo_data.py OUT [--crops 6]

OUT/train/*.png and OUT/val/*.png, the same files each time. Four photographs under free licences are held out. With
--crops, OUT/crops/NAME/*.png are 64-pixel parts of each training photograph, as the demo's generator learns them.
OUT is written whole or not at all, in place of an earlier one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from aligntok.errors import AlignTokError
from aligntok.imports import folder_of, installing
from aligntok.io.folders import check_own, replacing_folder

# By their folders. Left out of scikit-image's: drawings, binary images, swatches, the second view of a stereo pair.
_SKIMAGE = "astronaut camera chelsea coffee coins hubble_deep_field ihc moon motorcycle_left retina rocket"
PHOTOGRAPHS = {
    "skimage/data": {*_SKIMAGE.split()},
    "sklearn/datasets/images": {"china", "flower"},
    "matplotlib/mpl-data/sample_data": {"grace_hopper"},
}
HELD_OUT = {"astronaut", "chelsea", "coffee", "rocket"}  # free licences: pictures made of them may be shown anywhere
CROP, CROPPED_SIDE = 64, 160  # pixels of a crop, and of the short side of the photograph that it is cut from
SHORT_SIDE = 256  # larger ones are shrunk: decoding them at every step would cost more than training on them


def shipped_photographs() -> list[Path]:
    """Find the photographs inside the installed packages, without importing these (foolbox takes seconds).

    Raises WeightsError naming what to install, FileNotFoundError for versions without some of them.
    """
    found = [path for folder, stems in PHOTOGRAPHS.items() for path in _folder(folder).iterdir() if path.stem in stems]
    found += _folder("foolbox/data").glob("imagenet_*")
    found = [path for path in found if path.suffix in (".png", ".jpg")]
    if missing := sorted(set().union(*PHOTOGRAPHS.values()) - {path.stem for path in found}):
        raise FileNotFoundError(f"not shipped with these versions: {', '.join(missing)}; {installing('skimage')}")
    return sorted(found, key=lambda path: path.stem)


def _folder(path: str) -> Path:
    package, _, inside = path.partition("/")
    return folder_of(package, "the demo's photographs") / inside


def write_photograph(source: Path, out: Path) -> None:
    """Write one photograph as RGB, in val/ or in train/."""
    with Image.open(source) as opened:
        photo = opened.convert("RGB")
    if min(photo.size) > SHORT_SIDE:
        scale = SHORT_SIDE / min(photo.size)
        photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)
    _save(photo, out / ("val" if source.stem in HELD_OUT else "train") / f"{source.stem}.png")


def write_crops(source: Path, out: Path, across: int) -> None:
    """Write across x across crops of one written photograph, evenly spaced over it."""
    with Image.open(source) as opened:
        scale = CROPPED_SIDE / min(opened.size)
        photo = opened.resize((round(opened.width * scale), round(opened.height * scale)), Image.Resampling.BICUBIC)
    for number in range(across * across):
        places = zip((number % across, number // across), (photo.width - CROP, photo.height - CROP), strict=True)
        left, top = (round(place * room / max(1, across - 1)) for place, room in places)
        _save(photo.crop((left, top, left + CROP, top + CROP)), out / "crops" / source.stem / f"{number:03d}.png")


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG", compress_level=1)  # lossless all the same, and quicker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--crops", type=int, default=0, help="also cut CROPS x CROPS small parts out of each")
    args = parser.parse_args()
    if args.crops < 0:
        parser.error(f"--crops {args.crops} must be at least 0")
    try:
        check_own(args.out, "train", "val", "crops")
        photographs = shipped_photographs()
        with replacing_folder(args.out) as out:
            for path in photographs:
                write_photograph(path, out)
            for path in (out / "train").iterdir() if args.crops else ():
                write_crops(path, out, args.crops)
    except (OSError, AlignTokError) as error:  # OSError: of another version of a package
        parser.error(str(error))
    crops = len([*args.out.glob("crops/*/*")])
    print(f"{len(photographs)} photographs in {args.out}, {len(HELD_OUT)} of them held out in val/; {crops} crops")


if __name__ == "__main__":
    main()
