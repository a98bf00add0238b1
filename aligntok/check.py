"""Whether the files of a folder are what they were when they were written, and whether any is missing."""

from __future__ import annotations

import json
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from aligntok.errors import ConfigError, DataError, first_line, some_of
from aligntok.io.arrays import damage_told
from aligntok.io.checksums import CHECKSUMS, SUFFIX, read_checksums, verify
from aligntok.io.files import DAMAGE, TEMPORARY, inside, read_json
from aligntok.settings import settings

_THREADS = 8
_AGAIN = "copy it again, or make it anew"
_FOLDER_AGAIN = "copy the folder again, or make it anew"
#: What to do about a file, by what its path ends with; the first that fits.
_CURES = (
    (r"checkpoints/step_\d+\.pt", "remove it and its .sha256: the training goes on from the checkpoint before it"),
    (r"checkpoints/step_\d+/[^/]+", "remove its folder: the training goes on from the checkpoint before it"),
    (r"frozen\.safetensors", "copy the stage's folder again, whole, or remove that folder to train it anew"),
    (r"ema_snapshots/[^/]+", "copy it again, or remove it: widths are then made of the other snapshots"),
    (r"shard_\d+\.safetensors", "start the command that made the cache again: it encodes that shard anew"),
    (r"manifest\.json", "remove it and start the command that made the cache again: it writes that file anew"),
    (r"buckets_[^/]+\.npy", "remove it: the next start reads the images' sizes again"),
    (r"images/\d+\.png", "remove it and start the same command again, which draws what is missing"),
    (r"samples\.npz", "remove it and start the same command again, which writes it from the pictures"),
    (r"\.json", "copy it again; if you changed it, remove what has its checksum"),
)


@settings
class CheckRequest:
    """Check the files of a folder, or a single file: checksums, formats, what is missing.

    aligntok check work_dirs/my_run
    aligntok check my_tokenizer --json
    """

    folder: str | Path
    """A work folder, a stage, a cache of latents or texts, an export, samples, references; or one file."""


class Problem(NamedTuple):
    """What is wrong with a file, and what to do."""

    path: Path
    reason: str
    cure: str


def check_folder(asked: CheckRequest) -> list[Problem]:
    """Print a line for each problem, and one that counts; return the problems.

    A file is right whose SHA-256 is the one that was written with it, or, in a format with checksums of its own (PNG,
    .npz, .pt), whose parts fit theirs. Other files are counted and named: of them only the format is looked at, where
    it is one of ours. Links are not followed. Raises ConfigError where there is nothing to check.
    """
    root = Path(asked.folder).expanduser()
    if not root.exists():
        raise ConfigError(f"there is no {root} to check; give a folder, or a file, that AlignTok wrote")
    problems: list[Problem] = []
    files = [root] if root.is_file() else [*_files(root, problems)]
    if not files and not problems:
        raise ConfigError(f"{root} has no files to check")
    from aligntok.distributed.job import progress_bar

    unchecked: list[Path] = []
    with ThreadPoolExecutor(_THREADS) as pool, progress_bar(len(files), f"checking {root}", "file") as bar:
        for path, found in zip(files, pool.map(_look, files), strict=True):
            bar.update()
            if isinstance(found, Problem):
                problems.append(found)
            elif not found:
                unchecked.append(path)
    if root.is_dir():
        seen = {problem.path for problem in problems}
        folders = dict.fromkeys(path.parent for path in files)
        problems += [each for folder in folders for each in _missing(folder, seen) if each.path not in seen]
    base = root.parent if root.is_file() else root
    for path, reason, cure in problems:
        print(f"{os.path.relpath(path, base)}: {reason}; {cure}")
    bare = ""
    if unchecked:
        names = some_of([os.path.relpath(path, base) for path in unchecked], shown=8)
        bare = f"; {len(unchecked)} have no checksum and are unchecked: {names}"
    right = len(files) - len({problem.path for problem in problems} & {*files}) - len(unchecked)
    wrong = f"{len(problems)} problem{'s' * (len(problems) > 1)}, " if problems else ""
    print(f"{root}: {wrong}{right} of {len(files)} files are as they were written{bare}")
    return problems


def _files(root: Path, problems: list[Problem]) -> Iterator[Path]:
    """Yield the files of a folder; one in it that cannot be listed is a problem more."""

    def note(error: OSError) -> None:
        problems.append(
            Problem(Path(error.filename), f"cannot be listed ({error.strerror})", "correct its permissions")
        )

    for parent, folders, names in os.walk(root, onerror=note):
        folders[:] = sorted(name for name in folders if not TEMPORARY.fullmatch(name))
        for name in sorted(names):
            if name != ".lock" and not (name.startswith(".") and name.endswith(".tmp")):
                yield Path(parent, name)


def _look(path: Path) -> Problem | bool:
    """Return what is wrong with a file; else whether it was held against a checksum."""
    cure = _cure(path)
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        if path.name.endswith(SUFFIX):
            of = path.with_name(path.name.removesuffix(SUFFIX))
            return True if of.is_file() else Problem(of, "is gone, and its checksum is there", cure)
        checked = verify(path)
        for end, look in _FORMATS.items():
            if path.name.endswith(end):
                checked |= look(path, checked)
        return checked
    except DAMAGE as error:
        return Problem(path, f"is damaged ({getattr(error, 'strerror', None) or error})", cure)


def _cure(path: Path) -> str:
    return next((cure for end, cure in _CURES if re.search(rf"{end}$", path.as_posix())), _AGAIN)


