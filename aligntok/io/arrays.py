"""Arrays in files: of zip archives, numpy's .npz and torch's, as large as they are, whatever they declare; rows."""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from aligntok.errors import first_line
from aligntok.io.files import check_size, regular

MOST_UNPACKED = 2 << 30  # bytes of one deflated array: 10,000 pictures of 256 pixels
_HEADER = 1 << 14  # bytes that hold an array's own header
_LOCAL = 30  # bytes of an entry's header in the archive, before its name and its extra field


def read_npz(
    path: str | os.PathLike[str],
    names: Collection[str],
    check: Callable[[str, np.dtype[Any], tuple[int, ...]], None],
    mapped: Collection[str] = (),
) -> dict[str, Any]:
    """Return those of the arrays `names` that an .npz has; of these, the `mapped` ones stay where they lie if stored.

    `check` is called with each one's name, type and shape, before it is read, and raises ValueError for what is not
    wanted. Raises OSError or ValueError for a file that is damaged, holds less or more than it declares, or objects.
    """
    arrays: dict[str, Any] = {}
    with damage_told(), open(path, "rb", opener=regular) as raw, zipfile.ZipFile(raw) as archive:
        for name in [name for name in names if f"{name}.npy" in archive.namelist()]:
            entry = archive.getinfo(f"{name}.npy")
            begin, shape, fortran, dtype = _header(archive, entry)
            size = dtype.itemsize * math.prod(shape)
            if dtype.hasobject or min(shape, default=0) < 0 or begin + size != entry.file_size:
                raise ValueError(f"{name} is {dtype} {shape} in {entry.file_size} bytes")
            check(name, dtype, shape)
            order: Any = "F" if fortran else "C"
            if name in mapped and entry.compress_type == zipfile.ZIP_STORED:
                raw.seek(entry.header_offset + _LOCAL - 4)  # its name and extra field may differ from the list's
                begin += entry.header_offset + _LOCAL + int(np.frombuffer(raw.read(4), "<u2").sum())
                arrays[name] = np.memmap(path, dtype, "r", begin, shape, order)
            else:
                check_size(size, MOST_UNPACKED)
                with archive.open(entry) as file:
                    file.read(begin)
                    arrays[name] = np.frombuffer(file.read(), dtype).reshape(shape, order=order).copy(order="K")
    return arrays


@contextmanager
def damage_told() -> Iterator[None]:
    """Turn what numpy and zipfile raise inside where a file is damaged into ValueError; OSError stays.

    Numpy reads a header by Python's own parser: one changed bit of it is a SyntaxError, a TokenError, an IndexError.
    """
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {first_line(error)}") from error


def _header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[int, tuple[int, ...], bool, np.dtype[Any]]:
    """Return where an array's numbers begin, its shape, whether it is in Fortran's order, and its type."""
    with archive.open(entry) as file:
        return _read_header(file)


def _read_header(file: IO[bytes]) -> tuple[int, tuple[int, ...], bool, np.dtype[Any]]:
    head = io.BytesIO(file.read(_HEADER))
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = read[np.lib.format.read_magic(head)](head)
    return head.tell(), shape, fortran, dtype


def map_column(path: str | os.PathLike[str], dtype: str, rows: int) -> np.memmap[Any, Any]:
    """Return the numbers of an .npy file where they lie, (rows,) of a `dtype` such as "i8", not to be written.

    Raises OSError or ValueError, before anything is mapped, for a file of another type, shape or number of bytes. Not
    for several threads at once: numpy reads a header with Python's parser, which fails there before 3.11.8.
    """
    with damage_told(), open(path, "rb", opener=regular) as file:
        begin, shape, _, found = _read_header(file)
        size = os.fstat(file.fileno()).st_size
    wanted = np.dtype(dtype)
    if found != wanted or shape != (rows,) or size != begin + rows * wanted.itemsize:
        raise ValueError(f"it is {found} {shape} in {size:,} bytes; it must be {wanted} {(rows,)}")
    return np.memmap(path, wanted, "r", begin, (rows,))


def map_again(column: np.memmap[Any, Any]) -> np.memmap[Any, Any]:
    """Return what `map_column` did, to ask for a few numbers here and there: nothing around them is read in advance.

    For several threads. Raises OSError or ValueError for a file that is gone or shorter by then.
    """
    mapped = np.memmap(str(column.filename), column.dtype, "r", column.offset, column.shape)
    if hasattr(mmap, "MADV_RANDOM"):
        mapped._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
    return mapped


def check_stored(path: str | os.PathLike[str]) -> None:
    """Raise ValueError for a zip archive, such as torch writes, that unpacks to more than it has; pass all else."""
    with open(path, "rb", opener=regular) as raw:
        if zipfile.is_zipfile(raw):
            try:
                entries = zipfile.ZipFile(raw).infolist()
            except zipfile.BadZipFile:
                return  # whoever reads it says so
            if any(entry.compress_type for entry in entries) or sum(e.file_size for e in entries) > raw.seek(0, 2):
                raise ValueError("its parts are packed, or declare more than the file has, which no writer of it does")


def why_unread(error: Exception) -> str:
    """Return why torch did not read a file: of one that is no plain data without torch's advice to run its code."""
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds more than tensors and plain data"
    return first_line(error)


class MappedRows:
    """Rows of numbers in a file, mapped into memory: `array` is (rows, width), and is read from disk where it is used.

    Floats of 16 bits come as their bits. Holds a file descriptor, as a mapping of Python does.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], begin: int, rows: int, width: int) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.array = np.frombuffer(self._map, dtype, rows * width, begin).reshape(rows, width)
        self._begin, self._stride = begin, width * dtype.itemsize

    def will_need(self, row: int) -> None:
        """Let the system read a row from disk in the background, together with others: ten times as fast when cold."""
        begin = self._begin + row * self._stride
        page = begin // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(mmap, "MADV_WILLNEED"):
            self._map.madvise(mmap.MADV_WILLNEED, page, begin + self._stride - page)


class PairedRows:
    """The rows of two mapped arrays in turn: of the first, of the second, its next."""

    def __init__(self, halves: Sequence[MappedRows]) -> None:
        self._halves = halves

    @property
    def array(self) -> PairedRows:
        """Itself, whose rows are asked for one by one."""
        return self

    def __getitem__(self, row: int) -> Any:
        return self._halves[row % 2].array[row // 2]

    def will_need(self, row: int) -> None:
        """As of :class:`MappedRows`."""
        self._halves[row % 2].will_need(row // 2)
