"""Images in WebDataset's tar shards."""

from __future__ import annotations

import io
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from os.path import commonpath
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from aligntok.data.captions import CaptionList, Captions
from aligntok.data.sources.base import (
    FilePart,
    ImageSource,
    OpenFiles,
    PackedNames,
    is_hidden,
    is_hidden_image,
    optional_library,
    say_passed_over,
    suffix_of,
)
from aligntok.data.sources.captions import CAPTIONED, MOST_READ, add_caption, captions_in, one_of
from aligntok.data.sources.classes import LABELLED, join_labels, labels_in
from aligntok.data.transforms import holds_image, image_suffixes
from aligntok.distributed.job import progress_bar
from aligntok.errors import DataError, first_line

_THREADS = 16

#: Splits a path into a sample's key and the member's extension; (None, None) for what belongs to no sample.
SplitName: TypeAlias = Callable[[str], tuple[str | None, str | None]]


_LARGEST_TEXT = 2**20  # bytes of a member that is read for a label


class ShardSource(ImageSource):
    """The samples of several tar files that have an image, in the order of `shards` and of their members.

    A sample is the members of a shard that share a key, the path up to the first dot of the file name: one image, and
    perhaps a label: a ``.cls`` with a class index as a decimal number, or a class's name, or a ``.json`` with one of
    either as `label` or `cls`. `label` chooses "cls" or a key of the JSON; else all that there are must be the same.
    Labels that are names are numbered in sorted order. With a `caption` its captions are read, too: "txt" for the
    ``.txt``, a key of the ``.json``, or "auto" for that and the key `caption`. Other members are passed over, which is
    said. ``names[i]`` is ``shard.tar/path/of/member.jpg``.

    Only the images' places are kept, and at most 64 shards open at a time. Raises DataError when a shard is damaged or
    compressed, when a sample has two images, two labels or a wrong one, when there is no image, when labels are of two
    kinds, for wrong captions, and when the library `webdataset` is not installed.
    """

    def __init__(
        self, where: str, shards: Sequence[Path], label: str | None = None, caption: str | None = None
    ) -> None:
        split_name = split_names()
        self.shards = tuple(shards)
        self._files = OpenFiles()
        found: list[_Listing] = []
        with ThreadPoolExecutor(_THREADS) as pool, progress_bar(len(shards), "listing shards", "shard") as bar:
            for listed in pool.map(lambda shard: _list_shard(shard, split_name, label, caption), shards):
                found.append(listed)
                bar.update()
        sizes = [len(listed.names) for listed in found]
        if not sum(sizes):
            raise DataError(
                f"{where}: no sample with an image in {len(shards)} shard{'s' * (len(shards) > 1)}; "
                f"images are members that end in {', '.join(image_suffixes())}"
            )
        self.passed_over = sum((listed.others for listed in found), Counter())
        say_passed_over(where, self.passed_over)
        top = commonpath([shard.parent for shard in self.shards])
        titles = [shard.relative_to(top).as_posix() for shard in self.shards]
        names = (f"{title}/{name}" for title, listed in zip(titles, found, strict=True) for name in listed.names)
        self._table = np.concatenate([listed.places for listed in found])
        labels = join_labels(where, [(len(listed.names), listed.labels) for listed in found], label)
        super().__init__(where, PackedNames(names), *labels)
        if caption is not None:
            self.captions = _join_captions(where, found, caption)
        self._shard_of = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)

    def places(self) -> Iterable[str]:
        """Return the absolute paths of the shards."""
        return (str(shard.resolve()) for shard in self.shards)

    def read(self, index: int) -> bytes:
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


def expand_pattern(pattern: str) -> list[str]:
    """Return the paths or addresses that a brace pattern such as ``train-{0000..0127}.tar`` stands for.

    Raises DataError for braces that do not match, and when the library `webdataset` is not installed.
    """
    expand_urls = _webdataset("shardlists").expand_urls
    try:
        return [*expand_urls(pattern)]
    except (ValueError, AssertionError) as error:  # unbalanced braces; ${NAME} without a variable WDS_NAME
        raise DataError(
            f"{pattern} is no pattern of shards ({first_line(error)}); write it like /data/train-{{0000..0127}}.tar"
        ) from error


def split_names() -> SplitName:
    """Return what splits names of members. Raises DataError when the library `webdataset` is not installed."""
    return _webdataset("tariterators").base_plus_ext


def _webdataset(module: str) -> Any:
    return optional_library(f"webdataset.{module}", "WebDataset shards")


class _Listing(NamedTuple):
    """A shard's images: names, (n, 2) where each begins and its bytes, its labels and captions by what they are called,
    and how many members are passed over.
    """

    names: list[str]
    places: npt.NDArray[np.int64]
    labels: dict[str, list[int | str | None]]
    captions: dict[str, Captions]
    others: Counter[str]


def _join_captions(where: str, found: Sequence[_Listing], caption: str) -> Captions:
    """Return the captions of the images of all shards. Raises DataError for none, or for several that differ."""
    none = {n: CaptionList(n).packed() for n in {len(listed.names) for listed in found}}
    called = sorted({name for listed in found for name in listed.captions})
    joined = {
        name: Captions.joined([listed.captions.get(name, none[len(listed.names)]) for listed in found])
        for name in called
    }
    return joined[one_of(where, joined, caption, "a sample has them in a .txt, or in a .json with the key caption")]