def _look_at_json(path: Path, checked: bool) -> bool:
    text = path.read_text(encoding="utf-8")
    if path.name == CHECKSUMS:
        read_checksums(path.parent)
        return True  # the files that it names are held against it
    try:
        json.loads(text)
    except ValueError:
        for line in text.splitlines():  # as mmengine logs scalars
            json.loads(line)
        if text.lstrip()[:1] != "{":
            raise
    return False


def _look_at_tensors(path: Path, checked: bool) -> bool:
    with path.open("rb") as file:
        size, begin = path.stat().st_size, 8 + int.from_bytes(file.read(8), "little")
        if begin > size:
            raise ValueError("its header is cut off")
        header = json.loads(file.read(begin - 8))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    needed = begin + max(ends, default=0)
    if needed != size:
        raise ValueError(f"{size} bytes of {needed}")
    return False


def _look_at_archive(path: Path, checked: bool) -> bool:
    if not checked:
        with damage_told(), zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            raise ValueError(f"the checksum of {bad} in it does not fit")
    return True


def _look_at_picture(path: Path, checked: bool) -> bool:
    content, at, kind = path.read_bytes(), 8, b""
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError("it is no PNG")
    while kind != b"IEND":
        if len(content) < at + 12:
            raise ValueError("it is cut off")
        size, kind = struct.unpack_from(">I4s", content, at)
        end = at + 8 + size
        if len(content) < end + 4:
            raise ValueError("it is cut off")
        if (zlib.crc32(content[at + 4 : end]),) != struct.unpack_from(">I", content, end):
            raise ValueError("the checksum of a part does not fit")
        at = end + 4
    return True


_FORMATS = {
    ".json": _look_at_json,
    ".safetensors": _look_at_tensors,
    ".npz": _look_at_archive,
    ".pt": lambda path, checked: _look_at_archive(path, checked) and checked,  # which always has one of ours
    ".png": _look_at_picture,
}


def _missing(folder: Path, seen: set[Path]) -> Iterator[Problem]:
    """Yield what a folder lacks, by what its own files say it has; those that are damaged are `seen`."""
    for name, look in _WHOLE.items():
        if (folder / name).is_file():
            try:
                yield from look(folder)
            except (DataError, *DAMAGE) as error:  # it leads astray
                if not any(path.parent == folder for path in seen):
                    yield Problem(folder / name, f"is no list of what the folder has ({first_line(error)})", _AGAIN)


def _missing_of_checksums(folder: Path) -> Iterator[Problem]:
    for name in read_checksums(folder):
        if not inside(folder, name, DataError, "").is_file():
            cure = _cure(folder / name) if folder.parent.name == "checkpoints" else _FOLDER_AGAIN
            yield Problem(folder / name, f"is gone, and {CHECKSUMS} names it", cure)


def _missing_of_stage(folder: Path) -> Iterator[Problem]:
    if [*folder.glob("checkpoints/step_*")] and not (folder / "frozen.safetensors").is_file():
        cure = "copy the stage's folder again, whole, or train it anew"
        yield Problem(folder / "frozen.safetensors", "is gone", cure)


def _missing_of_checkpoint(folder: Path) -> Iterator[Problem]:
    if folder.parent.name == "checkpoints" and not (folder / CHECKSUMS).is_file():
        yield Problem(folder / CHECKSUMS, "is gone", _cure(folder / CHECKSUMS))


def _missing_of_cache(folder: Path) -> Iterator[Problem]:
    again = "start the command that makes it again: it encodes what is missing"
    if not (folder / "manifest.json").is_file():
        yield Problem(folder, "this cache is not finished", again)
        return
    shards = {s["file"]: s["bytes"] for s in read_json(folder / "manifest.json", DataError, "")["shards"]}
    for name, size in shards.items():
        path = inside(folder, name, DataError, "")
        if not path.is_file():
            yield Problem(path, "is gone, and the manifest names it", again)
        elif path.stat().st_size != size:
            said = f"has {path.stat().st_size} bytes, {size} by the manifest"
            yield Problem(path, said, "copy the cache again, whole")
    for path in sorted(folder.glob("shard_*.safetensors")):
        if path.name not in shards:
            yield Problem(path, "is no shard of the manifest", f"remove it, or {again}")


def _missing_of_samples(folder: Path) -> Iterator[Problem]:
    said = read_json(folder / "samples.json", DataError, "")
    wanted = int(said["num"])  # a stranger's number: what is there is counted, not what should be
    names = {path.name: int(path.stem) for path in (folder / "images").glob("*.png") if path.stem.isdecimal()}
    lost = wanted - sum(name == f"{number:06d}.png" and number < wanted for name, number in names.items())
    if lost or not said["finished"]:
        reason = f"{lost} of {wanted} samples are not there" if lost else "these samples are not finished"
        yield Problem(folder, reason, "start the same command again, which draws what is missing")


def _missing_of_export(folder: Path) -> Iterator[Problem]:
    cure = "copy the folder again, or start the training again: it exports it anew"
    for name in ("generator.safetensors", "tokenizer/config.json", "tokenizer/model.safetensors"):
        if not (folder / name).is_file():
            yield Problem(folder / name, "is gone", cure)


#: What looks for missing files in a folder, by the file that tells what it is.
_WHOLE = {
    CHECKSUMS: _missing_of_checksums,
    "stage.json": _missing_of_stage,
    "state.json": _missing_of_checkpoint,
    "encoding.json": _missing_of_cache,
    "texts.json": _missing_of_cache,
    "samples.json": _missing_of_samples,
    "latent_diffusion.json": _missing_of_export,
}
