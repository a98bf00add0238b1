"""What there is to report in a folder: trainings with their logs, samples, sweeps and results of evaluations."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from aligntok.errors import AlignTokError, DataError, first_line
from aligntok.evaluation.results import KINDS, Result, read_result
from aligntok.io.files import inside, read_json, reading

RUN, STAGE, SAMPLES, SWEEP = "run.json", "stage.json", "samples.json", "sweep.json"
DEPTH = 8  # of the folders that are searched
#: Folders with many or large files, and none to report.
_PRUNED = {"checkpoints", "ema_snapshots", "vis_data"}
TIME_BINS = "loss_at_time/"
UNREAD = "the page goes without it"  # of a file that is damaged
Record = dict[str, float]


class Curve(NamedTuple):
    """A quantity over steps."""

    steps: list[int]
    values: list[float]


@dataclass
class History:
    """A stage's logged quantities by name.

    trained: of training steps. measured: of held-out data, by the validation. bins: loss by interval of time, by step.
    faults: what could not be read, in words.
    """

    trained: dict[str, Curve] = field(default_factory=dict)
    measured: dict[str, Curve] = field(default_factory=dict)
    bins: dict[int, dict[str, float]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def read_history(folder: Path) -> History:
    """Read and join the logs of all starts of the stage in `folder`; nothing is raised, see `faults`."""
    history = History()
    starts = []
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        records, damaged = read_records(path)
        starts.append(records)
        if damaged:
            lines = f"{damaged} line{'s' * (damaged > 1)}"
            history.faults.append(f"{lines} of {path} cannot be read; the others are shown")
    for record in join_starts(starts):
        kind, step = kind_of(record), int(record["step"])
        for name, value in record.items():
            if kind == "bins" and name != "step":
                history.bins.setdefault(step, {})[name.removeprefix(TIME_BINS)] = value
            elif name != "step":
                curve = getattr(history, kind).setdefault(name, Curve([], []))
                curve.steps.append(step)
                curve.values.append(value)
    if not (history.trained or history.measured):
        history.faults.append(f"{folder}/*/vis_data/scalars.json, the training's log")
    return history


def read_records(path: Path) -> tuple[list[Record], int]:
    """Return the lines of mmengine's scalars.json that can be read, and the number of those that cannot."""
    records, damaged = [], 0
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return [], 1
    for line in filter(str.strip, lines):
        try:
            found = json.loads(line)
            records.append({name: float(value) for name, value in found.items()} | {"step": int(found["step"])})
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            damaged += 1
    return records, damaged


def join_starts(starts: Sequence[Sequence[Record]]) -> list[Record]:
    """Return the records of several starts of one stage, oldest first, as one history in order of steps.

    A start goes on from a checkpoint, so from its first step on it replaces what an earlier one had logged.
    """
    joined: list[Record] = []
    for records in filter(None, starts):
        first = min(record["step"] for record in records)
        again = {kind_of(record) for record in records if record["step"] == first}
        kept = [r for r in joined if r["step"] < first or (r["step"] == first and kind_of(r) not in again)]
        joined = kept + list(records)
    newest = {(record["step"], kind_of(record)): record for record in joined}
    return [newest[key] for key in sorted(newest)]


def kind_of(record: Mapping[str, float]) -> str:
    """Tell what a record is of: training steps ("trained"), loss by time ("bins"), a validation ("measured")."""
    if any(name.startswith(TIME_BINS) for name in record):
        return "bins"
    return "trained" if "images_per_second" in record or any(n.startswith("loss/") for n in record) else "measured"


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

    result: ``step``, ``seconds`` and ``metrics`` of the last validation, or empty. pictures: names in the folder, by
    step. before: steps of the stages before it.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    history: History
    result: dict[str, Any]
    pictures: dict[int, str]
    is_generator: bool = False
    before: int = 0

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
    """A folder of samples, or of a sweep over guidance scales and numbers of steps, with how they were drawn.

    rows: of a sweep, a row a combination, numbers by column.
    """

    folder: Path
    settings: dict[str, Any]
    rows: Sequence[Mapping[str, float]] = ()


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
    trainings: list[Training] = field(default_factory=list)
    samples: list[Samples] = field(default_factory=list)
    sweeps: list[Samples] = field(default_factory=list)
    results: list[Evaluated] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def stages(self) -> list[Training]:
        """The stages of a tokenizer's training, in order."""
        return [training for training in self.trainings if not training.is_generator]

    @property
    def generators(self) -> list[Training]:
        """The trainings of generators."""
        return [training for training in self.trainings if training.is_generator]

    def place_of(self, found: Evaluated) -> tuple[str, ...]:
        """Return the folder of a result as the names that lead to it from the run's own."""
        folder, top = found.path.parent.resolve(), self.path.resolve()
        return folder.relative_to(top).parts if folder.is_relative_to(top) else (folder.name,)


