"""Images as files: of a folder, of a zip archive of one, or of WebDataset's tar shards."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from os.path import commonpath
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from aligntok.data.sources.base import (
    FilePart,
    ImageSource,
    OpenFiles,
    PackedNames,
    find_images,
    in_numbers,
    is_hidden,
    is_hidden_image,
    located,
    missing_split,
    optional_library,
    say_once,
    say_passed_over,
    suffix_of,
    walk,
)
from aligntok.data.sources.classes import LABELLED, join_labels, labels_in
from aligntok.data.transforms import holds_image, image_suffixes
from aligntok.distributed.job import batched, progress_bar
from aligntok.errors import DataError, first_line, some_of
from aligntok.io.files import check_size, read_bytes, regular

#: Splits a path into a sample's key and the member's extension; (None, None) for what belongs to no sample.
SplitName: TypeAlias = Callable[[str], tuple[str | None, str | None]]
_ZIP_LOCAL_HEADER = struct.Struct("<26xHH")  # the lengths of the name and of the extra field end it
_LARGEST_TEXT = 2**20  # bytes of a member that is read for a label
_THREADS, _CHUNK = 16, 256


class FileTreeSource(ImageSource):
    """The images among the files of a tree, sorted by path; ``names[i]`` is the path inside the tree.

    Images are known by their endings, and by their content where they have none; what is passed over is said.
    ``class_names`` are the top-level folders that hold images, sorted by name. Images beside them, fewer than theirs,
    are left out, which is said; with as many or more, or all at the top level, the source is flat and has no classes.
    Files and folders that begin with a dot are passed over. Raises DataError when there is no image, or none in one of
    the `top_folders`.
    """

    def __init__(
        self, where: str, files: Sequence[str], top_folders: Iterable[str], open_file: Callable[[str], BinaryIO]
    ) -> None:
        images, others = find_images(files, open_file)
        if not images:
            told = f": {in_numbers(others)}" if others else ""
            raise DataError(
                f"{where} holds no image ({len(files)} other files{told}); "
                f"images end in {', '.join(image_suffixes())} and may lie in folders of any depth"
            )
        say_passed_over(where, others)
        images = _in_class_folders(where, sorted(images, key=lambda name: name.split("/")))
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
        super().__init__(where, PackedNames(images), labels, tuple(classes))

    def places(self) -> Iterable[str]:
        """Return the absolute path of each image."""
        return (self.root + name for name in self.names)


def _in_class_folders(where: str, images: list[str]) -> list[str]:
    """Return the images without those that lie beside class folders; all of them where that is no matter of few."""
    stray = [name for name in images if "/" not in name]
    if stray and len(stray) < len(images) - len(stray):
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

    def __init__(self, path: Path, split: str = "") -> None:
        self.folder = path / split
        if not self.folder.is_dir():
            raise _missing_split(path, split, (child.name for child in path.iterdir() if child.is_dir()))
        files: list[str] = []
        tops = set()
        for inside, names in walk(self.folder):
            tops.add(inside.partition("/")[0])
            files += [f"{inside}/{name}" for name in names] if inside else names
        self.root = f"{self.folder.resolve()}/"
        super().__init__(str(self.folder), files, tops - {""}, self._open)

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

    def __init__(self, path: Path, split: str = "") -> None:
        self.path = path
        self._files = OpenFiles()
        listed = _zip_entries(path)
        prefix = f"{split}/" if split else ""
        entries = {e.filename.removeprefix(prefix): e for e in listed if e.filename.startswith(prefix)}
        if split and not entries:
            raise _missing_split(path, split, (e.filename.split("/")[0] for e in listed if "/" in e.filename))
        files = [name for name in entries if name and not name.endswith("/")]
        self.root = f"{path.resolve()}/{prefix}"
        archive = cache(lambda: zipfile.ZipFile(path))  # for files without a suffix alone
        tops = (name.split("/")[0] for name in entries if "/" in name)
        super().__init__(located(path, split), files, tops, lambda name: cast(BinaryIO, archive().open(entries[name])))
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
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(
                data, whole + 1
            )  # and one, to see that there are more
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
    except (zipfile.BadZipFile, EOFError, struct.error) as error:
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


class ShardSource(ImageSource):
    """The samples of several tar files that have an image, in the order of `shards` and of their members.

    A sample is the members of a shard that share a key, the path up to the first dot of the file name: one image, and
    perhaps a label: a ``.cls`` with a class index as a decimal number, or a class's name, or a ``.json`` with one of
    either as `label` or `cls`. `label` chooses "cls" or a key of the JSON; else all that there are must be the same.
    Labels that are names are numbered in sorted order. Other members are passed over, which is said. ``names[i]`` is
    ``shard.tar/path/of/member.jpg``.

    Only the images' places are kept, and at most 64 shards open at a time. Raises DataError
    when a shard is damaged or compressed, when a sample has two images or a wrong label, when there is no image, when
    labels are of two kinds, and when the library `webdataset` is not installed.
    """

    def __init__(self, where: str, shards: Sequence[Path], label: str | None = None) -> None:
        split_name = _webdataset("tariterators").base_plus_ext
        self.shards = tuple(shards)
        self._files = OpenFiles()
        found: list[_Listing] = []
        with ThreadPoolExecutor(_THREADS) as pool, progress_bar(len(shards), "listing shards", "shard") as bar:
            for listed in pool.map(lambda shard: _list_shard(shard, split_name, label), shards):
                found.append(listed)
                bar.update()
        sizes = [len(listed.names) for listed in found]
        if not sum(sizes):
            raise DataError(
                f"{where}: no sample with an image in {len(shards)} shard{'s' * (len(shards) > 1)}; "
                f"images are members that end in {', '.join(image_suffixes())}"
            )
        say_passed_over(where, sum((listed.others for listed in found), Counter()))
        top = commonpath([shard.parent for shard in self.shards])
        titles = [shard.relative_to(top).as_posix() for shard in self.shards]
        names = (f"{title}/{name}" for title, listed in zip(titles, found, strict=True) for name in listed.names)
        self._table = np.concatenate([listed.places for listed in found])
        labels = join_labels(where, [(len(listed.names), listed.labels) for listed in found], label)
        super().__init__(where, PackedNames(names), *labels)
        self._shard_of = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)

    def places(self) -> Iterable[str]:
        """Return the absolute paths of the shards."""
        return (str(shard.resolve()) for shard in self.shards)

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

    def marks(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], bool]:
        """Return each image's bytes and the time of change of its shard."""
        times = np.array([shard.stat().st_mtime_ns for shard in self.shards], dtype=np.int64)
        return self._table[:, 1], times[self._shard_of], False

    def _place(self, index: int) -> tuple[Path, int, int]:
        offset, size = map(int, self._table[index])
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


