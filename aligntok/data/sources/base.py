"""What a source of images promises, which of its files a split has, and bytes that are a range of a larger file."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from aligntok.data.captions import Captions
from aligntok.data.transforms import SUFFIXES, holds_image, image_suffixes
from aligntok.distributed import is_first
from aligntok.errors import DataError, some_of, unknown
from aligntok.imports import FAILURES, import_failure
from aligntok.io.files import check_size, regular
from aligntok.io.folders import refuse_unlisted

if TYPE_CHECKING:
    from typing_extensions import Buffer

logger = logging.getLogger("aligntok.data")

_THREADS = 16

#: The class index of each image, -1 without one.
Labels: TypeAlias = npt.NDArray[np.int32]


class PackedNames:
    """The name of each image of a source, as messages show it: an immutable list in one block of memory.

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
        """Return a fingerprint of the list: the same in every process that opened the same images."""
        return hashlib.sha256(self._bytes + self._ends.tobytes()).hexdigest()

    def __getitem__(self, index: int) -> str:
        start, end = self._ends[index], self._ends[index + 1]
        return self._bytes[start:end].decode("utf-8", "surrogateescape")


class ImageSource(ABC):
    """A listed set of encoded images. Picklable; safe to use after a fork and from spawned workers.

    ``where`` and ``names[i]`` say in messages where an image lies, ``labels[i]`` is its class index (None as the
    argument: -1 for all), and ``class_names[label]`` the name of a class, empty where the source does not know any.
    ``root`` is where a tree of files lies, absolute, with a slash at its end; ``label`` what was chosen for the labels.
    ``captions[i]`` are an image's, None where they were not asked for; ``caption`` what was chosen for them.
    ``passed_over`` counts the files beside the images that are not read, by how they end.
    """

    root = ""
    label: str | None = None
    captions: Captions | None = None
    caption: str | None = None
    passed_over: Mapping[str, int] = {}

    def __init__(
        self, where: str, names: PackedNames, labels: Labels | None = None, class_names: Sequence[str] = ()
    ) -> None:
        self.where = where
        self.names = names
        self.labels = np.full(len(names), -1, dtype=np.int32) if labels is None else labels
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self.names)

    def key(self, index: int) -> str:
        """Return the name by which an image is held out, or not: the same wherever the source lies."""
        return self.names[index]

    def places(self) -> Iterable[str]:
        """Return what the images are read from, by absolute names: two sources with the same one share images."""
        return (f"{self.where}/{name}" for name in self.names)

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Return the encoded bytes of one image; thread-safe. Raises OSError or ValueError when it cannot be had."""

    def marks(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], bool]:
        """Return the bytes of each image and a mark, (n,) each, at the cost of a look at each file at most.

        Other content has another mark; whether the same content always has the same one, too, is returned last: of a
        time, it has not. Zeros where nothing is known.
        """
        nothing = np.zeros(len(self), dtype=np.int64)
        return nothing, nothing, False

    def open(self, index: int) -> BinaryIO:
        """Open one encoded image, to read its header; safe in several threads at once. Raises as `read` does."""
        return io.BytesIO(self.read(index))


def find_images(files: Iterable[str], open_file: Callable[[str], BinaryIO]) -> tuple[list[str], Counter[str]]:
    """Return those of the files that are images, by the end of their names, or by their content where that has none.

    The others are counted by how they end. Hidden files are passed over, and counted where they end as images do.
    """
    suffixes = image_suffixes()
    images: list[str] = []
    unnamed: list[str] = []
    others: Counter[str] = Counter()
    for name in files:
        if is_hidden(name):
            others["hidden"] += is_hidden_image(name, suffixes)
        elif name.lower().endswith(suffixes):
            images.append(name)
        elif suffix := suffix_of(name):
            others[suffix] += 1
        else:
            unnamed.append(name)
    with ThreadPoolExecutor(_THREADS) as pool:
        opened = pool.map(lambda name: holds_image(partial(open_file, name)), unnamed)
        for name, found in zip(unnamed, opened, strict=True):
            images += [name] * found
            others["without suffix"] += not found
    return images, +others


def is_hidden_image(name: str, suffixes: tuple[str, ...]) -> bool:
    """Tell whether a hidden file ends as an image does, and is none of those that macOS puts beside each."""
    return name.lower().endswith(suffixes) and "__MACOSX" not in name and "/._" not in f"/{name}"


def suffix_of(name: str) -> str:
    """Return how a file's name ends, in lower case: from the last dot on, empty without one."""
    _, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if dot else ""


@cache
def say_once(text: str) -> None:
    """Warn of something about a source, in one process, though it is opened several times."""
    if is_first():
        logger.warning("%s", text)


def say_passed_over(where: str, others: Mapping[str, int]) -> None:
    """Say how many files of a source are not read, by how they end; a known image that cannot be is said to be one."""
    if others:
        closed = {suffix for ends in SUFFIXES.values() for suffix in ends}.intersection(others)
        say_once(
            f"{where}: passed over {sum(others.values()):,} files: {in_numbers(others)}"
            + (f"; Pillow opens {', '.join(sorted(closed))} with a plugin (pillow-heif, pillow-jxl)" if closed else "")
        )


def in_numbers(counts: Mapping[str, int]) -> str:
    """Return what was counted in words, the most frequent first."""
    return some_of([f"{count:,} {name}" for name, count in Counter(counts).most_common()], shown=8)


