"""What a data set was made of when it was used, kept beside what came of it: a later start sees what changed."""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aligntok.data.sampler import evenly_spaced
from aligntok.data.sources.base import ImageSource
from aligntok.errors import ConfigError, DataError
from aligntok.io.arrays import check_stored, read_npz
from aligntok.io.files import check_file, reading, replacing

logger = logging.getLogger("aligntok.data")
#: The file that keeps it.
LISTING = "listing.npz"
SAMPLED = 256  # images of which bytes are looked at, evenly spaced: their times change with every copy
ENOUGH = 8  # of those, to judge by them the ones whose bytes nobody looked at
_THREADS = 16
Int64s = npt.NDArray[np.int64]


class Changes(NamedTuple):
    """How many images are others under the same name, new, gone, of another class, or of another caption; and the first
    of those here.
    """

    changed: int
    added: int
    removed: int
    relabelled: int
    first: str
    recaptioned: int = 0

    def __str__(self) -> str:
        told = {"changed": self.changed, "new": self.added, "gone": self.removed, "of another class": self.relabelled}
        told["of another caption"] = self.recaptioned
        counts = ", ".join(f"{count:,} {what}" for what, count in told.items() if count)
        return counts + (f", {self.first} among them" if self.first else "")


@dataclass(frozen=True)
class Listing:
    """The items of a data set: a hash of each name, its bytes and its mark, its class; (n,) each.

    Marks are the time of change, or, `by_content`, the CRC-32 of the bytes. Of items at `sampled` the bytes have
    `digests`. `unit` is what messages call an item. `captions` are hashes of each item's, or none.
    """

    names: Int64s
    sizes: Int64s
    marks: Int64s
    labels: Int64s
    sampled: Int64s
    digests: Int64s
    class_names: tuple[str, ...]
    by_content: bool
    unit: str = "images"
    captions: Int64s = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @classmethod
    def of(cls, source: ImageSource) -> Listing:
        """List a source: one look at each file, and the bytes of a few."""
        sizes, marks, by_content = source.marks()
        places = np.array(evenly_spaced(len(source), SAMPLED), dtype=np.int64)
        digests = marks[places] if by_content else _digests(source, places.tolist())
        labels, names = source.labels.astype(np.int64), hashes(source.names)
        found = cls(names, sizes, marks, labels, places, digests, tuple(source.class_names), by_content)
        return found if source.captions is None else replace(found, captions=source.captions.hashes())

    @property
    def digest(self) -> str:
        """SHA-256 of names, sizes, marks, classes and captions, 64 hexadecimal digits."""
        text = json.dumps(self.class_names).encode()
        arrays = (self.names, self.sizes, self.marks, self.labels, self.captions)
        return hashlib.sha256(text + b"".join(array.tobytes() for array in arrays)).hexdigest()

    def described(self) -> dict[str, Any]:
        """Return what a file says of it: digest, number, names of classes."""
        return {"digest": self.digest, self.unit: len(self.names), "class_names": list(self.class_names)}

    def changes(self, now: Listing, source: ImageSource | None = None) -> Changes | None:
        """Return what differs in a listing of the same data later, None for nothing.

        A file of the same size but another mark, or none, is read, from `source`, if its bytes were looked at before;
        what share of those is the same is taken for that of the rest. So a copy, with other times, has not changed.
        """
        _, here, there = np.intersect1d(self.names, now.names, return_indices=True)
        resized = self.sizes[here] != now.sizes[there]
        remarked = ~resized & ((self.marks[here] != now.marks[there]) | (now.marks[there] == 0))
        changed = resized | remarked
        if not (self.by_content and now.by_content):
            same, share = self._same_bytes(here, there, remarked, source)
            changed &= ~same
            unknown = changed & remarked & ~np.isin(here, self.sampled)
            changed &= ~unknown | (now.marks[there] != 0)
            if share is not None:
                changed[np.flatnonzero(unknown)[int(np.ceil(share * unknown.sum())) :]] = False
        relabelled = self.labels[here] != now.labels[there]
        recaptioned = np.zeros(len(here), dtype=bool)
        if len(self.captions) and len(now.captions):  # else they were not asked for, at one of the two times
            recaptioned = self.captions[here] != now.captions[there]
        added = np.setdiff1d(np.arange(len(now.names)), there)
        found = np.sort(np.concatenate([there[changed | relabelled | recaptioned], added]))
        first = "" if source is None or not len(found) else source.names[int(found[0])]
        counts = int(changed.sum()), len(added), len(self.names) - len(here), int(relabelled.sum())
        told = int(recaptioned.sum())
        return Changes(*counts, first, told) if any(counts) or told else None

    def _same_bytes(
        self, here: Int64s, there: Int64s, remarked: npt.NDArray[np.bool_], source: ImageSource | None
    ) -> tuple[npt.NDArray[np.bool_], float | None]:
        """Tell which of the items with other marks have the same bytes; and the share that has others, if it is known.

        Items at places `here` are at `there` now.
        """
        known = dict(zip(self.sampled.tolist(), self.digests.tolist(), strict=True))
        looked = [i for i in np.flatnonzero(remarked) if int(here[i]) in known]
        same = np.zeros(len(here), dtype=bool)
        if source is None or not looked:
            return same, None
        found = _digests(source, there[looked].tolist())
        same[looked] = found == [known[int(here[i])] for i in looked]
        share = 1 - same.sum() / len(looked)
        return same, float(share) if len(looked) >= ENOUGH else None

    def write(self, folder: Path) -> None:
        """Write it into a folder, with a checksum. Raises WriteError."""
        arrays: dict[str, Any] = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        arrays["class_names"] = np.frombuffer(json.dumps([*self.class_names, self.unit]).encode(), dtype=np.uint8)
        with replacing(folder / LISTING, checksum=True) as temporary, temporary.open("wb") as file:
            np.savez(file, by_content=np.array(self.by_content), **arrays)

    @classmethod
    def read(cls, folder: Path) -> Listing | None:
        """Read the one that a folder has; None without. Raises DataError when it is damaged."""
        path, cure = folder / LISTING, "remove that file to go on without the comparison with earlier data"
        if not path.is_file():
            return None
        check_file(path, DataError, cure)
        with reading(path, DataError, cure):
            check_stored(path)
            found = read_npz(path, [each.name for each in fields(cls)], _check_array)
            *names, unit = json.loads(found.pop("class_names").tobytes())
            if not all(isinstance(each, str) for each in (*names, unit)):
                raise ValueError("its classes have names that are no texts")
            _check_rows(found)
            return cls(**{**found, "by_content": bool(found["by_content"])}, class_names=tuple(names), unit=unit)


