"""What every source of encoded images offers, and the compact list of names that it keeps."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

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
