"""What was read of one shard, and the file that keeps it until the index is whole."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from aligntok.data.index.format import CAPTIONED, DOMAIN, FIXED, VERSION, domain_of, host_of
from aligntok.data.settings import MAX_ASPECT_RATIO
from aligntok.data.transforms import upright_size
from aligntok.errors import DataError, ImageError
from aligntok.io.arrays import read_npz
from aligntok.io.files import replacing

_CAPTION = "caption_place"  # in the file of a part: the text of it
_LONGEST_SIDE = np.iinfo(np.uint16).max
_hash = lru_cache(1 << 16)(domain_of)


@dataclass(frozen=True)
class Asked:
    """What of each shard is kept: the kind of all, columns of numbers, and where captions are, None for none."""

    kind: str
    columns: tuple[str, ...]
    caption: str | None

    def file_of(self, folder: Path, place: str, *states: tuple[int, str] | None) -> Path:
        """Return where a shard's part lies: under another name when something else is asked, or of other files.

        states: bytes and tag of the shard, and of a file beside it, if any.
        """
        named = json.dumps([VERSION, self.kind, self.columns, self.caption, place, states])
        return folder / f"{hashlib.sha256(named.encode()).hexdigest()[:32]}.npz"


@dataclass(frozen=True)
class Part:
    """The columns of one shard, (samples,) each, and how its captions lie, None where it has none."""

    columns: dict[str, npt.NDArray[Any]]
    caption: str | None

    def __len__(self) -> int:
        return len(self.columns["size"])

    def write(self, path: Path) -> None:
        """Write it. Raises WriteError."""
        text = np.frombuffer((self.caption or "").encode(), dtype=np.uint8)
        held: dict[str, Any] = {**self.columns, _CAPTION: text}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **held)

    @classmethod
    def read(cls, path: Path, asked: Asked) -> Part:
        """Read what `write` wrote. Raises OSError or ValueError for a damaged file."""
        fixed = FIXED[asked.kind] | CAPTIONED[asked.kind]

        def check(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
            known = {"u8"} if name == DOMAIN else {"u1"} if name == _CAPTION else {fixed.get(name, "")}
            if len(shape) != 1 or dtype.str[1:] not in (_NUMBERS if name in asked.columns else known):
                raise ValueError(f"{name} is {dtype} {shape}")

        found = read_npz(path, [*fixed, *asked.columns, DOMAIN, _CAPTION], check)
        caption = found.pop(_CAPTION).tobytes().decode() or None
        if len({len(column) for column in found.values()}) != 1 or not {*FIXED[asked.kind], *asked.columns} <= {*found}:
            raise ValueError("its columns are not those of one shard")
        return cls(found, caption)


_NUMBERS = ("i8", "f8", "f4")  # types of columns that are asked for, each including those before it


def numbers(where: str, name: str, values: Sequence[Any]) -> npt.NDArray[Any]:
    """Return a column of numbers, (samples,), None where there is none: NaN.

    Whole ones are int64, as float64 where some are missing; others float32. Raises DataError for what is no number.
    """
    for place, value in enumerate(values):
        if not (value is None or isinstance(value, int | float)):
            given = f"{name} = {str(value)[:40]!r}"
            raise DataError(f"{where}: sample {place} has {given}, which is no number; leave it out of --columns")
    kind = "f4" if any(isinstance(value, float) for value in values) else "f8" if None in values or not values else "i8"
    try:
        return np.array(
            [np.nan if value is None else value for value in values] if kind != "i8" else values, dtype=kind
        )
    except OverflowError as error:
        raise DataError(f"{where}: {name} has numbers of more than 64 bits; leave it out of --columns") from error


def domains(urls: Iterable[Any]) -> npt.NDArray[np.uint64]:
    """Return the column of hashes of hosts, (samples,), 0 where there is no address."""
    return np.array([_hash(host_of(url)) if isinstance(url, str) else 0 for url in urls], dtype=np.uint64)


def sides(file: BinaryIO) -> tuple[int, int]:
    """Return (H, W) of an image as it is displayed, from its header; zeros where that cannot be read."""
    try:
        found = upright_size(file, max_aspect_ratio=MAX_ASPECT_RATIO)
    except ImageError:
        return 0, 0
    return found if max(found) <= _LONGEST_SIDE else (0, 0)


def sides_of(image: bytes | None) -> tuple[int, int]:
    """Return the same of an image in memory, None for none."""
    return (0, 0) if image is None else sides(io.BytesIO(image))


def _widest(dtypes: Collection[str]) -> str:
    """Return a type for the numbers of all; `numbers` makes three, and an index that others wrote may have further."""
    return max(dtypes, key=_NUMBERS.index) if {*dtypes} <= {*_NUMBERS} else np.result_type(*dtypes).str[1:]


def types_of(
    kind: str, columns: Sequence[str], caption: str | None, parts: Iterable[Mapping[str, Any]]
) -> dict[str, str]:
    """Return the columns that an index has of `parts`, which give the type of each of theirs, such as "i8"."""
    found: dict[str, set[str]] = {}
    for part in parts:
        for name, dtype in part.items():
            found.setdefault(name, set()).add(dtype)
    own = {name: _widest(found.get(name, {"f8"})) for name in columns}
    fixed = FIXED[kind] | (CAPTIONED[kind] if caption else {})
    return fixed | own | ({DOMAIN: "u8"} if DOMAIN in found else {})
