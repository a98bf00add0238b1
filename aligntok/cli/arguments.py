"""Options as words: the fields of settings, read from a command line."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from aligntok.annotations import alternatives, parts
from aligntok.errors import ConfigError
from aligntok.settings import ChangesTo, Option, fields_of, read

T = TypeVar("T")
_WORDS = "words_without_flags"
_LONG = ("json",)  # switches without a flag of one letter


class _AsLiterals(ast.NodeTransformer):
    """Writes ``dict(a=1)`` as ``{"a": 1}``, and names as text, which shells take the quotes of; nothing is called."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.copy_location(ast.Constant(node.id), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        is_dict = isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args
        self.generic_visit(node)
        if not is_dict or any(each.arg is None for each in node.keywords):
            return node
        names = [ast.Constant(each.arg) for each in node.keywords]
        return ast.copy_location(ast.Dict([*names], [each.value for each in node.keywords]), node)


def parse_options(pairs: Sequence[str], option: str = "--cfg-options") -> dict[str, Any]:
    """Turn the ``key=value`` words of an option into a dict; values are Python literals, or text where they are none.

    ``dict(shard=8)`` is one, as configs and messages write it, and so is ``[wandb]``, which a shell leaves of
    ``['wandb']``. Raises ConfigError for a word without '='.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option} takes key=value, not '{pair}'")
        if value == "...":  # as the configs' own docstrings write it
            raise ConfigError(f"{pair}: put a real value in place of the dots, such as {key}=/path/to/it")
        try:
            written = ast.parse(value.strip(), mode="eval")
            options[key] = (
                value if isinstance(written.body, ast.Name) else ast.literal_eval(_AsLiterals().visit(written))
            )
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # all that literal_eval may raise
            options[key] = value
    return options


def parse(cls: type[T], arguments: Sequence[str] | None, prog: str, positional: Sequence[str] = ()) -> T:
    """Return settings from a command line (None: this process's), by tyro: ``--image-size 256 384``, or 256x384.

    positional: the fields that are words without a flag, in order; one of them may take several. Fields of settings
    within have no prefix. A dict is written ``KEY=VALUE ...``, None ``None``. ``--help`` and unknown flags end the
    process with status 0 and 2, the latter with a suggestion; a value that is not allowed is a ConfigError.
    """
    return parse_with(cls, arguments, prog, positional)[0]


def parse_with(
    cls: type[T], arguments: Sequence[str] | None, prog: str, positional: Sequence[str] = (), switches: Any = None
) -> tuple[T, dict[str, bool]]:
    """Return settings as :func:`parse` does, and which `switches` were given: settings of on and off with defaults."""
    if os.environ.get("NO_COLOR"):  # which tyro 1.0.17 does not ask for
        os.environ.setdefault("PYTHON_TYRO_ANSI_CODES", "False")
    import tyro

    words = list(sys.argv[1:] if arguments is None else arguments)
    for old, new in cls.__renamed__.items():  # type: ignore[attr-defined]
        if _flag(old) in (word.partition("=")[0] for word in words):
            raise ConfigError(f"{prog}: {_flag(old)} is called {_flag(new)} now")
    about, examples = described(cls)
    try:
        form = form_of(cls, positional, switches)
        filled = tyro.cli(form, prog=prog, description=about, args=words, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as end:
        if not end.code and examples:
            print("examples:\n" + "\n".join(f"  {example}" for example in examples))
        raise
    flags: dict[str, str] = {}
    given = _given(cls, filled, flags, {word.replace("_", "-") for word in words})
    if positional:
        given |= _share_out(cls, positional, list(getattr(filled, _WORDS)), flags, prog)
    return read(cls, given, prog, flags), {name: getattr(filled, name) for name in _options(switches)}


def described(cls: Any) -> tuple[str, list[str]]:
    """Return what a settings class says of itself, and its examples: lines of its docstring that can be typed."""
    lines = (inspect.getdoc(cls) or "").splitlines()
    examples = [line.strip() for line in lines if line.strip().startswith("aligntok ")]
    return "\n".join(line for line in lines if line.strip() not in examples).strip(), examples


class _Given(list[str]):
    """The words that a command line gave for a field."""


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _options(cls: Any) -> dict[str, Option]:
    return {} if cls is None else {option.name: option for option in fields_of(cls) if "." not in option.name}


def _within(option: Option) -> Any:
    """Return the settings class whose fields have flags of their own, or None for a plain value."""
    changed = [each.cls for each in parts(option.annotation)[1] if isinstance(each, ChangesTo)]
    return changed[0] if changed else option.settings if option.default is not None else None


def form_of(
    cls: Any, positional: Sequence[str] = (), switches: Any = None, defaults: bool = True, offers: bool = False
) -> Any:
    """Return the dataclass that tyro fills in: the words of each field, whatever they are, and on and off.

    switches: as of :func:`parse_with`; defaults: whether help tells them; offers: whether tyro knows, and then checks,
    the words that a field chooses among.
    """
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    options = _options(cls)
    fields: list[Any] = []
    if positional:  # together: tyro cannot tell where several words end and the last begins
        metavar = " ".join(_shape(options[name].annotation, name.upper())[1] for name in positional)
        told: Any = "\n".join(f"{name.upper()}: {options.pop(name).doc}" for name in positional)
        marks = Positional, arg(help=told, help_behavior_hint="")
        fields.append((_WORDS, _words("*", metavar, *marks), dataclasses.field(default=())))
    for name, option in options.items():
        told = arg(help=option.doc, help_behavior_hint=_hint(option.default) if defaults else "")
        if _within(option) is not None:
            inner = form_of(_within(option), defaults=option.settings is not None, offers=offers)
            fields.append((name, inner, dataclasses.field(default_factory=inner)))
        elif option.annotation is bool:
            fields.append((name, Annotated[bool, told], dataclasses.field(default=option.default)))
        else:
            choices = _choices(option.annotation) if offers else ()
            words = _words(*_shape(option.annotation), told, choices=choices)
            fields.append((name, words, dataclasses.field(default=None)))
    for name, option in _options(switches).items():
        aliases = None if name in _LONG else [f"-{name[0]}"]
        told = arg(help=option.doc, help_behavior_hint="", aliases=aliases), FlagCreatePairsOff
        fields.append((name, Annotated[(bool, *told)], dataclasses.field(default=False)))
    return dataclasses.make_dataclass(cls.__name__, fields, kw_only=True)


def _words(count: Any, metavar: str, *told: Any, choices: Sequence[str] = ()) -> Any:
    from tyro.constructors import PrimitiveConstructorSpec

    written = tuple(choices) or None
    spec = PrimitiveConstructorSpec(count, metavar, _Given, lambda value: True, lambda value: [str(value)], written)
    return Annotated[(object, spec, *told)]


def _choices(annotation: Any) -> list[str]:
    """Return the words that an annotation names, of itself or of what it lists."""
    inner = [each for kind in _written(annotation) for each in (kind, *get_args(kind))]
    return [str(choice) for kind in inner if get_origin(kind) is Literal for choice in get_args(kind)]


def _hint(default: Any) -> str:
    if default is dataclasses.MISSING:
        return "(required)"
    text = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
    return "" if default in (None, (), [], {}) else f"(default: {text})"


def _shape(annotation: Any, name: str | None = None) -> tuple[Any, str]:
    """Return how many words a field may have, "*" for any number, and what help calls them."""
    kinds = _written(annotation)
    found = [_shape_of_one(each, name) for each in kinds if each is not type(None)]
    counts = {count for count, _ in found} | ({1} if type(None) in kinds else set())
    numbers = "*" if "*" in counts else tuple(sorted(counts)) if len(counts) > 1 else counts.pop()
    return numbers, "|".join(dict.fromkeys(metavar for _, metavar in found))


def _written(annotation: Any) -> list[Any]:
    """Return what a command line may write for an annotation: None first, and no path or dict beside text."""
    kinds = sorted((parts(each)[0] for each in alternatives(annotation)), key=lambda kind: kind is not type(None))
    return [kind for kind in kinds if kind in (type(None), int, float, bool, str)] if str in kinds else kinds


def _is_dict(kind: Any) -> bool:
    return dict in (kind, get_origin(kind)) or hasattr(kind, "__pydantic_fields__")


def _shape_of_one(kind: Any, name: str | None) -> tuple[Any, str]:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return 1, "{" + ",".join(map(str, inner)) + "}"
    if _is_dict(kind):
        return "*", "KEY=VALUE ..."
    if origin is tuple and ... not in inner:
        return len(inner), " ".join(_shape(each)[1] for each in inner)
    if origin in (tuple, list):
        return "*", f"{name or _shape(inner[0])[1]} ..."
    return 1, name or getattr(kind, "__name__", "VALUE").upper()


def _given(cls: Any, filled: Any, flags: dict[str, str], written: set[str], prefix: str = "") -> dict[str, Any]:
    """Return what a form was given, by the words that were `written`; `flags` gets how each field was."""
    given: dict[str, Any] = {}
    for name, option in _options(cls).items():
        value = getattr(filled, name, None)
        if dataclasses.is_dataclass(value):
            given[name] = _given(_within(option), value, flags, written, f"{prefix}{name}.")
        elif isinstance(value, bool) and written & {_flag(name), _flag(f"no_{name}")}:
            given[name] = value
        elif isinstance(value, _Given):
            flags[prefix + name] = " ".join([_flag(name), *value])
            given[name] = _value(option.annotation, value, _flag(name))
    return given


def _share_out(
    cls: Any, positional: Sequence[str], words: list[str], flags: dict[str, str], prog: str
) -> dict[str, Any]:
    """Share words without flags out among `positional`: one each, and what is left to the one that takes several."""
    given: dict[str, Any] = {}
    for place, name in enumerate(positional, 1):
        several = _shape(_options(cls)[name].annotation)[0] == "*"
        end = max(0, len(words) - len(positional) + place) if several else 1
        taken, words = words[:end], words[end:]
        if taken:
            given[name] = tuple(taken) if several else taken[0]
    if words:
        raise ConfigError(f"{prog} takes no more words: {' '.join(words)}; see {prog} --help")
    flags.update({name: f"{name.upper()} {value}" for name, value in given.items()})
    return given


def _value(annotation: Any, words: list[str], flag: str) -> Any:
    """Return the value that words are for a field; what they cannot be they stay, for the check to refuse."""
    try:
        return _first_that_fits(annotation, words, flag)
    except _Unfit:
        pass
    kinds = [kind for kind in _written(annotation) if get_origin(kind) in (tuple, list)]
    for kind in kinds:  # as far as they fit: a message shows which do not
        with suppress(LookupError, TypeError, ValueError):
            return _value_of_one(kind, words, flag, _value)
    return words[0] if len(words) == 1 else tuple(words)


class _Unfit(ValueError):
    """Words that are none of what an annotation allows."""


def _first_that_fits(annotation: Any, words: list[str], flag: str) -> Any:
    kinds = _written(annotation)
    named = any(get_origin(kind) is Literal for kind in kinds)  # one word may be a misspelt name, no dict
    for kind in kinds:
        try:
            return _value_of_one(kind, words, flag, _first_that_fits)
        except (LookupError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError) and not named:  # of a dict's words
                raise
    raise _Unfit(flag)


def _value_of_one(kind: Any, words: list[str], flag: str, inner_value: Callable[..., Any]) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if _is_dict(kind):
        return parse_options(words, flag)
    if origin in (tuple, list):
        if origin is tuple and len(words) == 1 and ... not in inner:
            words = words[0].split("x")  # 256x384
        kinds = [inner[0]] * len(words) if origin is list or ... in inner else inner
        return tuple(inner_value(each, [word], flag) for each, word in zip(kinds, words, strict=True))
    (word,) = words
    if kind is type(None) and word == "none":
        return None
    choices = {bool: (True, False), type(None): (None,)}.get(kind, inner)
    if choices:
        return {str(choice): choice for choice in choices}[word]
    return kind(word)
