"""The folder of a set of samples: pictures, what they are, and the whole set as one array.

::

    samples/
      images/000000.png ...   sample 0, 1, ...; each whole or absent
      prompts.jsonl           of prompts: file, prompt, seed of each
      samples.json            how they are drawn, and whether all `num` are there ("finished")
      samples.npz             arr_0 (N, H, W, 3) uint8; with classes arr_1 (N,) int64 (the format of ADM's evaluation)
      grid.png                the first of them
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from typing_extensions import Self

from aligntok.data.transforms import open_image, to_tensor
from aligntok.distributed import is_first
from aligntok.distributed.job import batched, progress_bar, stop_if_preempted
from aligntok.distributed.output_folder import found_by_first
from aligntok.errors import DataError, ImageError, Preempted, first_line
from aligntok.io.arrays import read_npz
from aligntok.io.console import say
from aligntok.io.files import read_bytes, replacing, write_json, writing_text
from aligntok.io.folders import check_space, remove_leftovers
from aligntok.io.pictures import captioned, image_grid, save_picture, to_picture
from aligntok.io.places import without_places
from aligntok.settings import flatten

FORMAT = 1
DESCRIPTION, PICTURES, ARRAYS, GRID = "samples.json", "images", "samples.npz", "grid.png"
PROMPTS = "prompts.jsonl"
THREADS = 8  # that write and read PNGs: the work is zlib's and the disk's, outside of Python's lock
ROWS_AT_ONCE = 256  # pictures in memory while the arrays are written
DISK_BLOCK = 4096


#: What may differ when a folder is gone on with: where things are, how many are wanted, how many at once.
FREE = {"source", "weights", "average", "num", "batch_size", "compile", "finished", "aligntok_version"}
Pixels = npt.NDArray[np.uint8]


@dataclass
class SampleFolder:
    """A folder of `num` samples of (H, W) pixels in the making; `settings` is what samples.json is to hold.

    labels: (N,), or None for a generator without classes. records: what is to stand beside each picture, if anything.
    """

    path: Path
    num: int
    image_size: tuple[int, int]
    labels: Sequence[int] | None
    settings: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]] = ()

    def picture(self, number: int) -> Path:
        """Return where a sample's picture is."""
        return self.path / PICTURES / f"{number:06d}.png"

    def begin_together(self, npz: bool) -> set[int]:
        """Return which samples are missing; collective. The first process looks, and prepares the folder.

        Raises WriteError when there is no room for them, and for the arrays if `npz`.
        """
        return {i for i, missing in enumerate(found_by_first(lambda: self._begin(npz), self.num)) if missing}

    def _begin(self, npz: bool) -> list[int]:
        remove_leftovers(self.path)
        there = self._there()
        is_missing = [int(self.picture(i).name not in there) for i in range(self.num)]
        self._write_records()  # of as many as there are to be, where more had been drawn
        if not npz and not self._has_arrays():
            (self.path / ARRAYS).unlink(missing_ok=True)
        if missing := sum(is_missing):
            (self.path / ARRAYS).unlink(missing_ok=True)  # of fewer samples, or of ones that have been lost since
            bytes_each = 3 * math.prod(self.image_size)  # noise does not get smaller as a PNG
            needed = missing * (bytes_each + DISK_BLOCK) + (self.num * bytes_each if npz else 0)
            what = f"{missing} samples{' and samples.npz' if npz else ''}"
            check_space(self.path / DESCRIPTION, needed, what, "give another --out, or take --no-npz")
            self._describe(finished=False)
            say(f"Drawing {missing} of {self.num} samples into {self.path}")
        return is_missing

    def _there(self) -> set[str]:
        return {path.name for path in (self.path / PICTURES).glob("*.png")}

    def _write_records(self) -> None:
        if self.records:
            lines = [
                json.dumps({"file": f"{PICTURES}/{self.picture(number).name}", **record}, ensure_ascii=False)
                for number, record in enumerate(self.records)
            ]
            with writing_text(self.path / PROMPTS) as file:
                file.write("\n".join([*lines, ""]))

    def _describe(self, finished: bool) -> None:
        settings = without_places(self.settings, self.path)
        write_json(self.path / DESCRIPTION, {**settings, "finished": finished})

    def write_npz_together(self, wanted: bool) -> None:
        """Write the arrays from the pictures, if wanted and not there; collective.

        Raises DataError for a picture that is missing or damaged, WriteError when it cannot be written, Preempted.
        """
        path, shape = self.path / ARRAYS, (self.num, *self.image_size, 3)
        steps = math.ceil(self.num / ROWS_AT_ONCE) + 1  # the last one closes the file
        (left,) = found_by_first(lambda: [steps if wanted and not self._has_arrays() else 0], 1)
        stopped = Preempted(
            f"stopped by SIGTERM before {path} was whole; the pictures are there, and the same command writes it"
        )
        writing = write_npz(path, self.pixels(), shape, self.labels) if is_first() else (None for _ in ())
        with closing(writing):
            for _ in range(left):
                next(writing, None)
                stop_if_preempted(stopped)

    def _has_arrays(self) -> bool:
        def check(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
            if dtype != np.uint8 or shape != (self.num, *self.image_size, 3):
                raise ValueError(f"{name} is {dtype} {shape}")

        try:
            return "arr_0" in read_npz(self.path / ARRAYS, ["arr_0"], check, mapped=["arr_0"])
        except (OSError, ValueError):
            return False

    def pixels(self) -> Iterator[Pixels]:
        """Read the pictures in order, (H, W, 3) each; a few at a time are in memory. Raises DataError for a bad one."""
        with ThreadPoolExecutor(THREADS) as pool:
            for numbers in batched(range(self.num), ROWS_AT_ONCE):
                yield from pool.map(self.read, numbers)

    def read(self, number: int) -> Pixels:
        """Return a picture, (H, W, 3). Raises DataError for one that is missing or damaged."""
        path = self.picture(number)
        try:
            pixels = np.asarray(open_image(read_bytes(path)))
            if pixels.shape != (*self.image_size, 3):
                raise ImageError(f"it has {pixels.shape[0]} x {pixels.shape[1]} pixels")
        except (ImageError, OSError) as error:
            raise DataError(
                f"{path} is missing, damaged or of another size ({first_line(error)}); remove it and start the same "
                "command again, which draws what is missing (several machines must share the folder)"
            ) from error
        return pixels

    def finish(self, grid: int) -> str:
        """Write the grid of the first samples, and that all are there; return a line about the folder."""
        if grid:
            first = [to_tensor(self.read(i)) for i in range(min(grid, self.num))]
            captions = [record["prompt"] for record in self.records[: len(first)]]
            save_picture(self.path / GRID, captioned(first, captions) if captions else to_picture(image_grid(first)))
        self._describe(finished=True)
        size = " x ".join(map(str, self.image_size))
        more = len(self._there()) - self.num
        older = f"; {PICTURES}/ has {more} more, of an earlier start" if more > 0 else ""
        return f"Samples: {self.path}   ({self.num} of {size}{older})"


class PictureWriter:
    """Writes samples as PNGs in threads, while the next batch is drawn; leaving its context waits for the last."""

    def __init__(self, folder: SampleFolder) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(THREADS)
        self._running: list[Future[None]] = []

    def write(self, pictures: Sequence[tuple[int, Pixels]]) -> None:
        """Begin to write samples (H, W, 3) by number, once those before are written. Raises WriteError for these."""
        self.wait()
        cure = "the pictures that are there are whole. Make room and start the same command again"
        self._running = [
            self._pool.submit(save_picture, self.folder.picture(number), Image.fromarray(pixels), cure)
            for number, pixels in pictures
        ]

    def wait(self) -> None:
        """Wait until all are written. Raises WriteError when one cannot be."""
        running, self._running = self._running, []
        for each in running:
            each.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._pool:  # whose end waits, too
            if kind is None:
                self.wait()


def write_npz(
    path: Path, pixels: Iterator[Pixels], shape: tuple[int, ...], labels: Sequence[int] | None
) -> Generator[None, None, None]:
    """Write arr_0, uint8 of `shape` (N, H, W, 3), row by row, and arr_1, int64 (N,), as numpy.load reads them.

    Whole or not at all; gives way after every ROWS_AT_ONCE rows. Uncompressed, with the sizes of ZIP64.
    """
    cure = "the pictures are there. Make room and start the same command again, or add --no-npz"
    with (
        replacing(path, cure) as temporary,
        progress_bar(shape[0], f"writing {path.name}", "image") as bar,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for number, picture in enumerate(pixels, 1):
                file.write(picture.tobytes())
                bar.update(1)
                if number % ROWS_AT_ONCE == 0 or number == shape[0]:
                    yield
        if labels is not None:
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(labels, dtype=np.int64))


def compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return, by dotted name, what may not change between two starts in a folder."""
    given = {name: value for name, value in flatten(settings).items() if value is not None and value != {}}
    return {name: value for name, value in given.items() if FREE.isdisjoint(name.split("."))}
