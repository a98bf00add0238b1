"""One pass over a parquet shard: in which row its images lie, their sizes, what is known of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from aligntok.data.captions import AUTO
from aligntok.data.index.format import DOMAIN
from aligntok.data.index.parts import Asked, Part, domains, numbers, sides_of
from aligntok.data.remote import RemoteFiles
from aligntok.data.sources.base import optional_library
from aligntok.data.sources.captions import COLUMNS, holds_text
from aligntok.errors import DataError, unknown
from aligntok.io.files import MOST_BYTES, reading

_CURE = "fetch it again, or remove it to go without it"
_ROWS = 64  # at once in memory


@contextmanager
def opened_table(files: RemoteFiles, place: str, listed: tuple[int, str]) -> Iterator[tuple[Any, str]]:
    """Open a parquet shard; gives pyarrow's file of it, and which of its columns has the images.

    Raises DataError when none or several could have them, and without pyarrow; reading raises ShardError, and what
    pyarrow does for a damaged file.
    """
    parquet = optional_library("pyarrow.parquet", "parquet files")
    with files.open(place, listed) as file:
        table = parquet.ParquetFile(file)
        yield table, _image_column(place, table.schema_arrow)


def read_table(files: RemoteFiles, place: str, listed: tuple[int, str], asked: Asked) -> Part:
    """Read the rows of a parquet file with one column of images: structs with `bytes`, or the encoded bytes.

    listed: bytes and tag of the file.

    Raises DataError for a damaged file, and for columns that there are not.
    """
    with reading(place, DataError, _CURE), opened_table(files, place, listed) as (table, image):
        schema = table.schema_arrow
        caption = _caption_column(place, schema, asked.caption)
        for name in asked.columns:
            if name not in schema.names:
                raise DataError(f"{place}: {unknown('column', name, schema.names)}")
        others = [name for name in ("url", *asked.columns, *([caption] if caption else [])) if name in schema.names]
        rows = [*_rows(table, image, others)]
    columns: dict[str, Any] = {
        name: np.array([row[i] for row in rows], dtype=dtype)
        for i, (name, dtype) in enumerate(zip(("row_group", "row", "size", "height", "width"), _TYPES, strict=True))
    }
    said = [row[-1] for row in rows]
    if caption:
        columns["caption_size"] = np.array([bytes_of(row[caption]) for row in said], dtype=np.uint32)
    columns |= {name: numbers(place, name, [row[name] for row in said]) for name in asked.columns}
    columns |= {DOMAIN: domains(row["url"] for row in said)} if "url" in others else {}
    return Part(columns, caption)


_TYPES = ("u4", "u4", "u4", "u2", "u2")


def _rows(table: Any, image: str, others: list[str]) -> Iterator[tuple[int, int, int, int, int, dict[str, Any]]]:
    """Yield row group, row, bytes, height, width and what is said, of each row."""
    for group in range(table.num_row_groups):
        row = 0
        for batch in table.iter_batches(_ROWS, row_groups=[group], columns=[image, *others]):
            said = batch.select(others).to_pylist() if others else [{}] * len(batch)
            for content, known in zip(image_bytes(batch.column(image)), said, strict=True):
                held = content if content is not None and len(content) <= MOST_BYTES else None
                yield group, row, len(held or b""), *sides_of(held), known
                row += 1


def image_bytes(column: Any) -> list[bytes | None]:
    """Return the encoded images of a column of Arrow data, None where a row has none."""
    return (column.field("bytes") if _is_struct(column.type) else column).to_pylist()


def _is_struct(kind: Any) -> bool:
    return str(kind).startswith("struct<") and "bytes" in [kind.field(i).name for i in range(kind.num_fields)]


def _image_column(where: str, schema: Any) -> str:
    """Return the column of images of an Arrow schema. Raises DataError for none, or several that could be it."""
    structs = [
        f.name
        for f in schema
        if f.type.num_fields and "bytes" in {f.type.field(i).name for i in range(f.type.num_fields)}
    ]
    found = structs or [field.name for field in schema if "binary" in str(field.type)]
    if len(found) != 1:
        raise DataError(
            f"{where}: {'several columns' if found else 'no column'} could be the images{': ' if found else ''}"
            f"{', '.join(found)}; its columns are {', '.join(schema.names)}"
        )
    return str(found[0])


def _caption_column(where: str, schema: Any, caption: str | None) -> str | None:
    there = [field.name for field in schema if holds_text(field.type)]
    found = [name for name in there if name in (COLUMNS if caption == AUTO else (caption,))]
    if caption not in (None, AUTO) and not found:
        raise DataError(f"{where}: {unknown('column of captions', caption, there)}; --caption chooses one")
    if len(found) > 1:
        raise DataError(f"{where}: captions are in {' and in '.join(found)}; choose one with --caption")
    return found[0] if found else None


def bytes_of(caption: Any) -> int:
    """Return the bytes of a text, or of all in a list of them, 0 for none."""
    texts = caption if isinstance(caption, list) else [caption]
    return sum(len(text.strip().encode()) for text in texts if text)
