"""Which kind of source lies at a place: a folder or zip, tar shards, parquet files, a Hugging Face data set."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from aligntok.data.sources.base import (
    SPLIT_NAMES,
    ImageSource,
    choose_files,
    is_hidden,
    located,
    say_passed_over,
    several_splits,
    suffix_of,
    walk,
)
from aligntok.data.sources.captions import leave_out_uncaptioned
from aligntok.data.sources.classes import say_lacking
from aligntok.data.sources.files import FileTreeSource, FolderSource, ZipSource
from aligntok.data.sources.held_out import hold_out
from aligntok.data.sources.tables import open_hub, open_parquet, open_saved
from aligntok.data.sources.webdataset import ShardSource, expand_pattern
from aligntok.data.transforms import image_suffixes
from aligntok.errors import ConfigError, DataError, suggestion
from aligntok.io.folders import listed

_HUB = "hf://"
_PACKED = {".tar": ShardSource, ".parquet": open_parquet}
_SAVED = ("dataset_dict.json", "dataset_info.json")  # what `save_to_disk` of datasets leaves
_INDEX = ("index.json", "shards.json")  # what an index of shards has
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # two letters at least: not a drive


def open_source(
    root: str | os.PathLike[str],
    split: str | None = None,
    label: str | None = None,
    fraction: float | None = None,
    held_out: bool = False,
    caption: str | None = None,
    max_uncaptioned: int | None = 0,
) -> ImageSource:
    """List the images at `root`, or those of the `split` of it. `root` is one of

    - a folder of images, with class folders or without, or a .zip of one; the split is a subfolder;
    - WebDataset shards: a .tar, a folder of them, or a brace pattern such as ``/data/train-{0000..0127}.tar``;
    - a .parquet file or a folder of them, there or in its subfolder ``data``;
    - a folder that the Hugging Face library `datasets` wrote with `save_to_disk`;
    - ``hf://owner/name``, a data set of the Hugging Face hub.

    The split of shards and parquet files is the subfolder of that name, or else the files whose names have it as a
    word (see :func:`aligntok.data.sources.base.choose_files`).

    label: where the labels are, of several places: a column of a table, ``cls`` or a key of the JSON of shards; "" for
    no labels. fraction: leave out the images that are held out by name, about so many, or with `held_out` take them
    alone; see :func:`aligntok.data.sources.held_out.hold_out`. What is passed over or lacking is said once.

    caption: where the captions are; None looks for none. "auto" finds the place, if there is one, or several that say
    the same: of a folder or zip a table (:data:`aligntok.data.sources.captions.TABLES`, such as ``captions.csv``), or a
    ``.txt``, or a ``.json`` with the key `caption`, beside each image; of shards such members; of parquet files and
    Hugging Face data sets a column `caption` or `text`. A choice is the table's name, perhaps with a column
    (``metadata.csv:prompt``); ``txt``; another key of the JSON; or the column. max_uncaptioned: so many images without
    a caption are left out, which is said; more are an error; None: all stay.

    Raises DataError when `root` or `split` is missing, nothing is in it, files of two kinds are, a file is damaged,
    a library is not installed, several splits are there and none was chosen, images have no caption, or one that
    cannot be read; see the sources for what else.
    """
    if held_out and fraction is None:
        raise ConfigError("held_out=True takes the images that a fraction holds out; give fraction=, such as 0.05")
    if caption == "":
        raise ConfigError("caption='' names no place of captions; 'auto' finds it, None looks for none")
    source = _open(root, split, label, caption)
    if label == "":
        source.labels, source.class_names = np.full(len(source), -1, dtype=np.int32), ()
    elif label and isinstance(source, FileTreeSource):
        raise DataError(
            f"{source.where}: label='{label}' chooses a column of a table, or a member of shards; the classes of "
            "images in folders are the folders"
        )
    source.label, source.caption = label, caption
    say_lacking(source)
    if source.captions is not None and max_uncaptioned is not None:
        source = leave_out_uncaptioned(source, max_uncaptioned)
    return source if fraction is None else hold_out(source, fraction, held_out)


def _open(root: str | os.PathLike[str], split: str | None, label: str | None, caption: str | None) -> ImageSource:
    given, split = os.fspath(root), (split or "").strip("/")
    path = Path(given).expanduser()
    if ".." in split.split("/"):
        raise DataError(f"{given} has no split named '{split}'; a split lies within it")
    if given.startswith(_HUB):
        return open_hub(given.removeprefix(_HUB), split, label, caption)
    if path.is_dir():
        return _open_folder(path, split, label, caption)
    if not path.exists():
        return _open_pattern(given, path, split, label, caption)
    if path.is_file() and (open_files := _PACKED.get(path.suffix.lower())):
        return open_files(located(path, split), choose_files(str(path), [path], split), label, caption)
    if not path.is_file():
        raise DataError(f"{path} is neither a folder nor a regular file; set `data_root` to one that holds images")
    return _with_split_chosen(ZipSource(path, split, caption))


def _open_pattern(given: str, path: Path, split: str, label: str | None, caption: str | None) -> ShardSource:
    if _SCHEME.match(given):
        raise DataError(
            f"{given} is an address; images are read at any place, so they must lie on a disk: "
            "fetch them and give the folder, or hf://owner/name for a data set of the Hugging Face hub"
        )
    if "{" not in given:
        near = suggestion(path.name, (each.name for each in listed(path.parent, DataError)))
        raise DataError(f"no file or folder of images at {path}; {near}set `data_root` to one that exists")
    files = [Path(file).expanduser() for file in expand_pattern(given)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"{given}: {len(missing)} of the {len(files)} shards it names are not there, {missing[0]} the first; "
            "correct the pattern, or fetch them"
        )
    return ShardSource(located(given, split), choose_files(given, files, split), label, caption)


def _open_folder(path: Path, split: str, label: str | None, caption: str | None) -> ImageSource:
    by_name = bool(split) and not (path / split).is_dir()
    folder = path if by_name else path / split
    if any((folder / name).is_file() for name in _SAVED):
        return open_saved(folder, split if by_name else "", label, caption)
    inner = sorted(child for child in listed(path, DataError) if child.is_dir() and not is_hidden(child.name))
    files = packed_files(folder)
    if all((folder / name).is_file() for name in _INDEX):
        raise DataError(
            f"{folder} is an index of shards, which a training reads as a stream (data.train.type=stream "
            "data.train.index=...); give the images themselves here"
        )
    if not files:
        if not split and (
            known := [child.name for child in inner if child.name in SPLIT_NAMES and packed_files(child)]
        ):
            raise several_splits(str(path), known)
        return _with_split_chosen(FolderSource(path, split, caption))
    if by_name or not split:
        files = choose_files(str(path), files, split, [child.name for child in inner])
    # Which of two kinds of files, or a loose image beside them, was meant would be a guess.
    first_of_kinds = {file.suffix: file for file in reversed(files)}
    kinds = sorted(map(str, [*first_of_kinds.values(), *([] if by_name else _first_image(folder))]))
    if len(kinds) > 1:
        raise DataError(
            f"{folder} holds images of several kinds: {' and '.join(kinds)}; move one kind away, "
            "or set `data_root` to a file, a pattern or a subfolder of one kind"
        )
    beside = (child for child in listed(folder, DataError) if child.is_file() and not is_hidden(child.name))
    others = Counter(suffix_of(child.name) or "without suffix" for child in beside if child.suffix != files[0].suffix)
    say_passed_over(str(folder), others)
    source = _PACKED[files[0].suffix](located(path, split), files, label, caption)
    source.passed_over = others + Counter(source.passed_over)
    return source


def packed_files(folder: Path) -> list[Path]:
    """Return the shards and tables in a folder; a repository of the hub has its tables in ``data``.

    Raises DataError for a folder that cannot be listed.
    """

    def files(place: Path, suffix: str) -> list[Path]:
        found = (path for path in listed(place, DataError) if path.name.endswith(suffix))
        return sorted(path for path in found if path.is_file() and not is_hidden(path.name))

    return [*files(folder, ".tar"), *(files(folder, ".parquet") or files(folder / "data", ".parquet"))]


def _first_image(folder: Path) -> list[Path]:
    suffixes = image_suffixes()
    for inside, names in walk(folder):
        if images := [name for name in names if name.lower().endswith(suffixes) and not is_hidden(name)]:
            return [folder / inside / images[0]]
    return []


def _with_split_chosen(source: FileTreeSource) -> FileTreeSource:
    splits = SPLIT_NAMES.intersection(source.class_names)
    if splits and (len(splits) > 1 or len(source.class_names) == 1):  # a class may be called "train", not all are
        raise several_splits(source.where, sorted(splits))
    return source
