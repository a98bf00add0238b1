"""SHA-256 of files: of a single one in ``NAME.sha256`` beside it, of a folder's in its ``checksums.json``."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

#: Names with SHA-256 of the files of a folder that is written as a whole.
CHECKSUMS = "checksums.json"
SUFFIX = ".sha256"
_known: dict[tuple[int, ...], str] = {}  # of what this process has read or written, so that nothing is hashed twice


def checksum_path(path: Path) -> Path:
    """Return where the checksum of a single file lies, as `sha256sum --check` reads it."""
    return path.with_name(path.name + SUFFIX)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits; read once, as long as the file stays as it is."""
    with path.open("rb") as file:
        about = _state(os.fstat(file.fileno()))
        if about not in _known:
            digest = hashlib.sha256()
            while piece := file.read(1 << 22):
                digest.update(piece)
            _known[about] = digest.hexdigest()
    return _known[about]


def remember(path: Path, digest: str) -> None:
    """Take the SHA-256 of a file that was hashed under another name."""
    _known[_state(path.stat())] = digest


def forget() -> None:
    """Forget what was hashed, as a process that starts."""
    _known.clear()


def _state(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def promised(path: Path) -> dict[str, str]:
    """Return the SHA-256 that a file should have, by the file that says so; none for one without a checksum.

    Raises ValueError for a checksum that cannot be read.
    """
    own, listed, found = checksum_path(path), path.with_name(CHECKSUMS), {}
    if own.is_file():
        with own.open(errors="replace") as file:  # a name, which need not be text, follows
            found[own.name] = (file.read(1000).split() or [""])[0]
    folder, name = path.parent, path.name
    if path == listed:  # of a part of a folder, which names it so that parts of two writings are told apart
        folder, name = folder.parent, f"{folder.name}/{name}"
    if (folder / CHECKSUMS).is_file():
        sums = read_checksums(folder)
        found |= {CHECKSUMS: sums[name]} if name in sums else {}
    return found


def read_checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files of a folder, by name. Raises ValueError when they cannot be read."""
    try:
        with (folder / CHECKSUMS).open() as file:
            listed = json.loads(file.read(1 << 26))["sha256"]
        return {str(name): str(digest) for name, digest in listed.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{CHECKSUMS} beside it is damaged") from error


def verify(path: Path) -> bool:
    """Tell whether a file has a checksum. Raises ValueError when it has, and it is that of other bytes."""
    sums = promised(path)
    for source, digest in sums.items():
        if sha256(path) != digest:
            raise ValueError(f"its SHA-256 is not the one in {source}, which goes if you changed it")
    return bool(sums)
