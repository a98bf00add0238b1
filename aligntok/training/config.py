"""Configs: every key, what it means and what it may be; a typo is an error that names the nearest right key."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntok.distributed import is_first
from aligntok.engine.schedules import end_of_schedule
from aligntok.errors import CheckpointError, ConfigError, first_line
from aligntok.io.places import with_places, without_places
from aligntok.loading import read_stage_file
from aligntok.registry import dotted_components
from aligntok.settings import check_given, check_name, flatten
from aligntok.training.generator_settings import GeneratorConfig, GeneratorSettings
from aligntok.training.settings import OneStage, RunSettings, StagesConfig

if TYPE_CHECKING:
    from aligntok.training.stages import Stage

logger = logging.getLogger("aligntok.training")

#: Settings that may change at any time: what a stage becomes does not depend on them, or not beyond rounding.
FREE = (
    *("steps", "init_from", "checkpoint", "log", "validation", "hooks", "sampling"),
    *("compile", "grad_checkpointing", "attention", "parallel"),
)
#: Among those below, one that is not: what is held out is not trained on.
HELD_OUT = "data.val.fraction"
HOW_IT_IS_READ = ("cache", "cache_gb", "threads", "remote", "on_missing", "max_unreadable")  # of a stream
FREE_BELOW = (
    *("data.workers", "data.timeout", "data.val", "data.nominal_images", "model.encoder.pretrained"),
    *(f"data.train.{name}" for name in HOW_IT_IS_READ),
)
#: Settings in which the machines of a run may differ: where the data lie on each, and how they are read.
_OF_MACHINE = (
    *("data.workers", "data.timeout"),
    *(f"data.{split}.{name}" for split in ("train", "val") for name in ("root", "index", *HOW_IT_IS_READ)),
)
#: Settings, of the run and of components, that say where something lies.
_PLACES = ("work_dir", "data_root", "root", "name", "tokenizer", "reference", "split", "index", "cache")
#: Settings that the saved state depends on.
FIXED = ("schedule", "optimizer.type", "discriminator_optimizer.type", "trainable", "lora", "tokenizer")


def load_config(path: str | Path, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a config file (mmengine's Python syntax with ``_base_``), apply ``key=value`` options, check every key.

    Returns plain nested dicts and lists, defaults of the run's own keys filled in. Raises ConfigError.
    """
    config = read_config(path, dict(options or {}))
    check_config(config, str(path))
    filled = {**asdict(RunSettings()), **config}
    filled["work_dir"] = os.path.expanduser(filled["work_dir"] or f"work_dirs/{Path(path).stem}")
    return filled


def read_config(path: str | Path, options: Mapping[str, Any], cls: Any = None) -> dict[str, Any]:
    """Return what a config file says, as plain nested dicts and lists, with ``key=value`` options applied.

    cls: the settings whose keys options may begin with; None: those of a training. Raises ConfigError.
    """
    from mmengine.config import Config

    if not Path(path).is_file():
        raise ConfigError(f"no config file {path}; the shipped ones are in configs/")
    try:
        loaded = Config.fromfile(str(path))
    except Exception as error:  # whatever the file's own code raises
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}: {first_line(error)}") from error
    known = cls or (StagesConfig if loaded.get("stages") else GeneratorConfig)
    for key in options:
        check_name(known, key.split(".")[0], "--cfg-options")
    try:
        loaded.merge_from_dict({key: _replacing(value, _at(loaded, key)) for key, value in options.items()})
    except (KeyError, IndexError, TypeError, AssertionError) as error:
        given = " ".join(f"{key}={value}" for key, value in options.items())
        raise ConfigError(
            f"--cfg-options {given}: {first_line(error)}; dots lead into dicts and lists that the config has "
            "(stages.0 is the first stage)"
        ) from error
    read: dict[str, Any] = _in_text(loaded.to_dict())
    return read


def _in_text(said: Any) -> Any:
    """Return what a config says with its paths as text, which is how keys that name places take them."""
    if isinstance(said, dict):
        return {key: _in_text(each) for key, each in said.items()}
    if isinstance(said, list | tuple):
        return type(said)(map(_in_text, said))
    return os.fspath(said) if isinstance(said, os.PathLike) else said


def _at(config: Any, key: str) -> Any:
    """Return what a config has under a dotted name; an empty dict where it has nothing."""
    for step in key.split("."):
        try:
            config = config[int(step) if isinstance(config, list | tuple) else step]
        except (LookupError, TypeError, ValueError):
            return {}
    return config


