"""One definition of an option: a field of a settings class, read from configs, keywords and command lines alike.

    @settings
    class Sampling:
        \"""Draw samples of a trained generator.\"""

        steps: Annotated[int, Field(ge=1)] = 30
        \"""Sampling steps.\"""

The field's name is the key, the keyword and, with hyphens, the flag; its annotation says what is allowed, the line
below it what it means. :func:`read` takes a config's dict, :func:`aligntok.cli.arguments.parse` a command line;
:func:`fields_of` is what tables are made of. A value that is not allowed is a ConfigError in one sentence, wherever it
comes from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, wraps
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_type_hints, overload

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from typing_extensions import dataclass_transform

from aligntok.annotations import alternatives, in_words, refusal, strictly
from aligntok.errors import AlignTokError, ConfigError, unknown

T = TypeVar("T")
_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, arbitrary_types_allowed=True)

#: Whole numbers of which there must be one, and of which there may be none; no counter of C or numpy runs over.
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
#: Of samples: torch takes no more bits on the CPU.
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
#: What is held at once: images of a batch, pictures of a sheet, processes of a loader, channels and blocks of a model.
BatchSize = Annotated[int, Field(ge=1, le=2**20)]
Pictures = Annotated[int, Field(ge=0, le=10_000)]
Workers = Annotated[int, Field(ge=0, le=1024)]
Width = Annotated[int, Field(ge=1, le=2**16)]
Depth = Annotated[int, Field(ge=1, le=1000)]
#: The sides of a grid of tokens, whose positions are computed wherever it is built.
_Side = Annotated[int, Field(ge=1, le=512)]
Grid = _Side | tuple[_Side, _Side]
#: Finite numbers: above zero, zero too, and below one as well.
AboveZero = Annotated[float, Field(ge=1e-9, le=1e9)]
NotNegative = Annotated[float, Field(ge=0, le=1e9)]
Share = Annotated[float, Field(ge=0, lt=1)]
#: Pixels: a side, or (H, W).
ImageSize = Width | tuple[Width, Width]
#: A name of :data:`aligntok.device.PRECISIONS`; or "auto", bf16 where the device is fast in it and fp32 elsewhere.
Precision = Literal["fp32", "tf32", "bf16", "fp16", "auto"]


@dataclasses.dataclass(frozen=True)
class ChangesTo:
    """Of an annotation ``Annotated[dict[str, Any], ChangesTo(cls)]``: some of the fields of a settings class, to take
    the place of others' values. A command line has a flag for each; names that `cls` does not have are refused, the
    values once they are put in place.
    """

    cls: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._named, handler(source))

    def _named(self, given: dict[str, Any]) -> dict[str, Any]:
        for name in given:
            check_name(self.cls, name, self.cls.__name__)
        return given


@dataclasses.dataclass(frozen=True, eq=False)
class FilledFrom:
    """Of an annotation ``Annotated[dict[str, Any], FilledFrom(default)]``, a component's config: what it leaves out is
    the default's if it is of the same type, or of none.
    """

    default: dict[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._filled, handler(source))

    def _filled(self, given: dict[str, Any]) -> dict[str, Any]:
        same = given.get("type", self.default["type"]) == self.default["type"]
        return {**self.default, **given} if same else given


@overload
def settings(cls: type[T], /) -> type[T]: ...
@overload
def settings(*, renamed: Mapping[str, str] = ...) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
def settings(cls: Any = None, /, *, renamed: Mapping[str, str] | None = None) -> Any:
    """Make a class a dataclass of settings: frozen, by keyword, each value checked, nothing besides its fields.

    True is no number, an int may stand for a float, lists and tuples for one another, a dict for settings within;
    NaN and infinity need ``Field(allow_inf_nan=True)``. A ``__post_init__`` may check what is between fields, and
    raises ConfigError. renamed: old names of fields, each with its new one, which whoever uses the old is told.
    """
    if cls is None:
        return partial(settings, renamed=renamed)
    own = vars(cls).get("__annotations__", {})
    hints = get_type_hints(cls, include_extras=True)
    bases = [base for base in reversed(cls.__mro__[1:]) if "__declared__" in vars(base)]
    inherited = {name: annotation for base in bases for name, annotation in base.__declared__.items()}
    declared = {**inherited, **{name: hints[name] for name in own}}
    cls.__annotations__ = {name: strictly(declared[name]) for name in own}
    made: Any = checked_dataclass(config=_CONFIG, kw_only=True, frozen=True)(cls)
    made.__declared__ = declared
    made.__renamed__ = {**{old: new for base in bases for old, new in base.__renamed__.items()}, **(renamed or {})}
    check = made.__init__

    @wraps(check)
    def __init__(self: Any, **given: Any) -> None:
        try:
            check(self, **given)
        except ValidationError as error:
            raise _refused(error.errors(include_url=False), made, given, made.__name__) from None

    made.__init__ = __init__
    return made


def read(cls: type[T], given: Mapping[str, Any], where: str, flags: Mapping[str, str] | None = None) -> T:
    """Return settings from a dict, of a config or of JSON; `where` is what errors call it. Raises ConfigError.

    flags: how a command line gave each field, by its dotted name, for errors to quote.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where} is {given!r}; it must be a dict of settings: {', '.join(cls.__declared__)}")
    try:
        named = {str(key): value for key, value in given.items()}
        return cls.__pydantic_validator__.validate_python(named)  # type: ignore[attr-defined]
    except ValidationError as error:
        raise _refused(error.errors(include_url=False), cls, given, where, flags) from None


