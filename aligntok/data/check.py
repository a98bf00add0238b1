"""What a set of images is made of, told before a training is paid for, as `DataCheck` asks."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from aligntok.data.buckets import AspectBuckets, CropTally
from aligntok.data.captions import AUTO, Captions
from aligntok.data.index import Index
from aligntok.data.index.format import DESCRIPTION
from aligntok.data.index.sampled import SampledSource, told_by_columns
from aligntok.data.remote import RemoteFiles
from aligntok.data.sampler import evenly_spaced
from aligntok.data.settings import DataCheck, RemoteSettings
from aligntok.data.sources import open_source
from aligntok.data.sources.base import ImageSource, SeveralSplits, in_numbers
from aligntok.data.sources.captions import NoCaptions
from aligntok.data.transforms import Header, read_header, read_image, reading_image
from aligntok.distributed.job import batched, progress_bar
from aligntok.errors import ConfigError, DataError, ImageError, first_line
from aligntok.io.console import print_line, print_table

_THREADS, _CHUNK = 16, 256
_PROBED = 4096  # bytes of an image that are hashed beside its length, to see of which others it may be a copy
_NAMED = 20  # images that cannot be read, or are copies, by name

Int64s = npt.NDArray[np.int64]
#: Images, and what is said of their captions.
Source: TypeAlias = tuple[ImageSource, dict[str, Any]]


class Looks(NamedTuple):
    """What the headers of some images of a source say: `indices` (n,) are theirs.

    sizes: (n, 2), height and width, 0 where it cannot be read; what then is wrong is in `reasons`, by index. keys:
    (n, 2), bytes of each and a hash of the first of them; equal in copies.
    """

    source: ImageSource
    indices: Int64s
    sizes: Int64s
    keys: Int64s
    formats: Counter[str]
    modes: Counter[str]
    turned: int
    reasons: dict[int, str]


def check_data(asked: DataCheck) -> dict[str, Any]:
    """Print what the images are, a table for each split; return that, as JSON has it.

    Raises DataError for data that cannot be opened at all, ConfigError for an `image_size` that is none.
    """
    shapes = AspectBuckets(dict(side=asked.equal_area) if asked.equal_area else asked.image_size)
    looks, told = dict[str, Looks](), dict[str, Any]()
    index = _index(asked)
    for source, captions in _sources(asked) if index is None else [_some_of(index, asked)]:
        found = look_at(source, asked)
        decoded, reasons = _decode(found, asked)
        found.reasons.update(reasons)
        looks[source.where] = found
        told[source.where] = _described(found, shapes) | {"decoded": decoded, "captions": captions}
        if index is not None:
            told[source.where] |= _of_all(index, shapes)
    groups = copies(list(looks.values()))
    across = [names for names in groups if len({where for where, _ in names}) > 1]
    for where in told:
        own = [[name for place, name in names if place == where] for names in groups]
        own = [names for names in own if len(names) > 1]
        told[where]["copies"] = {"images": sum(map(len, own)) - len(own), "such_as": own[:_NAMED]}
    shared = {"images": len(across), "such_as": [[f"{w}/{n}" for w, n in names] for names in across[:_NAMED]]}
    _print(told, shared)
    return {"data": told, "copies_across": shared}


def _index(asked: DataCheck) -> Index | None:
    """Return the index that is to be looked at; None where other data are. Raises ConfigError for what it has not."""
    if not (Path(asked.data).expanduser() / DESCRIPTION).is_file():
        if asked.remote != RemoteSettings():
            raise ConfigError(
                f"{asked.data} is no index of shards: --attempts, --timeout, --pause and --in-flight are its"
            )
        return None
    for name, usual in (("splits", ()), ("label", None), ("num_images", None), ("caption", AUTO)):
        if getattr(asked, name) != usual:
            raise ConfigError(f"{asked.data} is an index of shards, which has no use for --{name.replace('_', '-')}")
    return Index.open(asked.data)


def _some_of(index: Index, asked: DataCheck) -> Source:
    number = len(index) if asked.decoded is None else asked.decoded
    return SampledSource(index, number, RemoteFiles(asked.remote)), {}


def _of_all(index: Index, shapes: AspectBuckets) -> dict[str, Any]:
    """Return what an index knows of all samples, in place of what was found in some of them."""
    return told_by_columns(index, shapes) | {"images": len(index), "bytes": int(index.shards.sizes.sum())}


def _sources(asked: DataCheck) -> list[Source]:
    """Open each split that is asked for, or that there is."""
    try:
        return [_open(asked, split or None) for split in asked.splits or ("",)]
    except SeveralSplits as error:
        return [_open(asked, split) for split in error.known]


def _open(asked: DataCheck, split: str | None) -> Source:
    """Return the images, and what their captions are; what is wrong with those is no reason not to look at the rest."""
    try:
        source = open_source(asked.data, split, asked.label, caption=asked.caption, max_uncaptioned=None)
    except SeveralSplits:
        raise
    except DataError as error:
        why = "none" if isinstance(error, NoCaptions) else first_line(error)
        return open_source(asked.data, split, asked.label), {"images": 0, "none": why}
    assert source.captions is not None  # they were asked for
    return source, _captions(source.captions)


def _captions(captions: Captions) -> dict[str, Any]:
    lengths = captions.ends - captions.begins
    texts = (captions.pick(index, 0, None) for index in np.flatnonzero(captions.counts).tolist())
    words = np.array([len(text.split()) for text in texts])
    return {
        "images": int((captions.counts > 0).sum()),
        "without": int((captions.counts == 0).sum()),
        "captions": len(captions.ends),
        "empty": int((lengths == 0).sum()),
        "words": _spread(words),
    }


def look_at(source: ImageSource, asked: DataCheck) -> Looks:
    """Read the headers of a source's images, evenly spread."""
    wanted = len(source) if asked.num_images is None else asked.num_images
    indices = np.array(evenly_spaced(len(source), wanted), dtype=np.int64)
    sizes, keys = np.zeros((2, len(indices), 2), dtype=np.int64)
    formats, modes, reasons, turned = Counter[str](), Counter[str](), dict[int, str](), 0

    def look(places: Sequence[int]) -> list[tuple[Header | str, tuple[int, int]]]:
        return [_look(source, place, asked.max_aspect_ratio) for place in places]

    parts = batched(indices.tolist(), _CHUNK)
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        progress_bar(len(indices), f"looking at {source.where}", "image") as bar,
    ):
        seen = 0
        for chunk in pool.map(look, parts):
            for header, key in chunk:
                keys[seen] = key
                if isinstance(header, str):
                    reasons[int(indices[seen])] = header
                else:
                    sizes[seen] = header[:2]
                    formats[header.format] += 1
                    modes[header.mode] += 1
                    turned += header.turned
                seen += 1
            bar.update(len(chunk))
    return Looks(source, indices, sizes, keys, formats, modes, turned, reasons)


