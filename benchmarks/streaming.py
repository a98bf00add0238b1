"""Streams of images from shards: what an index of hundreds of millions of samples costs to open and to look into.

    python benchmarks/streaming.py --synthetic 600_000_000

makes an index of so many samples whose columns are sparse files (zeros that take no room on the disk), opens it in a
process of its own, and prints the seconds of the first opening, the memory that it took, and how many samples' shards
and places are looked up in a second, one after another, 256 of all at once, and a block of 64 at once (as a loader
asks); then the same of a selection of all of them, and how many numbers of samples its order gives in a second.

    python benchmarks/streaming.py --images 4096 --workers 2 --rounds 5

reads, decodes and crops so many JPEGs of 384 x 320 pixels, out of tar shards on this disk and from a web server of this
machine: as a stream with a window of 1,024 samples, as the data set `images`, which reads shards on a disk alone, and
as webdataset does, with a buffer of 1,000 samples. They take turns. Each line has medians over rounds: images a second
after the first batch, the ratio to webdataset at that place, milliseconds of processor time an image takes in all (the
server's apart), how far apart in the shards two samples of a batch of 64 are, as a share of all (of a random order a
third), and of how many shards a batch is.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from aligntok.data.buckets import crop_to_tensor, draft_side
from aligntok.data.images import ImageDataset
from aligntok.data.index import Index
from aligntok.data.index.build import build_index
from aligntok.data.index.format import CAPTIONED, COLUMNS, DESCRIPTION, FIXED, FORMAT, SHARDS, VERSION
from aligntok.data.loader import make_loader
from aligntok.data.sampler import GlobalBatchSampler
from aligntok.data.settings import IndexRequest
from aligntok.data.stream.dataset import StreamDataset
from aligntok.data.stream.order import StreamOrder
from aligntok.data.stream.selection import BLOCK, BUCKETS, COUNTS, Blocks, _read
from aligntok.data.transforms import open_image

IN_SHARD = 256
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
    batches = np.random.default_rng(2).integers(0, len(index), (100, 256))
    begin = time.perf_counter()
    for samples in batches:
        index.spans(samples)
    anywhere = batches.size / (time.perf_counter() - begin)
    begin = time.perf_counter()
    for sample in np.random.default_rng(1).integers(0, len(index) // 64, 20_000) * 64:
        index.spans(np.arange(sample, min(sample + 64, len(index))))
    blocks = len(drawn) / (time.perf_counter() - begin)
    print(f"{len(index):,} samples of {len(index.shards):,} shards: opened in {seconds:.2f} s, with {taken:.0f} MB")
    print(
        f"looked up in a second: {single:,.0f} single samples, {anywhere:,.0f} in batches of 256 from anywhere, "
        f"{64 * blocks:,.0f} in blocks of 64"
    )
    print(f"memory of its own, after that: {memory():.0f} MB, of which {before:.0f} MB are Python and its libraries")

    measure_order(index, folder / "selection")


def write_selection(index: Index, folder: Path) -> None:
    """Write a selection of every sample, of seven shapes of which all have the first."""
    folder.mkdir()
    number = Blocks(index.shards.first).number
    begins, ends = Blocks(index.shards.first).ranges(np.arange(number))
    with (folder / BUCKETS).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (len(index),)})
        file.truncate(file.tell() + len(index))  # zeros
    counts = np.zeros((number, 7), dtype=np.uint8)
    counts[:, 0] = ends - begins
    np.save(folder / COUNTS, counts.ravel())
    said = {"format": 1, "digest": "", "sizes": [[256, 256]] * 7, "totals": [len(index), *[0] * 6], "passed": {}}
    (folder / "selection.json").write_text(json.dumps(said))


def measure_order(index: Index, folder: Path) -> None:
    """Open a selection, and ask its order for samples of batches of 256."""
    write_selection(index, folder)
    before, begin = memory(), time.perf_counter()
    selection = _read(index, folder, "")
    print(f"a selection of all, of {selection.blocks.number:,} blocks: opened in {time.perf_counter() - begin:.2f} s")
    order, begin = StreamOrder(selection, 0, 256), time.perf_counter()
    order.samples(0, 10**8, 256)
    print(f"the first batch of an epoch: {time.perf_counter() - begin:.2f} s, with {memory() - before:.0f} MB")
    begin, batches = time.perf_counter(), 2000
    for batch in range(batches):
        order.samples(0, 10**8 + 256 * batch, 256)
    print(f"numbers of samples in a second: {256 * batches / (time.perf_counter() - begin):,.0f}")


def write_shards(folder: Path, images: int, in_shard: int = IN_SHARD) -> list[str]:
    """Write tar shards of JPEGs of 384 x 320 pixels; return their names."""
    folder.mkdir()
    rng, names = np.random.default_rng(0), []
    for first in range(0, images, in_shard):
        names.append(f"{first // in_shard:05d}.tar")
        with tarfile.open(folder / names[-1], "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(first, min(first + in_shard, images)):
                pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                file = io.BytesIO()
                Image.fromarray(pixels).resize((384, 320), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
                info = tarfile.TarInfo(f"{number:08d}.jpg")
                info.size = len(file.getvalue())
                tar.addfile(info, io.BytesIO(file.getvalue()))
    return names


class Ranges(SimpleHTTPRequestHandler):
    """Serves files of a folder, whole or a range of one."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.translate_path(self.path)
        if not os.path.isfile(path):
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size, wanted = os.path.getsize(path), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), min(int(wanted[2]), size - 1)) if wanted else (0, size - 1)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        with open(path, "rb") as file:
            self.wfile.flush()
            self.connection.sendfile(file, first, last - first + 1)