def check_name(cls: Any, name: str, where: str) -> None:
    """Raise ConfigError unless the settings `cls` have a field of that name."""
    if name not in cls.__declared__:
        raise ConfigError(_unknown(name, cls, where))


def check_given(cls: Any, given: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for what is not allowed in some of the settings of `cls`, which others are merged with before
    they are read: names and single values are checked, what is missing or lies between fields is not.
    """
    try:
        cls.__pydantic_validator__.validate_python(dict(given))
    except ValidationError as error:
        errors = [each for each in error.errors(include_url=False) if each["type"] != "missing"]
        if errors := [each for each in errors if not isinstance(each.get("ctx", {}).get("error"), AlignTokError)]:
            raise _refused(errors, cls, given, where) from None


def _inner(annotation: Any) -> Any:
    """Return the settings class that an annotation is, or may be beside None; None where it is none."""
    return next((each for each in alternatives(annotation) if hasattr(each, "__declared__")), None)


def _refused(
    errors: Sequence[Any], cls: Any, given: Mapping[str, Any], where: str, flags: Mapping[str, str] | None = None
) -> AlignTokError:
    """Return pydantic's errors as one of ours: about an unknown key if there is one, else about the first value."""
    found = [(_place(each["loc"], cls, given), each) for each in errors]
    place, first = next((pair for pair in found if pair[1]["type"] == "unexpected_keyword_argument"), found[0])
    path, owner, annotation, value = place
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, AlignTokError):  # of a __post_init__
        return cause if flags is not None else type(cause)(f"{where}: {cause}")
    places = len({other for (other, *_), _ in found})
    more = f" (and {places - 1} more)" if places > 1 else ""
    if first["type"] == "unexpected_keyword_argument":
        return ConfigError(_unknown(str(first["loc"][-1]), owner, ", ".join([where, *path])) + more)
    name = ".".join(path)
    if first["type"] == "missing" and first["loc"][-1] == path[-1]:
        return ConfigError(f"{where}: {name} is not given; it must be {in_words(annotation)}{more}")
    shown = f"{name}={value!r}"[:200] if flags is None else flags.get(name, name)
    of_it = [each for (other, *_), each in found if other == path]
    return ConfigError(refusal(of_it, annotation, f"{where}: {shown}", value, kind=flags is None) + more)


def _place(location: Sequence[Any], cls: Any, given: Any) -> tuple[tuple[str, ...], Any, Any, Any]:
    """Follow a location of pydantic's, which also has union members and numbers in lists, along the fields it names.

    Return their names, the settings class of the last, the last's annotation, and the value given for it, None where
    there is none.
    """
    names: tuple[str, ...] = ()
    annotation = cls
    for step in location:
        if cls is not None and step in cls.__declared__:
            names, annotation = (*names, step), cls.__declared__[step]
            given = given.get(step) if isinstance(given, Mapping) else getattr(given, step, None)
            cls = _inner(annotation)
    return names, cls, annotation, given


def _unknown(key: str, cls: Any, where: str) -> str:
    if key in cls.__renamed__:
        return f"{where}: no key named '{key}'; it is called '{cls.__renamed__[key]}' now"
    return f"{where}: {unknown('key', key, sorted(cls.__declared__))}"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of dicts in dicts by dotted name; that of an empty one is the dict."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = isinstance(value, Mapping) and value
        found |= flatten(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found


@dataclasses.dataclass(frozen=True)
class Option:
    """One field, as tables have it: dotted name, what is allowed in words, default, meaning, and its annotation."""

    name: str
    allowed: str
    default: Any  # dataclasses.MISSING where it must be given
    doc: str
    annotation: Any

    @property
    def settings(self) -> Any:
        """The settings class within, whose fields follow; None for a plain value."""
        return _inner(self.annotation)


def fields_of(cls: Any, prefix: str = "") -> Iterator[Option]:
    """Yield every field in order, those of settings within it after it."""
    for field in dataclasses.fields(cls):
        annotation = cls.__declared__[field.name]
        # pydantic sees the line below a field in the class that has it, and not in those made of it
        held = (getattr(each, "__pydantic_fields__", {}).get(field.name) for each in cls.__mro__)
        doc = next((each.description for each in held if each is not None and each.description), "")
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        yield Option(prefix + field.name, in_words(annotation), default, " ".join(doc.split()), annotation)
        if _inner(annotation) is not None:
            yield from fields_of(_inner(annotation), f"{prefix}{field.name}.")


@settings
class Sharding:
    """Weights, gradients, optimiser and averages in shares (FSDP2)."""

    shard: Positive | None = None
    """Processes that share them; several such groups hold the same (HSDP); None: all."""
    parameters: Literal["fp32", "bf16"] = "fp32"
    """What weights are gathered in; bf16 computes as precision="bf16" does. Gradients are averaged in float32."""


#: How processes hold a model: each the whole, shares of it, or shares as said.
Parallel: TypeAlias = Literal["replicate", "shard"] | Sharding