def _list_shard(path: Path, split_name: SplitName, label: str | None, caption: str | None) -> _Listing:
    """List a shard. Raises DataError for one that is damaged."""
    with opened_shard(str(path)) as archive:
        return _list_members(archive, path, split_name, label, caption)


@contextmanager
def opened_shard(where: str, file: BinaryIO | None = None) -> Iterator[tarfile.TarFile]:
    """Open a tar file, at that path or as `file`, whose members are read to the end inside.

    Raises DataError for one that is damaged, also inside.
    """
    try:
        with tarfile.open(where, "r:", file) as archive:
            yield archive
            # A damaged header ends the listing just as quietly as the end mark.
            opened = archive.fileobj
            assert opened is not None
            opened.seek(archive.offset)
            if opened.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"neither a member nor the end mark at byte {archive.offset}")
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:  # a header's numbers may be no numbers
        raise DataError(
            f"{where} is not an uncompressed tar file, or a damaged one ({first_line(error)}); copy or pack it again"
        ) from error


class Member(NamedTuple):
    """A member of a shard: its name without "./", the key of its sample, how its name ends, and all of its extension,
    both in lower case.
    """

    info: tarfile.TarInfo
    name: str
    key: str
    kind: str
    extension: str

    def is_image(self, archive: tarfile.TarFile, suffixes: tuple[str, ...]) -> bool:
        """Tell whether it is an image, by the end of its name, or by its content where that has none."""
        return self.kind in suffixes or (not self.kind and holds_image(partial(open_member, archive, self)))


def members(archive: tarfile.TarFile, split_name: SplitName, others: Counter[str]) -> Iterator[Member]:
    """Yield the members of a shard that are files and not hidden; hidden images are counted in `others`."""
    suffixes, last = image_suffixes(), -1
    for info in archive:
        if info.offset <= last:  # a negative size leads back, round and round
            raise tarfile.ReadError(f"member {info.name} lies before the one before it")
        last, name = info.offset, info.name.removeprefix("./")
        if not info.isreg() or info.issparse() or is_hidden(name):
            others["hidden"] += info.isreg() and is_hidden_image(name, suffixes)
            continue
        key, extension = split_name(name)  # neither without a dot
        kind = "" if key is None else suffix_of(f".{extension}")
        yield Member(info, name, name if key is None else key, kind, f".{extension}".lower())


def check_one_image(where: object, member: Member, images: Mapping[str, Member]) -> None:
    """Raise DataError for a second image of a sample, of which the first is among `images`, by their keys."""
    if member.key in images:
        first = images[member.key].info.name
        raise DataError(
            f"{where}: sample '{member.key}' has two images, {first} and {member.info.name}; it may have one. "
            "A sample's key ends at the first dot of the file name: pack the shards with one image a key"
        )


def twice(where: object, member: Member, what: str) -> DataError:
    """Return the error of a member that says of its sample what another one of that key and ending has said."""
    return DataError(
        f"{where}: sample '{member.key}' has its {what} twice, {member.info.name} the second; pack it once"
    )


def _list_members(
    archive: tarfile.TarFile, path: Path, split_name: SplitName, label: str | None, caption: str | None
) -> _Listing:
    suffixes, others = image_suffixes(), Counter[str]()
    images: dict[str, Member] = {}
    labels: defaultdict[str, dict[str, int | str | None]] = defaultdict(dict)
    captions: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for member in members(archive, split_name, others):
        key, what = member.key, f"{path}: {member.info.name}"
        found, told = {}, {}
        if member.extension in LABELLED:
            found = labels_in(what, member.kind, open_member(archive, member).read(_LARGEST_TEXT), label)
        for called, value in found.items():
            if labels[called].setdefault(key, value) != value:
                raise twice(path, member, "label")
        if caption is not None and member.extension in CAPTIONED:
            told = captions_in(what, member.kind, open_member(archive, member).read(MOST_READ + 1), caption)
        for called, given in told.items():
            if key in captions[called]:
                raise twice(path, member, "caption")
            captions[called][key] = given
        if member.is_image(archive, suffixes):
            check_one_image(path, member, images)
            images[key] = member
        elif not found and not told:
            others[member.kind or "without suffix"] += 1
    others["labels without an image"] += len({key for values in labels.values() for key in values} - images.keys())
    names = [image.name for image in images.values()]
    rows = [(image.info.offset_data, image.info.size) for image in images.values()]
    aligned = {called: [values.get(key) for key in images] for called, values in labels.items()}
    packed = {called: _packed(path, images, given) for called, given in captions.items()}
    return _Listing(names, np.array(rows, dtype=np.int64).reshape(-1, 2), aligned, packed, +others)


def _packed(path: Path, images: Mapping[str, Member], given: Mapping[str, Any]) -> Captions:
    captions = CaptionList(len(images))
    for index, key in enumerate(images):
        add_caption(captions, index, given.get(key), f"{path}: sample '{key}'")
    return captions.packed()


def open_member(archive: tarfile.TarFile, member: Member) -> BinaryIO:
    """Open a member, which is read where it lies."""
    return cast(BinaryIO, archive.extractfile(member.info))  # there is one of a regular file
