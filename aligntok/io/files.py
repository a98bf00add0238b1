"""Files that are whole or absent: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aligntok.errors import AlignTokError, CheckpointError, ConfigError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success flush it to disk and rename it to `path`.

    Whatever is raised inside leaves `path` as it was and removes the temporary file.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
        _flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def claiming(folder: str | os.PathLike[str], wanted: bool = True) -> Iterator[None]:
    """Hold a folder for this process (if `wanted`), so that no second run writes into it.

    The claim ends with the process, however it ends. Raises ConfigError when another process holds it; where the file
    system has no locks, nothing is held.
    """
    if not wanted:
        yield
        return
    path = Path(folder) / ".claim"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a+")
    except OSError as error:
        raise ConfigError(f"cannot write in {folder} ({error}); give another folder") from error
    with opened as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder} is in use by another run ({path.read_text().strip() or 'just started'}); "
                "wait for its end, or give another folder"
            ) from None
        except OSError:  # no locks here
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Raise ConfigError unless this process can write in `folder`, or make it; nothing is made yet.

    For work whose result is written at its end: what is wrong with the place should not cost the work.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write in {folder}: {place} is no folder that may be written in; give another --out")


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Call ``write(temporary_path)`` and rename the result to `path` once it is on the disk."""
    with replacing(path) as temporary:
        write(temporary)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


SPARE_BYTES = 64 << 20  # of disk, beside a checkpoint: for logs and pictures


def check_space(
    path: Path,
    needed: int,
    what: str,
    cure: str = "lower checkpoint.keep, or choose another work_dir",
    kind: type[AlignTokError] = CheckpointError,
) -> None:
    """Raise an error of that `kind` unless the disk of `path` has room for `needed` bytes and a little more."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise kind(
            f"{what}: {needed / 1e9:.3g} GB are needed, and {SPARE_BYTES / 1e9:.2g} GB should stay free, but the disk "
            f"of {folder} has {free / 1e9:.3g} GB; make room, {cure}"
        )


def remove_leftovers(stage_dir: str | os.PathLike[str]) -> None:
    """Remove what a process that was killed while writing left behind: temporary files, never read by anyone."""
    for leftover in Path(stage_dir).rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=str) + "\n")
