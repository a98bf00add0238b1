"""Files that are whole or absent: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from aligntok.errors import AlignTokError, ConfigError, WriteError, first_line

if TYPE_CHECKING:  # torch is imported where tensors are: a report has none
    from torch import Tensor

T = TypeVar("T")
#: What to do about a file that could not be written, where whoever writes it knows nothing better.
MAKE_ROOM = "what was there is as it was. Make room, or correct the folder's permissions, and start again"


@contextmanager
def writing(path: str | os.PathLike[str], cure: str = MAKE_ROOM) -> Iterator[None]:
    """Turn an OSError inside, such as a full disk's, into a WriteError: the file, the reason, what to do (`cure`)."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"{path} could not be written ({error.strerror or first_line(error)}); {cure}") from error


@contextmanager
def replacing(path: str | os.PathLike[str], cure: str = MAKE_ROOM) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success flush it to disk and rename it to `path`.

    Whatever is raised inside leaves `path` as it was and removes the temporary file. Raises WriteError, which ends with
    `cure`, for an OSError inside, while the file is flushed, and while it is renamed.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with writing(target, cure):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _flush(temporary)
            os.replace(temporary, target)
            _flush(target.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def lock_folder(folder: str | os.PathLike[str], wanted: bool = True) -> Iterator[None]:
    """Hold a folder for this process (if `wanted`), so that no second run writes into it.

    The claim ends with the process, however it ends. Raises ConfigError when another process holds it; where the file
    system has no locks, nothing is held.
    """
    if not wanted:
        yield
        return
    path = Path(folder) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666), "a+")
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


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


SPARE_BYTES = 64 << 20  # of disk, beside a checkpoint: for logs and pictures


def check_space(
    path: Path, needed: int, what: str, cure: str = "lower checkpoint.keep, or choose another work_dir"
) -> None:
    """Raise WriteError unless the disk of `path` has room for `needed` bytes and a little more."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise WriteError(
            f"{what}: {needed / 1e9:.3g} GB are needed, and {SPARE_BYTES / 1e9:.2g} GB should stay free, but the disk "
            f"of {folder} has {free / 1e9:.3g} GB; make room, {cure}"
        )


def remove_leftovers(stage_dir: str | os.PathLike[str]) -> None:
    """Remove what a process that was killed while writing left behind: temporary files, never read by anyone."""
    for leftover in Path(stage_dir).rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Any, cure: str = MAKE_ROOM) -> None:
    """Write JSON as :func:`replacing` does; what JSON does not have, such as a path, as its text."""
    with replacing(path, cure) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


@overload
def read_json(path: str | os.PathLike[str], kind: type[AlignTokError], cure: str) -> dict[str, Any]: ...
@overload
def read_json(
    path: str | os.PathLike[str], kind: type[AlignTokError], cure: str, parse: Callable[[dict[str, Any]], T]
) -> T: ...
def read_json(path: str | os.PathLike[str], kind: type[AlignTokError], cure: str, parse: Any = None) -> Any:
    """Read a JSON file of ours, names with values, and return what it holds, or what `parse` makes of that.

    Raises an error of that `kind`, which names the file and the reason and ends with `cure`, when it is missing, cut
    off, not UTF-8, no JSON, no object, or when `parse` misses a name or finds a value that cannot be.
    """
    with reading(path, kind, cure):
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not names with values")
        return content if parse is None else parse(content)


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    cure: str = MAKE_ROOM,
) -> None:
    """Write named tensors as .safetensors, as :func:`replacing` does, and their SHA-256 beside it, ``NAME.sha256``.

    Tensors may be on any device and of any layout. The files are as readable as the umask lets them be. The checksum is
    written last and is that of the file beside it: where a process was killed in between, there is none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target, laid_out = Path(path), {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(target, cure) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(laid_out, temporary, None if metadata is None else dict(metadata))
        except SafetensorError as error:  # a full disk, in its words
            raise OSError(first_line(error)) from error
        temporary.chmod(mode)  # safetensors 0.8 makes files that only their owner can read
        checksum = _sha256(temporary)
        _flush(temporary)  # a disk that is full says so here, with the old file and its checksum still in place
        _checksum_file(target).unlink(missing_ok=True)  # of the file that is about to be replaced
    with replacing(_checksum_file(target), cure) as temporary:
        temporary.write_text(f"{checksum}  {target.name}\n")  # as `sha256sum --check` reads it


def check_tensors(path: str | os.PathLike[str], kind: type[AlignTokError], cure: str) -> None:
    """Raise an error of that `kind`, which ends with `cure`, when a file is not what its checksum is of.

    A file without a checksum, such as one of an earlier version, passes; so does one that is missing, which whoever
    opens it explains.
    """
    file = Path(path)
    with reading(file, kind, cure):
        if not (file.is_file() and _checksum_file(file).is_file()):
            return
        written = _checksum_file(file).read_text().split()
        if written[:1] != [_sha256(file)]:
            raise ValueError(f"its SHA-256 is not the one in {_checksum_file(file).name}, which goes if you changed it")


def load_tensors(path: str | os.PathLike[str], kind: type[AlignTokError], cure: str) -> dict[str, Tensor]:
    """Read a .safetensors file onto the CPU, mapped where it lies; checked by :func:`check_tensors`.

    Raises an error of that `kind`, which ends with `cure`, for a file that is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_tensors(path, kind, cure)
    with reading(path, kind, cure):
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(first_line(error)) from error


@contextmanager
def reading(path: str | os.PathLike[str], kind: type[AlignTokError], cure: str) -> Iterator[None]:
    """Turn what a missing or damaged file raises inside into an error of that `kind`: file, reason, `cure`."""
    try:
        yield
    except AlignTokError:
        raise
    except KeyError as error:
        raise kind(f"{path} cannot be read (it has no {error}); {cure}") from error
    except (OSError, ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise kind(f"{path} cannot be read ({reason}); {cure}") from error


def inside(folder: str | os.PathLike[str], name: Any, kind: type[AlignTokError], cure: str) -> Path:
    """Return the path of a file in `folder` that another file names.

    Raises an error of that `kind`, which ends with `cure`, for a name that leads out of the folder, also by way of a
    link, and for what is no regular file. A file that is missing is left to whoever opens it.
    """
    root = Path(folder).resolve()
    try:
        place = (root / name).resolve()
        sound = place != root and place.is_relative_to(root) and (place.is_file() or not place.exists())
    except (TypeError, ValueError, OSError, RuntimeError):  # no text, a NUL in it, links in a circle
        sound = False
    if not sound:
        raise kind(f"a file in {folder} names {name!r}, which is no file in that folder; {cure}")
    return Path(folder) / name


def _checksum_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