def _look(source: ImageSource, index: int, most: float) -> tuple[Header | str, tuple[int, int]]:
    key = (0, 0)
    try:
        with reading_image(), source.open(index) as file:
            begin = hashlib.blake2b(file.read(_PROBED), digest_size=8).digest()
            key = (file.seek(0, io.SEEK_END), int.from_bytes(begin, "little", signed=True))
            file.seek(0)
            return read_header(file, max_aspect_ratio=most), key
    except ImageError as error:
        return str(error), key


def _decode(looks: Looks, asked: DataCheck) -> tuple[int, dict[int, str]]:
    """Decode some of the images whose headers can be read; return how many, and what is wrong with which."""
    readable = looks.indices[looks.sizes[:, 0] > 0].tolist()
    chosen = evenly_spaced(len(readable), len(readable) if asked.decoded is None else asked.decoded)

    def decode(index: int) -> str:
        try:
            read_image(looks.source, index, max_aspect_ratio=asked.max_aspect_ratio)
        except ImageError as error:
            return str(error)
        return ""

    reasons = dict[int, str]()
    with ThreadPoolExecutor(_THREADS) as pool, progress_bar(len(chosen), "decoding", "image") as bar:
        for place, reason in zip(chosen, pool.map(decode, [readable[place] for place in chosen]), strict=True):
            bar.update()
            if reason:
                reasons[readable[place]] = reason
    return len(chosen), reasons


def copies(looks: Sequence[Looks]) -> list[list[tuple[str, str]]]:
    """Return the images of the same bytes, of one or more sources: of each group where they are, and their names."""
    owners = np.repeat(np.arange(len(looks)), [len(each.indices) for each in looks])
    indices, keys = (np.concatenate([each[part] for each in looks]) for part in (1, 3))
    _, kind, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    alike = np.flatnonzero((counts[kind.reshape(-1)] > 1) & (keys[:, 0] > 0))

    def content(place: int) -> bytes:
        try:
            return hashlib.sha256(looks[owners[place]].source.read(int(indices[place]))).digest()
        except (OSError, ValueError, DataError):  # it is among the unreadable ones, or will be
            return place.to_bytes(8, "little")

    groups = dict[bytes, list[tuple[str, str]]]()
    with ThreadPoolExecutor(_THREADS) as pool:
        for place, digest in zip(alike.tolist(), pool.map(content, alike.tolist()), strict=True):
            source = looks[owners[place]].source
            groups.setdefault(digest, []).append((source.where, source.names[int(indices[place])]))
    return [names for names in groups.values() if len(names) > 1]


