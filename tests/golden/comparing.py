"""What differs between two golden files, in words.

Made on the same processor with the same torch, numpy and Pillow, everything must be the same, bit for bit. Made on
others, losses must agree to 1e-5 and nothing else is compared, since another kernel rounds differently. A training that
builds on another in its work folder begins with that one's rounding: its losses must agree to 1e-3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import names

Row = Mapping[str, float]
TOLERANCE, BUILT_ON = 1e-5, 1e-3


def same_machine(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether two golden files were made on what computes the same bits."""
    return before["made_on"] == after["made_on"]


def extent(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Say how much was compared, and why not more."""
    if same_machine(before, after):
        return "Compared bit for bit: every loss, number and hash."
    there, here = before["made_on"], after["made_on"]
    pairs = [f"{key} {there.get(key)} there, {here[key]} here" for key in here if there.get(key) != here[key]]
    to = f"{TOLERANCE:g} ({BUILT_ON:g} after another training)"
    return f"Compared losses to {to} and no hashes, for the file was made elsewhere: {'; '.join(pairs)}."


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return a line for each loss, number or hash that is not what it was; none if all are."""
    exact = same_machine(before, after)
    found = []
    for section, kinds in before["sections"].items():
        now = after["sections"].get(section, {})
        for kind, entries in kinds.items():
            if exact or kind == "losses":
                found += [f"{section}: {line}" for line in _entries(kind, entries, now.get(kind, {}), exact)]
    return found


def _entries(kind: str, before: Mapping[str, Any], after: Mapping[str, Any], exact: bool) -> Iterator[str]:
    """Compare the entries of a kind in their order, so that those that got another name find each other."""
    if len(before) != len(after):
        yield f"{kind}: {len(before)} were {list(before)}, {len(after)} are {list(after)}"
        return
    for number, (name, was, now) in enumerate(_paired(before, after)):
        if kind == "hashes":
            if was != now:
                yield f"hash of {name} was {was}, is {now}"
        elif kind == "losses":
            yield from _training(name, was, now, 0 if exact else BUILT_ON if number else TOLERANCE)
        else:
            yield from _row(name, was, now, 0)


def _paired(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Pair values by name where the names are the same, else in order."""
    if set(before) == set(after):
        return [(name, was, after[name]) for name, was in before.items()]
    return [(name, was, now) for (name, was), now in zip(before.items(), after.values(), strict=True)]


def _training(name: str, before: list[Row], after: list[Row], tolerance: float) -> Iterator[str]:
    if len(before) != len(after):
        yield f"{name} logged {len(before)} lines, logs {len(after)}"
        return
    for was, now in zip(before, after, strict=True):
        yield from _row(f"{name}, step {was.get('step')}", was, now, tolerance)


def _row(name: str, before: Row, after: Row, tolerance: float) -> Iterator[str]:
    """Compare by name; where keys were renamed, the numbers of those without a namesake, whatever they are called."""
    if tolerance:
        before, after = _losses(before), _losses(after)
    for key in before:
        if key in after and not _same(before[key], after[key], tolerance):
            yield f"{name}: {key} was {before[key]!r}, is {after[key]!r}"
    gone = sorted((before[key], key) for key in before if key not in after)
    new = sorted((after[key], key) for key in after if key not in before)
    if len(gone) != len(new):
        yield f"{name}: gone are {dict(_swapped(gone))}, new are {dict(_swapped(new))}"
        return
    for (was, key), (now, _) in zip(gone, new, strict=True):
        if not _same(was, now, tolerance):
            yield f"{name}: {key} was {was!r}, is {now!r} or gone"


def _swapped(pairs: list[tuple[float, str]]) -> Iterator[tuple[str, float]]:
    return ((key, value) for value, key in pairs)


def _losses(row: Row) -> Row:
    return {name: value for name, value in row.items() if name.startswith(names.LOSS)}


def _same(was: float, now: float, tolerance: float) -> bool:
    """Whether two numbers are equal, or, with a tolerance, close; those near 0 to 1e-5 as they stand."""
    if not tolerance:
        return was == now or (math.isnan(was) and math.isnan(now))
    return math.isclose(was, now, rel_tol=tolerance, abs_tol=TOLERANCE)
