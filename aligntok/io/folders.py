"""A folder that is written in: held by one run, with room, free of leftovers and of links that lead elsewhere."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from aligntok.errors import AlignTokError, ConfigError, WriteError
from aligntok.io.checksums import CHECKSUMS, read_checksums
from aligntok.io.files import TEMPORARY, put_in_place, read_json, regular, remove, unseen, write_json, writing

#: By which key a config.json is that of an export of ours: for ourselves, and for diffusers, which overlooks it.
OWN, OWN_OF_DIFFUSERS = "aligntok_version", "_aligntok_version"


def told_apart(names: Sequence[str]) -> list[str]:
    """Return names of files that every disk keeps apart: each its own, or that and a number, from _2 on, where another
    comes before it that some disks take for the same: in capitals, or with its accents as letters of their own.
    """
    own, taken, found = {*map(_folded, names)}, set[str](), list[str]()
    for name in names:
        number, free = 1, name
        while _folded(free) in taken or (number > 1 and _folded(free) in own):
            number += 1
            free = f"{name}_{number}"
        taken.add(_folded(free))
        found.append(free)
    return found


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@contextmanager
def lock_folder(folder: str | os.PathLike[str], wanted: bool = True) -> Iterator[None]:
    """Hold a folder for this process (if `wanted`), so that no second run writes into it; nothing of it stays.

    The claim ends with the process, however it ends; what an earlier one left of it, or of files that it was writing
    when it was killed, goes. Raises ConfigError when another process holds it; where the file system has no locks,
    nothing is held.
    """
    if not wanted:
        yield
        return
    path = Path(folder) / ".lock"
    with _claim(path) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()  # still held: whoever opened it meanwhile finds that it is gone, and makes another


def _claim(path: Path) -> TextIO:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.fdopen(regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW), "a+")
        except OSError as error:
            raise ConfigError(f"cannot write in {path.parent} ({error}); give another folder") from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "just started"
            file.close()
            raise ConfigError(
                f"{path.parent} is in use by another run ({holder}); wait for its end, or give another folder"
            ) from None
        except OSError:  # no locks here
            return file
        with suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
                return file
        file.close()  # its holder ended, and removed it, between the two lines above


@contextmanager
def taking_turns(path: Path, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a file for a piece of work that several processes or threads come to do: who comes meanwhile waits.

    waits: is called before that. Nothing of it stays. Where the file system has no locks, or the file cannot be made,
    nothing is held.
    """
    try:
        descriptor = regular(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waits()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # who waits for it has it open
        os.close(descriptor)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Raise ConfigError, or WriteError, unless this process can write in `folder`, or make it.

    Nothing is made; leftovers in it go. For work whose result is written at its end: what is wrong with the place
    should not cost the work.
    """
    place = Path(folder).absolute()
    with writing(folder):  # it may not even be looked at
        while not os.path.lexists(place):  # a link to nowhere, or in a circle, is there
            place = place.parent
        is_open = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    if not is_open:
        raise ConfigError(f"cannot write in {folder}: {place} is no folder that may be written in; give another folder")
    with writing(folder):
        remove_leftovers(folder, below=False)


def checked_target(out: str | os.PathLike[str], *marks: str, says: str | None = OWN_OF_DIFFUSERS) -> Path:
    """Return the folder to export into, without what a process that was killed left there.

    An earlier export of the same format, whole or begun, may be overwritten: one whose checksums list one of the
    `marks`, paths in the folder, or that has a config beside it with the key `says`. Raises ConfigError for a file, and
    for a folder of other things, of another's model of the same names too.
    """
    target = Path(out).expanduser()
    if os.path.lexists(target) and not target.is_dir():
        raise ConfigError(f"{target} is a file; give a new folder, or one of an earlier export")
    with writing(target):
        is_used = target.exists() and any(not TEMPORARY.fullmatch(name) for name in os.listdir(target))
    if is_used and not any(_is_exported(target / mark, says) for mark in marks):
        raise ConfigError(f"{target} is a folder with other things in it; give a new folder, or an earlier export's")
    check_writable(target)
    return target


def _is_exported(mark: Path, says: str | None) -> bool:
    with suppress(ValueError):  # of checksums that cannot be read
        if (mark.parent / CHECKSUMS).is_file() and mark.name in read_checksums(mark.parent):
            return True
    for name in {mark.name, "config.json"}:
        with suppress(ConfigError):
            if name.endswith(".json") and says in read_json(mark.with_name(name), ConfigError, "copy it again"):
                return True
    return False


def begin_export(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the config of an export into a folder without one: it says whose the folder is, if the export is killed.

    Over an earlier export it comes after the weights, whose checksums then tell that those are not of it.
    """
    with writing(folder / "config.json"):  # it may not even be looked at
        if not (folder / "config.json").exists():
            write_json(folder / "config.json", config)


SPARE_BYTES = 64 << 20  # of disk, beside a checkpoint: for logs and pictures


def check_space(
    path: Path, needed: int, what: str, cure: str = "lower checkpoint.keep, or choose another work_dir"
) -> None:
    """Raise WriteError unless the disk of `path` has room for `needed` bytes and a little more."""
    with writing(path, cure):
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise WriteError(
            f"{what}: {needed / 1e9:.3g} GB are needed, and {SPARE_BYTES / 1e9:.2g} GB should stay free, but the disk "
            f"of {folder} has {free / 1e9:.3g} GB; make room, {cure}"
        )


def remove_leftovers(folder: str | os.PathLike[str], below: bool = True) -> None:
    """Remove what a process that was killed while writing left behind: temporary files, never read by anyone.

    below: in the folders inside too; for a folder that is this run's alone.
    """
    for leftover in [*(Path(folder).rglob(".*.tmp") if below else Path(folder).glob(".*.tmp"))]:
        if TEMPORARY.fullmatch(leftover.name):
            remove(leftover)


def real(path: str | os.PathLike[str]) -> Path:
    """Return where a path leads, links followed as far as they lead anywhere; ``Path.resolve`` fails for circles."""
    return Path(os.path.realpath(path))


def check_own(folder: Path, *names: str) -> None:
    """Raise ConfigError for a folder that has more in it than these names, since it is going to be replaced."""
    if folder.exists() and not {path.name for path in folder.iterdir()} <= {*names, ".DS_Store"}:  # macOS leaves it
        raise ConfigError(f"{folder} has other things in it; give a new folder")


#: Seconds without a change after which a folder beside is one that a killed process left.
_LEFT_SECONDS = 3600.0


@contextmanager
def replacing_folder(folder: Path, last: str | None = None) -> Iterator[Path]:
    """Yield a new folder beside `folder`, which takes its place once what is inside is done; else nothing of it stays.

    What processes that were killed left of such folders goes. last: a file of one that several processes may be at,
    where the file system has no locks: what they left goes once it is old, and where that file is there by then,
    another was faster, and its folder stays. Raises WriteError for an OSError inside.
    """
    made = unseen(folder)
    left = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}\.tmp")
    try:
        with writing(folder):
            for leftover in [*folder.parent.glob(".*.tmp")]:
                is_old = last is None or _newest(leftover) < time.time() - _LEFT_SECONDS
                if left.fullmatch(leftover.name) and is_old:
                    remove(leftover)
            made.mkdir(parents=True)
            yield made
            if last is None or not (folder / last).is_file():
                put_in_place(made, folder)
    finally:
        with suppress(OSError):
            remove(made)


