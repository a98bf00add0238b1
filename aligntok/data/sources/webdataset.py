"""Images in WebDataset shards: tar files that are listed once, then read at any place."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os.path import commonpath
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from aligntok.data.sources.base import (
    IMAGE_SUFFIXES,
    FilePart,
    ImageSource,
    Labels,
    OpenFiles,
    PackedNames,
    is_hidden,
    is_image,
)
from aligntok.distributed.job import progress_bar
from aligntok.errors import DataError, first_line

#: Splits a path into a sample's key and the member's extension; (None, None) for what belongs to no sample.
SplitName: TypeAlias = Callable[[str], tuple[str | None, str | None]]
_THREADS = 16
_LABEL = re.compile(rb"-1|[0-9]{1,9}")


class ShardSource(ImageSource):
    """The samples of several tar files that have an image, in the order of `shards` and of their members.

    A sample is the members of a shard that share a key, the path up to the first dot of the file name: one image, and
    perhaps a ``.cls`` with its class index as a decimal number (-1 without one; there are no class names). Other
    members are passed over. ``names[i]`` is ``shard.tar/path/of/member.jpg``.

    Only the images' places are kept, and each process opens its own handles, at most 64 at a time. Raises DataError
    when a shard is damaged or compressed, when a sample has two images or a wrong label, when there is no image, and
    when the library `webdataset` is not installed.
    """

    def __init__(self, where: str, shards: Sequence[Path]) -> None:
        split_name = _sample_naming()
        self.shards = tuple(shards)
        self._open_files = OpenFiles()
        found = _list_all(self.shards, split_name)
        sizes = [len(listed.labels) for listed in found]
        if not sum(sizes):
            raise DataError(
                f"{where}: no sample with an image in {len(shards)} shard{'s' * (len(shards) > 1)}; "
                f"images are members that end in {', '.join(IMAGE_SUFFIXES)}"
            )
        top = commonpath([shard.parent for shard in self.shards])
        titles = [shard.relative_to(top).as_posix() for shard in self.shards]
        names = (f"{title}/{name}" for title, listed in zip(titles, found, strict=True) for name in listed.members)
        super().__init__(where, PackedNames(names), np.concatenate([listed.labels for listed in found]))
        self._shard_of = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        self._places = np.concatenate([listed.places for listed in found])  # (N, 2): offset and size

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of one image. Raises OSError or ValueError when they cannot be had."""
        path, offset, size = self._place(index)
        shard = self._open_files.get(path)
        shard.seek(offset)
        data = shard.read(size)
        if len(data) < size:
            raise ValueError(f"{path} ends inside of it; it was longer when it was listed")
        return data

    def open(self, index: int) -> BinaryIO:
        """Open one encoded image, read as far as it is asked for. Raises OSError when its shard cannot be opened."""
        return io.BufferedReader(FilePart(*self._place(index)))

    def _place(self, index: int) -> tuple[Path, int, int]:
        offset, size = map(int, self._places[index])
        return self.shards[self._shard_of[index]], offset, size


class _Listed(NamedTuple):
    """What one shard holds: for each image its member's name, its offset and size (n, 2), and its label (n,)."""

    members: list[str]
    places: npt.NDArray[np.int64]
    labels: Labels


def expand_pattern(pattern: str) -> list[Path]:
    """Return the paths that a brace pattern such as ``train-{0000..0127}.tar`` stands for.

    Raises DataError for braces that do not match, and when the library `webdataset` is not installed.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise _missing_library() from error
    try:
        return [Path(path).expanduser() for path in expand_urls(pattern)]
    except (ValueError, AssertionError) as error:  # unbalanced braces; ${NAME} without a variable WDS_NAME
        raise DataError(
            f"{pattern} is no pattern of shards ({first_line(error)}); write it like /data/train-{{0000..0127}}.tar"
        ) from error


def _sample_naming() -> SplitName:
    try:
        from webdataset.tariterators import base_plus_ext
    except ImportError as error:
        raise _missing_library() from error
    split_name: SplitName = base_plus_ext
    return split_name


def _missing_library() -> DataError:
    return DataError('WebDataset shards need the library webdataset, which is not here: pip install "aligntok[shards]"')


def _list_all(shards: Sequence[Path], split_name: SplitName) -> list[_Listed]:
    with ThreadPoolExecutor(_THREADS) as pool, progress_bar(len(shards), "listing shards", "shard") as bar:
        found = []
        for listed in pool.map(lambda shard: _list_shard(shard, split_name), shards):
            found.append(listed)
            bar.update()
    return found


def _list_shard(path: Path, split_name: SplitName) -> _Listed:
    try:
        with tarfile.open(path, "r:") as archive:
            listed = _list_members(archive, path, split_name)
            _check_end(archive)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:  # a header's numbers may be no numbers
        raise DataError(
            f"{path} is not an uncompressed tar file, or a damaged one ({first_line(error)}); copy or pack it again"
        ) from error
    return listed


def _list_members(archive: tarfile.TarFile, path: Path, split_name: SplitName) -> _Listed:
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
                raise _two_images(path, key, images[key].name, member.name)
            images[key] = member
    places = [(image.offset_data, image.size) for image in images.values()]
    return _Listed(
        [image.name.removeprefix("./") for image in images.values()],
        np.array(places, dtype=np.int64).reshape(-1, 2),
        np.array([labels.get(key, -1) for key in images], dtype=np.int32),
    )


def _read_label(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> int:
    opened = archive.extractfile(member)
    text = b"" if opened is None else opened.read().strip()
    if not _LABEL.fullmatch(text):
        raise DataError(
            f"{path}: {member.name} holds {text[:40]!r}; a .cls member holds a class index, such as 0 or 417"
        )
    return int(text)


def _two_images(path: Path, key: str, first: str, second: str) -> DataError:
    return DataError(
        f"{path}: sample '{key}' has two images, {first} and {second}; it may have one. A sample's key ends at the "
        "first dot of the file name: pack the shards with one image a key"
    )


def _check_end(archive: tarfile.TarFile) -> None:
    """Raise ReadError unless the archive's end mark follows: a damaged header ends the listing just as quietly."""
    end = archive.offset
    file = archive.fileobj
    assert file is not None
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"neither a member nor the end mark at byte {end}")
