"""Streams of images from shards: what an index of hundreds of millions of samples costs to open and to look into.

    python benchmarks/streaming.py --synthetic 600_000_000

makes an index of so many samples whose columns are sparse files (zeros that take no room on the disk), opens it in a
process of its own, and prints the seconds of the first opening, the memory that it took, and how many samples' shards
and places are looked up in a second, one after another (as a loader asks) and a block of 64 at once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from aligntok.data.index import Index
from aligntok.data.index.format import CAPTIONED, COLUMNS, DESCRIPTION, FIXED, FORMAT, SHARDS, VERSION

METADATA = {"AESTHETIC_SCORE": "f4", "pwatermark": "f4", "punsafe": "f4", "similarity": "f4", "domain": "u8"}


def write_synthetic(folder: Path, samples: int, in_shard: int = 10_000) -> None:
    """Write an index of so many samples, which says nothing of any of them: its columns are zeros, on no disk."""
    columns = FIXED["tar"] | CAPTIONED["tar"] | METADATA
    (folder / COLUMNS).mkdir(parents=True)
    for name, dtype in columns.items():
        with (folder / COLUMNS / f"{name}.npy").open("wb") as file:
            head = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (samples,)}
            np.lib.format.write_array_header_1_0(file, head)
            file.truncate(file.tell() + samples * np.dtype(dtype).itemsize)
    counts = [min(in_shard, samples - first) for first in range(0, samples, in_shard)]
    shards = {
        "paths": [f"{number:06d}.tar" for number in range(len(counts))],
        "sizes": [count * 50_000 for count in counts],
        "tags": [f'"{number:032x}"' for number in range(len(counts))],
        "samples": counts,
    }
    said = {
        "kind": "tar",
        "samples": samples,
        "columns": columns,
        "caption": "txt",
        "root": "https://example.org/laion/",
    }
    (folder / SHARDS).write_text(json.dumps(shards))
    (folder / DESCRIPTION).write_text(json.dumps({"format": FORMAT, "version": VERSION, **said, "digest": "0" * 64}))


def memory() -> float:
    """Return MB that this process holds for itself: its heap, not the files that it maps."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1000


def measure(folder: Path) -> None:
    """Open an index and look into it, in a process that has done nothing else."""
    before, begin = memory(), time.perf_counter()
    index = Index.open(folder)
    seconds = time.perf_counter() - begin
    taken = memory() - before
    drawn = np.random.default_rng(0).integers(0, len(index), 20_000)
    begin = time.perf_counter()
    for sample in drawn:
        index.spans(sample[None])
    single = len(drawn) / (time.perf_counter() - begin)
    begin = time.perf_counter()
    for sample in np.random.default_rng(1).integers(0, len(index) // 64, 20_000) * 64:
        index.spans(np.arange(sample, min(sample + 64, len(index))))
    blocks = len(drawn) / (time.perf_counter() - begin)
    print(f"{len(index):,} samples of {len(index.shards):,} shards: opened in {seconds:.2f} s, with {taken:.0f} MB")
    print(f"looked up in a second: {single:,.0f} single samples, {64 * blocks:,.0f} in blocks of 64")
    print(f"memory of its own, after that: {memory():.0f} MB, of which {before:.0f} MB are Python and its libraries")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--synthetic", type=int, metavar="SAMPLES", help="make and open an index of so many samples")
    parser.add_argument("--opened", type=Path, help=argparse.SUPPRESS)  # by the process that measures
    given = parser.parse_args()
    if given.opened is not None:
        measure(given.opened)
    elif given.synthetic is not None:
        with TemporaryDirectory(dir=".") as folder:
            write_synthetic(Path(folder, "index"), given.synthetic)
            subprocess.run([sys.executable, __file__, "--opened", f"{folder}/index"], check=True)
    else:
        parser.error("say what to measure: --synthetic")


if __name__ == "__main__":
    main()