def _check_array(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    wanted = {"class_names": (np.uint8, 1), "by_content": (np.bool_, 0)}.get(name, (np.int64, 1))
    if (dtype, len(shape)) != wanted:
        raise ValueError(f"{name} is {dtype} {shape}")


def _check_rows(found: Mapping[str, Int64s]) -> None:
    """Raise KeyError or ValueError unless a listing's columns are there and fit; a version without had no captions."""
    n, sampled = len(found["names"]), found["sampled"]
    lengths = [len(found[name]) for name in ("sizes", "marks", "labels")] + [len(found.get("captions", ())) or n]
    if {n} != {*lengths} or len(sampled) != len(found["digests"]) or not np.isin(sampled, np.arange(n)).all():
        raise ValueError(f"its columns of {n}, {lengths} and {len(sampled)} do not fit")


def hashes(names: Iterable[str]) -> Int64s:
    """Return 64 bits of each name's hash, (n,)."""
    digests = (hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), dtype=np.int64)


def _digests(source: ImageSource, places: Sequence[int]) -> Int64s:
    def digest(place: int) -> int:
        try:
            return zlib.crc32(source.read(place))  # as a zip archive has it
        except (OSError, ValueError):  # reading the image for its pixels will say what is wrong
            return -1

    with ThreadPoolExecutor(_THREADS) as pool:
        return np.array([*pool.map(digest, places)], dtype=np.int64)


def must_not_change(folder: Path, source: ImageSource) -> None:
    """Keep in a folder what its content is made of; in one that has it, raise DataError for other images or classes."""
    before, now = Listing.read(folder), Listing.of(source)
    if before is None:
        now.write(folder)
        return
    changes = before.changes(now, source)
    if changes or before.class_names != now.class_names:
        told = changes or f"classes {_short(before.class_names)}, now {_short(now.class_names)}"
        raise DataError(
            f"{folder} was begun with other images than {source.where} has now ({told}); put them back, or make it "
            f"anew in another folder. If you know that the images are the same, remove {LISTING} there"
        )


def report_changes(folder: Path, stage: str, data: Any, conditional: bool) -> None:
    """Warn, with numbers, when a stage that has begun is given other data than those listed in its folder.

    Raises ConfigError for other classes where the model is `conditional` on them. Nothing is said of data sets that
    cannot tell what they are made of, and of stages of an earlier version.
    """
    now = getattr(data, "listing", None)
    before = None if now is None else Listing.read(folder)
    if now is None or before is None:
        return
    changes = before.changes(now, getattr(data, "source", None))
    classes = before.class_names != now.class_names
    if conditional and (classes or (changes and changes.relabelled)):
        raise ConfigError(
            f"stage '{stage}' in {folder} was trained with other classes ({_told(before, now, changes)}), "
            "and its generator knows them by number; put the data back, or remove the folder to train the stage anew"
        )
    if changes or classes:
        logger.warning(
            "stage '%s' in %s was trained on other %s so far (%s); it goes on with those that are there now",
            *(stage, folder, now.unit, _told(before, now, changes)),
        )


def _told(before: Listing, now: Listing, changes: Changes | None) -> str:
    names = [f"{len(each.class_names)} classes" for each in (before, now)]
    gone = [name for name in before.class_names if name not in now.class_names]
    new = [name for name in now.class_names if name not in before.class_names]
    parts = [str(changes)] if changes else []
    parts += [f"{names[0]}, now {names[1]}"] if names[0] != names[1] else []
    parts += [f"classes {what}: {_short(some)}" for what, some in (("gone", gone), ("new", new)) if some]
    return "; ".join(parts) or "the order of its classes"


def _short(names: Sequence[str]) -> str:
    return f"{', '.join(names[:4]) or 'without names'}{', ...' * (len(names) > 4)}"
