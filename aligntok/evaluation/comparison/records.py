"""What is kept of each arm of a comparison that is finished: its numbers, what they were made with, a picture.

A file an arm, small enough to be committed. It has what determines the numbers, so that an arm is not trained again
where they would be the same, and no place of a machine, so that tables are made of such files anywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

import aligntok
from aligntok.device import AUTO, device, precision_taken
from aligntok.distributed import world
from aligntok.errors import DataError, first_line
from aligntok.evaluation.comparison.plan import Arm, Comparison
from aligntok.evaluation.comparison.settings import ComparisonSettings
from aligntok.evaluation.metrics.features import extractor_config
from aligntok.evaluation.settings import NEUTRAL
from aligntok.imports import version_of
from aligntok.io.checksums import sha256
from aligntok.io.files import read_json, write_json
from aligntok.registry import keywords_in
from aligntok.settings import fields_of, flatten
from aligntok.training.alignment import expand_stages
from aligntok.training.generation import expand_generation
from aligntok.training.generator_settings import GeneratorSettings
from aligntok.training.settings import StageSettings

FORMAT = 1
FREE = (*NEUTRAL, "samples.batch_size")  # what no number depends on, or the beginning of it
#: Settings of the comparison that say nothing of how an arm is measured.
_OF_ALL = ("tokenizers", "generator", "criterion", "grid", "results", "work_dir", "data_root", "seeds", "workers")
#: Those that say how real images are.
_OF_REAL_IMAGES = ("extractors", "image_size", "train_split", "val_split", "num_reference", "samples.num_samples")
_BETWEEN = "samples.between"
_PACKAGES = ("torch", "numpy", "pillow", "scikit-learn")
_OF_REFERENCES = ("image_size", "train_split", "num_reference")
_CURE = "it is no arm's results: take it from where it was made, or remove it to have the arm trained again"


class _Default:
    """What a setting is that is left out: None says something else, such as that there is no discriminator."""

    def __repr__(self) -> str:
        return "its default"


DEFAULT = _Default()


@dataclass(frozen=True)
class Made:
    """What determines an arm's numbers: settings by dotted name, files of weights, and what "auto" meant.

    Settings at their defaults are left out, so that one that a later version adds changes nothing. Of a file its name
    and SHA-256. precision: None where nothing is computed in "auto".
    """

    settings: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    precision: str | None = None

    @property
    def hash(self) -> str:
        """SHA-256 of all of it, 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Made) -> dict[str, tuple[Any, Any]]:
        """Return what differs, by name: here and in the other. A file that one of them has not at hand passes."""
        own, its = self.settings, other.settings
        both = {key: (own.get(key, DEFAULT), its.get(key, DEFAULT)) for key in {**own, **its}}
        found = {key: (here, there) for key, (here, there) in both.items() if here != there}
        files = self.files.keys() & other.files.keys()
        return found | {f"the file {name}": ("", "") for name in files if self.files[name] != other.files[name]}


@dataclass(frozen=True)
class Record:
    """What is kept of an arm: what it was made with, metrics by name, curves by name and step, seconds by part.

    diverged: its training did not come to its end, as one of a grid may.
    """

    name: str
    made: Made
    metrics: dict[str, float]
    seed: int | None = None
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    images: int | None = None
    diverged: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def final(self) -> dict[str, float]:
        """Every metric after the last step."""
        return {**self.metrics, **{name: curve[max(curve)] for name, curve in self.curves.items()}}

    def value(self, metric: str) -> float:
        """Return a metric after the last step, infinite after none. Raises DataError where it was not measured."""
        if self.diverged:
            return math.inf
        if metric not in self.final:
            raise DataError(
                f"{metric} was not measured of '{self.name}'; there is {', '.join(self.final) or 'nothing'}: to have "
                "it measured, remove the file and the folder of its results"
            )
        return self.final[metric]

    def write(self, path: Path) -> None:
        """Write it, whole or not at all. Raises WriteError."""
        write_json(path, {"format": FORMAT, "hash": self.made.hash, **asdict(self)})


