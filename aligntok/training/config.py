"""Configs: every key, what it means and what it may be; a typo is an error that names the nearest right key."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligntok.errors import ConfigError, first_line, unknown
from aligntok.training.keys import GENERATOR_TOP_KEYS, ONE_STAGE_KEYS, RUN_KEYS, STAGE_KEYS, TOP_KEYS, Key


def load_config(path: str | Path, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a config file (mmengine's Python syntax with ``_base_``), apply ``key=value`` options, check every key.

    Returns plain nested dicts and lists, defaults of the run's own keys filled in. Raises ConfigError.
    """
    config = read_config(path, dict(options or {}))
    check_config(config, str(path))
    filled = {**{key: copy.deepcopy(known.default) for key, known in RUN_KEYS.items()}, **config}
    filled["work_dir"] = filled["work_dir"] or f"work_dirs/{Path(path).stem}"
    return filled


def read_config(path: str | Path, options: Mapping[str, Any], keys: Mapping[str, Key] | None = None) -> dict[str, Any]:
    """Return what a config file says, as plain nested dicts and lists, with ``key=value`` options applied.

    keys: what options may begin with; None: the keys of a training. Raises ConfigError.
    """
    from mmengine.config import Config

    if not Path(path).is_file():
        raise ConfigError(f"no config file {path}; the shipped ones are in configs/")
    try:
        loaded = Config.fromfile(str(path))
    except Exception as error:  # whatever the file's own code raises
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}: {first_line(error)}") from error
    known = keys or (TOP_KEYS if loaded.get("stages") else GENERATOR_TOP_KEYS)
    for key in options:
        first = key.split(".")[0]
        if first not in known:
            raise ConfigError(f"--cfg-options: {unknown('key', first, sorted(known))}")
    try:
        loaded.merge_from_dict(dict(options))
    except (KeyError, IndexError, TypeError, AssertionError) as error:
        given = " ".join(f"{key}={value}" for key, value in options.items())
        raise ConfigError(
            f"--cfg-options {given}: {first_line(error)}; dots lead into dicts and lists that the config has "
            "(stages.0 is the first stage)"
        ) from error
    return loaded.to_dict()


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for a key that is unknown or of a wrong type, in the config or any of its stages."""
    stages = config.get("stages", [])
    if not stages and "generator" not in config:
        raise ConfigError(
            f"{where} has nothing to train: give stages=[dict(name=..., steps=..., ...)] for a tokenizer, or "
            "generator=dict(type=...) for a generator"
        )
    check_keys(config, TOP_KEYS if stages else GENERATOR_TOP_KEYS, where)
    if config.get("generation") and not (stages and "generator" in config["generation"]):
        raise ConfigError(
            f"{where}: generation is for a generator that is trained after stages, and names it: "
            "generation=dict(generator=dict(type=...), ...); without stages its keys stand at the top"
        )
    for i, stage in enumerate(stages):
        if not isinstance(stage, Mapping):
            raise ConfigError(f"{where}, stages[{i}] is {stage!r}; it must be dict(name=..., steps=..., ...)")
        check_keys(stage, ONE_STAGE_KEYS, f"{where}, stages[{i}]")
        if not stage.get("name") or {"/", "\\"} & set(stage["name"]):
            raise ConfigError(f"{where}, stages[{i}] has no name that a folder could have; give each stage one")
    names = [stage["name"] for stage in stages]
    if len(set(names)) < len(names):
        raise ConfigError(f"{where}: stages need different names, not {names}")


def check_model_keys(model: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for a key of `model` that :class:`aligntok.tokenizer.Tokenizer` does not take."""
    from aligntok.tokenizer import Tokenizer

    known = [name for name in inspect.signature(Tokenizer.__init__).parameters if name not in ("self", "plugins")]
    for key in model:
        if key not in known:
            raise ConfigError(f"{where}, model: {unknown('key', key, sorted(known))}")


def fill_defaults(settings: Mapping[str, Any], keys: Mapping[str, Key] = STAGE_KEYS) -> dict[str, Any]:
    """Return a stage's settings with the defaults of all keys filled in, those below them too; None stays None.

    A component's default keywords fill in only what a config of the same type, or of none, leaves out.
    """
    filled = dict(settings)
    for key, known in keys.items():
        default = copy.deepcopy(known.default)
        given = settings.get(key, default)
        if isinstance(given, Mapping) and isinstance(default, dict):
            same = given.get("type", default.get("type")) == default.get("type")
            given = {**default, **given} if same else dict(given)
        filled[key] = fill_defaults(given, known.below) if known.below and given is not None else given
    return filled


def check_keys(config: Mapping[str, Any], known: Mapping[str, Key], where: str) -> None:
    """Raise ConfigError for a key that `known` does not have, or a value of another type, below them too."""
    for key, value in config.items():
        if key not in known:
            raise ConfigError(f"{where}: {unknown('key', key, sorted(known))}")
        kinds = known[key].kinds
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            allowed = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ConfigError(f"{where}: {key}={value!r} is {type(value).__name__}; it must be {allowed}")
        below = known[key].below
        if below is not None and isinstance(value, Mapping):
            check_keys({k: v for k, v in value.items() if k != "_delete_"}, below, f"{where}, {key}")
