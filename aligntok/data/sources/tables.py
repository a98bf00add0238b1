"""Images in the rows of a table: parquet files, a saved Hugging Face data set, or one of the hub."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from glob import escape
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aligntok.data.sources.base import (
    ImageSource,
    Labels,
    PackedNames,
    located,
    missing_split,
    optional_library,
    say_once,
    several_splits,
    spellings,
)
from aligntok.data.sources.captions import caption_columns, captions_of_column, one_of
from aligntok.data.sources.classes import LABEL_NAMES, check_labels, several_labels
from aligntok.data.transforms import holds_image
from aligntok.errors import DataError, ImageError, first_line, some_of, unknown
from aligntok.io.files import check_size, inside, read_bytes, reading

_HUB = "hf://"
_CURE = "correct that column, or choose another with `label`, or label='' for none"
_LABELS_ARE = ("int", "uint", "string", "large_string")
_LABEL_WORDS = re.compile(r"(?<![a-z])(labels?|cls|class|category)(?![a-z])", re.IGNORECASE)
_ROWS_TRIED = 8  # to see whether a column of bytes holds images


class RowSource(ImageSource):
    """The rows of a Hugging Face data set with one column of images, in their order.

    The image column is the one of the feature type Image; without one, the only column of structs with ``bytes``;
    without that, the only column of bytes in which an image is among the first rows. The bytes are returned as they
    are, or read from the file that ``path`` names where they are missing: one in `folders`, which are the data set's
    own, for a table must not bring other files of this machine among the images (None: in any, of a data set that a
    program of one's own made).

    Labels are those of the column `label`; without one given, of the only column that is called ``label`` or ``cls``
    or is a ClassLabel, or else of the only one with such a word in its name; else -1 ("" for that, too). They are
    integers, ClassLabels or text: ``class_names`` are the names that a ClassLabel has, or the texts, sorted. Captions
    are in the column `caption`, of text or lists of it (None: none are read; "auto": called ``caption`` or ``text``).
    Other columns are not read, which is said. ``names[i]`` is ``row i of ...``; `files` are what rows are read from.

    Raises DataError when no column or several could be the images, or several the labels or captions, there is no row,
    a label is below -1, or a caption cannot be read.
    """

    def __init__(
        self,
        where: str,
        dataset: Any,
        label: str | None = None,
        files: Iterable[str] = (),
        folders: Sequence[Path] | None = None,
        caption: str | None = None,
    ) -> None:
        self._folders = folders
        self.column = _image_column(where, dataset)
        if not len(dataset):
            raise DataError(f"{where} holds no image: column '{self.column}' has no rows")
        label = _label_column(where, dataset, label)
        labels, class_names = _read_labels(where, dataset, label) if label else (None, ())
        if caption is not None:
            columns = caption_columns(where, dataset.features.arrow_schema, caption)
            found = {name: captions_of_column(where, name, _column(dataset, name)[:][name]) for name in columns}
            self.captions = found[one_of(where, found, caption, f"column '{columns[0]}' is empty")]
        else:
            columns = []
        if others := [name for name in dataset.features if name not in (self.column, label, *columns)]:
            say_once(f"{where}: columns that are not read: {some_of(others, shown=8)}")
        # Not the library's own fingerprint: it follows the files' times, in which the copies of two nodes may differ.
        stats = [Path(file["filename"]).stat() for file in dataset.cache_files]
        sizes = [stat.st_size for stat in stats]
        self._changed = max((stat.st_mtime_ns for stat in stats), default=0)
        described = f"{len(dataset)} {sizes} {sorted(dataset.features)} ".encode()
        stamp = hashlib.sha256(described + (b"" if labels is None else labels.tobytes())).hexdigest()
        names = _RowNames(where.rstrip("/").rsplit("/", 1)[-1], len(dataset), stamp)
        super().__init__(where, names, labels, class_names)
        self._files = tuple(files) or tuple(sorted(file["filename"] for file in dataset.cache_files))
        self._rows = _column(dataset, self.column)

    def key(self, index: int) -> str:
        """Return the number of a row."""
        return f"row {index}"

    def places(self) -> Iterable[str]:
        """Return the absolute paths of the files, or the name at the hub."""
        return self._files

    def marks(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], bool]:
        """Return no size of an image, and for each the time of change of the newest file."""
        return np.zeros(len(self), dtype=np.int64), np.full(len(self), self._changed, dtype=np.int64), False

    def read(self, index: int) -> bytes:
        value = self._rows[index][self.column][0]
        if hasattr(value, "keys"):  # a struct
            path = value["path"].as_py() if "path" in value.keys() else None  # noqa: SIM118 - no dict
            value = value["bytes"]
            if path and not value.is_valid:
                return self._read_file(path)
        if not value.is_valid:
            raise ValueError("the row holds neither bytes nor a path")
        content = value.as_buffer()
        check_size(content.size)
        return bytes(content)

    def _read_file(self, path: str) -> bytes:
        if self._folders is None:
            return read_bytes(path)
        for folder in self._folders:
            with suppress(ImageError):
                return read_bytes(inside(folder, path, ImageError, "put it there, or save its bytes"))
        raise ValueError(f"the row names the file {path}, which is not in the data set's own folder")


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


def open_parquet(where: str, files: Sequence[Path], label: str | None = None, caption: str | None = None) -> RowSource:
    """Open parquet files, their rows one after the other.

    The library `datasets` first writes all rows to an Arrow file in its cache (the environment's HF_DATASETS_CACHE),
    as large as the parquet files: rows of that can be had in any order. A later call finds it there. Raises
    DataError as :class:`RowSource` does, for a damaged file, and when the library is not installed.
    """
    load = _library().load_dataset
    advice = "copy the files again; they must be parquet files with the same columns"
    names = [escape(str(file)) for file in files]
    rows = _load(where, advice, lambda: load("parquet", data_files=names, split="train"))
    folders = sorted({file.parent for file in files})
    return RowSource(where, rows, label, [str(file.resolve()) for file in files], folders, caption)


def open_saved(folder: Path, split: str, label: str | None = None, caption: str | None = None) -> RowSource:
    """Open what `save_to_disk` wrote: a data set, or the `split` of a dictionary of them.

    Raises DataError as :class:`RowSource` does, for a damaged folder, an unknown split, and when the library
    `datasets` is not installed.
    """
    library = _library()
    where = located(folder, split)
    loaded = _load(where, "save the data set again with `save_to_disk`", lambda: library.load_from_disk(str(folder)))
    if isinstance(loaded, dict):
        return RowSource(where, _of_dictionary(str(folder), loaded, split), label, (), [folder], caption)
    if split and str(loaded.split) not in spellings(split):
        raise DataError(
            f"{folder} has no split '{split}': one data set was saved there, not a dictionary of splits; "
            "leave `split` out, or save a DatasetDict"
        )
    return RowSource(where, loaded, label, (), [folder], caption)


def open_hub(name: str, split: str, label: str | None = None, caption: str | None = None) -> RowSource:
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
        rows, spelling = _load(where, advice, lambda: _load_split(load, name, split))
    else:
        rows, spelling = _of_dictionary(where, _load(where, advice, lambda: load(name)), split), ""
    kept = f"{_HUB}{name}:{spelling or getattr(rows, 'split', None) or 'all'}"
    return RowSource(where, rows, label, [kept], _downloaded(name), caption)


def _downloaded(name: str) -> tuple[Path, Path]:
    """Return where a data set of the hub, and what its archives hold, is put: paths of rows lead there."""
    from huggingface_hub import constants

    own = Path(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}")
    return own, Path(_library().config.DOWNLOADED_DATASETS_PATH)


def _library() -> Any:
    return optional_library("datasets", "parquet files and Hugging Face data sets")


def _load(where: str, advice: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # the library, pyarrow and the hub's client raise nearly anything
        raise DataError(f"{where} cannot be opened ({first_line(error)}); {advice}") from error


def _load_split(load: Callable[..., Any], name: str, split: str) -> tuple[Any, str]:
    unknown: list[ValueError] = []
    for spelling in spellings(split):
        try:
            return load(name, split=spelling), spelling
        except ValueError as error:  # what datasets 3 to 5 raise for an unknown split, when all else has worked
            unknown.append(error)
    raise unknown[0]


def _of_dictionary(where: str, loaded: dict[str, Any], split: str) -> Any:
    if not split and len(loaded) > 1:
        raise several_splits(where, loaded)
    for name in spellings(split) if split else loaded:
        if name in loaded:
            return loaded[name]
    raise missing_split(where, split, loaded)


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
    rows = _column(dataset, name)[:_ROWS_TRIED][name].to_pylist()
    return any(holds_image(partial(io.BytesIO, data or b"")) for data in rows)


def _dtype(feature: Any) -> str:
    return "struct" if isinstance(feature, dict) else str(getattr(feature, "dtype", None) or type(feature).__name__)


def _label_column(where: str, dataset: Any, label: str | None) -> str | None:
    features = dataset.features
    usable = [name for name, feature in features.items() if _dtype(feature).startswith(_LABELS_ARE)]
    if label:
        if label not in usable:
            raise DataError(f"{where}: {unknown('column of numbers or text', label, usable)}")
        return label
    is_class = {name: isinstance(features[name], _library().ClassLabel) for name in usable}
    found = [name for name in usable if name in LABEL_NAMES or is_class[name]]
    found = found or [name for name in usable if _LABEL_WORDS.search(name)]
    if len(found) > 1 and label is None:
        raise several_labels(where, found)
    return found[0] if found and label is None else None


def _read_labels(where: str, dataset: Any, name: str) -> tuple[Labels, tuple[str, ...]]:
    class_names = tuple(getattr(dataset.features[name], "names", None) or ())
    with reading(f"{where}: column '{name}'", DataError, _CURE):  # text may be no UTF-8, a number above all of int64
        column = _column(dataset, name)[:][name]
        column.validate(full=True)
        if "string" in _dtype(dataset.features[name]):
            pyarrow, compute = import_module("pyarrow"), import_module("pyarrow.compute")
            texts = compute.utf8_trim_whitespace(column)
            class_names = tuple(sorted({*texts.unique().to_pylist()} - {None, ""}))
            column = compute.index_in(texts, value_set=pyarrow.array(class_names, texts.type))
        labels = column.cast("int64").fill_null(-1).to_numpy()
    check_labels(f"{where}: the labels in column '{name}'", labels, class_names, _CURE)
    if labels.min() < -1 or labels.max() > np.iinfo(np.int32).max:
        raise DataError(
            f"{where}: column '{name}' holds {labels.min()} to {labels.max()}; class indices are 0, 1, ..., or -1"
        )
    return np.asarray(labels, dtype=np.int32), class_names