def read_record(path: Path) -> Record:
    """Read what `Record.write` wrote. Raises DataError for all else, and for one that was changed since."""

    def parse(content: dict[str, Any]) -> Record:
        if content.pop("format") != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}")
        digest = content.pop("hash")
        try:
            record: Record = TypeAdapter(Record).validate_python(content)
        except ValidationError as error:
            raise ValueError(first_line(error.errors(include_url=False)[0]["msg"])) from error
        if record.made.hash != digest or not all(record.curves.values()):
            raise ValueError("its settings are not those of its hash, or a curve of it is empty")
        return record

    return read_json(path, DataError, _CURE, parse)


def made_with(comparison: Comparison, arm: Arm | None) -> Made:
    """Return what determines the numbers of an arm; None: those of real images."""
    settings = {key: value for key, value in asdict(comparison.settings).items() if key not in _OF_ALL}
    settings["extractors"] = [without_place(each) for each in settings["extractors"]]
    told: dict[str, Any] = {"measuring": own_settings(ComparisonSettings, settings)}
    if arm is None:
        told["measuring"] = {key: each for key, each in told["measuring"].items() if key.startswith(_OF_REAL_IMAGES)}
    else:
        stages = {each.name: each.settings for each in expand_stages(comparison.tokenizer_config(arm))}
        told["seed"] = arm.seed
        if comparison.generator is not None:
            generation = expand_generation(comparison.generator_config(arm, []))
            assert generation is not None  # read_comparison has seen to it
            told["generator"] = own_settings(GeneratorSettings, asdict(generation.settings))
        told["tokenizer"] = {name: own_settings(StageSettings, asdict(each)) for name, each in stages.items()}
        if arm.number is not None and comparison.settings.grid is not None:  # measured once, at the end
            told["metric"] = comparison.settings.grid.metric
            told["measuring"] = {key: each for key, each in told["measuring"].items() if not key.startswith(_BETWEEN)}
    found = json.loads(json.dumps(nameless(flatten(told)), default=str, sort_keys=True))
    used = any(key.rpartition(".")[2] == "precision" and value == AUTO for key, value in found.items())
    return Made(found, files_of(told), precision_taken(AUTO) if used else None)


def references_made_with(comparison: Comparison) -> Made:
    """Return what determines which images references are of."""
    of_real_images = made_with(comparison, None).settings
    names = tuple(f"measuring.{name}" for name in _OF_REFERENCES)
    return Made({key: value for key, value in of_real_images.items() if key.startswith(names)})


def own_settings(cls: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that numbers depend on and that are not at their defaults, by dotted name."""
    defaults: dict[str, Any] = {}
    for option in fields_of(cls):
        whole = option.default
        defaults |= flatten({option.name: whole}) if isinstance(whole, Mapping) else {option.name: whole}
    return {
        key: value
        for key, value in flatten(settings).items()
        if not key.startswith(FREE) and not (key in defaults and defaults[key] == value)
    }


def nameless(value: Any) -> Any:
    """Return nested dicts and lists in which a place of a machine is the last part of its path alone."""
    if isinstance(value, Mapping):
        return {key: nameless(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [nameless(each) for each in value]
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    return Path(text).name if isinstance(text, str) and text.startswith(("/", "~", "./", "../")) else text


def without_place(extractor: Any) -> Any:
    """Return an extractor that is named with a file of its weights as the config that says so."""
    has_place = isinstance(extractor, str) and "/" in extractor
    return extractor_config(extractor)[1] if has_place else extractor


def files_of(told: Any) -> dict[str, str]:
    """Return name and SHA-256 of the files of weights that settings name and that are here."""
    named: Iterable[Any] = (value for key, value in keywords_in(told) if str(key).rpartition(".")[2] == "pretrained")
    paths = [Path(value).expanduser() for value in named if isinstance(value, str)]
    return {path.name: sha256(path) for path in paths if path.is_file()}


def machine() -> dict[str, Any]:
    """Return what computes: kind of processor, threads, versions; nothing that names this machine."""
    gpu = torch.cuda.get_device_name() if device().type == "cuda" else None
    return {
        "processor": gpu or _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": world()[1],
        "aligntok": aligntok.__version__,
        "python": platform.python_version(),
        **{name: version_of(name) for name in _PACKAGES},
    }


def _processor() -> str:
    try:
        told = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in told if line.startswith("model name")]
    return names[0] if names else platform.machine()