def _replacing(given: Any, old: Any) -> Any:
    """Return an option's value, its dicts marked to take the place of what is no dict: mmengine merges only those."""
    if not isinstance(given, dict):
        return given
    if not isinstance(old, Mapping):
        return {**given, "_delete_": True}
    return {key: _replacing(value, old.get(key, {})) for key, value in given.items()}


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for a key that is unknown or of a wrong type, in the config or any of its stages."""
    config = _without_deletes(config)
    _check_paths(config, where)
    stages = config.get("stages", [])
    if not stages and "generator" not in config:
        raise ConfigError(
            f"{where} has nothing to train: give stages=[dict(name=..., steps=..., ...)] for a tokenizer, or "
            "generator=dict(type=...) for a generator"
        )
    check_given(StagesConfig if stages else GeneratorConfig, config, where)
    if config.get("generation") and not (stages and "generator" in config["generation"]):
        raise ConfigError(
            f"{where}: generation is for a generator that is trained after stages, and names it: "
            "generation=dict(generator=dict(type=...), ...); without stages its keys stand at the top"
        )
    if stages:
        check_given(GeneratorSettings, config.get("generation", {}), f"{where}, generation")
    for i, stage in enumerate(stages):
        if not isinstance(stage, Mapping):
            raise ConfigError(f"{where}, stages[{i}] is {stage!r}; it must be dict(name=..., steps=..., ...)")
        check_given(OneStage, stage, f"{where}, stages[{i}]")
        if not stage.get("name") or {"/", "\\"} & set(stage["name"]):
            raise ConfigError(f"{where}, stages[{i}] has no name that a folder could have; give each stage one")
    names = [stage["name"] for stage in stages]
    if len(set(names)) < len(names):
        raise ConfigError(f"{where}: stages need different names, not {names}")


def _check_paths(given: Any, where: str, key: str = "") -> None:
    """Raise ConfigError for a name of a place, at any depth, that no disk can have: a NUL, or far too long."""
    if isinstance(given, Mapping | list | tuple):
        for name, inner in given.items() if isinstance(given, Mapping) else ((key, each) for each in given):
            _check_paths(inner, where, str(name))
    if isinstance(given, str) and key in _PLACES:
        longest = max(len(os.fsencode(part)) for part in given.split("/"))
        if "\0" in given or longest > 200 or len(given) > 3000:  # of 255 and 4096, for what is put beside or below
            raise ConfigError(f"{where}: {key}={given[:40]!r}... is nothing that a file could be called")


def dotted_models(config: Mapping[str, Any]) -> list[str]:
    """Return the import paths that a run's config names as parts of its tokenizers or as its generator."""
    given = [config, config.get("generation"), *config.get("stages", [])]
    parts = [{"model": each.get("model"), "generator": each.get("generator")} for each in given if each]
    return dotted_components(parts)


def _without_deletes(given: Any) -> Any:
    """Return a config without ``_delete_``, which tells how dicts are merged and is no key."""
    if isinstance(given, list):
        return [_without_deletes(each) for each in given]
    if not isinstance(given, Mapping):
        return given
    return {key: _without_deletes(value) for key, value in given.items() if key != "_delete_"}


def read_begun(stage: Stage, parse: Callable[[dict[str, Any]], Any] = dict) -> Any:
    """Return what `parse` makes of the description of a stage that has begun. Raises CheckpointError."""
    cure = "so what the stage was trained with is unknown: restore it, or remove it to go on without the comparison"
    return read_stage_file(stage.folder, cure, parse)


def report_config_diff(stage: Stage, finished: bool) -> None:
    """Warn, with each old and new value, when the stage's settings are not those that it was trained with so far.

    Raises ConfigError for a change that a stage which is not `finished` cannot take. Nothing to say before its first
    checkpoint.
    """
    file = stage.description
    if (stage.folder / "generation.json").is_file() and not file.is_file():
        raise CheckpointError(
            f"{stage.folder} was begun before a generator's training was described in {file.name}; go on with the "
            "version of AlignTok that wrote it, or remove the folder to train anew"
        )
    if not stage.has_begun:
        return
    begun = with_places(read_begun(stage), stage.folder)
    now = {"seed": stage.seed, **asdict(stage.settings)}
    changes = config_diff(*(without_places(told, stage.folder) for told in (begun, now)))
    if not changes:
        return
    shown = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items())
    asked = ("schedule_end",) if stage.settings.schedule_end else ()
    fixed = [key for key in changes if key.startswith(FIXED) and key not in asked]
    if fixed and not finished:
        old, new = changes.get("schedule_end", (None, None))
        kept = f" (schedule_end={old} keeps the schedule, schedule_end={new} stretches it)" if old and new else ""
        raise ConfigError(
            f"stage '{stage.name}' in {stage.folder} has begun with other settings ({shown}), and {', '.join(fixed)} "
            f"cannot change on the way. Set it back{kept}, or remove the folder to train the stage anew"
        )
    anew = "remove its folder, and those of later stages, to train it again"
    consequence = anew if finished else "it goes on, and ends as neither would alone"
    if is_first():
        logger.warning(
            "stage '%s' in %s was trained with other settings (%s); %s", stage.name, stage.folder, shown, consequence
        )


def config_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return dotted key -> (old, new) for every setting of a stage that differs and is not free to change.

    `schedule_end` is the step at which a schedule whose rates depend on that ends: its own, or the stage's last.
    """
    new = json.loads(json.dumps(new, default=str))
    same = old.get("schedule") == new.get("schedule")  # else it is refused; and what a file names is not built
    depends = same and end_of_schedule(new.get("schedule"), 1)
    ends = [depends and (of.get("schedule_end") or of.get("steps")) for of in (old, new)]
    before, after = (flatten({**of, "schedule_end": end}) for of, end in zip((old, new), ends, strict=True))
    own = [key for key in {**before, **after} if key.split(".")[0] in new]
    keys = [key for key in own if key == HELD_OUT or not (key.split(".")[0] in FREE or key.startswith(FREE_BELOW))]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def shared_settings(stage: Stage) -> dict[str, Any]:
    """Return the settings of a stage, by dotted name, that all processes of its run must have alike."""
    said = flatten(without_places({"seed": stage.seed, **asdict(stage.settings)}, stage.folder.parent))
    return {key: value for key, value in said.items() if not key.startswith(_OF_MACHINE)}
