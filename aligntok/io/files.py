"""Files, and folders of them, that are whole or absent: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, overload

from aligntok.errors import AlignTokError, WriteError, first_line
from aligntok.io.checksums import CHECKSUMS, checksum_path, remember, sha256, verify

if TYPE_CHECKING:  # torch is imported where tensors are: a report has none
    from torch import Tensor

T = TypeVar("T")
#: How the names of temporary files look, which a process that is killed leaves behind.
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
logger = logging.getLogger("aligntok.io")
_told: set[tuple[Path, str]] = set()
_TIED = "tied"  # in the metadata of tensors: further names of some, with the name that each is written under
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
def replacing(path: str | os.PathLike[str], cure: str = MAKE_ROOM, checksum: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success flush it to disk and rename it to `path`.

    Whatever is raised inside leaves `path` as it was and removes the temporary file. Raises WriteError, which ends with
    `cure`, for an OSError inside, while the file is flushed, and while it is renamed, and for a place that a device or
    a pipe has, such as /dev/null, which would be gone. With `checksum` the SHA-256 of
    the file is written beside it, last: where a process was killed in between there is none, never a wrong one.
    """
    target = Path(path)
    temporary = unseen(target)
    try:
        with writing(target, cure):
            if target.exists() and not target.is_file():
                raise OSError(errno.EINVAL, "it is no regular file")
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            digest = sha256(temporary) if checksum else None
            _flush(temporary)  # a disk that is full says so here, with the old file and its checksum still in place
            checksum_path(target).unlink(missing_ok=True)  # of the file that is about to be replaced
            os.replace(temporary, target)
            _flush(target.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()
    if digest is not None:
        remember(target, digest)
        with replacing(checksum_path(target), cure) as temporary:
            line = f"{digest}  ".encode() + os.fsencode(target.name)  # as `sha256sum --check` reads it
            temporary.write_bytes(line + b"\n")


@contextmanager
def writing_text(path: str | os.PathLike[str], cure: str = MAKE_ROOM) -> Iterator[TextIO]:
    """Yield a file to write UTF-8 to, as :func:`replacing` does; in names what is no text becomes ``\\udce9``."""
    how: dict[str, Any] = dict(newline="", encoding="utf-8", errors="backslashreplace")
    with replacing(path, cure) as temporary, temporary.open("w", **how) as file:
        yield file


def discard(path: Path) -> None:
    """Remove a file, if it is there, and its checksum before it: one without a file means that the file was lost."""
    checksum_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def unseen(path: Path, mark: str | None = None) -> Path:
    """Return where something is made that is to be `path`, or goes that was: beside it, and swept if it stays there.

    mark: eight hexadecimal digits, for several processes that make one folder; None: others each time.
    """
    return path.with_name(f".{path.name}.{mark or secrets.token_hex(4)}.tmp")  # as TEMPORARY has it


def put_in_place(made: Path, path: Path) -> None:
    """Let the folder `made` be `path`, whole on the disk; what was there goes. Raises OSError."""
    _flush(made)
    if path.exists():
        if not path.is_dir():
            raise OSError(errno.ENOTDIR, "it is no folder")
        os.replace(path, old := unseen(path))
        os.replace(made, path)
        remove(old)
    else:
        os.replace(made, path)
    _flush(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder, at no time there in part."""
    os.replace(path, old := unseen(path))
    remove(old)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there; of a link the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


#: Bytes of the largest file that is read whole: an image of as many pixels as Pillow decodes, three bytes each.
MOST_BYTES = 600 << 20


def regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """Open a regular file, as an `opener` of Python's open.

    Raises OSError for a pipe, a device or a folder, of which the first two could be read for ever.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    return descriptor


def read_bytes(path: str | os.PathLike[str], most: int = MOST_BYTES) -> bytes:
    """Return what a regular file holds. Raises OSError where it is none, or of more than `most` bytes."""
    with open(path, "rb", opener=regular) as file:
        size = os.fstat(file.fileno()).st_size
        check_size(size, most)
        return file.read(size)


def check_size(declared: int, most: int = MOST_BYTES) -> None:
    """Raise OSError for more bytes, or fewer than none, than may be read at once."""
    if not 0 <= declared <= most:
        raise OSError(f"it is of {declared} bytes, which is not between 0 and {most}")


def write_json(path: str | os.PathLike[str], content: Any, cure: str = MAKE_ROOM, checksum: bool = False) -> None:
    """Write JSON as :func:`replacing` does; what JSON does not have, such as a path, as its text."""
    with replacing(path, cure, checksum) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def write_checksums(
    folder: str | os.PathLike[str], names: Iterable[str] | Mapping[str, str], cure: str = MAKE_ROOM
) -> None:
    """Write the SHA-256 of files of a folder that belong together, by name, into its ``checksums.json``.

    names: what the files are called, or, by name, the SHA-256 that whoever wrote each has taken of it.
    The last file to be written: a folder of which only some files were replaced does not fit its checksums.
    """
    place = Path(folder)
    with reading(place / CHECKSUMS, WriteError, cure):
        sums = dict(names) if isinstance(names, Mapping) else {name: sha256(place / name) for name in names}
    write_json(place / CHECKSUMS, {"sha256": sums}, cure)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, as `object_pairs_hook`. Raises ValueError for a key that is there twice."""
    if len(named := dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return named


@overload
def read_json(path: str | os.PathLike[str], kind: type[AlignTokError], cure: str) -> dict[str, Any]: ...
@overload
def read_json(
    path: str | os.PathLike[str], kind: type[AlignTokError], cure: str, parse: Callable[[dict[str, Any]], T]
) -> T: ...
def read_json(path: str | os.PathLike[str], kind: type[AlignTokError], cure: str, parse: Any = None) -> Any:
    """Read a JSON file of ours, names with values, and return what it holds, or what `parse` makes of that.

    Raises an error of that `kind`, which names the file and the reason and ends with `cure`, when it is missing, cut
    off, not UTF-8, no JSON, no object, or when `parse` misses a name or finds a value that cannot be. One that is not
    what its checksum is of is told, and read.
    """
    with reading(path, kind, cure):
        content = json.loads(read_bytes(path).decode("utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not names with values")
        _say_if_changed(Path(path))
        return content if parse is None else parse(content)


def _say_if_changed(path: Path) -> None:
    """Tell once of a text file that is not what its checksum is of: people change those, so it is used all the same."""
    try:
        verify(path)
    except ValueError as error:
        if (path, sha256(path)) not in _told:
            logger.warning("%s was changed after it was written (%s); it is used as it is now", path, error)
        _told.add((path, sha256(path)))


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    cure: str = MAKE_ROOM,
    checksum: bool = True,
) -> None:
    """Write named tensors as .safetensors, as :func:`replacing` does, and their SHA-256 beside it, ``NAME.sha256``.

    Tensors may be on any device and of any layout. One of several names, such as a tied weight, is in the file once,
    and :func:`load_tensors` gives it all its names again. The files are as readable as the umask lets them be.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    first = names_of_one_tensor(tensors)
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items() if first[name] == name}
    places = {name: tensor.untyped_storage().data_ptr() for name, tensor in own.items()}
    users = Counter(places.values())  # parts of one storage are written as tensors of their own
    laid_out = {name: t.clone() if t.numel() and users[places[name]] > 1 else t for name, t in own.items()}
    tied = {name: other for name, other in first.items() if name != other}
    said = {**(metadata or {}), **({_TIED: json.dumps(tied)} if tied else {})}
    with replacing(path, cure, checksum) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(laid_out, temporary, said or None)
        except SafetensorError as error:  # a full disk, in its words
            raise OSError(first_line(error)) from error
        temporary.chmod(mode)  # safetensors 0.8 makes files that only their owner can read


def names_of_one_tensor(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return for every name the first name of the same tensor: itself, but for a tensor of several names.

    Two are the same that lie at one place in memory, alike in type and layout; on the meta device, one object.
    """
    first: dict[Any, str] = {}
    found = {}
    for name, tensor in tensors.items():
        place: Any = tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        if tensor.is_meta or not tensor.numel():
            place = id(tensor)
        found[name] = first.setdefault(place, name)
    return found


def check_file(path: str | os.PathLike[str], kind: type[AlignTokError], cure: str) -> bool:
    """Tell whether a file has a checksum, in ``NAME.sha256`` or in the ``checksums.json`` beside it.

    Raises an error of that `kind`, which ends with `cure`, when it has one that is of other bytes. A file that is
    missing passes, which whoever opens it explains.
    """
    with reading(path, kind, cure):
        if not Path(path).exists():
            return False
        os.close(regular(path))
        return verify(Path(path))


@contextmanager
def opened_tensors(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a .safetensors file, as `safe_open` does, whose tensors are mapped.

    Raises OSError or ValueError where it is missing, no regular file or damaged, which may show while it is read.
    """
    from safetensors import SafetensorError, safe_open

    os.close(regular(path))
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(first_line(error)) from error


def load_tensors(path: str | os.PathLike[str], kind: type[AlignTokError], cure: str) -> dict[str, Tensor]:
    """Read a .safetensors file onto the CPU, mapped where it lies; checked by :func:`check_file`.

    Raises an error of that `kind`, which ends with `cure`, for a file that is missing or damaged.
    """
    check_file(path, kind, cure)
    with reading(path, kind, cure), opened_tensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        tied = json.loads((file.metadata() or {}).get(_TIED, "{}"))
        return {**tensors, **{name: tensors[other] for name, other in tied.items()}}


#: What a file that is not what it should be raises where it is read, or where something is made by what it says.
DAMAGE = (
    *(OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError),
    NotImplementedError,  # pyarrow's word for numbers of 127 bits and their like, in a file of which a byte has changed
)


@contextmanager
def reading(path: str | os.PathLike[str], kind: type[AlignTokError], cure: str) -> Iterator[None]:
    """Turn what a missing or damaged file raises inside into an error of that `kind`: file, reason, `cure`."""
    try:
        yield
    except AlignTokError:
        raise
    except KeyError as error:
        raise kind(f"{path} cannot be read (it has no {error}); {cure}") from error
    except DAMAGE as error:
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
