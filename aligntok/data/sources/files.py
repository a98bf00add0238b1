"""Images as files: of a folder, or of a zip archive of one."""

from __future__ import annotations

import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from aligntok.data.sources.base import (
    ImageSource,
    OpenFiles,
    PackedNames,
    find_images,
    in_numbers,
    is_hidden,
    located,
    missing_split,
    say_once,
    say_passed_over,
    suffix_of,
    walk,
)
from aligntok.data.sources.captions import captions_of_files
from aligntok.data.transforms import image_suffixes
from aligntok.distributed.job import batched
from aligntok.errors import DataError, some_of
from aligntok.io.files import check_size, read_bytes, regular
from aligntok.io.folders import listed

_ZIP_LOCAL_HEADER = struct.Struct("<26xHH")  # the lengths of the name and of the extra field end it
_THREADS, _CHUNK = 16, 256


class FileTreeSource(ImageSource):
    """The images among the files of a tree, sorted by path; ``names[i]`` is the path inside the tree.

    Images are known by their endings, and by their content where they have none; what is passed over is said.
    ``class_names`` are the top-level folders that hold images, sorted by name. Images beside them, fewer than theirs,
    are left out, which is said; with as many or more, or all at the top level, the source is flat and has no classes.
    Files and folders that begin with a dot are passed over. `caption` says where captions are; None: nowhere. With
    captions every image is taken: they say of it what a class would. Raises DataError when there is no image, or none
    in one of the `top_folders`, and for wrong captions.
    """

    def __init__(
        self,
        where: str,
        files: Sequence[str],
        top_folders: Iterable[str],
        open_file: Callable[[str], BinaryIO],
        caption: str | None,
    ) -> None:
        images, others = find_images(files, open_file)
        if not images:
            told = f": {in_numbers(others)}" if others else ""
            raise DataError(
                f"{where} holds no image ({len(files)} other files{told}); "
                f"images end in {', '.join(image_suffixes())} and may lie in folders of any depth"
            )
        images = _in_class_folders(where, sorted(images, key=lambda name: name.split("/")), caption is not None)
        packed = PackedNames(images)
        if caption is not None:
            self.captions, used = captions_of_files(where, packed, files, open_file, caption)
            others.subtract(map(suffix_of, used))
        self.passed_over = +others
        say_passed_over(where, self.passed_over)
        tops = [name.split("/")[0] for name in images]
        classes: dict[str, int] = {}
        if all("/" in name for name in images):
            classes = {name: label for label, name in enumerate(sorted(set(tops)))}
            empty = sorted({folder for folder in top_folders if not is_hidden(folder)} - set(tops))
            if empty:
                raise DataError(
                    f"{where}: class folder{'s' * (len(empty) > 1)} without any image: {', '.join(empty[:5])}"
                    f"{', ...' * (len(empty) > 5)}; fill or remove {'them' if len(empty) > 1 else 'it'}"
                )
        within = sorted({name.split("/")[1] for name in images if name.count("/") > 1}) if len(classes) == 1 else []
        if len(within) > 1:
            say_once(
                f"{where}: one class, '{tops[0]}', in whose folder are {some_of(within)}; give that if they are classes"
            )
        labels = np.array([classes.get(top, -1) for top in tops], dtype=np.int32)
        super().__init__(where, packed, labels, tuple(classes))

    def places(self) -> Iterable[str]:
        """Return the absolute path of each image, links among its folders followed."""
        resolved = cache(os.path.realpath)
        parted = (name.rpartition("/") for name in self.names)
        return (f"{resolved(self.root + folder)}/{name}" for folder, _, name in parted)


def _in_class_folders(where: str, images: list[str], captioned: bool) -> list[str]:
    """Return the images without those that lie beside class folders; all of them where these are many, or captioned."""
    stray = [name for name in images if "/" not in name]
    if stray and not captioned and len(stray) < len(images) - len(stray):
        say_once(
            f"{where}: left out {len(stray):,} images that lie beside the class folders, such as {stray[0]}; "
            "put them into folders, or all images into one"
        )
        return [name for name in images if "/" in name]
    if stray and len(stray) < len(images):
        say_once(
            f"{where}: no classes: {len(stray):,} images lie beside folders that hold {len(images) - len(stray):,}"
        )
    return images


