"""What lies in the folder of an index, and how it is opened: columns that stay on disk, and a table of shards."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from aligntok.data.sources.base import PackedNames
from aligntok.errors import ConfigError, DataError, unknown
from aligntok.io.arrays import map_again, map_column
from aligntok.io.files import read_json, reading

FORMAT, VERSION = "aligntok-index", 1
DESCRIPTION, SHARDS, COLUMNS = "index.json", "shards.json", "columns"
#: What the numbers of a column may be.
DTYPES = ("i8", "u8", "f4", "f8", "u4", "u2", "u1")
#: Columns of every index, by the kind of its shards. Sizes are in bytes of the encoded image, sides in pixels as
#: displayed: 0 where the image cannot be read. A row is one of its row group.
FIXED = {
    "tar": {"offset": "i8", "size": "u4", "height": "u2", "width": "u2"},
    "parquet": {"row_group": "u4", "row": "u4", "size": "u4", "height": "u2", "width": "u2"},
}
#: Columns of an index with captions: bytes of the member or text that has it, 0 without; and where that begins.
CAPTIONED = {"tar": {"caption_offset": "i8", "caption_size": "u4"}, "parquet": {"caption_size": "u4"}}
#: The column of the hosts that images came from.
DOMAIN = "domain"
#: How a column may be called, in a filter as well.
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_MOST_SAMPLES = 1 << 40
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_CURE = "copy the index again, or make it anew with `aligntok index`"
Int64s = npt.NDArray[np.int64]


class ShardTable:
    """The shards of an index, in order: `paths` from `root` on, or URLs; `sizes` in bytes; `tags`, which change with
    the content; and `first`, (shards + 1,), the sample each begins with, the last the number of all.
    """

    def __init__(self, root: str, paths: Iterable[str], sizes: Any, tags: Iterable[str], samples: Any) -> None:
        self.root = root
        self.paths, self.tags = PackedNames(paths), PackedNames(tags)
        self.sizes: Int64s = np.array(sizes, dtype=np.int64)
        self.first: Int64s = np.concatenate([np.zeros(1, np.int64), np.cumsum(samples, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.paths)

    def place(self, shard: int) -> str:
        """Return the absolute path of a shard, or its URL."""
        return self.root + self.paths[shard]

    def listed(self, shard: int) -> tuple[int, str]:
        """Return bytes and tag of a shard when it was indexed."""
        return int(self.sizes[shard]), self.tags[shard]


class Index:
    """The samples of an index, in the order of its shards. Picklable: a worker process opens it again.

    folder: where it lies. kind: "tar" or "parquet". caption: how captions lie: "txt", "json:KEY" of a tar's samples, a
    column of parquet files, None without. columns: names, each with its type, such as "i8". digest: 64 hexadecimal
    digits, others for other samples, shards or columns.
    """

    def __init__(self, folder: Path, content: Mapping[str, Any], shards: ShardTable, maps: Mapping[str, Any]) -> None:
        self.folder, self.shards, self._maps = folder, shards, maps
        self.kind, self.caption, self.digest = content["kind"], content["caption"], content["digest"]
        self.columns: dict[str, str] = content["columns"]
        self._scattered: dict[str, Any] = {}

    def __len__(self) -> int:
        return int(self.shards.first[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.folder, self.digest)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """Open an index: its table of shards is read, and its columns are mapped.

        Raises DataError for one that is missing, damaged, cut off or of another version.
        """
        place = Path(folder).expanduser().absolute()
        content = read_json(place / DESCRIPTION, DataError, _CURE, _described)
        shards = read_json(
            place / SHARDS, DataError, _CURE, partial(_listed, root=_absolute(place.resolve(), content["root"]))
        )
        if shards.first[-1] != content["samples"]:
            raise DataError(
                f"{place} has {content['samples']:,} samples by {DESCRIPTION} and {shards.first[-1]:,} by {SHARDS}; "
                f"{_CURE}"
            )
        maps = {}
        for name, dtype in content["columns"].items():
            path = place / COLUMNS / f"{name}.npy"
            with reading(path, DataError, _CURE):
                maps[name] = map_column(path, dtype, content["samples"])
        return cls(place, content, shards, maps)

    def column(self, name: str) -> np.memmap[Any, Any]:
        """Return a column, (samples,), where it lies, to go through. Raises ConfigError for one that is not there."""
        if name not in self._maps:
            raise ConfigError(f"{self.folder}: {unknown('column', name, self.columns)}")
        return self._maps[name]

    def at(self, name: str, samples: Any) -> npt.NDArray[Any]:
        """Return the values of a column at some samples, (k,), or a slice: looked up where they are, 100 times as fast
        as in `column` where nothing of that is in memory yet. Raises ConfigError for a column that is not there.
        """
        if name not in self._scattered:
            with reading(self.folder / COLUMNS / f"{name}.npy", DataError, _CURE):
                self._scattered[name] = map_again(self.column(name))
        return np.asarray(self._scattered[name][samples])

    def shard_of(self, samples: npt.ArrayLike) -> Int64s:
        """Return the number of each sample's shard."""
        return np.searchsorted(self.shards.first, samples, side="right").astype(np.int64) - 1

    def spans(self, samples: npt.NDArray[Any], of: str = "") -> tuple[Int64s, Int64s]:
        """Return where in its shard each sample's image begins and ends, (k,) each; with `of` ``caption_`` its caption.

        Of shards of the kind "tar". A caption that there is not has no bytes. Raises DataError, which names the shard,
        for a place outside of it.
        """
        begins, sizes = (self.at(f"{of}{name}", samples).astype(np.int64) for name in ("offset", "size"))
        self.check_inside(samples, begins, sizes)
        return begins, begins + sizes

    def check_inside(self, samples: npt.NDArray[Any], begins: Int64s, sizes: Int64s) -> None:
        """Raise DataError, which names the shard, unless so many bytes from there on are in each sample's shard."""
        shards = self.shard_of(samples)
        outside = (begins < 0) | (begins > self.shards.sizes[shards] - sizes)
        if outside.any():
            first = int(np.flatnonzero(outside)[0])
            shard = int(shards[first])
            raise DataError(
                f"{self.folder}: sample {int(np.asarray(samples)[first]):,} would lie at byte {begins[first]:,} of "
                f"{self.shards.place(shard)}, which has {self.shards.sizes[shard]:,}; {_CURE}"
            )


