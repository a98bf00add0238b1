"""Images as single files of a tree: a folder, or a zip archive of one."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from aligntok.data.sources.base import IMAGE_SUFFIXES, ImageSource, Labels, OpenFiles, PackedNames, is_hidden, is_image
from aligntok.errors import DataError, unknown

_ZIP_LOCAL_HEADER = struct.Struct("<26xHH")  # the lengths of the name and of the extra field end it


class FileTreeSource(ImageSource):
    """The images among the files of a tree, sorted by path; ``names[i]`` is the path inside the tree.

    ``class_names`` are the top-level folders sorted by name; when an image lies at the top level itself, the source
    is flat and has none. Files and folders that begin with a dot are passed over. Raises DataError when there is no
    image, or none in one of the `top_folders`.
    """

    def __init__(self, where: str, files: Sequence[str], top_folders: Iterable[str]) -> None:
        images = [name for name in files if is_image(name) and not is_hidden(name)]
        if not images:
            raise DataError(
                f"{where} holds no image ({len(files)} other files); "
                f"images end in {', '.join(IMAGE_SUFFIXES)} and may lie in folders of any depth"
            )
        images.sort(key=lambda name: name.split("/"))
        flat = any("/" not in name for name in images)
        class_names = () if flat else _class_names(where, images, top_folders)
        super().__init__(where, PackedNames(images), _labels(images, class_names), class_names)


class FolderSource(FileTreeSource):
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


class ZipSource(FileTreeSource):
    """Images in a zip archive, or in the folder `split` of it; entries stored or deflated.

    Only offsets are kept: a worker opens its own file handle and need not parse the directory again, which takes
    seconds and gigabytes for a million images. Raises DataError for an archive that is damaged, encrypted or empty,
    a missing split, an empty class folder.
    """

    def __init__(self, path: Path, split: str = "") -> None:
        self.path = path
        self._open_files = OpenFiles()
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
        return self._read_entry(self._open_files.get(self.path), index)

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


def _missing_split(path: Path, split: str, known: Iterable[str]) -> DataError:
    return DataError(f"{path} has {unknown('split', split, sorted(set(known)))}, by the names of its folders")


def _zip_entries(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, EOFError, struct.error) as error:
        raise DataError(
            f"{path} is not a zip archive, or a damaged one ({error}); copy it again, or give a folder or .tar"
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
    empty = sorted({folder for folder in top_folders if not is_hidden(folder)} - filled)
    if empty:
        raise DataError(
            f"{where}: class folder{'s' * (len(empty) > 1)} without any image: {', '.join(empty[:5])}"
            f"{', ...' * (len(empty) > 5)}; fill or remove {'them' if len(empty) > 1 else 'it'}"
        )
    return tuple(sorted(filled))


def _labels(images: Sequence[str], class_names: Sequence[str]) -> Labels:
    index_of = {name: index for index, name in enumerate(class_names)}
    return np.array([index_of.get(name.split("/")[0], -1) for name in images], dtype=np.int32)
