"""A generator's training as data: a pure function turns a config into its complete settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aligntok.caching.encoder import check_posterior
from aligntok.diffusion.settings import Sampling
from aligntok.diffusion.times import sample_times
from aligntok.errors import ConfigError
from aligntok.latent_diffusion import check_null_class
from aligntok.loading import GENERATION
from aligntok.training.config import fill_defaults
from aligntok.training.settings import GENERATION_KEYS
from aligntok.training.stages import check_run, check_settings


def complete_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a checked config's settings of a generator's training, or None if it has none; the config is not changed.

    They have every key of ``GENERATION_KEYS``. Raises ConfigError for settings that cannot work.
    """
    given = config["generation"] if config["stages"] else config
    if "generator" not in given:
        return None
    check_run(config)
    settings = fill_defaults({key: given[key] for key in GENERATION_KEYS if key in given}, GENERATION_KEYS)
    _check(settings, f"{GENERATION} of a generator")
    train = _with_root(settings, config["data_root"], Path(config["work_dir"]))
    settings["data"] = {**settings["data"], "train": train}
    return settings


def check_with_generator(settings: Mapping[str, Any], generator: Any, where: str) -> None:
    """Raise ConfigError for transport and sampling that cannot work, or not with this generator."""
    transport = settings["transport"]
    sample_times(torch.zeros(1), transport["times"], **{key: transport[key] for key in ("mean", "scale", "shift")})
    if transport["direction_weight"] < 0:
        raise ConfigError(f"{where}: transport.direction_weight={transport['direction_weight']}; 0 leaves it out")
    check_null_class(settings["sampling"]["cfg_scale"], generator, f"{where}, sampling")
    channels = settings["sampling"]["cfg_channels"]
    if channels is not None and channels > generator.in_channels:
        raise ConfigError(f"{where}: sampling.cfg_channels={channels} of {generator.in_channels} latent channels")


def _check(settings: Mapping[str, Any], where: str) -> None:
    if "type" not in settings["generator"]:
        raise ConfigError(f"{where}: generator={settings['generator']!r} has no type; lightning_dit is one")
    check_settings(settings, where)
    Sampling(**settings["sampling"])  # raises for what is no way to sample
    train = settings["data"]["train"]
    if settings["latent_cache"] is not None and (train["type"] != "latents" or "root" in train):
        raise ConfigError(
            f"{where}: latent_cache makes the data, so data.train must be dict(type='latents') without a root, not "
            f"{train!r}; leave one of the two out"
        )
    for posterior in (settings["data"]["posterior"], (settings["latent_cache"] or {}).get("posterior", "mean")):
        check_posterior(posterior)
    if train["type"] == "latents" and settings["data"]["posterior"] != "mean":
        raise ConfigError(
            f"{where}: data.posterior='{settings['data']['posterior']}' is for images that are encoded on the fly; a "
            "cache of latents has its own: latent_cache.posterior, or tools/cache_latents.py --posterior"
        )
    if settings["log"]["pictures"] < 0 or any(step < 1 for step in settings["log"]["pictures_at"]):
        raise ConfigError(f"{where}: log.pictures must not be negative, and log.pictures_at be of steps from 1 on")


def _with_root(settings: Mapping[str, Any], data_root: str | None, work_dir: Path) -> dict[str, Any]:
    """Return what to train on: its own root, the cache that is going to be made, or the run's data_root."""
    root = str(work_dir / "latents") if settings["latent_cache"] is not None else data_root
    return {**({"root": root} if root is not None else {}), **settings["data"]["train"]}
