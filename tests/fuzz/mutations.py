"""Mutations of a config, from a seed: what is done to which key, and the text of the file that comes of it."""

from __future__ import annotations

import contextlib
import copy
import inspect
import random
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS

from aligntok.registry import shelves
from aligntok.settings import fields_of
from aligntok.training.alignment.objective import LossTerm
from aligntok.training.generator_settings import GeneratorConfig, GeneratorSettings
from aligntok.training.settings import OneStage, StagesConfig

HUGE = 99_999_999_999
#: What is put in the place of a value: by kind of mutation.
VALUES: dict[str, list[Any]] = {
    "bool": [True, False],
    "number": [0, 1, -1, 2, 3, 0.5, -0.5, 1.5, 1e-30, 7.0],
    "huge": [HUGE, -HUGE, 1e11, 10**30, 2**31, 2**63, 1e300, -1e300],
    "not finite": [float("nan"), float("inf"), -float("inf")],
    "text": ["", "1", "none", "x", "\u202eü\x00☃", "../..", "0.5", "None", "a" * 3000, "__import__"],
    "nothing": [None],
    "empty": [[], {}, ()],
    "nested": [[1], [[]], [None], {"type": "x"}, {"x": 1}, [{}], {"type": None}, (1, 2, 3), [1, "a"], {1: 2}],
    "foreign": [b"bytes", {1, 2}, 1j, range(3)],
}
KINDS = [*VALUES, "negated", "scaled", "as text", "in a list", "in a dict", "as float", "first of it"]
SHAPES = ["misspelt", "swapped", "moved up", "left out", "unknown"]


class Mutation(NamedTuple):
    """One mutation: of which config, what was done, and the config that it makes."""

    name: str
    done: str
    config: dict[str, Any]


def mutations(configs: Mapping[str, dict[str, Any]], seed: int) -> Iterator[Mutation]:
    """Yield mutations for ever: which ones follows from the seed."""
    rng = random.Random(seed)
    names = list(configs)
    while True:
        name = rng.choice(names)
        config = copy.deepcopy(configs[name])
        done = change(config, rng) if rng.random() < 0.15 else put(config, rng)
        yield Mutation(name, done, config)


def put(config: dict[str, Any], rng: random.Random) -> str:
    """Give one key, given or not, another value; return what was done."""
    given = [path for path, _ in leaves(config)]
    path = rng.choice(given) if rng.random() < 0.4 else rng.choice(possible(config))
    holder, key, old = config, path[-1], None
    for step in path[:-1]:
        inner = holder[step] if isinstance(holder, list) else holder.get(step)
        if not isinstance(inner, dict | list):
            inner = holder[step] = {}
        holder = inner
    with contextlib.suppress(LookupError):
        old = holder[key]
    new = old
    while repr(new) == repr(old):
        new = another(old, rng)
    holder[key] = new
    return f"{dotted(path)}: {shown(old)} -> {shown(new)}"


def another(old: Any, rng: random.Random) -> Any:
    """Return another value for a key, made of its old one or of nothing."""
    kind = rng.choice(KINDS)
    number = isinstance(old, int | float) and not isinstance(old, bool)
    made = {
        "negated": -old if number else not old,
        "scaled": old * 10 ** rng.choice([-12, 4, 9]) if number else old,
        "as text": str(old),
        "in a list": [old],
        "in a dict": {"x": old},
        "as float": float(old) if number else 2.0,
        "first of it": next(iter(old), None) if isinstance(old, list | tuple | dict | str) else old,
    }
    return made[kind] if kind in made else copy.deepcopy(rng.choice(VALUES[kind]))


def change(config: dict[str, Any], rng: random.Random) -> str:
    """Misspell, swap, move, leave out or invent a key; return what was done."""
    kind, paths = rng.choice(SHAPES), [path for path, _ in leaves(config) if isinstance(path[-1], str)]
    path, other = rng.choice(paths), rng.choice(paths)
    holder, second = at(config, path[:-1]), at(config, other[:-1])
    if kind == "swapped":
        holder[path[-1]], second[other[-1]] = second[other[-1]], holder[path[-1]]
        return f"{dotted(path)} and {dotted(other)} swapped"
    value = copy.deepcopy(holder[path[-1]]) if kind == "unknown" else holder.pop(path[-1])
    if kind in ("misspelt", "unknown"):
        key = path[-1]
        place = rng.randrange(len(key))
        holder[key[:place] + rng.choice("xü_ 0") + key[place + 1 :]] = value
    elif kind == "moved up":
        config[path[-1]] = value
    return f"{dotted(path)} {kind}"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the path of everything in a config, dicts and lists themselves too, and its value."""
    if path:
        yield path, value
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))


def at(config: Any, path: tuple[Any, ...]) -> Any:
    """Return what a config has at a path."""
    for key in path:
        config = config[key]
    return config


def possible(config: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return the paths of all keys that a config could have: of its settings, and of the components that it names."""

    top = StagesConfig if "stages" in config else GeneratorConfig
    found = [tuple(option.name.split(".")) for option in fields_of(top)]
    for i in range(len(config.get("stages", []))):
        found += [("stages", i, *option.name.split(".")) for option in fields_of(OneStage)]
    if "generation" in config:
        found += [("generation", *option.name.split(".")) for option in fields_of(GeneratorSettings)]
    for path, value in leaves(config):
        if isinstance(value, dict) and isinstance(value.get("type"), str):
            found += [(*path, key) for key in keywords_of(value["type"])]
        if path[-2:-1] == ("losses",):
            found += [(*path, *option.name.split(".")) for option in fields_of(LossTerm) if option.name != "name"]
    return found


def keywords_of(name: str) -> set[str]:
    """Return the keywords of every component that has this name, on any shelf."""

    found = set()
    classes = [registry.get(name) for registry in shelves().values() if name in registry]
    for component in [*classes, *(each.module_dict.get(name) for each in (OPTIMIZERS, PARAM_SCHEDULERS))]:
        if component is not None:
            for cls in (component, *(base for base in component.__mro__ if base.__name__.endswith("ParamScheduler"))):
                found |= {key for key in inspect.signature(cls).parameters if key not in ("args", "kwargs", "params")}
    return found


def dotted(path: tuple[Any, ...]) -> str:
    """Return a path as options write it."""
    return ".".join(map(str, path))


def shown(value: Any) -> str:
    """Return a value for people, short."""
    return repr(value)[:60]


def source(config: Mapping[str, Any]) -> str:
    """Return the text of a config's file."""
    lines = [f"{key} = {value!r}" for key, value in config.items() if key.isidentifier()]
    rest = {key: value for key, value in config.items() if not key.isidentifier()}
    return "\n".join(
        [
            '"""A mutation."""',
            "nan, inf = float('nan'), float('inf')",
            *lines,
            f"globals().update({rest!r})",
            "del nan, inf",
            "",
        ]
    )