def _reopen(folder: Path, digest: str) -> Index:
    index = Index.open(folder)
    if index.digest != digest:
        raise DataError(f"{folder} is another index than when this started; put it back, or start anew")
    return index


def is_url(path: str) -> bool:
    """Tell whether a shard is named by an address rather than a path."""
    return _URL.match(path) is not None


def _absolute(folder: Path, root: str) -> str:
    return root if is_url(root) or not root else os.path.join(os.path.normpath(folder / root), "")


def _described(content: dict[str, Any]) -> dict[str, Any]:
    """Return what index.json holds. Raises ValueError for what it cannot."""
    if content["format"] != FORMAT or content["version"] != VERSION:
        raise ValueError(f"it is {content['format']!r} of version {content['version']!r}, not {FORMAT!r} of {VERSION}")
    kind, samples, columns = content["kind"], content["samples"], content["columns"]
    if kind not in FIXED:
        raise ValueError(f"its kind is {kind!r}, and not one of {', '.join(FIXED)}")
    if type(samples) is not int or not 0 < samples <= _MOST_SAMPLES:
        raise ValueError(f"its number of samples is {samples!r}")
    if not all(isinstance(content[key], str) for key in ("root", "digest")):
        raise ValueError("its root and its digest are no texts")
    caption = content["caption"]
    if not (caption is None or isinstance(caption, str)):
        raise ValueError(f"its place of captions is {caption!r}")
    for name, dtype in columns.items():
        if not NAME.fullmatch(name) or dtype not in DTYPES:
            raise ValueError(f"it has a column {name[:80]!r} of {str(dtype)[:80]!r}, which cannot be")
    wanted = FIXED[kind] | (CAPTIONED[kind] if caption is not None else {})
    wanted |= {DOMAIN: "u8"} if DOMAIN in columns else {}
    for name, dtype in wanted.items():
        if columns.get(name) != dtype:
            raise ValueError(f"its column {name} is {columns.get(name)}, and not {dtype}")
    return content


def _listed(content: dict[str, Any], root: str) -> ShardTable:
    """Return what shards.json holds. Raises ValueError for what it cannot."""
    paths, sizes, tags, samples = (content[key] for key in ("paths", "sizes", "tags", "samples"))
    if not len(paths) == len(sizes) == len(tags) == len(samples):
        raise ValueError("its lists are of different lengths")
    if any(type(number) is not int or not 0 <= number < 1 << 62 for number in (*sizes, *samples)):
        raise ValueError("a size or a number of samples is none")
    if not all(isinstance(text, str) and "\0" not in text for text in (*paths, *tags)):
        raise ValueError("a path or a tag is no text")
    for path in paths:
        parts = path.split("/")
        if ".." in parts or "" in parts[:1] or is_url(path) == bool(root):
            raise ValueError(f"the path {path[:200]!r} does not lead from the root {root!r} into it")
    if len(set(paths)) < len(paths):
        raise ValueError("a shard is there twice")
    if sum(samples) > _MOST_SAMPLES:
        raise ValueError(f"its shards hold {sum(samples)} samples")
    return ShardTable(root, paths, sizes, tags, samples)


def host_of(url: str) -> str:
    """Return the host of a URL in lower case, without "www."; of what is none, an empty text."""
    try:
        host = (urlsplit(url.strip()).hostname or "").rstrip(".")
    except ValueError:  # brackets that do not match
        return ""
    return host.removeprefix("www.")


def domain_of(host: str) -> int:
    """Return 64 bits of a host's SHA-256, its first: what the column `domain` holds. 0 for an empty text."""
    return int.from_bytes(hashlib.sha256(host.encode(errors="replace")).digest()[:8], "big") if host else 0
