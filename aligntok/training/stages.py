"""What every kind of training is: a stage, complete as data, and what a run asks of it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from mmengine.hooks import Hook
from torch.utils.data import Dataset
from typing_extensions import Self

from aligntok.engine.checkpoints import PartStates
from aligntok.engine.ema import check_decay, gamma_from_sigma_rel
from aligntok.errors import ConfigError, at_least
from aligntok.loading import STAGE_FILE
from aligntok.ops.attention import BACKENDS

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


class StageData(NamedTuple):
    """What a stage trains on, what it is validated on, and what of the former its model is built with."""

    train: Any
    val: Any = None
    made_with: Any = None


class RandomItems(Dataset[Any]):
    """A data set of one random item, over and over: what a step is measured on where there is no data."""

    def __init__(self, item: Mapping[str, Any], number: int) -> None:
        self.item, self.number = dict(item), number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, place: Any) -> dict[str, Any]:
        return self.item


@dataclass(frozen=True)
class Stage(ABC):
    """One training of a run, complete: its place, its folder, and settings with every key that it has.

    A new kind of training is a folder beside `alignment` and `generation`, with a class that answers these questions,
    and a line in :func:`aligntok.training.run.expand`. The models they build have ``parts()``, ``trained_parts()``,
    ``frozen_parts()`` and ``averaged_parts()``, each a dict of modules, ``load_start(states)``, ``train_step`` and
    ``val_step``.
    """

    index: int
    name: str
    folder: Path
    seed: int
    settings: dict[str, Any]

    #: Whether its data are there only once the stages before it are exported.
    waits: ClassVar[bool] = False
    #: What the table of its results is called at the end of a run; None for no table.
    results_title: ClassVar[str | None] = None

    def __getitem__(self, key: str) -> Any:
        return self.settings[key]

    @property
    def description(self) -> Path:
        """The file in its folder that says what it trains, and how."""
        return self.folder / STAGE_FILE

    @property
    def where(self) -> str:
        """What errors call it."""
        return f"stage '{self.name}'"

    @property
    def start_folder(self) -> Path | None:
        """The folder of the stage that this one begins from, if any."""
        return None

    @property
    @abstractmethod
    def optimizers(self) -> dict[str, Mapping[str, Any]]:
        """The config of the optimiser of each side that it may train; the first one's learning rate is scheduled."""

    @property
    @abstractmethod
    def validates(self) -> bool:
        """Whether its result is measured."""

    @property
    @abstractmethod
    def reads_data(self) -> bool:
        """Whether the config names data that a step can read as they are."""

    @abstractmethod
    def build_model(self, data: StageData | None = None) -> Any:
        """Build what is trained; without data on the meta device, right in every shape and keyword, without weights."""

    @abstractmethod
    def build_data(self) -> StageData:
        """Open, or make, what it trains on. Collective. Raises DataError, ConfigError or WeightsError."""

    @abstractmethod
    def check(self, model: Any) -> None:
        """Raise ConfigError for what its model, on the meta device, does not check itself."""

    def check_beforehand(self, stages: list[Stage]) -> None:
        """Check what it needs of the `stages` before it, and elsewhere, before any is trained. Raises our errors."""
        return

    def read_start(self) -> PartStates | None:
        """Read the weights that it begins from; None: as its model is built."""
        return None

    @abstractmethod
    def validation(self, data: StageData) -> dict[str, Any]:
        """Return mmengine's keywords of its validation; none without one."""

    @abstractmethod
    def hooks(self, data: StageData) -> list[Hook]:
        """Return its own hooks, beside those of every run."""

    @abstractmethod
    def describe(self, model: Any) -> dict[str, Any]:
        """Return what its description says beside its settings; what loading it needs more is written, too."""

    @abstractmethod
    def export(self) -> Path:
        """Write what it makes, once it is finished, say where, and return the folder; the first process alone."""

    @abstractmethod
    def without_pretrained(self) -> Self:
        """Return it with random weights in place of pretrained ones, beginning from no other stage."""

    @abstractmethod
    def data_to_measure(self) -> StageData:
        """Return what a step is measured on: the config's data where they can be read, or random ones of its size."""

    @abstractmethod
    def rehearse(self, model: Any) -> None:
        """Run forward everything that a step of one sample does, on the meta device."""


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
