"""The configs that come with AlignTok: beside the package in a clone, in it where it is installed."""

from __future__ import annotations

import ast
import os
from contextlib import suppress
from pathlib import Path

from aligntok.errors import ConfigError, unknown
from aligntok.io.files import read_bytes, replacing
from aligntok.io.folders import check_writable
from aligntok.settings import settings

_PACKAGE = Path(__file__).parent
_BASES = "_base_"


@settings
class CopyRequest:
    """Copy a config that comes with AlignTok, and those that it builds on, to change it.

    aligntok configs cp aligntok_dinov2_f16d32 my_configs
    aligntok configs cp demo/photographs_f8d16 my_configs --force
    """

    name: str
    """Its name, as `aligntok configs ls` has it."""
    out: str | Path
    """The folder to write; the config and its bases lie in it as they lie here."""
    force: bool = False
    """Overwrite what is there."""


def shipped() -> Path:
    """Return the folder of the configs. Raises ConfigError where there is none."""
    for place in (_PACKAGE / "_configs", _PACKAGE.parent / "configs"):
        if (place / _BASES).is_dir():
            return place
    raise ConfigError(f"no configs came with this installation ({_PACKAGE}); install AlignTok again, from a wheel")


def listed() -> dict[str, str]:
    """Return the first line of each config's docstring, by name; bases are none."""
    root = shipped()
    paths = sorted(path for path in root.rglob("*.py") if _BASES not in path.parts)
    paths.sort(key=lambda path: (len(path.relative_to(root).parts), path))  # those of the paper first
    return {path.relative_to(root).with_suffix("").as_posix(): _first_line(path) for path in paths}


def copy(asked: CopyRequest) -> list[Path]:
    """Copy a config and what it builds on into a folder, in which they lie as here; return the copies, it first.

    Raises ConfigError for a name that there is not, and for a file that is there and differs, unless `force`.
    """
    root, out = shipped(), Path(asked.out).expanduser()
    name = asked.name.removeprefix("configs/").removesuffix(".py")
    if name not in (known := listed()):
        raise ConfigError(f"configs cp: {unknown('config', name, known, shown=8)}; see aligntok configs ls")
    sources = _with_bases((root / f"{name}.py").resolve())
    copies = {source: out / source.relative_to(root.resolve()) for source in sources}
    for source, target in copies.items():
        if os.path.lexists(target) and not asked.force and not _same(source, target):
            raise ConfigError(f"{target} is there and is another one; give another folder, or --force")
    check_writable(out)
    for source, target in copies.items():
        with replacing(target) as temporary:
            temporary.write_bytes(source.read_bytes())
    return list(copies.values())


def _same(source: Path, target: Path) -> bool:
    with suppress(OSError):  # what cannot be read is another one
        return read_bytes(target) == source.read_bytes()
    return False


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def _with_bases(path: Path) -> list[Path]:
    """Return a config and the files beside it that it names, its bases or what it compares, and theirs, each once."""
    texts = (
        node.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Constant)
    )
    named = [(path.parent / text).resolve() for text in texts if isinstance(text, str) and text.endswith(".py")]
    below = (each for other in named if other.is_file() for each in _with_bases(other))
    return list(dict.fromkeys([path, *below]))
