"""What a value may be, as its annotation says: checked strictly, in words, and refused in one sentence.

pydantic does the checking; it is imported when something is checked.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial, wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from aligntok.errors import ConfigError, first_line, suggestion, unknown

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_F = TypeVar("_F", bound=Callable[..., Any])
_UNIONS = (Union, types.UnionType)
_LISTS = (tuple, list, Sequence)
#: Kinds of pydantic's errors about a value of the right type.
_OF_A_VALUE = (
    *("greater_than", "less_than", "finite_number", "literal_error", "too_short", "too_long", "multiple_of"),
    *("no_float32", "no_place"),
)
_LONGEST = 255  # bytes of a name on a disk
_CEILING = 1000  # an upper bound that is told only to who is above it
_FLOOR = 1e-3  # a lower bound above zero that is told only to who is below it
_SHOWN = 100  # letters of a value that is refused
_TINIEST = 2.0**-126  # the smallest normal float32: what is nearer to 0 is 0 for torch, or nearly
_BOUNDS = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}


def parts(annotation: Any) -> tuple[Any, list[Any]]:
    """Return an annotation without its ``Annotated``, and what that said of it, pydantic's fields taken apart."""
    if get_origin(annotation) is not Annotated:
        return annotation, []
    bare, *said = get_args(annotation)
    return bare, [each for one in said for each in (getattr(one, "metadata", None) or [one])]


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation alone."""
    bare, _ = parts(annotation)
    return get_args(bare) if get_origin(bare) in _UNIONS else (annotation,)


def strictly(annotation: Any) -> Any:
    """Return an annotation under which pydantic takes nothing for what it is not, but an int for a float, and lists
    and tuples for one another, as configs and JSON write them.
    """
    from pydantic import AfterValidator, BeforeValidator, Strict

    origin, arguments = get_origin(annotation), get_args(annotation)
    if float in (annotation, *arguments[:1]) and origin in (None, Annotated):  # its bounds are looked at first
        return Annotated[(float, Strict(), *arguments[1:], AfterValidator(_float32))]
    if origin is Annotated:
        return Annotated[(strictly(arguments[0]), *arguments[1:])]
    if origin in _UNIONS:
        either: Any = Union[tuple(strictly(each) for each in arguments)]  # noqa: UP007 (of as many as there are)
        return Annotated[either, AfterValidator(_place)] if _names_a_place(arguments) else either
    if annotation in (int, str, bool, bytes):
        return Annotated[annotation, Strict()]
    if origin in _LISTS:
        inner = tuple(each if each is ... else strictly(each) for each in arguments)
        return Annotated[origin[inner], BeforeValidator(partial(_as, list if origin is list else tuple))]
    if annotation in (tuple, list):
        return Annotated[annotation, BeforeValidator(partial(_as, annotation))]
    if dataclasses.is_dataclass(annotation) and not hasattr(annotation, "__pydantic_fields__"):
        return Annotated[Any, AfterValidator(partial(_instance, annotation))]  # of no settings: no dict stands for it
    return annotation


def _instance(kind: Any, given: Any) -> Any:
    if not isinstance(given, kind):
        raise ValueError(f"no {kind.__name__}")
    return given


def _names_a_place(kinds: Sequence[Any]) -> bool:
    classes = [get_origin(kind) or kind for kind in kinds]
    return any(inspect.isclass(each) and issubclass(each, os.PathLike) for each in classes)


def _place(given: Any) -> Any:
    """Return what names a file or a folder, among other things; refused is what no disk can have."""
    if isinstance(given, str | os.PathLike):
        name = os.fsencode(given)
        is_text = isinstance(os.fspath(given), str)
        if not name or not is_text or b"\0" in name or len(name) > 4000 or max(map(len, name.split(b"/"))) > _LONGEST:
            from pydantic_core import PydanticCustomError

            raise PydanticCustomError("no_place", "nothing that a file could be called")
    return given


def _as(kind: type, given: Any) -> Any:
    """Return a list or a tuple as that `kind`; what is neither is refused, although pydantic would take a set."""
    if not isinstance(given, list | tuple):
        raise ValueError("neither list nor tuple")
    return kind(given)


def _float32(given: float) -> float:
    """Return a number; one that is nearer to 0 than a float32 can be, and not 0, is refused."""
    if 0 < abs(given) < _TINIEST:
        from pydantic_core import PydanticCustomError

        raise PydanticCustomError("no_float32", "nearer to 0 than a float32")
    return given


def in_words(annotation: Any) -> str:
    """Return what an annotation allows, as errors and the docs' tables say it: "int of at least 1 or None"."""
    bare, said = parts(annotation)
    origin, arguments = get_origin(bare), get_args(bare)
    if origin in _UNIONS:
        words = " or ".join(dict.fromkeys(in_words(each) for each in arguments))
    elif origin is Literal:
        *rest, last = map(repr, arguments)
        words = f"{', '.join(rest)} or {last}" if rest else last
    elif origin is tuple and ... not in arguments:
        words = f"({', '.join(map(in_words, arguments))})"
    elif origin in _LISTS:
        words = f"list of {in_words(arguments[0])}"
    elif origin is dict and arguments[1] is not Any:
        words = f"dict of {in_words(arguments[1])}"
    elif bare in (Any, float, type(None)):
        words = {Any: "anything", float: "int or float"}.get(bare, "None")
    elif bare in _LISTS:
        words = "list"
    else:
        words = "dict" if hasattr(bare, "__pydantic_fields__") else getattr(origin or bare, "__name__", str(bare))
    pairs = [(name, getattr(each, name)) for each in said for name in _BOUNDS if hasattr(each, name)]
    shown = [("gt", 0) if name == "ge" and 0 < bound <= _FLOOR else (name, bound) for name, bound in pairs]
    bounds = [f"{_BOUNDS[name]} {bound}" for name, bound in shown if not (name == "le" and bound >= _CEILING)]
    least = [f", {each.min_length} or more of them" for each in said if hasattr(each, "min_length")]  # in a list
    return "".join([words, " " + " and ".join(bounds) if bounds else "", *least])


