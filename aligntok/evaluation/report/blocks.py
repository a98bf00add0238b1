"""What a page is made of, which the template writes: words and numbers as they are shown, tables, plots."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from aligntok.errors import DataError
from aligntok.evaluation.report.collect import is_number
from aligntok.io.files import read_json
from aligntok.settings import flatten

ROWS = 40  # of a table that are shown

UP, DOWN = "up", "down"
NONE, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Metric:
    """How a number is shown: its label, which way is better, digits after the point, unit, and what it means.

    percent: the number is a share in [0, 1], shown as per cent.
    """

    label: str
    better: str | None = None
    digits: int | None = None
    unit: str = ""
    meaning: str = ""
    percent: bool = False

    def write(self, value: Any) -> str:
        """Return a number as text, with its unit."""
        if not is_number(value) or not math.isfinite(value):
            return write_value(value)
        if self.percent:
            return f"{100 * value:.2f} %"
        text = "" if self.digits is None else f"{value:,.{self.digits}f}"
        if not text or (value and not float(text.replace(",", ""))):  # too small for so few digits
            text = write_value(value)
        return f"{text} {self.unit}".strip()


@cache
def data(name: str) -> dict[str, Any]:
    """Return what is written in ``<name>.json`` beside this file: the paper's numbers, or how metrics are shown."""
    return read_json(Path(__file__).with_name(f"{name}.json"), DataError, "install AlignTok again")


_KNOWN = {name: Metric(**how) for name, how in data("metrics")["known"].items()}  # by plain name
_ERRORS = re.compile(r"(standard error|std|deviation|error|spread|±)", re.IGNORECASE)
_ON_FEATURES = re.compile(r"^([rgs]?FD|KD|KID|IS|precision|recall|density|coverage|CKNNA)[-@ ](.+)$", re.IGNORECASE)
#: Metrics of text to image, whose names go on with the model's.
_BY_MODEL = re.compile(
    r"^(HPSv2(?:\.1)?|PickScore(?: pairwise)?|ImageReward|Aesthetic|CLIPScore|VQAScore|GenEval \(HF\)|GenEval2-[AG]M"
    r"|DPG-Bench)-(.+)$"
)
_UNITS = {"m": "M", "gb": "GB", "ms": "ms", "s": "s"}
_PLACES = ("reconstruction/", "generation/", "linear_probe/", "latent_space/", "cost/")


def plain(name: str) -> str:
    """Return a metric's name in small letters and digits alone: "Top-1" and "top1" are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def without_place(name: str) -> str:
    """Return a metric's name without the kind of evaluation before it."""
    return next((name.removeprefix(place) for place in _PLACES if name.startswith(place)), name)


def metric(name: str) -> Metric:
    """Return how a metric is shown; one that is not known keeps its name, and has no better way.

    "FD-X" and others on the features of X say so, and are never called FID.
    """
    own = without_place(name)
    if known := _KNOWN.get(name) or _KNOWN.get(data("metrics")["also"].get(plain(own), plain(own))):
        return known
    if (scored := _BY_MODEL.match(own)) and not _ERRORS.search(own):
        like = _KNOWN[plain(scored[1])]
        return replace(like, label=own, meaning=f"{like.meaning} (model: {scored[2]})")
    found = _ON_FEATURES.match(own)
    if found and not _ERRORS.search(own):
        base, features = found.groups()
        if base.upper().endswith("FD"):
            spatial = "spatial " if base.startswith("s") else ""
            meaning = f"Fréchet distance on {spatial}features of {features}; not FID, and not comparable to it"
            return Metric(own, DOWN, 2, "", meaning)
        base = {"KD": "KID"}.get(base.upper(), base)
        like = _KNOWN[plain(base)]
        return replace(like, label=own, meaning=f"{like.meaning} (features: {features})")
    if "/" in own:  # of one of several subjects
        of, _, last = own.rpartition("/")
        like = metric(last)
        return replace(like, label=f"{of}: {like.label}")
    return Metric(_column(own))


def _column(name: str) -> str:
    """Return the name of a table's column with its unit in brackets: "peak_gb" is "peak (GB)"."""
    words, _, unit = name.rpartition("_")
    if words and unit in _UNITS:
        return f"{words.replace('_', ' ')} ({_UNITS[unit]})"
    return name.replace("_", " ") if re.fullmatch(r"[a-z0-9_]+", name) else name


