"""Captions as sources have them: tables of files, texts beside images, members of shards, columns."""

from __future__ import annotations

import csv
import json
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from typing import Any, BinaryIO

import numpy as np

from aligntok.data.captions import AUTO, MOST_BYTES, CaptionList, Captions
from aligntok.data.sources.base import ImageSource, PackedNames, say_once, suffix_of
from aligntok.data.sources.held_out import PartSource
from aligntok.distributed.job import progress_bar
from aligntok.errors import DataError, first_line, unknown
from aligntok.io.files import reading, unique_keys

#: Files of a folder or zip that list captions, and their columns: the image's path, and the caption.
TABLES = {
    **dict.fromkeys(("captions.csv", "captions.jsonl"), ("file", "caption")),
    **dict.fromkeys(("metadata.csv", "metadata.jsonl"), ("file_name", "text")),  # as Hugging Face has them
}
#: Columns of a table of images, of which one is looked for.
COLUMNS = ("caption", "text")
#: What may hold the caption beside an image, or in its sample of a shard: by its choice, `txt` or a key.
CAPTIONED = (".txt", ".json")
_KEY = "caption"
#: Bytes of the longest file beside an image that is read, and of the longest line of a table.
MOST_READ = 1 << 20
_THREADS = 16
_CURE = "copy the data again, or choose another place with `caption`"
_PLACES = (
    "captions.csv or captions.jsonl with the columns file and caption, metadata.csv or metadata.jsonl with file_name "
    "and text, or beside each image a .txt or a .json with the key caption"
)


class NoCaptions(DataError):
    """Images have no captions at all."""


def captions_in(what: str, kind: str, content: bytes, caption: str) -> dict[str, Any]:
    """Return the captions that the file `what` beside an image holds, by what they are called in a choice.

    kind: its ending, one of CAPTIONED. caption: AUTO for the .txt and the key `caption` of the JSON, or one of them, or
    another key. Raises DataError for what cannot be read as such.
    """
    if (kind == ".txt") != (caption == "txt") and caption != AUTO:
        return {}
    if len(content) > MOST_READ:
        raise _no_caption(what, f"it has more than {MOST_READ:,} bytes")
    if kind == ".txt":
        return {"txt": _decoded(content, what, True)}
    key, text = _KEY if caption == AUTO else caption, _decoded(content, what, True)
    value = json_object(text, what).get(key)
    return {} if value is None else {key: value}


def captions_of_files(
    where: str, images: PackedNames, files: Sequence[str], open_file: Callable[[str], BinaryIO], caption: str
) -> tuple[Captions, list[str]]:
    """Return the captions of the images of a tree, and which of its `files` have them.

    caption: AUTO; a name of TABLES, perhaps with the column that has the captions, such as ``metadata.csv:prompt``;
    ``txt`` for the files beside the images, or a key of the JSON there. Raises DataError for what is no caption, for
    files that are not there, and as `one_of` does.
    """
    place_of = {unicodedata.normalize("NFC", name): index for index, name in enumerate(images)}
    table, _, column = caption.partition(":")
    there = [name for name in TABLES if name in files and (caption == AUTO or name == table)]
    found: dict[str, Captions] = {}
    used: dict[str, list[str]] = {}
    for name in there:
        file_column, text_column = TABLES[name]
        rows = _rows(f"{where}/{name}", open_file, name, (file_column, column or text_column))
        found[name], used[name] = _listed(f"{where}/{name}", rows, place_of, len(images)), [name]
    if table not in TABLES:
        beside = _beside(images, files)
        read = _read_beside(where, beside, open_file, caption, len(images))
        for called, captions in read.items():
            kind = ".txt" if called == "txt" else ".json"
            found[called], used[called] = captions, [name for name, _ in beside if suffix_of(name) == kind]
    chosen = one_of(where, found, caption, f"they may be in {_PLACES}")
    return found[chosen], used[chosen]


def one_of(where: str, found: Mapping[str, Captions], caption: str, places: str) -> str:
    """Return what the captions are called that are taken, of those `found`: several must be the same.

    Raises DataError for none, and for several that differ.
    """
    there = {called: captions for called, captions in found.items() if len(captions.ends)}
    if not there:
        raise NoCaptions(f"{where}: no captions{'' if caption == AUTO else f' {caption!r}'}; {places}")
    first, *others = there
    if others and len({there[called].hashes().tobytes() for called in there}) > 1:
        raise DataError(f"{where}: captions are in {' and in '.join(there)}; choose one with `caption`")
    return first


