"""A generator's training as data: a pure function turns a config into its complete settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligntok.caching.encoder import check_posterior
from aligntok.diffusion.sampling import Sampling
from aligntok.errors import ConfigError
from aligntok.loading import DESCRIPTION, NAME
from aligntok.registry import dotted_components, import_components
from aligntok.training.config import fill_defaults
from aligntok.training.settings import GENERATION_KEYS
from aligntok.training.stages import Stage, check_run, check_settings


@dataclass(frozen=True)
class Generation(Stage):
    """A generator's training, complete: settings with every key of ``GENERATION_KEYS``.

    `data_root` is the run's; `stages_tokenizer` the folder of the tokenizer that the same config's stages make, or
    None; `dotted` the import paths that the config names as components.
    """

    data_root: str | None
    stages_tokenizer: Path | None
    dotted: Sequence[str] = ()

    @property
    def components(self) -> dict[str, Any]:
        """The classes that the config names by import path, by that name: its own folders may name them, too."""
        return import_components(self.dotted)

    @property
    def description(self) -> Path:
        """The file in its folder that says what it trains, and how."""
        return self.folder / DESCRIPTION

    @property
    def start_folder(self) -> None:
        """None: it begins from no stage's weights."""
        return None

    @property
    def latents_folder(self) -> Path:
        """Where the run's own cache of latents is made."""
        return self.folder.parent / "latents"

    @property
    def model_settings(self) -> dict[str, Any]:
        """The keywords of :class:`aligntok.training.generation.model.GenerationModel`, but for `diffusion`."""
        taken = {key: self.settings[key] for key in ("transport", "precision", "grad_checkpointing", "compile")}
        posterior = self["data"]["posterior"]
        return {**taken, "posterior": posterior, "time_bins": self["log"]["time_bins"], "seed": self.seed}

    @property
    def posterior(self) -> str:
        """What is taken of the posterior of a variational tokenizer: "mean" or "sample"."""
        cache = self["latent_cache"]
        return str(self["data"]["posterior"] if cache is None else cache["posterior"])


def expand_generation(config: Mapping[str, Any]) -> Generation | None:
    """Return the generator's training of a checked config, or None if it has none; the config is not changed.

    Raises ConfigError for settings that cannot work.
    """
    given = config["generation"] if config["stages"] else config
    if "generator" not in given:
        return None
    check_run(config)
    settings = fill_defaults({key: given[key] for key in GENERATION_KEYS if key in given}, GENERATION_KEYS)
    work_dir = Path(config["work_dir"])
    _check(settings, f"{NAME} of a generator")
    settings["data"] = {**settings["data"], "train": _with_root(settings, config["data_root"], work_dir)}
    return Generation(
        index=len(config["stages"]),
        name=NAME,
        folder=work_dir / NAME,
        seed=config["seed"] + len(config["stages"]),
        settings=settings,
        data_root=config["data_root"],
        stages_tokenizer=work_dir / "tokenizer" if config["stages"] and settings["tokenizer"] is None else None,
        dotted=dotted_models(config),
    )


def dotted_models(config: Mapping[str, Any]) -> list[str]:
    """Return the import paths that a run's config names as parts of its tokenizers or as its generator."""
    given = [config, config.get("generation"), *config.get("stages", [])]
    parts = [{"model": each.get("model"), "generator": each.get("generator")} for each in given if each]
    return dotted_components(parts)


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