class _Listing(NamedTuple):
    """A shard's images: names, (n, 2) where each begins and its bytes, its labels by what they are called, and how
    many members are passed over.
    """

    names: list[str]
    places: npt.NDArray[np.int64]
    labels: dict[str, list[int | str | None]]
    others: Counter[str]


def _list_shard(path: Path, split_name: SplitName, label: str | None) -> _Listing:
    """List a shard. Raises DataError for one that is damaged."""
    try:
        with tarfile.open(path, "r:") as archive:
            listed = _list_members(archive, path, split_name, label)
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


def _list_members(archive: tarfile.TarFile, path: Path, split_name: SplitName, label: str | None) -> _Listing:
    suffixes, others = image_suffixes(), Counter[str]()
    images: dict[str, tarfile.TarInfo] = {}
    labels: defaultdict[str, dict[str, int | str | None]] = defaultdict(dict)
    last = -1
    for member in archive:
        if member.offset <= last:  # a negative size leads back, round and round
            raise tarfile.ReadError(f"member {member.name} lies before the one before it")
        last, name = member.offset, member.name.removeprefix("./")
        if not member.isreg() or member.issparse() or is_hidden(name):
            others["hidden"] += member.isreg() and is_hidden_image(name, suffixes)
            continue
        key, extension = split_name(name)  # neither without a dot
        kind = "" if key is None else suffix_of(f".{extension}")
        key = name if key is None else key
        found = {}
        if f".{extension}".lower() in LABELLED:
            found = labels_in(f"{path}: {member.name}", kind, _open_member(archive, member).read(_LARGEST_TEXT), label)
        for called, value in found.items():
            labels[called][key] = value
        is_image = kind in suffixes or (not kind and holds_image(partial(_open_member, archive, member)))
        if is_image and key in images:
            raise DataError(
                f"{path}: sample '{key}' has two images, {images[key].name} and {member.name}; it may have one. "
                "A sample's key ends at the first dot of the file name: pack the shards with one image a key"
            )
        if is_image:
            images[key] = member
        elif not found:
            others[kind or "without suffix"] += 1
    others["labels without an image"] += len({key for values in labels.values() for key in values} - images.keys())
    names = [image.name.removeprefix("./") for image in images.values()]
    rows = [(image.offset_data, image.size) for image in images.values()]
    aligned = {called: [values.get(key) for key in images] for called, values in labels.items()}
    return _Listing(names, np.array(rows, dtype=np.int64).reshape(-1, 2), aligned, +others)


def _open_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    return cast(BinaryIO, archive.extractfile(member))  # there is one of a regular file
