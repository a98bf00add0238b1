"""Labels as sources find them, numbers or names of classes, and what is said when some are missing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from aligntok.data.sources.base import ImageSource, Labels, say_once
from aligntok.errors import DataError, some_of

#: What columns, and keys of a shard's JSON, are called that hold labels.
LABEL_NAMES = ("label", "cls")
#: The members of a shard that may hold a label.
LABELLED = (".cls", ".json")
_INDEX = re.compile(rb"-1|[0-9]{1,9}")
_LONGEST_NAME = 200  # bytes


def labels_in(what: str, kind: str, content: bytes, label: str | None) -> dict[str, int | str | None]:
    """Return the labels that a member of a shard holds, by what they are called in messages; its `kind` of LABELLED.

    label: "cls" for the .cls, or a key of the JSON; "" for none; None for the .cls and the JSON's LABEL_NAMES. Raises
    DataError for a .cls that is neither a number nor a name.
    """
    if kind == ".json":
        try:
            read = json.loads(content)
        except (ValueError, RecursionError):  # nothing of it is needed
            return {}
        known = read if isinstance(read, dict) else {}
        found = {key: _as_label(known[key]) for key in (LABEL_NAMES if label is None else (label,)) if key in known}
        return {f"the key '{key}' of .json": value for key, value in found.items() if value is not None}
    if label not in (None, "cls"):
        return {}
    text = content.strip()
    if _INDEX.fullmatch(text):
        return {".cls": int(text)}
    name = text.decode(errors="replace")
    if len(text) > _LONGEST_NAME or "\ufffd" in name or not any(map(str.isalpha, name)):
        raise DataError(
            f"{what} holds {text[:40]!r}; a .cls member holds a class index, such as 0 or 417, or a class's name"
        )
    return {".cls": name}


def _as_label(value: Any) -> int | str | None:
    if isinstance(value, str):
        return value.strip() or None
    is_index = isinstance(value, int) and not isinstance(value, bool) and _INDEX.fullmatch(str(value).encode())
    return value if is_index else None


def join_labels(
    where: str, found: Sequence[tuple[int, dict[str, list[int | str | None]]]], label: str | None
) -> tuple[Labels | None, tuple[str, ...]]:
    """Return the class index of each image of all shards, and the names of the classes.

    found: of each shard how many images it has, and their labels by what they are called. Raises DataError when labels
    that are called differently are, when none is called as was asked for, and as `number_classes` does.
    """
    called = sorted({name for _, labels in found for name in labels})
    if label and not called:
        raise DataError(f"{where}: no sample has a label '{label}': a .cls for 'cls', else a .json with that key")
    if not called:
        return None, ()
    joined = [[value for n, labels in found for value in labels.get(name, [None] * n)] for name in called]
    if any(other != joined[0] for other in joined[1:]):
        raise several_labels(where, called)
    return number_classes(where, joined[0])


def number_classes(where: str, found: Sequence[int | str | None]) -> tuple[Labels, tuple[str, ...]]:
    """Return the class index of each image, -1 for None, and the names of the classes, sorted, if they have names.

    Raises DataError where some labels are numbers, and some names.
    """
    names = sorted({value for value in found if isinstance(value, str)})
    numbers = sorted({value for value in found if isinstance(value, int) and value >= 0})
    if names and numbers:
        raise DataError(
            f"{where}: some labels are numbers, such as {numbers[0]}, and some names, such as '{names[0]}'; "
            "pack it with one or the other"
        )
    index_of: dict[int | str | None, int] = {None: -1, **{name: number for number, name in enumerate(names)}}
    return np.array([index_of.get(value, value) for value in found], dtype=np.int32), tuple(names)


def check_labels(what: str, labels: npt.NDArray[Any], names: Sequence[str], cure: str) -> None:
    """Raise DataError, which ends with a `cure`, for a label above those of the classes, where these have names."""
    if names and (most := int(labels.max(initial=-1))) >= len(names):
        raise DataError(f"{what} reach to {most}, and there are names of {len(names)} classes, from 0 on; {cure}")


def several_labels(where: str, names: Sequence[str]) -> DataError:
    """Return the error of a source with several kinds of labels of which none was chosen."""
    return DataError(f"{where}: labels are in {' and in '.join(names)}; choose one with `label`, or label='' for none")


def say_lacking(source: ImageSource) -> None:
    """Say which classes have no image, and how many images no class, of a source where others have."""
    labelled = source.labels[source.labels >= 0]
    if not len(labelled):
        return
    if without := len(source) - len(labelled):
        say_once(f"{source.where}: {without:,} of {len(source):,} images have no class")
    counts = np.bincount(labelled, minlength=len(source.class_names))
    if empty := np.flatnonzero(counts == 0).tolist():
        names = source.class_names or range(len(counts))
        told = some_of([str(names[number]) for number in empty])
        say_once(f"{source.where}: {len(empty):,} of {len(counts):,} classes have no image: {told}")
