"""Ranges of files far away, on this machine's disk for as long as there is room: fetched once for all its processes."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from aligntok.data.sources.base import OpenFiles
from aligntok.errors import first_line
from aligntok.io.files import unseen
from aligntok.io.folders import taking_turns

logger = logging.getLogger("aligntok.data")
_SUFFIX = ".block"
#: How its own files are called, the half-written ones, too: nothing else in a folder is its to remove.
_OWN = re.compile(r"[0-9a-f]{32}\.block|\.[0-9a-f]{32}\.block\.[0-9a-f]{8}\.tmp")


class BlockCache:
    """A folder of at most `most` bytes; what was used longest ago goes first. Picklable; for threads and processes.

    None as the folder: one of this user's in the temporary folder. Where nothing can be written, it is said once, and
    what was fetched is handed on without being kept. What is there is believed if it has the right number of bytes: the
    folder must be the user's own.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, most: int) -> None:
        default = Path(tempfile.gettempdir(), f"aligntok-blocks-{os.getuid()}")
        self.folder, self.most = Path(folder or default).expanduser().absolute(), most
        self.works = True
        self._files = OpenFiles()

    def read(self, key: str, size: int, offset: int, wanted: int, fetch: Callable[[], bytes]) -> bytes:
        """Return `wanted` bytes from `offset` on of what `key` names, `size` bytes, which `fetch` brings if need be."""
        path = self._path(key)
        if (found := self._read(path, size, offset, wanted)) is not None:
            return found
        whole = self._fetched(path, size, fetch)
        if whole is None:  # another process brought it
            found = self._read(path, size, offset, wanted)
            return fetch()[offset : offset + wanted] if found is None else found
        return whole[offset : offset + wanted]

    def bring(self, key: str, size: int, fetch: Callable[[], bytes]) -> None:
        """Have it there before it is read."""
        if self.works and not self.has(key, size):
            self._fetched(self._path(key), size, fetch)

    def has(self, key: str, size: int) -> bool:
        """Tell whether it is there."""
        return self._is_there(self._path(key), size)

    def _path(self, key: str) -> Path:
        return self.folder / (hashlib.sha256(key.encode()).hexdigest()[:32] + _SUFFIX)

    def _is_there(self, path: Path, size: int) -> bool:
        try:
            return path.stat().st_size == size
        except OSError:
            return False

    def _read(self, path: Path, size: int, offset: int, wanted: int) -> bytes | None:
        with suppress(OSError):
            if self._is_there(path, size) and len(data := self._files.read(path, offset, wanted)) == wanted:
                os.utime(path)  # it was used now
                return data
        return None

    def _fetched(self, path: Path, size: int, fetch: Callable[[], bytes]) -> bytes | None:
        """Fetch and keep; return what was fetched, None where another thread or process did so meanwhile."""
        if not self.works:
            return fetch()
        self._make_folder()
        with taking_turns(path.with_suffix(".lock")):
            if self._is_there(path, size):
                return None
            whole = fetch()
            try:
                self._keep(path, whole)
            except OSError as error:
                self._do_without(error.strerror or first_line(error))
        return whole

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.folder.stat().st_uid != os.getuid():
                self._do_without("it belongs to another user")
        except OSError as error:
            self._do_without(error.strerror or first_line(error))

    def _do_without(self, reason: str) -> None:
        if self.works:
            self.works = False
            logger.warning(
                "what is read from far away is not kept in %s (%s), so some of it is fetched again and again; make "
                "room, or set data.train.cache to a folder on another disk",
                *(self.folder, reason),
            )

    def _keep(self, path: Path, whole: bytes) -> None:
        if not self.works:
            return
        temporary = unseen(path)
        try:
            temporary.write_bytes(whole)  # not flushed to the disk: what a power failure takes is fetched again
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()
        self._make_room()

    def _make_room(self) -> None:
        """Remove what was used longest ago, and what was left half-written, until the rest fits."""
        found = []
        for entry in os.scandir(self.folder):
            with suppress(OSError):
                if _OWN.fullmatch(entry.name):
                    state = entry.stat()
                    found.append((state.st_mtime_ns, state.st_size, entry.path))
        used = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used <= self.most:
                return
            with suppress(OSError):
                os.unlink(path)
            used -= size
