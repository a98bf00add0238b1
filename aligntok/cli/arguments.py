"""What every command does alike: errors told plainly, options given as words."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from aligntok.errors import AlignTokError, ConfigError

Command = Callable[[Sequence[str] | None], int]


def reporting_errors(command: Command) -> Command:
    """Turn a user's mistake into one message on stderr and its exit status; a defect of ours keeps its traceback."""

    @wraps(command)
    def wrapped(arguments: Sequence[str] | None = None) -> int:
        try:
            return command(arguments)
        except AlignTokError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return error.exit_status

    return wrapped


def parse_options(pairs: Sequence[str], option: str = "--cfg-options") -> dict[str, Any]:
    """Turn the ``key=value`` words of an option into a dict; values are Python literals, or text where they are none.

    Raises ConfigError for a word without '='.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option} takes key=value, not '{pair}'")
        if value == "...":  # as the configs' own docstrings write it
            raise ConfigError(f"{pair}: put a real value in place of the dots, such as {key}=/path/to/it")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # all that literal_eval may raise
            options[key] = value
    return options


def image_size(text: str) -> tuple[int, ...]:
    """Turn ``256`` or ``256x384`` (height x width) into (H, W). Raises ValueError, which argparse explains."""
    sides = tuple(int(side) for side in text.split("x"))
    return sides * 2 if len(sides) == 1 else sides
