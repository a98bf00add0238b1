"""The stages of a tokenizer as data: a pure function turns a config into one complete set of settings a stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aligntok.errors import ConfigError
from aligntok.training.config import check_model_keys, fill_defaults
from aligntok.training.settings import STAGE_KEYS
from aligntok.training.stages import check_run, check_settings, merge, stage_folder


def complete_stages(config: Mapping[str, Any]) -> Iterator[tuple[int, str, Path, int, dict[str, Any]]]:
    """Yield index, name, folder, seed and settings of the stages of a checked config; the config is not changed.

    Dicts of a stage are merged into the top's, key by key; ``_delete_=True`` in one replaces it; None removes a loss.
    Raises ConfigError for settings that cannot work.
    """
    check_run(config)
    base = {key: config[key] for key in STAGE_KEYS if key in config}
    earlier: dict[str, Path] = {}
    for i, overrides in enumerate(config["stages"]):
        settings = fill_defaults(merge(base, {key: value for key, value in overrides.items() if key != "name"}))
        settings["losses"] = {name: loss for name, loss in settings["losses"].items() if loss is not None}
        name = overrides["name"]
        where = f"stage '{name}'"
        _resolve_start(settings, earlier, where)
        _check_stage(settings, where)
        settings["data"] = _with_roots(settings["data"], config.get("data_root"))
        earlier[name] = stage_folder(config["work_dir"], i, name)
        yield i, name, earlier[name], config["seed"] + i, settings


def _resolve_start(settings: dict[str, Any], earlier: Mapping[str, Path], where: str) -> None:
    start = settings["start"]
    if start is None:
        return
    if not start["stage"]:
        raise ConfigError(f"{where}: start names no stage; give start=dict(stage=name, ...)")
    if start["weights"] not in ("raw", "ema"):
        raise ConfigError(f"{where}: start.weights is '{start['weights']}'; it must be 'raw' or 'ema'")
    if start["work_dir"] is not None:
        folders = sorted(Path(start["work_dir"]).glob("[0-9]*_*"))
        found = [folder for folder in folders if folder.name.partition("_")[2] == start["stage"]]
        if not found:
            there = ", ".join(folder.name.partition("_")[2] for folder in folders)
            raise ConfigError(
                f"{where} starts from stage '{start['stage']}' in {start['work_dir']}; stages there: {there or 'none'}"
            )
        start["folder"] = str(found[0])
    elif start["stage"] in earlier:
        start["folder"] = str(earlier[start["stage"]])
    else:
        raise ConfigError(
            f"{where} starts from stage '{start['stage']}'; the stages before it: {', '.join(earlier) or 'none'}"
        )
    encoder = settings["model"].get("encoder")
    if isinstance(encoder, dict):
        encoder["pretrained"] = False  # the weights come from the earlier stage


def _check_stage(settings: Mapping[str, Any], where: str) -> None:
    check_model_keys(settings["model"], where)
    if not settings["losses"]:
        raise ConfigError(f"{where} has no losses, so nothing can be learned; give at least l1")
    if settings["teacher"] is not None and settings["teacher"] != "start" and not isinstance(settings["teacher"], dict):
        raise ConfigError(f"{where}: teacher='{settings['teacher']}'; it must be 'start', an encoder config, or None")
    check_settings(settings, where)


def _with_roots(data: dict[str, Any], data_root: str | None) -> dict[str, Any]:
    """Give each data set the run's data_root, unless it has a root of its own."""
    roots = {"root": data_root} if data_root is not None else {}
    filled = {
        split: {"type": "images", **roots, **data[split]} for split in ("train", "val") if data[split] is not None
    }
    return {**data, **filled}