def serve(folder: Path) -> None:
    """Serve a folder, and say where."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(folder)))
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


def prepared(sample: dict[str, Any]) -> dict[str, Any]:
    """Decode and crop a sample of webdataset, as the data sets of ours do."""
    rng = np.random.default_rng(int(sample["__key__"]))
    image = open_image(sample["jpg"], draft_side=draft_side((256, 256), None), max_aspect_ratio=50)
    return {"images": crop_to_tensor(image, (256, 256), None, True, rng), "index": int(sample["__key__"])}


def by_webdataset(places: list[str], workers: int) -> Iterator[Any]:
    """Read shards, in a random order, and through a buffer of 1,000 samples in which they are shuffled."""
    import webdataset

    samples = webdataset.WebDataset(places, shardshuffle=len(places), seed=0, empty_check=False).shuffle(1000)
    return iter(torch.utils.data.DataLoader(samples.map(prepared), batch_size=64, num_workers=workers))


def by_stream(index: Path, workers: int, cache: str) -> Iterator[Any]:
    """Read the samples of an index; nothing of a reading before is kept."""
    with TemporaryDirectory(dir=cache) as own:
        data = StreamDataset(index, image_size=256, cache=own, window=1024 // BLOCK)
        yield from make_loader(data, data.batches(64, 0, num_steps=len(data) // 64), workers)


def by_images(folder: Path, workers: int) -> Iterator[Any]:
    """Read shards as the data set `images` does."""
    data = ImageDataset(folder, image_size=256)
    return iter(make_loader(data, GlobalBatchSampler(len(data), 64, num_steps=len(data) // 64), workers))


def processor_seconds() -> float:
    """Return the processor time of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def timed(read: Callable[[], Iterator[Any]], images: int) -> tuple[float, float, float, float]:
    """Return images a second after the first batch, milliseconds of processor time an image, the mean distance of two
    samples of a batch, and how many shards it has.
    """
    before, batches = processor_seconds(), read()
    seen, begin = [next(batches)["index"].numpy()], time.perf_counter()
    seen += [batch["index"].numpy() for batch in batches]
    seconds, whole = time.perf_counter() - begin, [batch for batch in seen if len(batch) == 64]
    del batches  # ends the workers
    processor = 1000 * (processor_seconds() - before) / sum(map(len, seen))
    apart = np.mean([np.abs(batch[:, None] - batch).sum() / (64 * 63) for batch in whole]) / images
    shards = np.mean([len(np.unique(batch // IN_SHARD)) for batch in whole])
    return sum(map(len, seen[1:])) / seconds, processor, float(apart), float(shards)


def compare_readers(folder: Path, images: int, workers: int, rounds: int) -> None:
    """Let the readers take turns, and print what they reached."""
    names = write_shards(folder / "shards", images)
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", folder / "shards"], stdout=subprocess.PIPE, text=True
    )
    try:
        url = server.stdout.readline().strip() if server.stdout else ""
        local = [str(folder / "shards" / name) for name in names]
        far = [f"{url}/{name}" for name in names]
        for name, places in (("near", local), ("far", far)):
            build_index(IndexRequest(shards=tuple(places), out=folder / name, workers=0))
        curl = [f"pipe:curl -s -f {place}" for place in far]
        readers: dict[tuple[str, str], Callable[[], Iterator[Any]]] = {
            ("disk", "webdataset"): lambda: by_webdataset(local, workers),
            ("disk", "images"): lambda: by_images(folder / "shards", workers),
            ("disk", "stream"): lambda: by_stream(folder / "near", workers, str(folder)),
            ("server", "webdataset"): lambda: by_webdataset(curl, workers),
            ("server", "stream"): lambda: by_stream(folder / "far", workers, str(folder)),
        }
        found: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {key: [] for key in readers}
        for _ in range(rounds):
            for key, reader in readers.items():
                found[key].append(timed(reader, images))
    finally:
        server.kill()
        server.wait()
    for (place, name), results in found.items():
        ratio = [own / other for (own, *_), (other, *_) in zip(results, found[place, "webdataset"], strict=True)]
        speed, processor, distance, shards = (statistics.median(each) for each in zip(*results, strict=True))
        print(
            f"{place:6s} {name:10s} {speed:8,.0f} images/s, {statistics.median(ratio):.2f} x webdataset, "
            f"{processor:4.1f} ms; in a batch {distance:.3f} of the set apart, of {shards:.1f} of {len(names)} shards"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--synthetic", type=int, metavar="SAMPLES", help="make and open an index of so many samples")
    parser.add_argument("--opened", type=Path, help=argparse.SUPPRESS)  # by the process that measures
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, help="read so many images, by every reader")
    parser.add_argument("--workers", type=int, default=2, help="data-loading processes of each reader")
    parser.add_argument("--rounds", type=int, default=3, help="times that each reader reads all")
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
    elif given.images is not None:
        torch.set_num_threads(1)
        with TemporaryDirectory() as folder:
            compare_readers(Path(folder), given.images, given.workers, given.rounds)
    elif given.opened is not None:
        measure(given.opened)
    elif given.synthetic is not None:
        with TemporaryDirectory(dir=".") as folder:
            write_synthetic(Path(folder, "index"), given.synthetic)
            subprocess.run([sys.executable, __file__, "--opened", f"{folder}/index"], check=True)
    else:
        parser.error("say what to measure: --synthetic or --images")


if __name__ == "__main__":
    main()
