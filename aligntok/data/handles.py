"""Reading pieces of large files, in any process: a few handles kept open, and a piece that looks like a file."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from typing_extensions import Buffer


class OpenFiles:
    """The files last asked for, at most `limit`, open for reading; each process opens its own.

    For one thread a process: several would move a common handle under one another.
    """

    def __init__(self, limit: int = 64) -> None:
        self.limit = limit
        self._handles: OrderedDict[Path, BinaryIO] = OrderedDict()
        self._owner = 0

    def get(self, path: Path) -> BinaryIO:
        """Return a handle of a file, at any position. Raises OSError when it cannot be opened."""
        if self._owner != os.getpid():  # a handle inherited by a fork shares its position with the parent's
            self.close()
            self._owner = os.getpid()
        if path not in self._handles:
            self._handles[path] = path.open("rb")
        self._handles.move_to_end(path)
        while len(self._handles) > self.limit:
            self._handles.popitem(last=False)[1].close()
        return self._handles[path]

    def close(self) -> None:
        """Close this process's handles; the next `get` opens another."""
        while self._handles:
            self._handles.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": OrderedDict()}

    def __del__(self) -> None:
        self.close()


class FilePart(io.RawIOBase):
    """`size` bytes of a file from `offset` on, as a file of their own. Raises OSError when it cannot be opened."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._offset = offset
        self._size = size
        self._position = 0

    def readinto(self, buffer: Buffer, /) -> int:
        """Read on into a buffer; return how many bytes there were, 0 at the end."""
        view = memoryview(buffer)[: max(0, self._size - self._position)]
        self._file.seek(self._offset + self._position)
        count = self._file.readinto(view) or 0
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to `offset` from the part's begin, from here, or from the part's end; return the new position."""
        self._position = max(0, (0, self._position, self._size)[whence] + offset)
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """Close the file below as well."""
        if not self.closed:
            self._file.close()
        super().close()
