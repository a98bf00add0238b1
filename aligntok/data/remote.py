"""Ranges of files, on a disk or far away (fsspec): asked for again where they do not come, never without end."""

from __future__ import annotations

import asyncio
import errno
import io
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from concurrent import futures
from functools import partial
from types import SimpleNamespace
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

from aligntok.data.settings import RemoteSettings
from aligntok.data.sources.base import FilePart, OpenFiles, optional_library, say_once
from aligntok.errors import AlignTokError, ConfigError, ShardError, first_line, unknown
from aligntok.io.files import check_size, reading

logger = logging.getLogger("aligntok.data")
T = TypeVar("T")

#: The schemes of addresses, each with the library that fsspec needs for it.
SCHEMES = {
    "https": "aiohttp",
    "http": "aiohttp",
    "s3": "s3fs",
    "gs": "gcsfs",
    "hf": "huggingface_hub",
    "file": "fsspec",
}
#: Bytes at once of a file that is read from its begin to its end.
BLOCK = 8 << 20
_LONGEST_PAUSE = 30.0  # seconds
_AGAIN = (408, 425, 429)  # answers that are the client's fault by their number, and pass
_TAGS = ("ETag", "etag", "blob_id", "generation", "LastModified", "mtime")
_SECRETS = re.compile(r"(\w+://)(?:[^\s/'\"@]*@)?([^\s'\"?#)]*)(?:[?#][^\s'\")]*)?")
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR)  # of a file system in a network
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")


class _Refused(Exception):
    """An answer that would be the same the next time."""


class _Forbidden(_Refused):
    pass


class _Missing(_Refused):
    pass


