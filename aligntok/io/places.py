"""Places of this machine in what is made to be shared: written as paths from the file, or as names alone."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

#: An absolute path, or one from a home, inside a text: of no URL, no ratio, no tag of a page.
_PLACE = re.compile(r"""(?<![^\s=:'"(,\[>;])~?/[^\s/'"<>,;)\]][^\s'"<>,;)\]]*""")

#: What is written in its stead.
_LEADS = re.compile(r"""(?<![^\s=:'"(,\[>;])\.\.?(?:/[^\s'"<>,;)\]]*|(?=[\s'",;)\]]|$))""")


def without_places(value: Any, folder: str | os.PathLike[str]) -> Any:
    """Return JSON types, or a text, with every place of this machine written as what leads to it from `folder`.

    That begins with "./" or "../"; of a place that has little in common with the folder, the name alone is left. What
    only looks like a path, such as the name of a class, stays: nothing of the kind is at the top of this machine.
    """

    def relative(path: str) -> str:
        full, top = os.path.abspath(os.path.expanduser(path)), os.path.abspath(folder)
        if not os.path.lexists("/" + Path(full).parts[1] if len(Path(full).parts) > 1 else "/ "):
            return path
        if len(Path(os.path.commonpath([full, top])).parts) <= 2 and not Path(full).is_relative_to(top):
            return os.path.basename(full)
        found = os.path.relpath(full, top)
        return found if found.startswith(".") and _leads(found) else f"./{found}"

    def write(text: str) -> str:
        if (_leads(text) and "," not in text) or (
            text.startswith(("/", "~/")) and os.path.lexists(os.path.expanduser(text))
        ):
            return relative(text)  # as a whole: it may have spaces
        return _PLACE.sub(lambda found: relative(found[0]), text)

    return _texts(value, write)


def with_places(value: Any, folder: str | os.PathLike[str]) -> Any:
    """Return JSON types in which the texts that `without_places` made lead from `folder` to absolute places again."""

    def absolute(text: str) -> str:
        return os.path.normpath(os.path.join(os.path.abspath(folder), text))

    def write(text: str) -> str:
        if _leads(text) and os.path.lexists(os.path.join(folder, text)):
            return absolute(text)  # as a whole, as above
        return _LEADS.sub(lambda found: absolute(found[0]), text)

    return _texts(value, write)


def _leads(text: str) -> bool:
    """Tell whether a text is a path from somewhere: the current folder, or, in a file, that file's."""
    return text in (".", "..") or text.startswith(("./", "../"))


def _texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return nested dicts and lists with every text, but keys and docstrings, changed; paths are texts."""
    if isinstance(value, Mapping):
        return {key: each if key == "docstring" else _texts(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_texts(each, change) for each in value]
    return change(os.fspath(value)) if isinstance(value, str | os.PathLike) else value


_DATA = re.compile(r'("data:[^"]*")')


def page_without_places(page: str, folder: str | os.PathLike[str]) -> str:
    """Return a page of HTML as :func:`without_places` does a text; what is embedded in it stays."""
    pieces = _DATA.split(page)
    pieces[::2] = [
        _PLACE.sub(lambda found: without_places(found[0], folder).removeprefix("./"), piece) for piece in pieces[::2]
    ]
    return "".join(pieces)


def hide_host() -> None:
    """Let TensorBoard's event files, named by time, host and process, say "host" in the place of the machine's name.

    tensorboard 2.20 has no option for it; its module asks `socket`, which nothing else in it does.
    """
    from types import SimpleNamespace

    from tensorboard.summary.writer import event_file_writer

    event_file_writer.socket = SimpleNamespace(gethostname=lambda: "host")
