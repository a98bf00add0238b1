"""Files of prompts: lines of text, JSON or a table, with what else they say of each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from aligntok.errors import DataError, first_line
from aligntok.io.files import read_bytes, unique_keys

MOST_BYTES = 2**30  # of a file of prompts
PROPOSITION = "proposition_id"  # is said of a line that asks something about its prompt, as DPG-Bench's do
KEYS = ("prompt", "caption", "text")  # under which a line has its prompt, in small letters or not
#: How tables are read; quotation marks mean nothing in the second, as Parti's prompts have it.
TABLES: dict[str, dict[str, Any]] = {".csv": {}, ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE}}


class PromptLine(NamedTuple):
    """A prompt, the number of its line, or of its place in a list of JSON, and all that is said there, by name."""

    number: int
    prompt: str
    said: dict[str, Any]


def read_prompts(path: str | Path) -> list[str]:
    """Return the prompts of a file, as :func:`read_prompt_file` reads it: one with several questions once."""
    lines = read_prompt_file(path)
    first = {line.prompt: line.number for line in reversed(lines)}
    return [line.prompt for line in lines if PROPOSITION not in line.said or line.number == first[line.prompt]]


def read_prompt_file(path: str | Path) -> list[PromptLine]:
    """Return what a file of prompts says: a prompt a line, or a JSON text or object with "prompt", "caption" or "text"
    in each line of a ``.jsonl`` and in the list of a ``.json``, or a row each of a ``.csv`` or ``.tsv`` with such a
    column.

    Raises DataError for a file that is missing, empty, too large, no UTF-8, or of another form, with the line's number.
    """
    try:
        content = read_bytes(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(f"prompts: {path} cannot be read ({first_line(error)}); give a file of prompts") from error
    raw = content.removeprefix(b"\xef\xbb\xbf").splitlines()
    lines = [_decoded(path, number, line) for number, line in enumerate(raw, 1)]
    suffix = Path(path).suffix.lower()
    if suffix in TABLES:
        found = list(_rows(path, "\n".join(lines), TABLES[suffix]))
    elif suffix == ".jsonl":
        found = [_line(path, number, _parsed(path, number, line)) for number, line in enumerate(lines, 1)]
    elif suffix == ".json":
        said = _parsed(path, 1, "\n".join(lines))
        if not isinstance(said, list):
            raise DataError(f"prompts: {path} holds a {type(said).__name__}; a .json is to be a list, a prompt each")
        found = [_line(path, number, each) for number, each in enumerate(said, 1)]
    else:
        found = [PromptLine(number, line, {}) for number, line in enumerate(lines, 1)]
    if not found:
        raise DataError(f"prompts: {path} has no prompts; write one in each line")
    if empty := next((line.number for line in found if not line.prompt.strip()), None):
        raise DataError(f"prompts: line {empty} of {path} is empty; write a prompt there, or remove the line")
    return [line._replace(prompt=line.prompt.strip()) for line in found]


def _decoded(path: str | Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"prompts: line {number} of {path} is not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error


def _parsed(path: str | Path, number: int, text: str) -> Any:
    try:
        said = json.loads(text, object_pairs_hook=unique_keys)
        str(said).encode()  # half of a surrogate pair, which JSON can write, is no text
    except (ValueError, RecursionError) as error:
        raise DataError(f"prompts: line {number} of {path} is no JSON ({first_line(error)}); correct it") from error
    return said


def _line(path: str | Path, number: int, said: Any) -> PromptLine:
    named = said if isinstance(said, dict) else {}
    prompt = next((named[name] for name in _prompts_names(named)), said)
    if not isinstance(prompt, str):
        raise DataError(
            f"prompts: line {number} of {path} has no prompt; write a text, or an object with one of {', '.join(KEYS)}"
        )
    return PromptLine(number, prompt, named)


def _prompts_names(names: Iterable[str]) -> list[str]:
    """Return those names that a prompt may have, the one that counts first."""
    return sorted((name for name in names if name.lower() in KEYS), key=lambda name: KEYS.index(name.lower()))


def _rows(path: str | Path, text: str, options: dict[str, Any]) -> Iterator[PromptLine]:
    reader = csv.reader(io.StringIO(text), strict=True, **options)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(
            f"prompts: line {reader.line_num} of {path} is no CSV ({first_line(error)}); correct it"
        ) from error
    columns = rows.pop(0)[1] if rows else []
    key = next((name for name in _prompts_names(columns) if columns.count(name) == 1), None)
    if key is None:
        told = ", ".join(columns[:8]) or "none"
        raise DataError(f"prompts: {path} has no column {', '.join(KEYS)}, only {told}; name one so")
    for line, row in rows:
        if len(row) != len(columns):
            raise DataError(
                f"prompts: line {line} of {path} has {len(row)} fields, and the first line {len(columns)}; "
                + ("take out the tab" if options else "put a prompt with a comma into quotes")
            )
        said = dict(zip(columns, row, strict=True))
        yield PromptLine(line, said[key], said)