class RemoteFiles:
    """Files by absolute path or URL. Picklable; for several threads, after a fork, and in spawned processes.

    A range comes whole, or ShardError says of which file, and why: it is gone, is another file than before, or did not
    come in so many attempts, between which there are growing pauses. Answers that are too short, too long, late or of
    another range count as none. Secrets of addresses are in no message. gives_up: whether a host that gave no other for
    so long is asked but once for each further file, until it gives one.
    """

    def __init__(self, settings: RemoteSettings | None = None, gives_up: bool = False) -> None:
        self.settings, self.gives_up = settings or RemoteSettings(), gives_up
        self._disk = OpenFiles()
        # By process, and kept: a fork gets copies of its parent's connections, which it must neither use nor close.
        self._of_process: dict[int, _Connections] = {}
        # When a host last gave an answer that counts; and those that gave none as often as one is asked.
        self._answered: dict[str, float] = {}
        self._silent: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFiles, (self.settings, self.gives_up)

    def find(self, place: str, optional: bool = False) -> tuple[int, str] | None:
        """Return bytes and tag of a file, None where there is none; a tag is another one for other content.

        optional: whether a refusal counts as none, which is how a store answers that does not tell what it has.
        Raises ShardError, and ConfigError for an address that cannot be read.
        """

        def look() -> tuple[int, str]:
            path = local_path(place)
            if path is None:
                try:
                    return self._connections().look(place, self.settings.timeout)
                except (PermissionError, _Forbidden) as error:
                    if not optional:
                        raise
                    folder, what = shown(os.path.dirname(place)), os.path.splitext(place)[1]
                    say_once(f"{folder}: *{what} is refused ({_told(error)}), which is taken for there being none")
                    raise _Missing from None
            state = os.stat(path)
            return state.st_size, str(state.st_mtime_ns)

        try:
            return self._persist(place, look)
        except _Missing:
            return None

    def size_and_tag(self, place: str) -> tuple[int, str]:
        """Return bytes and tag of a file. Raises as `find` does, and ShardError for one that is not there."""
        if (found := self.find(place)) is None:
            raise ShardError(f"{shown(place)} is not there; put it back, or make the index anew without it")
        return found

    def read(self, place: str, offset: int, size: int, expected: tuple[int, str] | None = None) -> bytes:
        """Return exactly `size` bytes of a file from `offset` on.

        expected: bytes and tag of the file when it was listed, as far as the answer tells them: of a file on disk only
        the bytes, since copies have other times. Raises ShardError.
        """

        def attempt() -> bytes:
            data, whole, tag = self._range(place, offset, size)
            if whole is not None and expected is not None and whole != expected[0]:
                raise _Refused(f"it is another file than was listed, of {whole:,} bytes and not {expected[0]:,}")
            if tag and expected is not None and expected[1] and tag != expected[1]:
                raise _Refused(f"it is another file than was listed, {tag} and not {expected[1]}")
            if whole is not None and whole < offset + size:
                raise _Refused(f"it ends at byte {whole:,}, and {offset:,} to {offset + size:,} were asked for")
            if len(data) != size:
                raise OSError(f"{len(data):,} of {size:,} bytes came")
            return data

        with reading(shown(place), ShardError, _CURE):
            check_size(size)
        try:
            return self._persist(place, attempt) if size else b""
        except _Missing:
            raise ShardError(f"{shown(place)} is gone; put it back, or make the index anew without it") from None

    def open(self, place: str, listed: tuple[int, str], block: int = BLOCK) -> BinaryIO:
        """Return a file, of which bytes and tag are `listed`, to read on in, by blocks, and seek in.

        Reading raises ShardError, also where it is another file by then, as `read` tells that.
        """
        whole = SimpleNamespace(read=partial(self.read, expected=listed))
        return io.BufferedReader(FilePart(whole, place, 0, listed[0]), block if local_path(place) is None else 1 << 16)

    def _range(self, place: str, offset: int, size: int) -> tuple[bytes, int | None, str]:
        """Return a range, perhaps too short, and, where it is known, bytes and tag of the whole."""
        path = local_path(place)
        if path is None:
            return self._connections().range(place, offset, size, self.settings.timeout)
        return self._disk.read(path, offset, size), os.stat(path).st_size, ""

    def _connections(self) -> _Connections:
        process = os.getpid()
        return self._of_process.get(process) or self._of_process.setdefault(
            process, _Connections(self.settings.in_flight)
        )

    def _persist(self, place: str, attempt: Callable[[], T]) -> T:
        """Return what an attempt gives, the first that does. Raises _Missing, and ShardError after the last."""
        begin, reason, host = time.monotonic(), "", urlsplit(place).netloc
        attempts = 1 if host in self._silent else self.settings.attempts
        for number in range(attempts):
            if number:
                pause = min(self.settings.pause * 2.0 ** (number - 1), _LONGEST_PAUSE)
                pause *= 0.5 + secrets.randbelow(1000) / 1000  # processes that failed together ask apart
                logger.info("%s: %s; asked for again in %.1f s", shown(place), reason, pause)
                time.sleep(pause)
            try:
                found = attempt()
                self._heard_of(host)
                return found
            except (_Missing, FileNotFoundError):
                self._heard_of(host)
                raise _Missing from None
            except AlignTokError:
                raise
            except Exception as error:  # aiohttp, botocore and others raise nearly anything
                reason = _told(error)
                if _is_final(error, place):
                    self._heard_of(host)
                    raise ShardError(f"{shown(place)} cannot be read: {reason}; {_CURE}") from error
        if host and self.gives_up and self._answered.get(host, 0.0) < begin:
            self._silent.add(host)
        raise ShardError(
            f"{shown(place)} stays away: {attempts} attempts in {time.monotonic() - begin:.0f} s, the last of which "
            f"ended with: {reason}; {_CURE}"
        )

    def _heard_of(self, host: str) -> None:
        self._answered[host] = time.monotonic()
        self._silent.discard(host)


_CURE = "put it back, or make the index anew"


def _is_final(error: Exception, place: str) -> bool:
    """Tell whether the next attempt would end as this one: of a disk, only one far away may be there again."""
    on_disk = local_path(place) is not None and isinstance(error, OSError) and error.errno not in _PASSING
    return on_disk or isinstance(error, _Refused | PermissionError)


