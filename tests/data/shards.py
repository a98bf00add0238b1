"""Small indices of tar shards with captions and scores, on a disk or behind an address."""

from __future__ import annotations

import io
import tarfile

import numpy as np
from PIL import Image

from aligntok.data.index import Index, domain_of
from aligntok.data.index.write import Shard, write_index

DTYPES = {"offset": "i8", "size": "u4", "height": "u2", "width": "u2", "caption_offset": "i8", "caption_size": "u4"}
DTYPES |= {"score": "f4", "domain": "u8"}


def picture(number):
    """Return an encoded image of which the number can be read, and its (height, width): of three shapes."""
    rng = np.random.default_rng(number)
    height, width = [(32, 32), (32, 40), (40, 32)][number % 3]
    pixels = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue(), (height, width)


def make_shards(folder, sizes, broken=()):
    """Write tar shards of so many samples; return the columns of each."""
    folder.mkdir(parents=True)
    columns, number = [], 0
    for shard, size in enumerate(sizes):
        rows = []
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for _ in range(size):
                image, (height, width) = picture(number)
                image = image[:20] if number in broken else image
                places = []
                for suffix, data in (("png", image), ("txt", f"picture {number}".encode())):
                    info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    info.size = len(data)
                    places += [tar.offset + 512, len(data)]
                    tar.addfile(info, io.BytesIO(data))
                score = np.nan if number % 10 == 9 else number % 10
                rows.append((*places[:2], height, width, *places[2:], score, domain_of(f"host{number % 4}.org")))
                number += 1
        columns.append({name: np.array([row[i] for row in rows], dtype=DTYPES[name]) for i, name in enumerate(DTYPES)})
    return columns


def make_index(out, columns, places, shards):
    """Write an index of shards, which lie at `places`, by their columns."""
    listed = [
        Shard(place, shard.stat().st_size, "", len(each["size"]))
        for place, shard, each in zip(places, shards, columns, strict=True)
    ]
    write_index(out, "tar", "txt", DTYPES, listed, lambda i: columns[i])
    return Index.open(out)


def build_index(folder, sizes, broken=(), at=None):
    """Write shards of so many samples into FOLDER/shards, and an index of them into FOLDER/index; open that.

    Samples with a number in `broken` hold no image; `at` says where the shards are, None for where they lie.
    """
    columns = make_shards(folder / "shards", sizes, broken)
    shards = sorted((folder / "shards").iterdir())
    return make_index(folder / "index", columns, [f"{at or folder / 'shards'}/{each.name}" for each in shards], shards)
