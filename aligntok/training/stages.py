"""Stages are data: a pure function turns a config into one complete set of settings a stage."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligntok.engine.ema import check_decay, gamma_from_sigma_rel
from aligntok.errors import ConfigError, at_least
from aligntok.ops.attention import BACKENDS
from aligntok.training.config import check_model_keys, fill_defaults
from aligntok.training.settings import STAGE_KEYS

# The least that numbers of a stage may be; those that may be None are not checked then.
_AT_LEAST = {
    (
        "global_batch_size",
        "accumulation",
        "checkpoint.every",
        "checkpoint.keep",
        "log.every",
        "validation.batch_size",
    ): 1,
    ("log.pictures_every", "validation.every", "validation.num_images", "ema.snapshot_every", "data.num_images"): 1,
    ("checkpoint.keep_every", "spike_factor", "lora.rank", "log.time_bins", "data.statistics_images"): 1,
    ("latent_cache.batch_size", "steps"): 1,
    ("log.pictures", "data.workers", "data.timeout", "max_skipped_steps", "clip_grad_norm"): 0,
}


@dataclass(frozen=True)
class Stage:
    """One stage, complete: its place in the run, its folder, and settings with every key of ``STAGE_KEYS``."""

    index: int
    name: str
    folder: Path
    seed: int
    settings: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.settings[key]

    @property
    def description(self) -> Path:
        """The file in its folder that says what it trains, and how."""
        return self.folder / "stage.json"

    @property
    def start_folder(self) -> Path | None:
        """The folder of the stage that this one begins from, if any."""
        start = self.settings["start"]
        return Path(start["folder"]) if start else None

    @property
    def model_settings(self) -> dict[str, Any]:
        """The keywords of :class:`aligntok.training.alignment.model.AlignmentModel`."""
        taken = ("losses", "trains", "discriminator", "teacher", "precision", "grad_checkpointing", "compile", "lora")
        return {"tokenizer": self.settings["model"], "seed": self.seed, **{key: self.settings[key] for key in taken}}


def expand_stages(config: Mapping[str, Any]) -> list[Stage]:
    """Return the stages of a checked config, in order; the config is not changed.

    Dicts of a stage are merged into the top's, key by key; ``_delete_=True`` in one replaces it; None removes a loss.
    Raises ConfigError for settings that cannot work.
    """
    check_run(config)
    base = {key: config[key] for key in STAGE_KEYS if key in config}
    folders = {
        stage["name"]: stage_folder(config["work_dir"], i, stage["name"]) for i, stage in enumerate(config["stages"])
    }
    stages: list[Stage] = []
    for i, overrides in enumerate(config["stages"]):
        settings = fill_defaults(merge(base, {key: value for key, value in overrides.items() if key != "name"}))
        settings["losses"] = {name: loss for name, loss in settings["losses"].items() if loss is not None}
        earlier = {stage.name: folders[stage.name] for stage in stages}
        where = f"stage '{overrides['name']}'"
        _resolve_start(settings, earlier, where)
        _check_stage(settings, where)
        settings["data"] = _with_roots(settings["data"], config.get("data_root"))
        name = overrides["name"]
        stages.append(Stage(i, name, folders[name], config["seed"] + i, settings))
    return stages


def check_run(config: Mapping[str, Any]) -> None:
    """Raise ConfigError for a run's own numbers out of range."""
    if config.get("process_timeout", 1) <= 0:
        raise ConfigError(f"process_timeout={config['process_timeout']}; it must be above 0, seconds")
    if config["seed"] < 0:
        raise ConfigError(f"seed={config['seed']}; it must not be negative")


def stage_folder(work_dir: str | Path, index: int, name: str) -> Path:
    """Return the folder of stage number `index` (from 0) in a run's work folder."""
    return Path(work_dir) / f"{index + 1}_{name}"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` merged into it, dict by dict; a dict with ``_delete_=True`` replaces what was there."""
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, dict) and not value.get("_delete_"):
            merged[key] = merge(old, value)
        else:
            merged[key] = copy.deepcopy(value)
            if isinstance(merged[key], dict):
                merged[key].pop("_delete_", None)
    return merged


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


def check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for what a stage and a generator's training both cannot have: numbers that are too low."""
    if settings["steps"] is None:
        raise ConfigError(f"{where}: steps=None; it must be a whole number of at least 1")
    for names, least in _AT_LEAST.items():
        for name in names:
            at_least(least, where, **{name: _setting(settings, name)})
    if settings["attention"] not in (None, *BACKENDS):
        raise ConfigError(f"{where}: attention='{settings['attention']}'; it must be None or {' or '.join(BACKENDS)}")
    if settings["clip_grad_norm"] == 0:
        raise ConfigError(f"{where}: clip_grad_norm=0 would take every gradient away; None switches clipping off")
    every, keep_every = settings["checkpoint"]["every"], settings["checkpoint"]["keep_every"]
    if keep_every and keep_every % every:
        raise ConfigError(
            f"{where}: checkpoint.keep_every={keep_every} is no multiple of checkpoint.every={every}, so nothing would "
            f"be kept; {max(1, round(keep_every / every)) * every} would work"
        )
    if settings["ema"] is not None:
        _check_averages(settings["ema"], where)


def _setting(settings: Mapping[str, Any], name: str) -> Any:
    value: Any = settings
    for key in name.split("."):
        value = None if value is None else value.get(key)
    return value


def _check_averages(ema: Mapping[str, Any], where: str) -> None:
    widths, decays = list(ema["sigma_rel"]), list(ema["decays"])
    if ema["inference"] not in (*widths, *decays):
        raise ConfigError(
            f"{where}: ema.inference={ema['inference']} is not among the averages kept, sigma_rel={widths} and "
            f"decays={decays}"
        )
    for width in widths:
        gamma_from_sigma_rel(width)
    for decay in decays:
        check_decay(decay)


def _with_roots(data: dict[str, Any], data_root: str | None) -> dict[str, Any]:
    """Give each data set the run's data_root, unless it has a root of its own."""
    roots = {"root": data_root} if data_root is not None else {}
    filled = {
        split: {"type": "images", **roots, **data[split]} for split in ("train", "val") if data[split] is not None
    }
    return {**data, **filled}