class _Connections:
    """The file systems of one process, each made when it is asked for."""

    def __init__(self, in_flight: int) -> None:
        self._slots = threading.BoundedSemaphore(in_flight)
        self._lock = threading.Lock()
        self._systems: dict[str, Any] = {}

    def range(self, place: str, offset: int, size: int, timeout: float) -> tuple[bytes, int | None, str]:
        system = self._system(place)
        if check_address(place) in ("http", "https"):
            return self._wait(system, _range_by_http(system, place, offset, size), timeout)
        path, bounds = system._strip_protocol(place), dict(start=offset, end=offset + size)
        read: Any = system._cat_file if system.async_impl else partial(asyncio.to_thread, system.cat_file)
        return self._wait(system, read(path, **bounds), timeout), None, ""

    def look(self, place: str, timeout: float) -> tuple[int, str]:
        system = self._system(place)
        if check_address(place) in ("http", "https"):
            _, size, tag = self._wait(system, _range_by_http(system, place, 0, 1), timeout)
            return size, tag
        look: Any = system._info if system.async_impl else partial(asyncio.to_thread, system.info)
        info = self._wait(system, look(system._strip_protocol(place)), timeout)
        return int(info["size"]), next((str(info[name]) for name in _TAGS if info.get(name)), "")

    def _system(self, place: str) -> Any:
        scheme = check_address(place)
        with self._lock:
            if scheme not in self._systems:
                who = f"shards at {scheme}://"
                optional_library(SCHEMES[scheme], who)
                own = {"client_kwargs": {"trust_env": True}} if SCHEMES[scheme] == "aiohttp" else {}
                make = optional_library("fsspec", who).filesystem
                self._systems[scheme] = make(scheme, skip_instance_cache=True, **own)
            return self._systems[scheme]

    def _wait(self, system: Any, work: Any, timeout: float) -> Any:
        """Return what a coroutine gives, which runs in fsspec's own thread."""
        asyn = optional_library("fsspec.asyn", "shards far away")
        with self._slots:
            loop = getattr(system, "_loop", None) or asyn.get_loop()
            future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, timeout), loop)
            try:
                return future.result(timeout + 10)  # the thread itself may be stuck
            except (asyncio.TimeoutError, futures.TimeoutError) as error:  # one with TimeoutError from Python 3.11 on
                future.cancel()
                raise OSError(f"no answer in {timeout:g} s") from error


async def _range_by_http(system: Any, url: str, offset: int, size: int) -> tuple[bytes, int, str]:
    """Return a range, bytes and tag of the whole. Raises OSError for an answer that is none, _Refused for a final one.

    fsspec's own `cat_file` takes what it is sent for the range, be it the whole file.
    """
    session = await system.set_session()
    headers = {"Range": f"bytes={offset}-{offset + size - 1}", "Accept-Encoding": "identity"}
    async with session.get(system.encode_url(url), headers=headers) as answer:
        status, told = answer.status, f"it answers {answer.status} {answer.reason or ''}".rstrip()
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified", "")
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if status in (404, 410):
            raise _Missing(told)
        if status == 416 and found:
            return b"", int(found[3]), tag
        if status in (401, 403):
            raise _Forbidden(told)
        if 400 <= status < 500 and status not in _AGAIN:
            raise _Refused(told)
        if status == 200 and offset == 0 and answer.content_length == size:
            whole = size
        elif status != 206:
            raise OSError(f"{told}{', with the whole file where a part was asked for' * (status == 200)}")
        elif not found or found[1] is None or int(found[1]) != offset:
            raise OSError(f"it answers with the range {answer.headers.get('Content-Range')!r:.80}")
        else:
            whole = int(found[3])
        data = bytearray()
        while len(data) <= size and (piece := await answer.content.read(size + 1 - len(data))):
            data += piece
        return bytes(data), whole, tag


def local_path(place: str) -> str | None:
    """Return the path of a file on a disk, None for an address elsewhere."""
    scheme, mark, _ = place.partition("://")
    if not mark:
        return place
    return unquote(urlsplit(place).path) if scheme.lower() == "file" else None


def check_address(place: str) -> str:
    """Return the scheme of an address. Raises ConfigError for an unknown one, and for one that may hold a secret."""
    parts = urlsplit(place)
    if parts.scheme not in SCHEMES:
        raise ConfigError(f"{shown(place)}: {unknown('scheme', parts.scheme, SCHEMES)}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"{shown(place)} is given with {'a user' if '@' in parts.netloc else 'a query'}, which may be a secret and "
            "would be kept; give the address alone, and secrets where the library looks for them (~/.netrc, "
            "~/.aws/credentials, `hf auth login`)"
        )
    return parts.scheme


def shown(text: str) -> str:
    """Return a text with the addresses in it as messages show them: without users, passwords and queries."""
    return _SECRETS.sub(r"\1\2", text)


def _told(error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or first_line(error)
    return shown(reason if isinstance(error, OSError | _Refused) else f"{type(error).__name__}: {reason}")
