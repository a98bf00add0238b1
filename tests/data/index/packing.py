"""A few images of several sizes with what is known of them, and how they are packed."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

SHARDS, EACH = 3, 7
COLUMNS = ("AESTHETIC_SCORE", "pwatermark", "hits")


def sample(number):
    """An image's bytes, (H, W) as displayed, and what is known of it."""
    rng = np.random.default_rng(number)
    height, width = 20 + number, 30 + 2 * number
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6 if number % 5 == 1 else 1  # turned by a quarter
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    known = {
        "key": f"{number:05d}",
        "url": f"https://www.host{number % 2}.org:80/a/{number}.jpg",
        "caption": f"caption {number}",
        "AESTHETIC_SCORE": 4 + number / 7,
        "pwatermark": None if number % 4 == 3 else number / 30,
        "hits": number * 10**12,
        "status": "success",
    }
    return file.getvalue(), (width, height) if number % 5 == 1 else (height, width), known


SAMPLES = [sample(number) for number in range(SHARDS * EACH)]


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def members_of(shard, texts=True, known=True):
    for image, _, about in SAMPLES[shard * EACH : (shard + 1) * EACH]:
        if texts:
            yield f"{about['key']}.txt", about["caption"].encode()
        yield f"{about['key']}.jpg", image
        if known:
            yield f"{about['key']}.json", json.dumps(about).encode()


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)
    return path
