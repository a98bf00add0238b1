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
from typing import Any, NamedTuple, TypeGuard

from aligntok.errors import AlignTokError, DataError, first_line
from aligntok.evaluation.results import KINDS, MOST, Result, read_result
from aligntok.io.files import inside, read_bytes, read_json, reading, regular
from aligntok.io.places import with_places

RUN, STAGE, SAMPLES, SWEEP = "run.json", "stage.json", "samples.json", "sweep.json"
DEPTH = 8  # of the folders that are searched
#: Folders with many or large files, and none to report.
_PRUNED = {"checkpoints", "ema_snapshots", "vis_data"}
TIME_BINS = "loss_at_time/"
UNREAD = "the page goes without it"  # of a file that is damaged


Curve = dict[int, float]  # a quantity's values by step


@dataclass
class History:
    """A stage's logged quantities by name.

    trained: of training steps. measured: of held-out data, by the validation. bins: losses by interval of time.
    faults: what could not be read, in words.
    """

    trained: dict[str, Curve] = field(default_factory=dict)
    measured: dict[str, Curve] = field(default_factory=dict)
    bins: dict[str, Curve] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def read_history(folder: Path) -> History:
    """Read and join the logs of all starts of the stage in `folder`; nothing is raised, see `faults`.

    A start goes on from a checkpoint, so from its first step on it replaces what an earlier one had logged.
    """
    history = History()
    joined: dict[tuple[int, str], dict[str, float]] = {}  # by step and kind
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        records, damaged = _read_records(path)
        first = min((step for step, _ in records), default=math.inf)
        joined = {key: record for key, record in joined.items() if key[0] <= first} | records
        if damaged:
            lines = f"{damaged} line{'s' * (damaged > 1)}"
            history.faults.append(f"{lines} of {path} cannot be read; the others are shown")
    for (step, kind), record in sorted(joined.items(), key=lambda item: item[0]):
        for name, value in record.items():
            getattr(history, kind).setdefault(name, {})[step] = value
    if not (history.trained or history.measured):
        history.faults.append(f"{folder}/*/vis_data/scalars.json, the training's log")
    return history


def _read_records(path: Path) -> tuple[dict[tuple[int, str], dict[str, float]], int]:
    """Return the lines of mmengine's scalars.json by step and kind, and the number of those that cannot be read.

    Kinds are those of `History`; of two lines alike in both, the later one holds.
    """
    records, damaged = {}, 0
    try:
        lines = read_bytes(path).decode(errors="replace").splitlines()
    except OSError:
        return {}, 1
    for line in filter(str.strip, lines):
        try:
            content = json.loads(line)
            step, found = int(content.pop("step")), {name: float(value) for name, value in content.items()}
            if not 0 <= step <= MOST:
                raise ValueError(f"step {step}")
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            damaged += 1
            continue
        if any(name.startswith(TIME_BINS) for name in found):
            kind, found = "bins", {name.removeprefix(TIME_BINS): value for name, value in found.items()}
        else:
            is_trained = "images_per_second" in found or any(name.startswith("loss/") for name in found)
            kind = "trained" if is_trained else "measured"
        records[step, kind] = found
    return records, damaged


def is_number(value: Any) -> TypeGuard[float]:
    """Tell whether a value of a file is a number: what is true or false is none, nor is one too large for a float."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300)


def as_number(value: Any) -> int:
    """Return a whole number read from a file, 0 for what is none, and for one that counts nothing: beyond MOST."""
    return int(value) if is_number(value) and abs(value) <= MOST else 0


def part(settings: Mapping[str, Any] | None, *keys: str) -> dict[str, Any]:
    """Return the dict under a key of settings, under the next key in it, and so on; empty for what is none."""
    value: Any = settings
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, dict) else {}


@dataclass
class Training:
    """One stage of a tokenizer's training, or a generator's: what it was told, logged, measured and drew.

    name: in words. result: ``step``, ``seconds`` and ``metrics`` of the last validation, or empty. pictures: names in
    the folder, by step. before: steps of the stages before it.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    history: History
    result: dict[str, Any]
    pictures: dict[int, str]
    before: int = 0

    @property
    def step(self) -> int:
        """The last step that anything was logged or drawn of."""
        logged = map(max, self.history.trained.values())
        return max(*logged, *self.pictures, as_number(self.result.get("step")), 0)

    @property
    def steps(self) -> int:
        """The number of steps that were wanted, 0 if that is not noted."""
        return as_number(self.settings.get("steps"))

    @property
    def progress(self) -> str:
        """The steps in words, "1,000", or "900 of 1,000" of a training that is not at its end."""
        wanted = self.steps or self.step
        return f"{wanted:,}" if self.step >= wanted else f"{self.step:,} of {wanted:,}"

    @property
    def batch(self) -> int:
        """Images a step, 0 if that is not noted."""
        return as_number(self.settings.get("global_batch_size"))

    @property
    def metrics(self) -> dict[str, Any]:
        """What the last validation measured."""
        return {name: value for name, value in part(self.result, "metrics").items() if is_number(value)}


class Samples(NamedTuple):
    """A folder of samples, or of a sweep over guidance scales and numbers of steps, with how they were drawn.

    rows: of a sweep, a row a combination, numbers by column.
    """

    folder: Path
    settings: dict[str, Any]
    rows: Sequence[Mapping[str, float]] = ()


class Evaluated(NamedTuple):
    """A result with the file that it is in; pictures are beside it."""

    path: Path
    result: Result


