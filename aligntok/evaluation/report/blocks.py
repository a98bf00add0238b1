"""What a page is made of; the template knows how each is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from markupsafe import Markup

from aligntok.evaluation.report.names import Metric, metric, write_value
from aligntok.evaluation.report.pictures import Picture

ROWS = 40  # of a table that are shown


@dataclass(frozen=True)
class Panel:
    """One plot under its title, with the last value in words."""

    title: str
    svg: Markup
    value: str = ""


@dataclass(frozen=True)
class Plots:
    """Plots side by side. legend: names of lines by the number of their colour."""

    kind: ClassVar[str] = "plots"
    panels: Sequence[Panel]
    title: str = ""
    note: str = ""
    legend: Mapping[int, str] = field(default_factory=dict)


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

    kind: ClassVar[str] = "table"
    head: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures below one another, or in a strip to be scrolled."""

    kind: ClassVar[str] = "gallery"
    pictures: Sequence[Picture]
    title: str = ""
    strip: bool = False


@dataclass(frozen=True)
class Note:
    """A sentence; `missing` ones name what is not there."""

    kind: ClassVar[str] = "note"
    text: str
    missing: bool = False


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown on demand."""

    kind: ClassVar[str] = "folded"
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Columns:
    """Blocks of several runs side by side, by name."""

    kind: ClassVar[str] = "columns"
    columns: Mapping[str, Sequence[Block]]


Block = Plots | Table | Gallery | Note | Folded | Columns


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
    columns = {name: blocks for name, blocks in by_run.items() if blocks}
    return [Columns(columns)] if columns else []


def heading(name: str) -> Cell:
    """Return the head of a column or row of a metric, with its arrow and explanation."""
    found = metric(name)
    unit = f" ({found.unit})" if found.unit and not found.percent else ""
    return Cell(found.label + unit, hint=found.meaning, arrow=found.better)


def number(name: str, value: Any, note: str = "") -> Cell:
    """Return a value of a metric as a cell."""
    found: Metric = metric(name)
    text = found.write(value).removesuffix(f" {found.unit}") if not found.percent else found.write(value)
    return Cell(text, note, number=isinstance(value, (int, float)) and not isinstance(value, bool))


def table_of(rows: Sequence[Mapping[str, Any]], title: str = "") -> Table:
    """Return rows of values by column as a table."""
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    cells = [[number(name, row.get(name)) for name in names] for row in rows[:ROWS]]
    left = len(rows) - ROWS
    return Table([heading(name) for name in names], cells, title, f"{left:,} more rows are in the file." * (left > 0))


def settings_table(settings: Mapping[str, Any], title: str) -> Folded:
    """Return settings, dicts in them by dotted name, as a table that is shown on demand."""
    rows = [[Cell(name), Cell(write_value(value))] for name, value in flatten(settings).items()]
    return Folded(title, [Table([Cell("setting"), Cell("value")], rows)] if rows else [Note("none are noted")])


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return values by dotted name."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found.update(flatten(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value
    return found
