"""Images as files: of a folder, of a zip archive of one, or of WebDataset's tar shards."""

from __future__ import annotations

import io
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os.path import commonpath
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from aligntok.data.sources.base import (
    IMAGE_SUFFIXES,
    FilePart,
    ImageSource,
    OpenFiles,
    PackedNames,
    is_hidden,
    is_image,
    located,
    optional_library,
)
from aligntok.distributed.job import progress_bar
from aligntok.errors import DataError, first_line, unknown

#: Splits a path into a sample's key and the member's extension; (None, None) for what belongs to no sample.
SplitName: TypeAlias = Callable[[str], tuple[str | None, str | None]]
_ZIP_LOCAL_HEADER = struct.Struct("<26xHH")  # the lengths of the name and of the extra field end it
_LABEL = re.compile(rb"-1|[0-9]{1,9}")
_THREADS = 16


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
        labels = np.array([classes.get(top, -1) for top in tops], dtype=np.int32)
        super().__init__(where, PackedNames(images), labels, tuple(classes))


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
        self._files = OpenFiles()
        listed = _zip_entries(path)
        prefix = f"{split}/" if split else ""
        entries = {e.filename.removeprefix(prefix): e for e in listed if e.filename.startswith(prefix)}
        if split and not entries:
            raise _missing_split(path, split, (e.filename.split("/")[0] for e in listed if "/" in e.filename))
        files = [name for name in entries if name and not name.endswith("/")]
        super().__init__(located(path, split), files, (n.split("/")[0] for n in entries if "/" in n))
        chosen = (entries[name] for name in self.names)
        self._table: npt.NDArray[np.int64] = np.array(
            [(e.header_offset, e.compress_size, e.compress_type, e.CRC) for e in chosen], dtype=np.int64
        )

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of one image. Raises OSError or ValueError when they are damaged."""
        offset, size, method, checksum = map(int, self._table[index])
        header = self._files.read(self.path, offset, _ZIP_LOCAL_HEADER.size)
        if not header.startswith(b"PK\x03\x04") or len(header) < _ZIP_LOCAL_HEADER.size:
            raise ValueError(f"no entry begins at byte {offset} of {self.path}")
        data = self._files.read(self.path, offset + len(header) + sum(_ZIP_LOCAL_HEADER.unpack(header)), size)
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


class ShardSource(ImageSource):
    """The samples of several tar files that have an image, in the order of `shards` and of their members.

    A sample is the members of a shard that share a key, the path up to the first dot of the file name: one image, and
    perhaps a ``.cls`` with its class index as a decimal number (-1 without one; there are no class names). Other
    members are passed over. ``names[i]`` is ``shard.tar/path/of/member.jpg``.

    Only the images' places are kept, and at most 64 shards open at a time. Raises DataError
    when a shard is damaged or compressed, when a sample has two images or a wrong label, when there is no image, and
    when the library `webdataset` is not installed.
    """

    def __init__(self, where: str, shards: Sequence[Path]) -> None:
        split_name = _webdataset("tariterators").base_plus_ext
        self.shards = tuple(shards)
        self._files = OpenFiles()
        with ThreadPoolExecutor(_THREADS) as pool, progress_bar(len(shards), "listing shards", "shard") as bar:
            found = []
            for listed in pool.map(lambda shard: _list_shard(shard, split_name), shards):
                found.append(listed)
                bar.update()
        sizes = [len(members) for members, _ in found]
        if not sum(sizes):
            raise DataError(
                f"{where}: no sample with an image in {len(shards)} shard{'s' * (len(shards) > 1)}; "
                f"images are members that end in {', '.join(IMAGE_SUFFIXES)}"
            )
        top = commonpath([shard.parent for shard in self.shards])
        titles = [shard.relative_to(top).as_posix() for shard in self.shards]
        names = (f"{title}/{name}" for title, (members, _) in zip(titles, found, strict=True) for name in members)
        self._table = np.concatenate([table for _, table in found])
        super().__init__(where, PackedNames(names), self._table[:, 2].astype(np.int32))
        self._shard_of = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of one image. Raises OSError or ValueError when they cannot be had."""
        path, offset, size = self._place(index)
        data = self._files.read(path, offset, size)
        if len(data) < size:
            raise ValueError(f"{path} ends inside of it; it was longer when it was listed")
        return data

    def open(self, index: int) -> BinaryIO:
        """Open one encoded image, read as far as it is asked for. Reading raises OSError when its shard is gone."""
        return io.BufferedReader(FilePart(self._files, *self._place(index)))

    def _place(self, index: int) -> tuple[Path, int, int]:
        offset, size, _ = map(int, self._table[index])
        return self.shards[self._shard_of[index]], offset, size


def expand_pattern(pattern: str) -> list[Path]:
    """Return the paths that a brace pattern such as ``train-{0000..0127}.tar`` stands for.

    Raises DataError for braces that do not match, and when the library `webdataset` is not installed.
    """
    expand_urls = _webdataset("shardlists").expand_urls
    try:
        return [Path(path).expanduser() for path in expand_urls(pattern)]
    except (ValueError, AssertionError) as error:  # unbalanced braces; ${NAME} without a variable WDS_NAME
        raise DataError(
            f"{pattern} is no pattern of shards ({first_line(error)}); write it like /data/train-{{0000..0127}}.tar"
        ) from error


def _webdataset(module: str) -> Any:
    return optional_library(f"webdataset.{module}", "WebDataset shards", "shards")


def _list_shard(path: Path, split_name: SplitName) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the names of a shard's images, and (n, 3): where each begins, its bytes, and its label."""
    try:
        with tarfile.open(path, "r:") as archive:
            listed = _list_members(archive, path, split_name)
            # A damaged header ends the listing just as quietly as the end mark.
            file = archive.fileobj
            assert file is not None
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"neither a member nor the end mark at byte {archive.offset}")
            return listed
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:  # a header's numbers may be no numbers
        raise DataError(
            f"{path} is not an uncompressed tar file, or a damaged one ({first_line(error)}); copy or pack it again"
        ) from error


def _list_members(
    archive: tarfile.TarFile, path: Path, split_name: SplitName
) -> tuple[list[str], npt.NDArray[np.int64]]:
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    for member in archive:
        name = member.name.removeprefix("./")
        key, extension = split_name(name)
        if key is None or not member.isreg() or is_hidden(name):
            continue
        if f"{extension}".lower() == "cls":
            labels[key] = _read_label(archive, member, path)
        elif is_image(f".{extension}"):
            if key in images:
                raise DataError(
                    f"{path}: sample '{key}' has two images, {images[key].name} and {member.name}; it may have one. "
                    "A sample's key ends at the first dot of the file name: pack the shards with one image a key"
                )
            images[key] = member
    rows = [(image.offset_data, image.size, labels.get(key, -1)) for key, image in images.items()]
    names = [image.name.removeprefix("./") for image in images.values()]
    return names, np.array(rows, dtype=np.int64).reshape(-1, 3)


def _read_label(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> int:
    opened = archive.extractfile(member)
    text = b"" if opened is None else opened.read().strip()
    if not _LABEL.fullmatch(text):
        raise DataError(
            f"{path}: {member.name} holds {text[:40]!r}; a .cls member holds a class index, such as 0 or 417"
        )
    return int(text)