def _newest(folder: Path) -> float:
    """Return when anything in a folder last changed; 0 for what cannot be told."""
    with suppress(OSError):
        return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
    return 0.0


def refuse_unlisted(kind: type[AlignTokError], error: OSError) -> None:
    """Raise an error of that `kind` for a folder that cannot be listed, which os.walk passes over: an `onerror`.

    One that is gone, was never there, or is a link in a circle, is none.
    """
    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        raise kind(
            f"the folder {error.filename} cannot be listed ({error.strerror}); correct its permissions, or move it away"
        ) from error


def listed(folder: str | os.PathLike[str], kind: type[AlignTokError]) -> list[Path]:
    """Return what lies in a folder, in any order; nothing without one. Raises as `refuse_unlisted` does."""
    try:
        return [*Path(folder).iterdir()]
    except OSError as error:
        refuse_unlisted(kind, error)
        return []


def check_links(top: str | os.PathLike[str], *folders: Path) -> None:
    """Raise ConfigError for one of `folders` in `top`, or a folder in it, that is a link which leads out of `top`.

    What is written and removed there would be elsewhere.
    """
    root = real(top)
    for folder in folders:
        for place, inner, _ in os.walk(folder, onerror=partial(refuse_unlisted, ConfigError)):
            for path in map(Path, (place, *(os.path.join(place, name) for name in inner))):
                if path.is_symlink() and not real(path).is_relative_to(root):
                    raise ConfigError(
                        f"{path} is a link to {real(path)}, outside of {top}; files would be written and removed "
                        "there: put a folder in its place, or choose a work_dir on the disk that it leads to"
                    )