def is_hidden(name: str) -> bool:
    """Tell whether a path inside a source has a part that begins with a dot, or is what macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the folders of a tree, '' or a path in it, with the names of their files; links are followed.

    A folder that is there twice is visited once, under its own path rather than a link's, so that links cannot go
    round in circles; hidden ones are passed over. Raises DataError for one that cannot be listed.
    """
    seen, waiting = set(), [top]  # links wait until every folder that is none was visited
    while waiting:
        begin = waiting.pop(0)
        for place, folders, files in os.walk(begin, onerror=partial(refuse_unlisted, DataError)):
            found = os.stat(place)
            if (found.st_dev, found.st_ino) in seen:
                folders.clear()
                continue
            seen.add((found.st_dev, found.st_ino))
            path = Path(place)
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            waiting += [path / name for name in folders if (path / name).is_symlink()]
            inside = path.relative_to(top).as_posix()
            yield "" if inside == "." else inside, files


class _File(io.FileIO):
    """A regular file that is closed once nobody reads it any more."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path, opener=regular)

    def __del__(self) -> None:
        self.close()


class OpenFiles:
    """Ranges of files, of which the last `limit` asked for stay open; another process that gets a copy opens its own.

    A range is read without a position that several threads, or a fork and its parent, could move under one another.
    """

    def __init__(self, limit: int = 64) -> None:
        self.limit = limit
        self._file = lru_cache(limit)(_File)

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenFiles, (self.limit,)

    def read(self, path: Path | str, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` on, fewer where the file ends.

        Raises OSError when it cannot be opened, and for more bytes than may be read at once.
        """
        check_size(size)
        file = self._file(path)  # held until it is read: of two threads that open it, one's is not kept
        return os.pread(file.fileno(), size, offset)


class FilePart(io.RawIOBase):
    """`size` bytes from `offset` on of one of `files`, such as OpenFiles, as a file, read as far as it is asked for."""

    def __init__(self, files: Any, path: Path | str, offset: int, size: int) -> None:
        self._read = partial(files.read, path)
        self._offset = offset
        self._size = size
        self._position = 0

    def readinto(self, buffer: Buffer, /) -> int:
        """Read on into a buffer; return how many bytes there were, 0 at the end."""
        view = memoryview(buffer)
        data = self._read(self._offset + self._position, max(0, min(len(view), self._size - self._position)))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to `offset` from the part's begin, from here, or from the part's end; return the new position."""
        self._position = max(0, (0, self._position, self._size)[whence] + offset)
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def optional_library(name: str, who: str) -> Any:
    """Import a library of an extra. Raises DataError, which tells that `who` need it, when that cannot be done."""
    try:
        return import_module(name)
    except FAILURES as error:
        raise DataError(f"{who} need the library {name.split('.')[0]}: {import_failure(error)}") from error


#: Names that a split usually has; those of one row mean the same.
_SPELLINGS = (("train", "training"), ("val", "validation", "valid"), ("test",))
SPLIT_NAMES = frozenset(name for row in _SPELLINGS for name in row)
_WORDS = re.compile(r"[^\W\d_]+|\d+")


def spellings(split: str) -> tuple[str, ...]:
    """Return the names under which a split may be found: its own first, then those that mean the same."""
    same = next((row for row in _SPELLINGS if split in row), ())
    return (split, *(name for name in same if name != split))


def located(root: object, split: str) -> str:
    """Say where the images of a split are, as messages do."""
    return f"{root}:{split}".rstrip(":")


def choose_files(where: str, files: Sequence[Path], split: str, folders: Iterable[str] = ()) -> list[Path]:
    """Return the files of a split: those with its name as a word in theirs, else those in a folder of that name.

    A word is bounded by anything but letters, as in ``imagenet-train-0000.tar``. Files that say 'val', 'valid' or
    'validation' are found by any of the three, the name asked for first; so are 'train' and 'training'. Without a
    split, all files are returned. Raises DataError when no file is of the split (`folders` are other splits to
    name), and when none was asked for but the files are of several.
    """
    known = _by_split(files, [name for row in _SPELLINGS for name in row])
    if not split:
        if sum(not known.keys().isdisjoint(row) for row in _SPELLINGS) > 1:
            raise several_splits(where, known)
        return list(files)
    for chosen in _by_split(files, spellings(split)).values():
        return chosen
    raise missing_split(
        where,
        split,
        {*known, *folders},
        f"; no file name has that word, {files[0].name} the first of {len(files)}: name the files by split "
        "(train-0000.tar, val-0000.tar)",
    )


def missing_split(where: str, split: str, known: Iterable[str], why: str = "") -> DataError:
    """Return the error of a source without the split that was asked for."""
    return DataError(
        f"{where} has {unknown('split', split, sorted(known))}{why}; to take all of it, leave `split` out, and to "
        "train with some of it held out, set data.train.split=None data.val.fraction=0.05"
    )


class SeveralSplits(DataError):
    """A source with several splits, their names `known`, of which none was chosen."""

    known: tuple[str, ...] = ()


def several_splits(where: str, known: Iterable[str]) -> SeveralSplits:
    """Return the error of a source with several splits of which none was chosen."""
    error = SeveralSplits(f"{where} holds the splits {', '.join(known := tuple(known))}; choose one with `split`")
    error.known = known
    return error


def _by_split(files: Sequence[Path], splits: Sequence[str]) -> dict[str, list[Path]]:
    """Return the files of each split that has some, told by their names, or all of them by their folders'."""
    for word_of in (_has_word, lambda file, name: file.parent.name == name):
        found = {name: [file for file in files if word_of(file, name)] for name in splits}
        if any(found.values()):
            return {name: chosen for name, chosen in found.items() if chosen}
    return {}


def _has_word(file: Path, word: str) -> bool:
    parts, wanted = _WORDS.findall(file.stem.lower()), _WORDS.findall(word.lower())
    starts = range(len(parts) - len(wanted) + 1) if wanted else ()
    return any(parts[start : start + len(wanted)] == wanted for start in starts)
