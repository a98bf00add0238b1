"""What a source of images promises, which of its files a split has, and bytes that are a range of a larger file."""

from __future__ import annotations

import hashlib
import io
import os
import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from aligntok.errors import DataError, unknown

if TYPE_CHECKING:
    from typing_extensions import Buffer


#: File name endings taken for images, in any case.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")


#: The class index of each image, -1 without one.
Labels: TypeAlias = npt.NDArray[np.int32]


class Names(Protocol):
    """The name of each image of a source, as messages show it."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...

    def __getitem__(self, index: int) -> str: ...

    def digest(self) -> str:
        """Return a fingerprint of the list: the same in every process that opened the same images."""


class PackedNames:
    """An immutable list of strings in one block of memory.

    Worker processes share it: a list of Python strings would be copied page by page as reference counts are touched.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def digest(self) -> str:
        """Return a fingerprint of the list."""
        return hashlib.sha256(self._bytes + self._ends.tobytes()).hexdigest()

    def __getitem__(self, index: int) -> str:
        start, end = self._ends[index], self._ends[index + 1]
        return self._bytes[start:end].decode("utf-8", "surrogateescape")


class ImageSource(ABC):
    """A listed set of encoded images. Picklable; safe to use after a fork and from spawned workers.

    ``where`` and ``names[i]`` say in messages where an image lies, ``labels[i]`` is its class index (None as the
    argument: -1 for all), and ``class_names[label]`` the name of a class, empty where the source does not know any.
    """

    def __init__(self, where: str, names: Names, labels: Labels | None = None, class_names: Sequence[str] = ()) -> None:
        self.where = where
        self.names = names
        self.labels = np.full(len(names), -1, dtype=np.int32) if labels is None else labels
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Return the encoded bytes of one image. Raises OSError or ValueError when they cannot be had."""

    @abstractmethod
    def open(self, index: int) -> BinaryIO:
        """Open one encoded image, to read its header; safe in several threads at once. Raises as `read` does."""


def is_image(name: str) -> bool:
    """Tell whether a file is taken for an image, by the end of its name."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_hidden(name: str) -> bool:
    """Tell whether a path inside a source has a part that begins with a dot, or is what macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


class OpenFiles:
    """The files last asked for, at most `limit`, open for reading; each process opens its own.

    For one thread a process: several would move a common handle under one another.
    """

    def __init__(self, limit: int = 64) -> None:
        self.limit = limit
        self._handles: OrderedDict[Path, BinaryIO] = OrderedDict()
        self._owner = 0

    def get(self, path: Path) -> BinaryIO:
        """Return a handle of a file, at any position. Raises OSError when it cannot be opened."""
        if self._owner != os.getpid():  # a handle inherited by a fork shares its position with the parent's
            self.close()
            self._owner = os.getpid()
        if path not in self._handles:
            self._handles[path] = path.open("rb")
        self._handles.move_to_end(path)
        while len(self._handles) > self.limit:
            self._handles.popitem(last=False)[1].close()
        return self._handles[path]

    def close(self) -> None:
        """Close this process's handles; the next `get` opens another."""
        while self._handles:
            self._handles.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": OrderedDict()}

    def __del__(self) -> None:
        self.close()


class FilePart(io.RawIOBase):
    """`size` bytes of a file from `offset` on, as a file of their own. Raises OSError when it cannot be opened."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._offset = offset
        self._size = size
        self._position = 0

    def readinto(self, buffer: Buffer, /) -> int:
        """Read on into a buffer; return how many bytes there were, 0 at the end."""
        view = memoryview(buffer)[: max(0, self._size - self._position)]
        self._file.seek(self._offset + self._position)
        count = self._file.readinto(view) or 0
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to `offset` from the part's begin, from here, or from the part's end; return the new position."""
        self._position = max(0, (0, self._position, self._size)[whence] + offset)
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """Close the file below as well."""
        if not self.closed:
            self._file.close()
        super().close()


#: Names that a split usually has; those of one row mean the same.
_SPELLINGS = (("train", "training"), ("val", "validation", "valid"), ("test",))
SPLIT_NAMES = frozenset(name for row in _SPELLINGS for name in row)
_WORDS = re.compile(r"[^\W\d_]+|\d+")


def spellings(split: str) -> tuple[str, ...]:
    """Return the names under which a split may be found: its own first, then those that mean the same."""
    same = next((row for row in _SPELLINGS if split in row), ())
    return (split, *(name for name in same if name != split))


def choose_files(where: str, files: Sequence[Path], split: str, folders: Iterable[str] = ()) -> list[Path]:
    """Return the files of a split: those with its name as a word in theirs, else those in a folder of that name.

    A word is bounded by anything but letters, as in ``imagenet-train-0000.tar``. Files that say 'val', 'valid' or
    'validation' are found by any of the three, the name asked for first; so are 'train' and 'training'. Without a
    split, all files are returned. Raises DataError when no file is of the split (`folders` are other splits to
    name), and when none was asked for but the files are of several.
    """
    known = _splits_of(files)
    if not split:
        if sum(not set(row).isdisjoint(known) for row in _SPELLINGS) > 1:
            raise several_splits(where, known)
        return list(files)
    for belongs in (_has_word, _lies_in):
        for name in spellings(split):
            if chosen := [file for file in files if belongs(file, name)]:
                return chosen
    raise DataError(
        f"{where} has {unknown('split', split, sorted({*known, *folders}))}; no file name has that word, "
        f"{files[0].name} the first of {len(files)}: name the files by split (train-0000.tar, val-0000.tar), or leave "
        "`split` out to take all of them"
    )


def several_splits(where: str, known: Iterable[str]) -> DataError:
    """Return the error of a source with several splits of which none was chosen."""
    return DataError(f"{where} holds the splits {', '.join(known)}; choose one with `split`")


def _splits_of(files: Sequence[Path]) -> list[str]:
    for belongs in (_has_word, _lies_in):
        if found := [name for row in _SPELLINGS for name in row if any(belongs(file, name) for file in files)]:
            return found
    return []


def _has_word(file: Path, word: str) -> bool:
    parts, wanted = _WORDS.findall(file.stem.lower()), _WORDS.findall(word.lower())
    starts = range(len(parts) - len(wanted) + 1) if wanted else ()
    return any(parts[start : start + len(wanted)] == wanted for start in starts)


def _lies_in(file: Path, folder: str) -> bool:
    return file.parent.name == folder
