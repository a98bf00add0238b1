"""Where encoded images lie: a folder or a zip archive, listed once in a stable order and read in any process."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from aligntok.errors import DataError, suggestion

#: File name endings taken for images, in any case.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")

_SPLIT_NAMES = {"train", "training", "val", "validation", "test"}
_ZIP_LOCAL_HEADER = struct.Struct("<26xHH")  # the lengths of the name and of the extra field end it


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

    ``names[i]`` is the path inside the source, ``labels[i]`` the class index (-1 without classes), and
    ``class_names`` the class folders sorted by name. Classes are the top-level folders; when an image lies at the
    top level itself, the source is flat and has none. Files and folders that begin with a dot are passed over.
    """

    def __init__(self, where: str, files: Sequence[str], top_folders: Iterable[str]) -> None:
        self.where = where
        images = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES) and not _is_hidden(name)]
        if not images:
            raise DataError(
                f"{where} holds no image ({len(files)} other files); "
                f"images end in {', '.join(IMAGE_SUFFIXES)} and may lie in folders of any depth"
            )
        images.sort(key=lambda name: name.split("/"))
        flat = any("/" not in name for name in images)
        self.class_names = () if flat else _class_names(where, images, top_folders)
        self.names = PackedNames(images)
        self.labels = _labels(images, self.class_names)

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Return the encoded bytes of one image. Raises OSError or ValueError when they cannot be had."""

    @abstractmethod
    def open(self, index: int) -> BinaryIO:
        """Open one encoded image, to read its header; safe in several threads at once. Raises as `read` does."""


class FolderSource(ImageSource):
    """Images in a folder or its subfolder `split`, recursively, following links.

    Raises DataError when the split is missing, there is no image, or a class folder is empty.
    """

    def __init__(self, path: Path, split: str = "") -> None:
        self.root = path / split
        if not self.root.is_dir():
            raise _missing_split(path, split, (child.name for child in path.iterdir() if child.is_dir()))
        files: list[str] = []
        for parent, _, names in os.walk(self.root, followlinks=True):
            inside = Path(parent).relative_to(self.root).as_posix()
            files += names if inside == "." else [f"{inside}/{name}" for name in names]
        super().__init__(str(self.root), files, (child.name for child in self.root.iterdir() if child.is_dir()))

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of one image. Raises OSError when its file cannot be read."""
        return (self.root / self.names[index]).read_bytes()

    def open(self, index: int) -> BinaryIO:
        """Open one encoded image. Raises OSError when its file cannot be read."""
        return (self.root / self.names[index]).open("rb")