def leave_out_uncaptioned(source: ImageSource, most: int) -> ImageSource:
    """Return the images of a source that have captions: all, or all but `most` others; say how many captions are empty.

    Raises DataError for more images without a caption than that.
    """
    assert source.captions is not None  # who asks for captions gets some
    lacking, where = np.flatnonzero(source.captions.counts == 0), source.where
    told = ", ".join(source.names[int(index)] for index in lacking[:4])
    if len(lacking) > most:
        raise DataError(
            f"{where}: {len(lacking):,} of {len(source):,} images have no caption, such as {told}; write them one, "
            f"perhaps an empty one, move these images away, or leave them out with max_uncaptioned={len(lacking)}"
        )
    if empty := int((source.captions.begins == source.captions.ends).sum()):
        say_once(f"{where}: {empty:,} of {len(source.captions.ends):,} captions are empty, as without a prompt")
    if len(lacking):
        say_once(f"{where}: left out {len(lacking):,} images that have no caption, such as {told}")
        return PartSource(source, np.flatnonzero(source.captions.counts))
    return source


def captions_of_column(where: str, name: str, column: Any) -> Captions:
    """Return the captions in a column of Arrow data, of text or lists of text, without nulls. Raises DataError for
    invalid ones.
    """
    pyarrow, compute = import_module("pyarrow"), import_module("pyarrow.compute")
    parts, rows = [], 0
    for chunk in column.chunks:
        place = f"{where}: column '{name}', rows {rows} to {rows + len(chunk) - 1}"
        try:
            chunk.validate(full=True)  # a file may say that its bytes are UTF-8, and its lists within them
        except ValueError as error:
            raise _no_caption(place, first_line(error)) from error
        counts, texts = np.ones(len(chunk), dtype=np.int64), chunk
        if pyarrow.types.is_nested(chunk.type):
            counts = compute.fill_null(compute.list_value_length(chunk), 0).to_numpy(zero_copy_only=False)
            texts = chunk.flatten()
        before = np.concatenate([[0], np.cumsum(texts.is_valid().to_numpy(zero_copy_only=False), dtype=np.int64)])
        trimmed = compute.utf8_trim_whitespace(texts.drop_null()).cast(pyarrow.large_binary())
        _, ends, text = trimmed.buffers()
        bounds = np.frombuffer(ends, dtype=np.int64) if len(trimmed) else np.zeros(1, dtype=np.int64)
        own = bounds[trimmed.offset :][: len(trimmed) + 1]
        if len(trimmed) and (most := int(np.diff(own).max())) > MOST_BYTES:
            raise _no_caption(place, f"one has {most:,} bytes")
        data = np.frombuffer(text if text is not None else b"", dtype=np.uint8)[own[0] : own[-1]]
        first = before[np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])]
        parts.append(Captions(data, own[:-1] - own[0], own[1:] - own[0], first))
        rows += len(chunk)
    return Captions.joined(parts)


def holds_text(kind: Any) -> bool:
    """Tell whether an Arrow type is of texts, or of lists of texts."""
    types = import_module("pyarrow").types
    kind = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind))


def caption_columns(where: str, schema: Any, caption: str) -> list[str]:
    """Return the columns of an Arrow schema that hold the captions. Raises DataError where none can be."""
    usable = [field.name for field in schema if holds_text(field.type)]
    chosen = [name for name in usable if name in (COLUMNS if caption == AUTO else (caption,))]
    if not chosen:
        wanted = " or ".join(COLUMNS) if caption == AUTO else caption
        raise DataError(f"{where}: {unknown('column of captions', wanted, usable)}; `caption` chooses one")
    return chosen


def _listed(what: str, rows: Iterable[tuple[int, Any, Any]], place_of: Mapping[str, int], images: int) -> Captions:
    """Return the captions of a table's rows (line, file, captions)."""
    captions, missing, strangers = CaptionList(images), 0, list[str]()
    for line, file, given in rows:
        if not isinstance(file, str):
            raise _no_caption(f"{what}, line {line}", f"its file is {type(file).__name__}")
        place = place_of.get(unicodedata.normalize("NFC", file.removeprefix("./")))
        if place is None:
            missing, strangers = missing + 1, strangers or [f"{file[:200]} in line {line}"]
            continue
        try:
            captions.add(place, given)
        except ValueError as error:
            raise _no_caption(f"{what}, line {line}", first_line(error)) from error
    if missing:
        raise DataError(
            f"{what} has {missing:,} captions of files that are no images of it, {strangers[0]} the first; paths are "
            "from its folder: correct or remove those lines"
        )
    return captions.packed()


