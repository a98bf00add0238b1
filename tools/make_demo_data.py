"""Write the demo's photographs: real ones that installed packages ship, so nothing is downloaded.

    python tools/make_demo_data.py OUT [--crops 6]

OUT/train/*.png and OUT/val/*.png, the same files each time. Four photographs under free licences are held out. With
--crops, OUT/crops/NAME/*.png are 64-pixel parts of each training photograph, as the demo's generator learns them. OUT
is written whole or not at all, and in place of what an earlier call wrote.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from aligntok.errors import AlignTokError, ConfigError
from aligntok.imports import folder_of, installing
from aligntok.io.folders import replacing_folder

# Left out of what scikit-image ships: drawings, binary images, texture swatches, the second view of a stereo pair.
SKIMAGE = {
    *("astronaut", "camera", "chelsea", "coffee", "coins", "hubble_deep_field"),
    *("ihc", "moon", "motorcycle_left", "retina", "rocket"),
}
# Photographs of packages that AlignTok needs anyway, by their folders.
OTHERS = {"sklearn/datasets/images": {"china", "flower"}, "matplotlib/mpl-data/sample_data": {"grace_hopper"}}
HELD_OUT = {"astronaut", "chelsea", "coffee", "rocket"}  # free licences: pictures made of them may be shown anywhere
SUFFIXES = (".png", ".jpg")
CROP, CROPPED_SIDE = 64, 160  # pixels of a crop, and of the short side of the photograph that it is cut from
SHORT_SIDE = 256  # larger ones are shrunk: decoding them at every step would cost more than training on them


def shipped_photographs() -> list[Path]:
    """Find the photographs inside the installed packages, without importing these (foolbox takes seconds).

    Raises WeightsError naming what to install, FileNotFoundError for versions without some of them.
    """
    named = {"skimage/data": SKIMAGE, **OTHERS}
    found = [path for folder, stems in named.items() for path in _folder(folder).iterdir() if path.stem in stems]
    found += _folder("foolbox/data").glob("imagenet_*")
    found = [path for path in found if path.suffix in SUFFIXES]
    if missing := sorted(SKIMAGE.union(*OTHERS.values()) - {path.stem for path in found}):
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


def write_crops(source: Path, out: Path, across: int) -> int:
    """Write across x across crops of one written photograph, evenly spaced over it. Returns the crops written."""
    with Image.open(source) as opened:
        scale = CROPPED_SIDE / min(opened.size)
        photo = opened.resize((round(opened.width * scale), round(opened.height * scale)), Image.Resampling.BICUBIC)
    spare = photo.width - CROP, photo.height - CROP
    for number in range(across * across):
        places = zip((number % across, number // across), spare, strict=True)
        left, top = (round(place * room / max(1, across - 1)) for place, room in places)
        _save(photo.crop((left, top, left + CROP, top + CROP)), out / "crops" / source.stem / f"{number:03d}.png")
    return across * across


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
        if args.out.exists() and not {path.name for path in args.out.iterdir()} <= {"train", "val", "crops"}:
            raise ConfigError(f"{args.out} has other things in it; give a new folder")
        photographs = shipped_photographs()
        with replacing_folder(args.out) as out:
            for path in photographs:
                write_photograph(path, out)
            training = [out / "train" / f"{path.stem}.png" for path in photographs if path.stem not in HELD_OUT]
            crops = sum(write_crops(path, out, args.crops) for path in training) if args.crops else 0
    except (OSError, AlignTokError) as error:  # OSError: of another version of a package
        parser.error(str(error))
    print(f"{len(photographs)} photographs in {args.out}, {len(HELD_OUT)} of them held out in val/; {crops} crops")


if __name__ == "__main__":
    main()