@dataclass
class Run:
    """All that was found under one of the folders that a report is of.

    stages: of a tokenizer's training, in order. generators: their trainings. missing: what is not there or cannot be
    read, in words. origin: what started it, where that was noted.
    """

    name: str
    path: Path
    stages: list[Training] = field(default_factory=list)
    generators: list[Training] = field(default_factory=list)
    samples: list[Samples] = field(default_factory=list)
    sweeps: list[Samples] = field(default_factory=list)
    results: list[Evaluated] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def trainings(self) -> list[Training]:
        """Stages and generators."""
        return [*self.stages, *self.generators]

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
    for folder, files in _walk(path, run.missing):
        if RUN in files:
            origins[folder] = _read_json(run, folder / RUN)
        _take(run, folder, files)
    if not (run.trainings or run.samples or run.sweeps or run.results):
        found = f" (not found: {'; '.join(run.missing)})" if run.missing else ""
        raise DataError(
            f"{path} holds nothing to report{found}; give a work folder of tools/train.py, a folder of "
            "tools/sample.py, or one with the results of an evaluation"
        )
    _check_is_one(run)
    homes = {training.folder.parent for training in run.trainings} or {*origins}
    run.origin = next((origin for folder, origin in origins.items() if folder in homes and origin), {})
    run.missing += _missing(run)
    return run


def _check_is_one(run: Run) -> None:
    """Keep the run's own trainings, in order, where others are inside it; raise DataError for several runs."""
    own, runs = run.path.resolve(), sorted({training.folder.parent.resolve() for training in run.trainings})
    if own not in runs and len(runs) > 1:
        raise DataError(
            f"{run.path} holds several runs ({', '.join(map(str, runs))}); give those to compare, one after another"
        )
    for trainings in (run.stages, run.generators):
        trainings[:] = [each for each in trainings if own not in runs or each.folder.parent.resolve() == own]
        number = {each.folder: re.findall(r"^(\d+)_", each.folder.resolve().name) for each in trainings}
        trainings.sort(key=lambda training: ([*map(int, number[training.folder])], training.folder))
        for one, two in pairwise(trainings):
            two.before = one.before + max(one.step, one.steps)


def _walk(top: Path, missing: list[str]) -> Iterator[tuple[Path, set[str]]]:
    def note(error: OSError) -> None:
        missing.append(f"{error.filename} cannot be listed ({error.strerror}); {UNREAD}")

    for place, folders, files in os.walk(top, onerror=note):
        folder = Path(place)
        deep = len(folder.relative_to(top).parts) >= DEPTH or "manifest.json" in files  # the latter of a latent cache
        left_out = {*folders} if deep else _PRUNED | ({"images"} if SAMPLES in files else set())
        folders[:] = sorted(name for name in folders if name not in left_out and not name.startswith("."))
        yield folder, set(files)


def _take(run: Run, folder: Path, files: set[str]) -> None:
    """Take what a folder's files are, and note which of them are damaged."""
    if STAGE in files:
        settings = _read_json(run, folder / STAGE)
        name = str(settings.get("stage") or re.sub(r"^\d+_", "", folder.resolve().name)).replace("_", " ")
        history = read_history(folder)
        result = _read_json(run, folder / "result.json") if "result.json" in files else {}
        steps = {path.name: path.stem.removeprefix("step_") for path in sorted(folder.glob("pictures/step_*.png"))}
        pictures = {int(step): f"pictures/{name}" for name, step in steps.items() if step.isdigit()}
        kind = run.generators if "generator" in settings else run.stages
        kind.append(Training(name, folder, settings, history, result, pictures))
        run.missing += history.faults
    if SAMPLES in files:
        run.samples.append(Samples(folder, _read_json(run, folder / SAMPLES)))
    try:
        if {"sweep.csv", SWEEP} & files:
            settings, table = _read_json(run, folder / SWEEP) if SWEEP in files else {}, folder / "sweep.csv"
            with reading(table, DataError, UNREAD), open(table, newline="", opener=regular) as file:
                rows = [{n: float(v) for n, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]
                if not rows or not all({"cfg_scale", "steps"} <= {*row} for row in rows):
                    raise ValueError("no columns cfg_scale and steps")
            run.sweeps.append(Samples(folder, settings, rows))
    except (DataError, csv.Error) as error:
        run.missing.append(first_line(error))
    for path in (folder / f"{kind}.json" for kind in KINDS if f"{kind}.json" in files):
        try:
            run.results.append(Evaluated(path, read_result(path)))
        except AlignTokError as error:
            run.missing.append(first_line(error))


def _read_json(run: Run, path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = with_places(read_json(path, DataError, UNREAD), path.parent)
        return found
    except DataError as error:
        run.missing.append(first_line(error))
        return {}


def _missing(run: Run) -> Iterator[str]:
    """Yield what a run as it was found should have, and does not."""
    for training in run.trainings:
        if not training.pictures and part(training.settings, "log").get("pictures", 1):
            yield f"{training.folder / 'pictures'}, what the training drew"
        if "generator" not in training.settings and not training.result and part(training.settings, "data").get("val"):
            yield f"{training.folder / 'result.json'}, the validation after the last step"
    for path, result in run.results:
        for name in result.pictures.values():
            try:
                is_there = inside(path.parent, name, DataError, "").is_file()
            except DataError:
                is_there = False
            if not is_there:
                yield f"{path.parent / str(name)}, a picture of the {result.kind} result"
    if run.trainings and not run.results:
        yield f"results of an evaluation under {run.path} (tools/evaluate.py writes them)"