class ZipSource(ImageSource):
    """Images in a zip archive, or in the folder `split` of it; entries stored or deflated.

    Only offsets are kept: a worker opens its own file handle and need not parse the directory again, which takes
    seconds and gigabytes for a million images. Raises DataError for an archive that is damaged, encrypted or empty,
    a missing split, an empty class folder.
    """

    def __init__(self, path: Path, split: str = "") -> None:
        self.path = path
        self._handle: BinaryIO | None = None
        self._handle_owner = 0
        listed = _zip_entries(path)
        prefix = f"{split}/" if split else ""
        entries = {e.filename.removeprefix(prefix): e for e in listed if e.filename.startswith(prefix)}
        if split and not entries:
            raise _missing_split(path, split, (e.filename.split("/")[0] for e in listed if "/" in e.filename))
        files = [name for name in entries if name and not name.endswith("/")]
        super().__init__(f"{path}:{split}".rstrip(":"), files, (n.split("/")[0] for n in entries if "/" in n))
        chosen = (entries[name] for name in self.names)
        self._table: npt.NDArray[np.int64] = np.array(
            [(e.header_offset, e.compress_size, e.compress_type, e.CRC) for e in chosen], dtype=np.int64
        )

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of one image. Raises OSError or ValueError when they are damaged."""
        return self._read_entry(self._own_handle(), index)

    def open(self, index: int) -> BinaryIO:
        """Open one encoded image, read in full. Raises OSError or ValueError when it is damaged."""
        with self.path.open("rb") as archive:  # threads would move a common handle under one another
            return io.BytesIO(self._read_entry(archive, index))

    def _read_entry(self, archive: BinaryIO, index: int) -> bytes:
        offset, size, method, checksum = map(int, self._table[index])
        archive.seek(offset)
        header = archive.read(_ZIP_LOCAL_HEADER.size)
        if not header.startswith(b"PK\x03\x04") or len(header) < _ZIP_LOCAL_HEADER.size:
            raise ValueError(f"no entry begins at byte {offset} of {self.path}")
        archive.seek(sum(_ZIP_LOCAL_HEADER.unpack(header)), os.SEEK_CUR)
        data = archive.read(size)
        if method == zipfile.ZIP_DEFLATED:
            data = zlib.decompress(data, -zlib.MAX_WBITS)
        if zlib.crc32(data) != checksum:
            raise ValueError(f"checksum of {self.names[index]} in {self.path} does not match")
        return data

    def _own_handle(self) -> BinaryIO:
        # A handle inherited by a fork shares its position with the parent's: each process opens its own.
        if self._handle is None or self._handle_owner != os.getpid():
            self.close()
            self._handle, self._handle_owner = self.path.open("rb"), os.getpid()
        return self._handle

    def close(self) -> None:
        """Close this process's file handle; the next read opens another."""
        if self._handle is not None:
            self._handle.close()
        self._handle = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def __del__(self) -> None:
        self.close()


def open_source(root: str | os.PathLike[str], split: str | None = None) -> ImageSource:
    """List the images of a folder or a .zip, or of the subfolder `split` of it.

    Raises DataError when `root` or `split` is missing, nothing is in it, a class folder is empty, the archive is
    damaged, or `root` holds 'train', 'val', ... and no split was chosen.
    """
    path = Path(root).expanduser()
    if not path.exists():
        near = suggestion(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
        raise DataError(f"no folder or zip of images at {path}; {near}set `data_root` to one that exists")
    open_as = FolderSource if path.is_dir() else ZipSource
    source = open_as(path, (split or "").strip("/"))
    if _SPLIT_NAMES.issuperset(source.class_names) and source.class_names:
        raise DataError(f"{source.where} holds the splits {', '.join(source.class_names)}; choose one with `split`")
    return source


def _missing_split(path: Path, split: str, known: Iterable[str]) -> DataError:
    folders = sorted(set(known))
    return DataError(
        f"{path} has no split '{split}'; {suggestion(split, folders)}folders in it: {', '.join(folders) or 'none'}"
    )


def _zip_entries(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, EOFError, struct.error) as error:
        raise DataError(
            f"{path} is not a zip archive, or a damaged one ({error}); copy it again, or give a folder"
        ) from error
    for entry in entries:
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(
                f"{path}: entry {entry.filename} is encrypted, or packed by method {entry.compress_type}; "
                "only stored and deflated entries can be read, so pack it again with `zip -0`"
            )
    return entries


def _class_names(where: str, images: Sequence[str], top_folders: Iterable[str]) -> tuple[str, ...]:
    filled = {name.split("/")[0] for name in images}
    empty = sorted({folder for folder in top_folders if not _is_hidden(folder)} - filled)
    if empty:
        raise DataError(
            f"{where}: class folder{'s' * (len(empty) > 1)} without any image: {', '.join(empty[:5])}"
            f"{', ...' * (len(empty) > 5)}; fill or remove {'them' if len(empty) > 1 else 'it'}"
        )
    return tuple(sorted(filled))


def _labels(images: Sequence[str], class_names: Sequence[str]) -> npt.NDArray[np.int32]:
    index_of = {name: index for index, name in enumerate(class_names)}
    return np.array([index_of.get(name.split("/")[0], -1) for name in images], dtype=np.int32)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