def _spread(values: npt.NDArray[Any]) -> list[float]:
    """Return the least, the median and the greatest; nothing of nothing."""
    return [float(found) for found in np.quantile(values, [0, 0.5, 1])] if len(values) else []


def _described(looks: Looks, shapes: AspectBuckets) -> dict[str, Any]:
    source, tally = looks.source, CropTally(shapes)
    tally.add(looks.sizes[looks.sizes[:, 0] > 0])
    labelled = np.bincount(source.labels[source.labels >= 0], minlength=len(source.class_names))
    return {
        "images": len(source),
        "looked_at": len(looks.indices),
        "bytes": int(looks.keys[:, 0].sum()),
        "formats": dict(looks.formats.most_common()),
        "modes": dict(looks.modes.most_common()),
        "turned_by_exif": looks.turned,
        "passed_over": dict(source.passed_over),
        "unreadable": {
            "images": len(looks.reasons),
            "such_as": {source.names[index]: looks.reasons[index] for index in sorted(looks.reasons)[:_NAMED]},
        },
        **tally.told(),
        "classes": len(labelled),
        "images_a_class": _spread(labelled),
        "without_class": int((source.labels < 0).sum()),
    }


def _print(told: dict[str, Any], across: dict[str, Any]) -> None:
    for where, split in told.items():
        print_table(where, ("", "found"), list(_rows(split)), left=("found",))
        for name, reason in split["unreadable"]["such_as"].items():
            print_line(f"cannot be read: {name} ({reason})")
    if len(told) > 1:
        print_line(f"images with copies in another split: {across['images']:,}{_such_as(across)}")


def _rows(split: dict[str, Any]) -> Iterator[tuple[str, str]]:
    headers = "" if split["looked_at"] == split["images"] else f"; looked at {split['looked_at']:,}"
    yield "images", f"{split['images']:,}{headers}, {split['bytes'] / 1e6:,.1f} MB"
    turned = f"; {split['turned_by_exif']:,} turned by EXIF" if split["turned_by_exif"] else ""
    yield "formats", f"{in_numbers(split['formats'])}; {in_numbers(split['modes'])}{turned}"
    yield "passed over", in_numbers(split["passed_over"]) or "none"
    lacking = f"; {split['without_header']:,} never could" if split.get("without_header") else ""
    yield "cannot be read", f"{split['unreadable']['images']:,}; {split['decoded']:,} were decoded whole{lacking}"
    yield "short side", f"{_as_text(split['short_side'])} pixels; {split['enlarged']:,} smaller than the crop"
    yield "long side", f"{_as_text(split['long_side'])} pixels"
    shapes = in_numbers({name: count for name, count in split["shapes"].items() if count})
    yield "crops", f"{shapes}; {split['cropped_away']:.1%} of the pixels cut off"
    lacking = f"; {split['without_class']:,} images without one" if split["without_class"] else ""
    if split["classes"]:
        yield "classes", f"{split['classes']:,} of {_as_text(split['images_a_class'])} images{lacking}"
    else:
        yield "classes", "none"
    yield from _caption_rows(split["captions"])
    for name, column in split.get("columns", {}).items():
        yield name, f"{_as_text(column['spread'], 'g')}; {column['missing']:.1%} of the samples have none"
    yield "copies", f"{split['copies']['images']:,}{_such_as(split['copies'])}"


def _caption_rows(captions: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if not captions["images"]:
        yield "captions", captions["none"]
        return
    counted = f"{captions['captions']:,} of " if "captions" in captions else ""
    yield "captions", f"{counted}{captions['images']:,} images; {captions['without']:,} images without one"
    if "words" in captions:
        yield "", f"{_as_text(captions['words'])} words; {captions['empty']:,} empty"


def _as_text(spread: Sequence[float], form: str = ",.0f") -> str:
    least, middle, greatest = (format(value, form) for value in spread) if spread else ("-", "-", "-")
    return f"{least} to {greatest}, in the middle {middle}"


def _such_as(copies: dict[str, Any]) -> str:
    return f", such as {' and '.join(copies['such_as'][0][:3])}" if copies["such_as"] else ""
