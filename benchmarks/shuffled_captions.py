"""The control of benchmarks/retrieval_rank.py: the same pictures, those of train/ with the captions of one another.

    python benchmarks/shuffled_captions.py DATA OUT [--seed 0]

DATA is a folder of tools/prepare_emoji.py. Of a generator that is trained on OUT, nothing about words can be asked: how
near its samples come to the right picture is what pictures alone give. val/ stays as it is.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
from pathlib import Path

from aligntok.errors import AlignTokError
from aligntok.io.folders import replacing_folder


def shuffle(table: Path, seed: int) -> None:
    """Give each file of a table, whose first column names it, the other columns of a row drawn anew."""
    with table.open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    words = [row[1:] for row in rows]
    random.Random(seed).shuffle(words)
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *([row[0], *own] for row, own in zip(rows, words, strict=True))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        with replacing_folder(args.out) as made:
            shutil.copytree(args.data, made, dirs_exist_ok=True)
            shuffle(made / "train" / "captions.csv", args.seed)
    except AlignTokError as error:
        parser.error(str(error))
    print(f"{args.out}: captions of train/ shuffled")


if __name__ == "__main__":
    main()
