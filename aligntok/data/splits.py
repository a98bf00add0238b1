"""Which files belong to a split, by the words in their names, and what a split may be called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from aligntok.errors import DataError, unknown

#: Names that a split usually has; those of one row mean the same.
_SPELLINGS = (("train", "training"), ("val", "validation", "valid"), ("test",))
SPLIT_NAMES = frozenset(name for row in _SPELLINGS for name in row)

_WORDS = re.compile(r"[^\W\d_]+|\d+")


def spellings(split: str) -> tuple[str, ...]:
    """Return the names under which a split may be found: its own first, then those that mean the same."""
    same = next((row for row in _SPELLINGS if split in row), ())
    return (split, *(name for name in same if name != split))


def choose_files(where: str, files: Sequence[Path], split: str, folders: Iterable[str] = ()) -> list[Path]:
    """Return the files of a split: those with its name as a word in theirs, else those in a folder of that name.

    A word is bounded by anything but letters, as in ``imagenet-train-0000.tar``. Files that say 'val', 'valid' or
    'validation' are found by any of the three, the name asked for first; so are 'train' and 'training'. Without a
    split, all files are returned. Raises DataError when no file is of the split (`folders` are other splits to
    name), and when none was asked for but the files are of several.
    """
    known = _splits_of(files)
    if not split:
        if sum(not set(row).isdisjoint(known) for row in _SPELLINGS) > 1:
            raise several_splits(where, known)
        return list(files)
    for belongs in (_has_word, _lies_in):
        for name in spellings(split):
            if chosen := [file for file in files if belongs(file, name)]:
                return chosen
    raise DataError(
        f"{where} has {unknown('split', split, sorted({*known, *folders}))}; no file name has that word, "
        f"{files[0].name} the first of {len(files)}: name the files by split (train-0000.tar, val-0000.tar), or leave "
        "`split` out to take all of them"
    )


def several_splits(where: str, known: Iterable[str]) -> DataError:
    """Return the error of a source with several splits of which none was chosen."""
    return DataError(f"{where} holds the splits {', '.join(known)}; choose one with `split`")


def _splits_of(files: Sequence[Path]) -> list[str]:
    for belongs in (_has_word, _lies_in):
        if found := [name for row in _SPELLINGS for name in row if any(belongs(file, name) for file in files)]:
            return found
    return []


def _has_word(file: Path, word: str) -> bool:
    parts, wanted = _WORDS.findall(file.stem.lower()), _WORDS.findall(word.lower())
    starts = range(len(parts) - len(wanted) + 1) if wanted else ()
    return any(parts[start : start + len(wanted)] == wanted for start in starts)


def _lies_in(file: Path, folder: str) -> bool:
    return file.parent.name == folder
