"""The folder of a set of samples: pictures, what they are, and the whole set as one array.

::

    samples/
      images/000000.png ...   sample 0, 1, ...; each whole or absent
      samples.json            how they are drawn, and whether all `num` are there ("finished")
      samples.npz             arr_0 (N, H, W, 3) uint8; with classes arr_1 (N,) int64 (the format of ADM's evaluation)
      grid.png                the first of them
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from typing_extensions import Self

from aligntok.data.transforms import open_image, to_tensor
from aligntok.distributed import broadcast, is_first
from aligntok.distributed.job import batched, progress_bar, stop_if_preempted
from aligntok.errors import ConfigError, DataError, ImageError, Preempted, first_line
from aligntok.io.files import check_space, read_json, remove_leftovers, replacing, write_json
from aligntok.io.pictures import image_grid, save_picture, to_picture

FORMAT = 1
DESCRIPTION, PICTURES, ARRAYS, GRID = "samples.json", "images", "samples.npz", "grid.png"
THREADS = 8  # that write and read PNGs: the work is zlib's and the disk's, outside of Python's lock
ROWS_AT_ONCE = 256  # pictures in memory while the arrays are written
DISK_BLOCK = 4096


#: What may differ when a folder is gone on with: where things are, how many are wanted, how many at once.
FREE = {"source", "weights", "average", "num", "batch_size", "finished", "aligntok_version"}
Pixels = npt.NDArray[np.uint8]


class SampleFolder:
    """A folder of `num` samples of (H, W) pixels in the making; `settings` is what samples.json is to hold.

    labels: (N,), or None for a generator without classes.
    """

    def __init__(
        self,
        path: Path,
        num: int,
        image_size: tuple[int, int],
        labels: Sequence[int] | None,
        settings: Mapping[str, Any],
    ) -> None:
        self.path = path
        self.num = num
        self.image_size = image_size
        self.labels = labels
        self.settings = {"format": FORMAT, "num": num, **settings}

    def picture(self, number: int) -> Path:
        """Return where a sample's picture is."""
        return self.path / PICTURES / f"{number:06d}.png"

    def check(self) -> None:
        """Raise ConfigError unless the folder is new or empty, or these very samples were begun in it."""
        begun = self.path / DESCRIPTION
        if not begun.is_file():
            check_folder_is_new(self.path, DESCRIPTION)
            return
        cure = "so how the pictures beside it were drawn is unknown: restore that file, or give another --out"
        before, now = read_json(begun, DataError, cure, compared), compared(self.settings)
        changed = [
            f"{key} {_short(before.get(key))}, now {_short(now.get(key))}"
            for key in sorted({**before, **now})
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise ConfigError(
                f"the samples in {self.path} were begun otherwise ({'; '.join(changed)}); "
                "give what they were begun with, or another --out"
            )

    def begin_together(self, npz: bool) -> set[int]:
        """Return which samples are missing; collective. The first process looks, and prepares the folder.

        Raises WriteError when there is no room for them, and for the arrays if `npz`.
        """
        state = torch.zeros(self.num, dtype=torch.uint8)
        if is_first():
            state[self._begin(npz)] = 1
        broadcast([state])
        return set(state.nonzero().flatten().tolist())

    def _begin(self, npz: bool) -> list[int]:
        remove_leftovers(self.path)
        there = self._there()
        missing = [i for i in range(self.num) if self.picture(i).name not in there]
        if missing:
            (self.path / ARRAYS).unlink(missing_ok=True)  # of fewer samples, or of ones that have been lost since
            self._check_space(len(missing), npz)
            self._describe(finished=False)
            print(f"Drawing {len(missing)} of {self.num} samples into {self.path}")
        return missing

    def _there(self) -> set[str]:
        return {path.name for path in (self.path / PICTURES).glob("*.png")}

    def _check_space(self, missing: int, npz: bool) -> None:
        bytes_each = 3 * math.prod(self.image_size)  # noise does not get smaller as a PNG
        needed = missing * (bytes_each + DISK_BLOCK) + (self.num * bytes_each if npz else 0)
        what = f"{missing} samples{' and samples.npz' if npz else ''}"
        check_space(self.path / DESCRIPTION, needed, what, "give another --out, or take --no-npz")

    def _describe(self, finished: bool) -> None:
        write_json(self.path / DESCRIPTION, {**self.settings, "finished": finished})

    def write_npz_together(self, wanted: bool) -> None:
        """Write the arrays from the pictures, if wanted and not there; collective.

        Raises DataError for a picture that is missing or damaged, WriteError when it cannot be written, Preempted.
        """
        chunks = torch.zeros(1, dtype=torch.int64)
        if is_first() and wanted and not self._has_arrays():
            chunks += math.ceil(self.num / ROWS_AT_ONCE) + 1  # the last one closes the file
        broadcast([chunks])
        stopped = Preempted(
            f"stopped by SIGTERM before {self.path / ARRAYS} was whole; the pictures are there, and the same command "
            "writes it"
        )
        with closing(self._write_npz() if is_first() else _idle()) as writing:
            for _ in range(int(chunks)):
                next(writing, None)
                stop_if_preempted(stopped)

    def _has_arrays(self) -> bool:
        try:
            with zipfile.ZipFile(self.path / ARRAYS) as archive, archive.open("arr_0.npy") as file:
                np.lib.format.read_magic(file)
                return bool(np.lib.format.read_array_header_1_0(file)[0][0] == self.num)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return False

    def _write_npz(self) -> Generator[None, None, None]:
        return write_npz(self.path / ARRAYS, self.pixels(), (self.num, *self.image_size, 3), self.labels)

    def pixels(self) -> Iterator[Pixels]:
        """Read the pictures in order, (H, W, 3) each; a few at a time are in memory. Raises DataError for a bad one."""
        with ThreadPoolExecutor(THREADS) as pool:
            for numbers in batched(range(self.num), ROWS_AT_ONCE):
                yield from pool.map(self.read, numbers)

    def read(self, number: int) -> Pixels:
        """Return a picture, (H, W, 3). Raises DataError for one that is missing or damaged."""
        path = self.picture(number)
        try:
            pixels = np.asarray(open_image(path.read_bytes()))
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
            save_picture(self.path / GRID, to_picture(image_grid(first)))
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
        self._running = [self._pool.submit(self._write, number, pixels) for number, pixels in pictures]

    def wait(self) -> None:
        """Wait until all are written. Raises WriteError when one cannot be."""
        running, self._running = self._running, []
        for each in running:
            each.result()

    def _write(self, number: int, pixels: Pixels) -> None:
        cure = "the pictures that are there are whole. Make room and start the same command again"
        save_picture(self.folder.picture(number), Image.fromarray(pixels), cure)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown()  # waits, too


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


def check_folder_is_new(path: Path, description: str) -> None:
    """Raise ConfigError for a file, or a folder with anything in it, that `description` is not in."""
    if path.is_file() or (path.is_dir() and {*os.listdir(path)} - {".lock"}):
        raise ConfigError(f"{path} has other things in it, and no {description}; give a new folder as --out")


def compared(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return, by dotted name, what may not change between two starts in a folder."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if key in FREE:
            continue
        if isinstance(value, Mapping):
            found.update(compared(value, f"{prefix}{key}."))
        elif value is not None:
            found[f"{prefix}{key}"] = value
    return found


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) < 64 else f"{text[:16]}..."


def _idle() -> Generator[None, None, None]:
    yield from ()