def find(source: str | os.PathLike[str]) -> Run:
    """Look for everything to report in a folder, or take the one result of an evaluation.

    Raises DataError when nothing is there, and for a folder of several runs.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"no such file or folder to report on: {path}; give a work folder, samples, or an evaluation")
    run = Run(path.resolve().name, path)
    if path.is_file():
        run.results.append(Evaluated(path, read_result(path)))
        return run
    origins = {}
    for folder, files in _walk(path):
        if RUN in files:
            origins[folder] = _read_json(run, folder / RUN)
        _look(run, folder, files)
    if not (run.trainings or run.samples or run.sweeps or run.results):
        found = f" (not found: {'; '.join(run.missing)})" if run.missing else ""
        raise DataError(
            f"{path} holds nothing to report{found}; give a work folder of tools/train.py, a folder of "
            "tools/sample.py, or one with the results of an evaluation"
        )
    _check_is_one(run)
    homes = {training.folder.parent for training in run.trainings} or {*origins}
    run.origin = next((origin for folder, origin in origins.items() if folder in homes and origin), {})
    _note_what_is_missing(run)
    return run


def _check_is_one(run: Run) -> None:
    """Keep the run's own trainings, in order, where others are inside it; raise DataError for several runs."""
    own, runs = run.path.resolve(), sorted({training.folder.parent.resolve() for training in run.trainings})
    if own in runs:
        run.trainings = [training for training in run.trainings if training.folder.parent.resolve() == own]
    elif len(runs) > 1:
        raise DataError(
            f"{run.path} holds several runs ({', '.join(map(str, runs))}); give those to compare, one after another"
        )
    numbers = {t.folder: re.match(r"(\d+)_", t.folder.resolve().name) for t in run.trainings}
    order = {folder: int(number[1]) if number else 0 for folder, number in numbers.items()}
    run.trainings.sort(key=lambda training: (training.is_generator, order[training.folder], training.folder))
    for one, two in (*pairwise(run.stages), *pairwise(run.generators)):
        two.before = one.before + max(one.step, one.steps)


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
    if STAGE in files:
        _take_training(run, folder, _read_json(run, folder / STAGE))
    if SAMPLES in files:
        run.samples.append(Samples(folder, _read_json(run, folder / SAMPLES)))
    if {"sweep.csv", SWEEP} & files:
        _take_sweep(run, folder)
    for name in (f"{kind}.json" for kind in KINDS if f"{kind}.json" in files):
        _take_result(run, folder / name)


def _take_result(run: Run, path: Path) -> None:
    try:
        result = read_result(path)
        if result.kind not in KINDS or not all(isinstance(value, (int, float)) for value in result.metrics.values()):
            raise DataError(f"{path} is of the kind '{result.kind}', or has metrics that are no numbers")
        run.results.append(Evaluated(path, result))
    except (AlignTokError, AttributeError, TypeError) as error:
        run.missing.append(first_line(error))


def _take_training(run: Run, folder: Path, settings: dict[str, Any]) -> None:
    name = str(settings.get("stage") or re.sub(r"^\d+_", "", folder.resolve().name))
    history = read_history(folder)
    result = _read_json(run, folder / "result.json") if (folder / "result.json").is_file() else {}
    steps = {path.name: path.stem.removeprefix("step_") for path in sorted(folder.glob("pictures/step_*.png"))}
    pictures = {int(step): f"pictures/{name}" for name, step in steps.items() if step.isdigit()}
    run.trainings.append(Training(name, folder, settings, history, result, pictures, "generator" in settings))
    run.missing += history.faults


def _take_sweep(run: Run, folder: Path) -> None:
    settings = _read_json(run, folder / SWEEP) if (folder / SWEEP).is_file() else {}
    path = folder / "sweep.csv"
    try:
        with reading(path, DataError, UNREAD), path.open(newline="") as file:
            rows = [{name: float(v) for name, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]
            if not rows or not all({"cfg_scale", "steps"} <= {*row} for row in rows):
                raise ValueError("no columns cfg_scale and steps")
        run.sweeps.append(Samples(folder, settings, rows))
    except (DataError, csv.Error) as error:
        run.missing.append(first_line(error))


def _read_json(run: Run, path: Path) -> dict[str, Any]:
    try:
        return read_json(path, DataError, UNREAD)
    except DataError as error:
        run.missing.append(first_line(error))
        return {}


def _note_what_is_missing(run: Run) -> None:
    for training in run.trainings:
        if not training.pictures and part(training.settings, "log").get("pictures", 1):
            run.missing.append(f"{training.folder / 'pictures'}, what the training drew")
        if not training.is_generator and not training.result and part(training.settings, "data").get("val"):
            run.missing.append(f"{training.folder / 'result.json'}, the validation after the last step")
    for found in run.results:
        for name in found.result.pictures.values():
            if not _is_there(found.path.parent, name):
                run.missing.append(f"{found.path.parent / str(name)}, a picture of the {found.result.kind} result")
    if run.trainings and not run.results:
        run.missing.append(f"results of an evaluation under {run.path} (tools/evaluate.py writes them)")


def _is_there(folder: Path, name: Any) -> bool:
    try:
        return inside(folder, name, DataError, "").is_file()
    except DataError:
        return False
