"""What there is to report in a folder: trainings, sets of samples, sweeps and results of evaluations."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligntok.errors import AlignTokError, DataError, first_line
from aligntok.evaluation.report.scalars import History, read_history
from aligntok.evaluation.results import KINDS, Result, read_result

RUN, STAGE, GENERATION, SAMPLES, SWEEP = "run.json", "stage.json", "generation.json", "samples.json", "sweep.json"
DEPTH = 8  # of the folders that are searched
#: Folders with many or large files, and none to report.
_PRUNED = {"checkpoints", "ema_snapshots", "vis_data"}


def as_number(value: Any) -> int:
    """Return a whole number read from a file, 0 for what is none."""
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0


def part(settings: Mapping[str, Any] | None, key: str) -> dict[str, Any]:
    """Return the dict under a key of settings, empty for what is none."""
    value = (settings or {}).get(key)
    return value if isinstance(value, dict) else {}


@dataclass
class Training:
    """One stage of a tokenizer's training, or a generator's: what it was told, logged, measured and drew.

    result: ``step``, ``seconds`` and ``metrics`` of the last validation, or empty. pictures: by step.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    history: History
    result: dict[str, Any]
    pictures: dict[int, Path]
    is_generator: bool = False

    @property
    def step(self) -> int:
        """The last step that anything was logged or drawn of."""
        logged = [curve.steps[-1] for curve in self.history.trained.values()]
        return max([*logged, *self.pictures, as_number(self.result.get("step"))], default=0)

    @property
    def steps(self) -> int:
        """The number of steps that were wanted, 0 if that is not noted."""
        return as_number(self.settings.get("steps"))

    @property
    def batch(self) -> int:
        """Images a step, 0 if that is not noted."""
        return as_number(self.settings.get("global_batch_size"))


@dataclass
class Samples:
    """A folder of samples, with how they were drawn."""

    folder: Path
    settings: dict[str, Any]


@dataclass
class Sweep:
    """A sweep over guidance scales and numbers of steps: a row a combination, numbers by column."""

    folder: Path
    rows: list[dict[str, float]]
    settings: dict[str, Any]


@dataclass
class Evaluated:
    """A result with the file that it is in; pictures are beside it."""

    path: Path
    result: Result


@dataclass
class Run:
    """All that was found under one of the folders that a report is of.

    missing: what is not there or cannot be read, in words. origin: what started it, where that was noted.
    """

    name: str
    path: Path
    stages: list[Training] = field(default_factory=list)
    generators: list[Training] = field(default_factory=list)
    samples: list[Samples] = field(default_factory=list)
    sweeps: list[Sweep] = field(default_factory=list)
    results: list[Evaluated] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def trainings(self) -> list[Training]:
        """The stages, then the generators."""
        return [*self.stages, *self.generators]


def find(source: str | os.PathLike[str]) -> Run:
    """Look for everything to report in a folder, or take the one result of an evaluation.

    Raises DataError when nothing is there.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"no such file or folder to report on: {path}; give a work folder, samples, or an evaluation")
    run = Run(path.resolve().name, path)
    if path.is_file():
        run.results.append(Evaluated(path, read_result(path)))
        return run
    for folder, files in _walk(path):
        _look(run, folder, files)
    if not (run.trainings or run.samples or run.sweeps or run.results):
        found = f" (not found: {'; '.join(run.missing)})" if run.missing else ""
        raise DataError(
            f"{path} holds nothing to report{found}; give a work folder of tools/train.py, a folder of "
            "tools/sample.py, or one with the results of an evaluation"
        )
    _check_is_one(run)
    run.stages.sort(key=lambda stage: (_number(stage.folder), stage.folder))
    _note_what_is_missing(run)
    return run


def _check_is_one(run: Run) -> None:
    """Keep the run's own trainings, where others are inside it; raise DataError for a folder of several runs."""
    runs = sorted({training.folder.parent.resolve() for training in run.trainings})
    if run.path.resolve() in runs:
        run.stages = [each for each in run.stages if each.folder.parent.resolve() == run.path.resolve()]
        run.generators = [each for each in run.generators if each.folder.parent.resolve() == run.path.resolve()]
    elif len(runs) > 1:
        raise DataError(
            f"{run.path} holds several runs ({', '.join(map(str, runs))}); give those to compare, one after another"
        )