def refusal(errors: Sequence[Mapping[str, Any]], annotation: Any, place: str, value: Any, kind: bool = True) -> str:
    """Return why a value is refused, in one sentence.

    errors: pydantic's, of this value. place: who has it and what it is, such as ``a.py: steps=0``. kind: whether the
    value's type is worth telling.
    """
    of_a_value = any(error["type"].startswith(_OF_A_VALUE) for error in errors)
    inside = isinstance(value, dict) or any(isinstance(step, int) for error in errors for step in error["loc"])
    told = f" is {type(value).__name__}" if kind and not of_a_value and not inside else ""
    literals = [bare for bare, _ in map(parts, alternatives(annotation)) if get_origin(bare) is Literal]
    choices = [choice for bare in literals for choice in get_args(bare) if isinstance(choice, str)]
    near = suggestion(value, choices) if isinstance(value, str) else ""
    kinds = {error["type"] for error in errors}
    finite = "finite, " if "finite_number" in kinds else ""
    finite = "0 or at least 1e-37, " if "no_float32" in kinds else finite
    finite = (
        f"a name that a file can have, not empty, without NUL and of at most {_LONGEST} bytes: "
        if "no_place" in kinds
        else finite
    )
    highest = {error["ctx"]["le"] for error in errors if error["type"] == "less_than_equal"}
    ceiling = "".join(f", {_BOUNDS['le']} {most:,}" for most in highest if most >= _CEILING)
    lowest = {error["ctx"]["ge"] for error in errors if error["type"] == "greater_than_equal"}
    floor = "".join(f", at least {least:g}" for least in lowest if 0 < least <= _FLOOR)
    return f"{place}{told}; {near}it must be {finite}{in_words(annotation)}{ceiling}{floor}"