def _rows(
    what: str, open_file: Callable[[str], BinaryIO], name: str, columns: tuple[str, str]
) -> Iterator[tuple[int, Any, Any]]:
    """Yield line, file and captions of each row of a table."""
    line = 0

    def lines(opened: BinaryIO) -> Iterator[str]:
        nonlocal line
        while read := opened.readline(MOST_READ + 1):
            line += 1
            if len(read) > MOST_READ:
                raise _no_caption(f"{what}, line {line}", f"the line has more than {MOST_READ:,} bytes")
            yield _decoded(read, f"{what}, line {line}", line == 1)

    with _opening(what), open_file(name) as opened:
        if name.endswith(".jsonl"):
            for text in lines(opened):
                if text.strip():
                    row = json_object(text, f"{what}, line {line}")
                    _check_columns(f"{what}, line {line}", columns[:1], row)
                    yield line, row[columns[0]], row.get(columns[1])
            return
        table = csv.reader(lines(opened), strict=True)
        try:
            header = [each.strip() for each in next(table, [])]
            _check_columns(what, columns, header)
            file, text_of = (header.index(column) for column in columns)
            for fields in table:
                if len(fields) not in (0, len(header)):
                    why = f"it has {len(fields)} fields, and the first line {len(header)}; one with a comma is quoted"
                    raise _no_caption(f"{what}, line {line}", why)
                if fields:
                    yield line, fields[file], fields[text_of]
        except csv.Error as error:
            raise _no_caption(f"{what}, line {line}", first_line(error)) from error


def _check_columns(what: str, columns: Iterable[str], known: Iterable[str]) -> None:
    told = [name[:40] for name in islice(known, 100)]  # of a stranger's there may be a million
    for column in columns:
        if column not in known:
            raise DataError(
                f"{what}: {unknown('column', column, told, 8)}; `caption` chooses another place of captions"
            )


def _beside(images: PackedNames, files: Sequence[str]) -> list[tuple[str, int]]:
    """Return the files beside images, of their names but for the ending, and each one's image: -1 for one of two."""
    own: dict[str, int] = {}
    for index, name in enumerate(images):
        stem = _stem(name)
        own[stem] = -1 if stem in own else index
    return [(name, own[_stem(name)]) for name in files if suffix_of(name) in CAPTIONED and _stem(name) in own]


def _stem(name: str) -> str:
    return name[: len(name) - len(suffix_of(name))]


def _read_beside(
    where: str, beside: Sequence[tuple[str, int]], open_file: Callable[[str], BinaryIO], caption: str, images: int
) -> dict[str, Captions]:
    """Return the captions in files beside images, by what they are called."""

    def read(name: str) -> dict[str, Any]:
        if caption != AUTO and (suffix_of(name) == ".txt") != (caption == "txt"):
            return {}
        with _opening(f"{where}/{name}"), open_file(name) as opened:
            content = opened.read(MOST_READ + 1)
        return captions_in(f"{where}/{name}", suffix_of(name), content, caption)

    lists: dict[str, CaptionList] = {}
    with ThreadPoolExecutor(_THREADS) as pool, progress_bar(len(beside), "reading captions", "caption") as bar:
        for (name, index), found in zip(beside, pool.map(read, [name for name, _ in beside]), strict=True):
            bar.update()
            for called, given in found.items():
                if index < 0:
                    raise DataError(f"{where}/{name} lies beside two images of its name; give each a name of its own")
                add_caption(lists.setdefault(called, CaptionList(images)), index, given, f"{where}/{name}")
    return {called: found.packed() for called, found in lists.items()}


def add_caption(captions: CaptionList, image: int, given: Any, what: str) -> None:
    """Add what the file `what` says of an image. Raises DataError for what is no caption."""
    try:
        captions.add(image, given)
    except ValueError as error:
        raise _no_caption(what, first_line(error)) from error


def _decoded(content: bytes, what: str, begins: bool) -> str:
    """Return the text of a file, or of a line of one that it `begins`, which may have a mark of its order of bytes."""
    try:
        return content.decode("utf-8-sig" if begins else "utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        place = what if ", line " in what else f"{what}, line {line}"
        raise _no_caption(place, f"byte {content[error.start]:#04x} is not of UTF-8") from error


def json_object(text: str, what: str) -> dict[str, Any]:
    """Return the object of JSON that the file `what` is. Raises DataError where it is none, or has a key twice."""
    try:
        read = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise _no_caption(what, f"it is no JSON: {first_line(error)}") from error
    if not isinstance(read, dict):
        raise _no_caption(what, f"it is JSON of {type(read).__name__}, and no object with names")
    return read


def _no_caption(what: str, why: str) -> DataError:
    return DataError(
        f"{what} holds no caption that can be read ({why}); one is text in UTF-8 of at most {MOST_BYTES:,} bytes, in "
        "JSON also a list of texts: correct it there"
    )


@contextmanager
def _opening(what: str) -> Iterator[None]:
    """Turn what a file that cannot be read raises into a DataError."""
    with reading(what, DataError, _CURE):
        try:
            yield
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(first_line(error)) from error
