"""A folder that is filled over several starts, by one process or many: what it was begun with, and what it lacks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from aligntok.distributed import barrier, broadcast, is_first, must_agree
from aligntok.errors import ConfigError, DataError
from aligntok.io.files import read_json, writing
from aligntok.io.folders import check_links, lock_folder

Compared = Callable[[Mapping[str, Any]], dict[str, Any]]


@contextmanager
def output_folder(
    path: Path, description: str, settings: Mapping[str, Any], compared: Compared, what: str, goes_on: bool = True
) -> Iterator[None]:
    """Hold a folder for work that is fixed by settings; all processes leave it together. Collective.

    description: the file in it that keeps the settings. compared: gives what of them may not change between two starts
    (`goes_on`), or differ between processes, which then see `what`. Raises DataError in a process with other settings
    than the first, or when the description is damaged; ConfigError for a folder with other things in it, one that was
    begun with other settings, and one that another run holds.
    """
    must_agree(compared(settings), what)
    if is_first():
        with writing(path):  # it may not even be looked at
            check_links(path, *(child for child in path.glob("*") if child.is_dir()))
            begun = path / description
            if not begun.is_file():
                if path.is_file() or (path.is_dir() and {*os.listdir(path)} - {".lock"}):
                    raise ConfigError(f"{path} has other things in it, and no {description}; give a new folder")
            elif goes_on:
                _check_begun(begun, compared(settings), compared)
    with lock_folder(path, wanted=is_first()):
        yield
        barrier()


def _check_begun(begun: Path, now: Mapping[str, Any], compared: Compared) -> None:
    cure = "so how the files beside it were made is unknown: restore that file, or give another folder"
    before = read_json(begun, DataError, cure, compared)
    changed = [
        f"{key} {_short(before.get(key))}, now {_short(now.get(key))}"
        for key in sorted({**before, **now})
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise ConfigError(
            f"{begun.parent} was begun otherwise ({'; '.join(changed)}); give what it was begun with, or another folder"
        )


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) < 64 else f"{text[:16]}..."


def found_by_first(find: Callable[[], Sequence[int]], count: int) -> list[int]:
    """Return as many numbers as `count`, which the first process alone looks for, in every process; collective."""
    numbers = torch.zeros(count, dtype=torch.int64)
    if is_first():
        numbers.copy_(torch.tensor(find()))
    broadcast([numbers])
    return numbers.tolist()