def check_values(component: Callable[..., Any], options: Mapping[str, Any], who: str) -> None:
    """Raise ConfigError for an option that is not what `component` annotates that keyword with, NaN and infinity too.

    What has no annotation, or one that cannot be resolved or checked, passes.
    """
    from pydantic import ValidationError

    for name, value in options.items():
        annotation, adapter = keywords_checked(component).get(name, (None, None))
        if adapter is None:
            continue
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            shown = f"{who}: {name}={_shown(value)}"
            raise ConfigError(refusal(error.errors(), annotation, shown, value)) from None
        except Exception:  # of an annotation that nothing can be held against, such as a plain Protocol
            continue


def check_keywords(component: Any, options: dict[str, Any], who: str, also: tuple[str, ...] = ()) -> None:
    """Raise ConfigError when `options` has a keyword that `component` does not take, naming the nearest one it does,
    or a value that is not what the component annotates that keyword with.

    `also` are names that whoever asks takes for itself.
    """
    parameters = inspect.signature(component).parameters
    definer = next((c for c in getattr(component, "__mro__", ()) if "__init__" in vars(c)), component)
    without_own = definer.__module__ == "torch.nn.modules.module"  # nn.Module's own, which refuses keywords late
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()) and not without_own
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = [*(p.name for p in parameters.values() if p.kind in named), *also]
    for key in options:
        if key not in known and not anything:
            raise ConfigError(f"{who} takes {unknown('keyword', key, known)}")
    check_values(component, options, who)


def _shown(value: Any) -> str:
    """Return a value as errors show it: one line, of numbers that fill several what they are."""
    text = repr(value)
    return text if len(text) <= _SHOWN and "\n" not in text else " ".join(text[:_SHOWN].split()) + "..."


def checked(function: _F) -> _F:
    """Decorate a function for users: what its signature does not take, and values that its annotations do not allow,
    are refused in a sentence.
    """
    who = function.__qualname__.removesuffix(".__init__")

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        signature = inspect.signature(function)
        try:
            bound = signature.bind(*given, **named)
        except TypeError as error:
            check_keywords(function, named, who)  # a misspelt one has a nearest
            known = ", ".join(name for name in signature.parameters if name != "self")
            raise ConfigError(f"{who}: {first_line(error)}; its arguments are {known}") from None
        check_values(function, bound.arguments, who)
        return function(*given, **named)

    return cast("_F", call)


@cache
def keywords_checked(component: Callable[..., Any]) -> dict[str, tuple[Any, TypeAdapter[Any]]]:
    """Return the annotation of each keyword that has one, and what checks it."""
    from pydantic import ConfigDict, TypeAdapter

    function = getattr(component, "__init__", component) if inspect.isclass(component) else component
    names = getattr(inspect.unwrap(function), "__globals__", {})
    found = {}
    for name, parameter in inspect.signature(component).parameters.items():
        annotation = parameter.annotation
        try:
            annotation = eval(annotation, names) if isinstance(annotation, str) else annotation
            if annotation is parameter.empty or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
            found[name] = annotation, TypeAdapter(strictly(annotation), config=config)
        except Exception:  # a name that only type checkers import, or a type that pydantic knows nothing of
            continue
    return found


def takes_keywords_of(base: Callable[..., Any], but: Sequence[str] = ()) -> Callable[[_F], _F]:
    """Decorate a function that hands its ``**keywords`` on to `base`: whoever reads its signature sees in their place
    the keyword-only parameters of `base`, without those named in `but`.
    """
    theirs = inspect.signature(base, eval_str=True).parameters.values()
    handed = [each for each in theirs if each.kind is each.KEYWORD_ONLY and each.name not in but]

    def shown(function: _F) -> _F:
        own = inspect.signature(function, eval_str=True)
        kept = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
        function.__signature__ = own.replace(parameters=[*kept, *handed])  # type: ignore[attr-defined]
        return function

    return shown
