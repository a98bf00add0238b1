"""Numbers out of files, which whoever wrote those may have made anything."""

from __future__ import annotations

from typing import Any


def count(value: Any, least: int = 0) -> int:
    """Return a whole number of at least `least`. Raises ValueError for anything else, True too."""
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r} is no whole number from {least} on")
    return value


def number(value: Any) -> float:
    """Return a number, which may be infinite or NaN. Raises ValueError for anything else, True too."""
    if type(value) not in (int, float):
        raise ValueError(f"{value!r} is no number")
    return float(value)
