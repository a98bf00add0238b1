"""What was logged while training: mmengine's scalars.json of every start of a stage, joined into one history."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

Record = dict[str, float]
TIME_BINS = "loss_at_time/"


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
        _take(history, record)
    if not (history.trained or history.measured):
        history.faults.append(f"{folder}/*/vis_data/scalars.json, the training's log")
    return history


def read_records(path: Path) -> tuple[list[Record], int]:
    """Return the lines of a scalars.json that can be read, and the number of those that cannot."""
    records, damaged = [], 0
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return [], 1
    for line in filter(str.strip, lines):
        try:
            found = json.loads(line)
            records.append({name: float(value) for name, value in found.items()} | {"step": int(found["step"])})
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
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


def _take(history: History, record: Record) -> None:
    step, kind = int(record["step"]), kind_of(record)
    values = {name: value for name, value in record.items() if name != "step"}
    if kind == "bins":
        history.bins[step] = {name.removeprefix(TIME_BINS): value for name, value in values.items()}
        return
    curves = history.trained if kind == "trained" else history.measured
    for name, value in values.items():
        curve = curves.setdefault(name, Curve([], []))
        curve.steps.append(step)
        curve.values.append(value)


def smooth(values: Sequence[float]) -> list[float]:
    """Return the centred running mean over about a tenth of the values, of those that are finite."""
    half = len(values) // 20
    if not half:
        return list(values)
    smoothed = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)  # shorter at both ends, so that the line does not lag there
        near = [value for value in values[i - reach : i + reach + 1] if math.isfinite(value)]
        smoothed.append(sum(near) / len(near) if near else math.nan)
    return smoothed


def thin(curve: Curve, points: int = 400) -> Curve:
    """Return at most about `points` points that look the same: the least and largest of each short stretch."""
    if len(curve.steps) <= points:
        return curve
    width = math.ceil(2 * len(curve.steps) / points)
    kept = []
    for first in range(0, len(curve.steps), width):
        places = range(first, min(first + width, len(curve.steps)))
        finite = [i for i in places if math.isfinite(curve.values[i])] or list(places)
        kept += sorted({min(finite, key=curve.values.__getitem__), max(finite, key=curve.values.__getitem__)})
    return Curve([curve.steps[i] for i in kept], [curve.values[i] for i in kept])