def _number(folder: Path) -> int:
    digits = folder.resolve().name.partition("_")[0]
    return int(digits) if digits.isdigit() else 0


def _walk(top: Path) -> Iterator[tuple[Path, set[str]]]:
    for place, folders, files in os.walk(top):
        folder = Path(place)
        deep = len(folder.relative_to(top).parts) >= DEPTH
        inner = {"images"} if SAMPLES in files else set()
        folders[:] = sorted(n for n in folders if not (deep or n in _PRUNED | inner or n.startswith(".")))
        if "manifest.json" in files:  # of a latent cache
            folders.clear()
        yield folder, set(files)


def _look(run: Run, folder: Path, files: set[str]) -> None:
    if RUN in files:
        run.origin = run.origin or _read_json(run, folder / RUN)
    if STAGE in files:
        _take_training(run, folder, STAGE)
    if SAMPLES in files:
        run.samples.append(Samples(folder, _read_json(run, folder / SAMPLES)))
    if {"sweep.csv", SWEEP} & files:
        _take_sweep(run, folder)
    for kind in KINDS:
        name = f"{kind}.json"
        if name in files:
            _take_result(run, folder / name)


def _take_result(run: Run, path: Path) -> None:
    if path.name == GENERATION and "stage" in (content := _read_json(run, path, quiet=True)):
        _take_training(run, path.parent, GENERATION, content)
        return
    try:
        result = read_result(path)
        if result.kind not in KINDS or not all(isinstance(value, (int, float)) for value in result.metrics.values()):
            raise DataError(f"{path} is of the kind '{result.kind}', or has metrics that are no numbers")
        run.results.append(Evaluated(path, result))
    except (AlignTokError, AttributeError, TypeError) as error:
        run.missing.append(first_line(error))


def _take_training(run: Run, folder: Path, description: str, settings: dict[str, Any] | None = None) -> None:
    settings = _read_json(run, folder / description) if settings is None else settings
    result = folder / "result.json"
    name = str(settings.get("stage") or re.sub(r"^\d+_", "", folder.resolve().name))
    training = Training(
        name,
        folder,
        settings,
        read_history(folder),
        _read_json(run, result) if result.is_file() else {},
        _pictures(folder),
        is_generator=description == GENERATION,
    )
    (run.generators if training.is_generator else run.stages).append(training)
    run.missing += training.history.faults


def _pictures(folder: Path) -> dict[int, Path]:
    paths = sorted((folder / "pictures").glob("step_*.png"))
    return {int(path.stem.removeprefix("step_")): path for path in paths if path.stem.removeprefix("step_").isdigit()}


def _take_sweep(run: Run, folder: Path) -> None:
    settings = _read_json(run, folder / SWEEP) if (folder / SWEEP).is_file() else {}
    path = folder / "sweep.csv"
    rows = []
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                rows.append({name: float(value) for name, value in row.items() if value not in ("", None)})
        if not rows or not all({"cfg_scale", "steps"} <= {*row} for row in rows):
            raise ValueError("no columns cfg_scale and steps")
    except (OSError, ValueError, TypeError, csv.Error) as error:
        run.missing.append(f"{path} ({first_line(error)})")
        return
    run.sweeps.append(Sweep(folder, rows, settings))


def _read_json(run: Run, path: Path, quiet: bool = False) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        if not quiet:
            run.missing.append(f"{path} ({first_line(error)})")
        return {}
    return content


def _note_what_is_missing(run: Run) -> None:
    for training in run.trainings:
        if not training.pictures and part(training.settings, "log").get("pictures", 1):
            run.missing.append(f"{training.folder / 'pictures'}, what the training drew")
        if not training.is_generator and not training.result and part(training.settings, "data").get("val"):
            run.missing.append(f"{training.folder / 'result.json'}, the validation after the last step")
    for found in run.results:
        for name in found.result.pictures.values():
            if not (found.path.parent / str(name)).is_file():
                run.missing.append(f"{found.path.parent / str(name)}, a picture of the {found.result.kind} result")
    if run.trainings and not run.results:
        run.missing.append(f"results of an evaluation under {run.path} (tools/evaluate.py writes them)")
