"""The errors a user can meet. Each message says who, what was given, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # errors are said without torch
    from torch import Tensor


class AlignTokError(Exception):
    """Base of every error that a user's input can cause; tools print it without a traceback, and exit with a status."""

    exit_status = 2


class ConfigError(AlignTokError, ValueError):
    """A config, an option or a combination of components that cannot work."""


class DataError(AlignTokError):
    """Images or shards that are missing, empty or unreadable."""


class ImageError(DataError):
    """One image that cannot be read; its text is a short reason, for a message that names the image."""


class ShardError(DataError):
    """A shard that is gone, stays away, or is another file than when it was listed."""


class WeightsError(AlignTokError):
    """Pretrained weights that cannot be reached, or that do not fit the model."""


class CheckpointError(AlignTokError):
    """A checkpoint that is missing, damaged, or of another shape."""


class WriteError(DataError):
    """A file that cannot be written: no room, no permission. What was there before stays as it was."""


class DivergenceError(AlignTokError):
    """Training whose losses or gradients stay out of bounds."""


class ProcessError(AlignTokError):
    """Another process of the same run failed, fell silent or was killed."""


class Preempted(AlignTokError):
    """SIGTERM came; the step was finished and a checkpoint written. The same command goes on from there."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: try again


class UnknownComponentError(ConfigError, LookupError):
    """A registry has no component of that name, or none that can be imported."""


class PluginError(AlignTokError):
    """A plugin, or a component, that cannot be used as it is."""


def suggestion(given: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'x'? "`` for the nearest known name, or an empty string when nothing is near."""
    near = difflib.get_close_matches(given, list(known), n=1)
    return f"did you mean '{near[0]}'? " if near else ""


def first_line(error: object) -> str:
    """Return the first line of an error's text (200 characters), or its class's name: a reason to quote in our own."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def some_of(names: Sequence[str], shown: int | None = 4) -> str:
    """Return the first `shown` names (None: all), and how many more there are."""
    listed = names[:shown]
    return ", ".join(listed) + (f" and {len(names) - len(listed)} more" if len(names) > len(listed) else "")


def unknown(kind: str, given: object, known: Iterable[object], shown: int | None = None) -> str:
    """The sentence about a name that there is not: no `kind` of that name, the nearest one, and those known.

    shown: how many of the known ones to list, None for all.
    """
    names = [str(name) for name in known]
    return f"no {kind} named '{given}'; {suggestion(str(given), names)}known: {some_of(names, shown) or 'none'}"


def at_least(least: float, where: str = "", /, **options: float | None) -> None:
    """Raise ConfigError for an option below `least`; one that is None is left out. `where` begins the message."""
    for name, value in options.items():
        if value is not None and value < least:
            prefix = f"{where}: " if where else ""
            raise ConfigError(f"{prefix}{name} is {value}; it must be {least} or more")


def distinct(**lists: Iterable[Any]) -> None:
    """Raise ConfigError for an option that has a value twice, where twice the same would pass for two."""
    for name, values in lists.items():
        found = [*values]
        if twice := [value for place, value in enumerate(found) if value in found[:place]]:
            raise ConfigError(f"{name}={found} has {twice[0]!r} twice; give each once")


def check_same_shape(who: str, **tensors: Tensor) -> None:
    """Raise ConfigError unless the two named tensors have one shape; broadcasting would hide the mistake."""
    (name_a, a), (name_b, b) = tensors.items()
    if a.shape != b.shape:
        raise ConfigError(f"{who}: {name_a} is {tuple(a.shape)}, {name_b} is {tuple(b.shape)}; shapes must agree")


def multiples_of(unit: int, what: str, size: Iterable[int], of: str = "f") -> None:
    """Raise ConfigError, naming a size that works, unless the sides of `size` are multiples of `unit`.

    what: whose size it is; of: what the unit is called.
    """
    sides = tuple(size)
    if any(side < 1 or side % unit for side in sides):
        near = tuple(max(1, round(side / unit)) * unit for side in sides)
        raise ConfigError(f"{what} {sides}; its sides must be multiples of {of} = {unit}, such as {near}")
