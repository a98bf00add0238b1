"""Images in the rows of a table: parquet files, a saved Hugging Face data set, or one of the hub."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from aligntok.data.sources.base import (
    ImageSource,
    Labels,
    PackedNames,
    located,
    optional_library,
    several_splits,
    spellings,
)
from aligntok.data.transforms import upright_size
from aligntok.errors import DataError, ImageError, first_line, unknown

_LABEL_NAMES = ("label", "cls")
_ROWS_TRIED = 8  # to see whether a column of bytes holds images


class RowSource(ImageSource):
    """The rows of a Hugging Face data set with one column of images, in their order.

    The image column is the one of the feature type Image; without one, the only column of structs with ``bytes``;
    without that, the only column of bytes in which an image is among the first rows. The bytes are returned as they
    are, or read from the file that ``path`` names where they are missing.

    Labels are those of the ClassLabel or integer column called ``label`` or ``cls``, else of the only ClassLabel
    column, else -1; ``class_names`` are the names that a ClassLabel has. ``names[i]`` is ``row i of ...``.

    Raises DataError when no column or several could be the images, there is no row, or a label is below -1.
    """

    def __init__(self, where: str, dataset: Any) -> None:
        self.column = _image_column(where, dataset)
        if not len(dataset):
            raise DataError(f"{where} holds no image: column '{self.column}' has no rows")
        label = _label_column(dataset)
        labels = _read_labels(where, dataset, label) if label else None
        # Not the library's own fingerprint: it follows the files' times, in which the copies of two nodes may differ.
        sizes = [Path(file["filename"]).stat().st_size for file in dataset.cache_files]
        described = f"{len(dataset)} {sizes} {sorted(dataset.features)} ".encode()
        stamp = hashlib.sha256(described + (b"" if labels is None else labels.tobytes())).hexdigest()
        names = _RowNames(where.rstrip("/").rsplit("/", 1)[-1], len(dataset), stamp)
        super().__init__(where, names, labels, getattr(dataset.features[label], "names", ()) if label else ())
        self._rows = _column(dataset, self.column)

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of one image. Raises OSError or ValueError when they cannot be had."""
        value = self._rows[index][self.column][0].as_py()
        if isinstance(value, dict):
            if value["bytes"] is None and value.get("path"):
                return Path(value["path"]).read_bytes()
            value = value["bytes"]
        if value is None:
            raise ValueError("the row holds neither bytes nor a path")
        return bytes(value)


class _RowNames(PackedNames):
    """The names of rows, made when they are asked for."""

    def __init__(self, title: str, count: int, stamp: str) -> None:
        self._title = title
        self._count = count
        self._stamp = stamp

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:
        return f"row {range(self._count)[index]} of {self._title}"

    def digest(self) -> str:
        """Return a fingerprint of the rows."""
        return self._stamp


def open_parquet(where: str, files: Sequence[Path]) -> RowSource:
    """Open parquet files, their rows one after the other.

    The library `datasets` first writes all rows to an Arrow file in its cache (the environment's HF_DATASETS_CACHE),
    as large as the parquet files: rows of that can be had in any order. A later call finds it there. Raises
    DataError as :class:`RowSource` does, for a damaged file, and when the library is not installed.
    """
    load = _library().load_dataset
    advice = "copy the files again; they must be parquet files with the same columns"
    names = [escape(str(file)) for file in files]
    return RowSource(where, _load(where, advice, lambda: load("parquet", data_files=names, split="train")))


def open_saved(folder: Path, split: str) -> RowSource:
    """Open what `save_to_disk` wrote: a data set, or the `split` of a dictionary of them.

    Raises DataError as :class:`RowSource` does, for a damaged folder, an unknown split, and when the library
    `datasets` is not installed.
    """
    library = _library()
    where = located(folder, split)
    loaded = _load(where, "save the data set again with `save_to_disk`", lambda: library.load_from_disk(str(folder)))
    if isinstance(loaded, dict):
        return RowSource(where, _of_dictionary(str(folder), loaded, split))
    if split and str(loaded.split) not in spellings(split):
        raise DataError(
            f"{folder} has no split '{split}': one data set was saved there, not a dictionary of splits; "
            "leave `split` out, or save a DatasetDict"
        )
    return RowSource(where, loaded)