def write_value(value: Any) -> str:
    """Return any value of a table or of settings as text, a number with about four digits that count."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)) and not any(isinstance(each, (list, tuple, dict)) for each in value):
        return ", ".join(map(write_value, value)) if len(value) <= 12 else f"{len(value)} values"
    if not is_number(value):
        return str(value)
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    size = abs(value)
    if value == int(value) and size < 1e15:
        return f"{int(value):,}"
    if size < 1e-3 or size >= 1e9:
        digits, power = f"{value:.2e}".split("e")
        return f"{digits} {TIMES} 10{str(int(power)).translate(_RAISED)}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def write_seconds(seconds: float) -> str:
    """Return a duration in the two largest of its units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((i for i, (number, _) in enumerate(parts) if number), 3)
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2] if number) or "0 s"


@dataclass(frozen=True)
class Figure:
    """A picture or plot: its element, the words below or above it, and what else is to be known of it.

    width: pixels that it is shown at, None for a plot, which fills its place.
    """

    content: Markup
    caption: str = ""
    note: str = ""
    width: int | None = None


@dataclass(frozen=True)
class Gallery:
    """Pictures below one another ("gallery"), in a strip to be scrolled ("strip"), or plots side by side ("plots").

    legend: names of the plots' lines in the order of their colours.
    """

    figures: Sequence[Figure]
    title: str = ""
    layout: str = "gallery"
    legend: Sequence[str] = ()


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, a small note behind it, whether it is a number, what a tooltip says."""

    text: str
    note: str = ""
    number: bool = False
    hint: str = ""
    arrow: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head; what is cut off is said in `note`."""

    head: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Note:
    """A sentence; `missing` ones name what is not there."""

    text: str
    missing: bool = False


@dataclass(frozen=True)
class Group:
    """Blocks under a title: shown on demand ("folded"), a run's ("column"), or "columns" of them side by side."""

    title: str
    blocks: Sequence[Block]
    layout: str = "folded"


Block = Table | Gallery | Note | Group


@dataclass(frozen=True)
class Section:
    """A part of the page with an entry in its contents."""

    id: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""


def side_by_side(by_run: Mapping[str, Sequence[Block]]) -> list[Block]:
    """Return the blocks of the only run as they are, those of several as columns; runs without any are left out."""
    if len(by_run) == 1:
        return list(next(iter(by_run.values())))
    columns = [Group(name, blocks, "column") for name, blocks in by_run.items() if blocks]
    return [Group("", columns, "columns")] if columns else []


def not_found(text: str) -> Note:
    """Return the note that names what is not there."""
    return Note(f"not found: {text}", missing=True)


def side_table(corner: str, columns: Mapping[str, Mapping[Cell, str]], number: bool = False) -> Table:
    """Return texts by their heads as a table, a column for each of several runs and a row for each head in any."""
    heads = dict.fromkeys(head for column in columns.values() for head in column)
    rows = [[head, *(Cell(column.get(head, NONE), number=number) for column in columns.values())] for head in heads]
    return Table([Cell(corner), *(Cell(name, number=number) for name in columns)], rows)


def heading(name: str) -> Cell:
    """Return the head of a column or row of a metric, with its arrow and explanation."""
    found = metric(name)
    unit = f" ({found.unit})" if found.unit else ""
    return Cell(found.label + unit, hint=found.meaning, arrow=found.better)


def number(name: str, value: Any, note: str = "") -> Cell:
    """Return a value of a metric as a cell."""
    found = metric(name)
    return Cell(found.write(value).removesuffix(f" {found.unit}"), note, number=is_number(value))


def table_of(rows: Sequence[Mapping[str, Any]], title: str = "", note: str = "") -> Table:
    """Return rows of values by column as a table: values that are no cells yet are written as their column's are."""
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    values = [[(name, row.get(name)) for name in names] for row in rows[:ROWS]]
    cells = [[value if isinstance(value, Cell) else number(name, value) for name, value in row] for row in values]
    left = len(rows) - ROWS
    return Table([*map(heading, names)], cells, title, f"{left:,} more rows are in the file." if left > 0 else note)


def settings_table(settings: Mapping[str, Any], title: str) -> Group:
    """Return settings, dicts in them by dotted name, as a table that is shown on demand."""
    rows = [[Cell(name), Cell(write_value(value))] for name, value in flatten(settings).items()]
    return Group(title, [Table([Cell("setting"), Cell("value")], rows)] if rows else [Note("none are noted")])
