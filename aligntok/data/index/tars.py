"""One pass over a tar shard: where its images and captions lie, their sizes, what is known of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from aligntok.data.captions import CaptionList, texts_of
from aligntok.data.index.format import DOMAIN
from aligntok.data.index.parts import Asked, Part, domains, numbers, sides
from aligntok.data.remote import RemoteFiles
from aligntok.data.sources.base import optional_library
from aligntok.data.sources.captions import CAPTIONED, MOST_READ, captions_in, json_object
from aligntok.data.sources.webdataset import (
    Member,
    check_one_image,
    members,
    open_member,
    opened_shard,
    split_names,
    twice,
)
from aligntok.data.transforms import image_suffixes
from aligntok.errors import DataError, unknown
from aligntok.io.files import MOST_BYTES, reading

_URL, _KEY = "url", "key"
_CURE = "fetch it again, or remove it to go without it"


def read_tar(files: RemoteFiles, place: str, listed: tuple[int, str], asked: Asked) -> Part:
    """Read the samples of a tar shard, of such bytes and tag: those with an image, in their order.

    Of images only the headers are read. Metadata are those of the parquet file beside the shard, of the same name, by
    its column `key`; what that lacks are those of the samples' .json. Raises DataError for a damaged shard, a sample
    with two images or with two captions that differ, and for a column that nothing has.
    """
    images: dict[str, Member] = {}
    shapes: list[tuple[int, int]] = []
    texts: dict[str, dict[str, tuple[int, int, Any]]] = {}
    rows: dict[str, dict[str, Any]] = {}
    with files.open(place, listed) as file, opened_shard(place, file) as archive:
        suffixes = image_suffixes()
        for member in members(archive, split_names(), Counter()):
            if member.is_image(archive, suffixes):
                check_one_image(place, member, images)
                images[member.key] = member
                shapes.append(sides(open_member(archive, member)) if member.info.size <= MOST_BYTES else (0, 0))
            elif member.extension in CAPTIONED:
                what, content = f"{place}: {member.name}", open_member(archive, member).read(MOST_READ + 1)
                for called, given in _captions(what, member, content, asked.caption).items():
                    there = texts.setdefault(called, {})
                    if there.get(member.key, (given,))[-1] != given:
                        raise twice(place, member, "caption")
                    there[member.key] = member.info.offset_data, member.info.size, given
                if member.kind == ".json" and rows.setdefault(member.key, row := _row(what, content)) != row:
                    raise twice(place, member, "metadata")
    columns: dict[str, Any] = {
        "offset": np.array([member.info.offset_data for member in images.values()], dtype=np.int64),
        "size": np.array([min(member.info.size, MOST_BYTES) for member in images.values()], dtype=np.uint32),
        "height": np.array([height for height, _ in shapes], dtype=np.uint16),
        "width": np.array([width for _, width in shapes], dtype=np.uint16),
    }
    lie = _chosen(place, texts, images)
    if lie is not None:
        where = [texts[lie].get(key, (0, 0, None)) for key in images]
        columns["caption_offset"] = np.array([offset for offset, *_ in where], dtype=np.int64)
        columns["caption_size"] = np.array([size for _, size, _ in where], dtype=np.uint32)
    return Part(columns | _metadata(files, place, asked, [*images], rows), lie)


def _captions(what: str, member: Member, content: bytes, caption: str | None) -> dict[str, Any]:
    """Return the captions in a member, by how they lie; none of what cannot be read, or is empty."""
    try:
        found = {} if caption is None else captions_in(what, member.kind, content, caption)
        for given in found.values():
            CaptionList(1).add(0, given)
    except (DataError, ValueError):
        return {}
    some = {
        called: given
        for called, given in found.items()
        if "".join([given] if isinstance(given, str) else given).strip()
    }
    return {called if called == "txt" else f"json:{called}": given for called, given in some.items()}


def _row(what: str, content: bytes) -> dict[str, Any]:
    try:
        return json_object(content.decode("utf-8-sig"), what)
    except (DataError, ValueError):
        return {}


def _chosen(
    place: str, texts: Mapping[str, Mapping[str, tuple[int, int, Any]]], images: Mapping[str, Member]
) -> str | None:
    """Return how captions lie, of the ways that there are: the .txt, which has to say the same as a .json beside it.

    Raises DataError where it does not, or one has captions of images of which the other has none.
    """
    said = [{key: texts_of(given) for key, (*_, given) in found.items() if key in images} for found in texts.values()]
    if any(each != said[0] for each in said[1:]):
        raise DataError(f"{place}: captions are in {' and in '.join(sorted(texts))}; choose one with --caption")
    return max(texts, default=None)


def _metadata(
    files: RemoteFiles, place: str, asked: Asked, keys: list[str], rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    table, named = _table_beside(files, place, asked)
    there = {name for row in rows.values() for name in row}

    def values(name: str) -> list[Any]:
        if name in table:
            by_key = dict(zip(map(str, table[_KEY]), table[name], strict=True))
            return [by_key.get(key, by_key.get(key.rpartition("/")[2])) for key in keys]
        return [rows.get(key, {}).get(name) for key in keys]

    lacking = [name for name in asked.columns if name not in table and name not in there]
    if lacking and keys:
        raise DataError(f"{place}: {unknown('column', lacking[0], sorted({*named, *there}))}")
    columns: dict[str, Any] = {name: numbers(place, name, values(name)) for name in asked.columns}
    return columns | ({DOMAIN: domains(values(_URL))} if _URL in table or _URL in there else {})


def beside_of(place: str) -> str:
    """Return where the parquet file beside a tar shard would be."""
    return f"{place[: -len('.tar')]}.parquet"


def _table_beside(files: RemoteFiles, place: str, asked: Asked) -> tuple[dict[str, list[Any]], list[str]]:
    """Return the columns that are wanted of the parquet file beside a shard, and the names of all.

    Nothing without one that has keys.
    """
    beside = beside_of(place)
    state = files.find(beside, optional=True)
    if state is None:
        return {}, []
    parquet = optional_library("pyarrow.parquet", "parquet files")
    with reading(beside, DataError, _CURE), files.open(beside, state) as file:
        table = parquet.ParquetFile(file)
        named = table.schema_arrow.names
        if _KEY not in named:
            return {}, []
        return table.read([name for name in (_KEY, _URL, *asked.columns) if name in named]).to_pydict(), named