def open_hub(name: str, split: str) -> RowSource:
    """Open the data set ``owner/name`` of the Hugging Face hub, downloading it unless it is in the local cache.

    Raises DataError as :class:`RowSource` does, for another kind of name, when the data set cannot be had, and when
    the library `datasets` is not installed.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise DataError(f"hf://{name} names no data set of the hub; write hf://owner/name")
    load = _library().load_dataset
    where = located(f"hf://{name}", split)
    advice = (
        "check the name, the split and the connection, and for a gated data set `hf auth login`; "
        "or download it elsewhere and give the folder"
    )
    if split:
        return RowSource(where, _load(where, advice, lambda: _load_split(load, name, split)))
    return RowSource(where, _of_dictionary(where, _load(where, advice, lambda: load(name)), split))


def _library() -> Any:
    return optional_library("datasets", "parquet files and Hugging Face data sets", "parquet")


def _load(where: str, advice: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # the library, pyarrow and the hub's client raise nearly anything
        raise DataError(f"{where} cannot be opened ({first_line(error)}); {advice}") from error


def _load_split(load: Callable[..., Any], name: str, split: str) -> Any:
    unknown: list[ValueError] = []
    for spelling in spellings(split):
        try:
            return load(name, split=spelling)
        except ValueError as error:  # what datasets 3 to 5 raise for an unknown split, when all else has worked
            unknown.append(error)
    raise unknown[0]


def _of_dictionary(where: str, loaded: dict[str, Any], split: str) -> Any:
    if not split and len(loaded) > 1:
        raise several_splits(where, loaded)
    for name in spellings(split) if split else loaded:
        if name in loaded:
            return loaded[name]
    raise DataError(f"{where} has {unknown('split', split, sorted(loaded))}; choose one of them with `split`")


def _column(dataset: Any, name: str) -> Any:
    """Return one column as Arrow data: a row is a slice of the memory-mapped file, and nothing is decoded."""
    return dataset.select_columns([name]).with_format("arrow")


def _image_column(where: str, dataset: Any) -> str:
    features = dataset.features
    kinds: tuple[Callable[[str], bool], ...] = (
        lambda name: isinstance(features[name], _library().Image),
        lambda name: isinstance(features[name], dict) and "bytes" in features[name],
        lambda name: _dtype(features[name]) in ("binary", "large_binary") and _holds_images(dataset, name),
    )
    found = next(filter(None, ([name for name in features if is_kind(name)] for is_kind in kinds)), [])
    if len(found) == 1:
        return str(found[0])
    columns = ", ".join(f"{name} ({_dtype(feature)})" for name, feature in features.items())
    raise DataError(
        f"{where}: {'several columns' if found else 'no column'} could be the images"
        f"{': ' if found else ''}{', '.join(found)}; its columns are {columns or 'none'}. Save it with one column of "
        "images: of the type Image, structs with `bytes` and `path`, or the encoded bytes themselves"
    )


def _holds_images(dataset: Any, name: str) -> bool:
    for data in _column(dataset, name)[:_ROWS_TRIED][name].to_pylist():
        try:
            upright_size(io.BytesIO(data or b""))
        except ImageError:
            continue
        return True
    return False


def _dtype(feature: Any) -> str:
    return "struct" if isinstance(feature, dict) else str(getattr(feature, "dtype", None) or type(feature).__name__)


def _label_column(dataset: Any) -> str | None:
    features = dataset.features
    named = [name for name in _LABEL_NAMES if name in features and _dtype(features[name]).startswith(("int", "uint"))]
    classes = [name for name, feature in features.items() if isinstance(feature, _library().ClassLabel)]
    return named[0] if named else classes[0] if len(classes) == 1 else None


def _read_labels(where: str, dataset: Any, name: str) -> Labels:
    labels = _column(dataset, name)[:][name].cast("int64").fill_null(-1).to_numpy()
    if labels.min() < -1 or labels.max() > np.iinfo(np.int32).max:
        raise DataError(
            f"{where}: column '{name}' holds {labels.min()} to {labels.max()}; class indices are 0, 1, ..., or -1"
        )
    return np.asarray(labels, dtype=np.int32)