class FolderSource(FileTreeSource):
    """Images in a folder or its subfolder `split`, recursively, following links.

    Raises DataError when the split is missing, there is no image, or a class folder is empty.
    """

    def __init__(self, path: Path, split: str = "", caption: str | None = None) -> None:
        self.folder = path / split
        if not self.folder.is_dir():
            raise _missing_split(path, split, (child.name for child in listed(path, DataError) if child.is_dir()))
        files: list[str] = []
        tops = set()
        for inside, names in walk(self.folder):
            tops.add(inside.partition("/")[0])
            files += [f"{inside}/{name}" for name in names] if inside else names
        self.root = f"{self.folder.resolve()}/"
        super().__init__(str(self.folder), files, tops - {""}, self._open, caption)

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of one image. Raises OSError when its file cannot be read."""
        return read_bytes(self.folder / self.names[index])

    def open(self, index: int) -> BinaryIO:
        """Open one encoded image. Raises OSError when its file cannot be read."""
        return self._open(self.names[index])

    def _open(self, name: str) -> BinaryIO:
        return open(self.folder / name, "rb", opener=regular)

    def marks(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], bool]:
        """Return each file's bytes and time of change; zeros for one that is gone."""
        root = str(self.folder)

        def look(name: str) -> tuple[int, int]:
            try:
                stat = os.stat(f"{root}/{name}")
            except OSError:
                return 0, 0
            return stat.st_size, stat.st_mtime_ns

        with ThreadPoolExecutor(_THREADS) as pool:
            parts = pool.map(lambda part: [look(self.names[i]) for i in part], batched(range(len(self)), _CHUNK))
            found = [each for part in parts for each in part]
        return (*np.array(found, dtype=np.int64).T, False)


class ZipSource(FileTreeSource):
    """Images in a zip archive, or in the folder `split` of it; entries stored or deflated.

    Only offsets are kept: a worker opens its own file handle and need not parse the directory again, which takes
    seconds and gigabytes for a million images. Raises DataError for an archive that is damaged, encrypted or empty,
    a missing split, an empty class folder.
    """

    def __init__(self, path: Path, split: str = "", caption: str | None = None) -> None:
        self.path = path
        self._files = OpenFiles()
        listed = _zip_entries(path)
        prefix = f"{split}/" if split else ""
        entries = {e.filename.removeprefix(prefix): e for e in listed if e.filename.startswith(prefix)}
        if split and not entries:
            raise _missing_split(path, split, (e.filename.split("/")[0] for e in listed if "/" in e.filename))
        files = [name for name in entries if name and not name.endswith("/")]
        self.root = f"{path.resolve()}/{prefix}"
        tops = (name.split("/")[0] for name in entries if "/" in name)
        with ExitStack() as stack:  # for files without a suffix, and captions, alone
            # The file is ours to close: threads may miscount zipfile's own readers, and leave it open (Python 3.11).
            archive = cache(lambda: stack.enter_context(zipfile.ZipFile(stack.enter_context(path.open("rb")))))
            opening = threading.Lock()

            def open_file(name: str) -> BinaryIO:
                with opening:  # once, by whichever thread comes first
                    opened = archive()
                return cast(BinaryIO, opened.open(entries[name]))

            super().__init__(located(path, split), files, tops, open_file, caption)
        chosen = (entries[name] for name in self.names)
        self._table: npt.NDArray[np.int64] = np.array(
            [(e.header_offset, e.compress_size, e.compress_type, e.CRC, e.file_size) for e in chosen], dtype=np.int64
        )

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of one image. Raises OSError or ValueError when they are damaged."""
        offset, size, method, checksum, whole = map(int, self._table[index])
        check_size(whole)
        header = self._files.read(self.path, offset, _ZIP_LOCAL_HEADER.size)
        if not header.startswith(b"PK\x03\x04") or len(header) < _ZIP_LOCAL_HEADER.size:
            raise ValueError(f"no entry begins at byte {offset} of {self.path}")
        data = self._files.read(self.path, offset + len(header) + sum(_ZIP_LOCAL_HEADER.unpack(header)), size)
        if method == zipfile.ZIP_DEFLATED:
            try:
                # One byte more than there should be, to see whether there are more.
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, whole + 1)
            except zlib.error as error:
                raise ValueError(f"{self.names[index]} in {self.path} cannot be unpacked: {error}") from error
        if len(data) != whole:
            raise ValueError(f"{self.names[index]} in {self.path} has not the {whole} bytes that it declares")
        if zlib.crc32(data) != checksum:
            raise ValueError(f"checksum of {self.names[index]} in {self.path} does not match")
        return data

    def marks(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], bool]:
        """Return each entry's bytes, once unpacked, and the checksum that the archive has of them."""
        return self._table[:, 4], self._table[:, 3], True


def _missing_split(path: Path, split: str, known: Iterable[str]) -> DataError:
    return missing_split(str(path), split, set(known), ", by the names of its folders")


def _zip_entries(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, EOFError, struct.error, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{path} is not a zip archive, or a damaged one ({error}); copy it again, or give a folder or .tar"
        ) from error
    for entry in entries:
        if max(entry.header_offset, entry.compress_size, entry.file_size) >= 1 << 62:
            raise DataError(f"{path} is damaged: entry {entry.filename} declares an impossible size; copy it again")
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(
                f"{path}: entry {entry.filename} is encrypted, or packed by method {entry.compress_type}; "
                "only stored and deflated entries can be read, so pack it again with `zip -0`"
            )
    return entries
