"""The tables that tell what a config costs: rows for the result's file, and the same on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from aligntok.evaluation.cost.counting import Counted, CountedStage

Row = Mapping[str, Any]
MODELS, SCHEDULE, STAGE_PARTS = "Parameters", "Stages", "Stages by part"
OPERATIONS = "Multiply-accumulates of a forward pass"
INFERENCE, STEPS, STEP_PARTS = "Encoder and decoder", "Training steps", "Training steps by part"
PARTS = ("encoder", "adapter", "decoder", "generator")
_MILLION, _BILLION = 1e6, 1e9


def counted_tables(counted: Sequence[Counted]) -> dict[str, list[Row]]:
    """Return the rows, by title, of what needs no run: parameters in millions, operations in 10^9 (GMAC)."""
    models: list[Row] = [
        {"config": c.name, "part": part, "parameters_m": number / _MILLION}
        for c in counted
        for part, number in c.parts.items()
    ]
    stages: list[Row] = [_stage_row(c.name, stage) for c in counted for stage in c.stages]
    by_part: list[Row] = [
        {
            "config": c.name,
            "stage": stage.name,
            "part": part,
            "trainable_m": trainable / _MILLION,
            "frozen_m": frozen / _MILLION,
        }
        for c in counted
        for stage in c.stages
        for part, (trainable, frozen) in stage.parameters.items()
    ]
    operations: list[Row] = [
        {
            "config": c.name,
            "part": part,
            "size": size,
            "gmac": found.total / _BILLION,
            "gmac_attention": found.attention / _BILLION,
            "gmac_as_in_paper": found.as_in_paper / _BILLION,
        }
        for c in counted
        for (part, size), found in sorted(c.operations.items(), key=lambda item: PARTS.index(item[0][0]))
    ]
    return {MODELS: models, SCHEDULE: stages, STAGE_PARTS: by_part, OPERATIONS: operations}


def _stage_row(config: str, stage: CountedStage) -> Row:
    return {
        "config": config,
        "stage": stage.name,
        "trainable_m": stage.trainable / _MILLION,
        "frozen_m": stage.frozen / _MILLION,
        "frozen_as_in_paper_m": stage.frozen_as_in_paper / _MILLION,
        "steps": stage.steps,
        "images_seen": stage.images_seen,
        "epochs": stage.epochs,
    }


#: Title -> (heading, column of the row, how it is written) of each column on the terminal.
_COLUMNS: dict[str, tuple[tuple[str, str, str], ...]] = {
    MODELS: (("part", "part", ""), ("M", "parameters_m", ".2f")),
    SCHEDULE: (
        ("stage", "stage", ""),
        ("trainable M", "trainable_m", ".2f"),
        ("frozen M", "frozen_m", ".2f"),
        ("paper's count", "frozen_as_in_paper_m", ".2f"),
        ("steps", "steps", ",d"),
        ("images seen", "images_seen", ",d"),
        ("epochs", "epochs", ".2f"),
    ),
    STAGE_PARTS: (
        ("stage", "stage", ""),
        ("part", "part", ""),
        ("trainable M", "trainable_m", ".2f"),
        ("frozen M", "frozen_m", ".2f"),
    ),
    OPERATIONS: (
        ("part", "part", ""),
        ("at", "size", ""),
        ("GMAC", "gmac", ".4g"),
        ("of it attention", "gmac_attention", ".4g"),
        ("paper's count", "gmac_as_in_paper", ".4g"),
    ),
    INFERENCE: (
        ("part", "part", ""),
        ("at", "resolution", "d"),
        ("batch", "batch", "d"),
        ("ms a call", "ms", ",.2f"),
        ("quartiles", "ms_lower_quartile ms_upper_quartile", ",.2f"),
        ("calls", "calls", "d"),
        ("peak GB", "peak_gb", ".3f"),
    ),
    STEPS: (
        ("stage", "stage", ""),
        ("images", "images", "d"),
        ("s a step", "s_a_step", ".3f"),
        ("quartiles", "s_lower_quartile s_upper_quartile", ".3f"),
        ("timed", "steps_timed", "d"),
        ("peak GB", "peak_gb", ".3f"),
        ("steps", "steps", ",d"),
        ("devices", "devices", "d"),
        ("device-hours", "device_hours", ",.1f"),
    ),
    STEP_PARTS: (
        ("stage", "stage", ""),
        ("part", "part", ""),
        ("s", "s", ".4f"),
        ("share", "share", ".1%"),
        ("peak GB", "peak_gb", ".3f"),
    ),
}


def print_tables(tables: Mapping[str, Sequence[Row]], notes: Sequence[str], console: Console | None = None) -> None:
    """Print the tables that have rows, several configs below one another, and the notes."""
    console = console or Console()
    several = len({row["config"] for rows in tables.values() for row in rows}) > 1
    for title, rows in tables.items():
        if rows:
            console.print(_table(title, rows, several))
    for note in notes:
        console.print(note, markup=False, highlight=False)


def _table(title: str, rows: Sequence[Row], several: bool) -> Table:
    columns = ((("config", "config", ""),) if several else ()) + _COLUMNS[title]
    table = Table(title=title, title_justify="left")
    for heading, _, form in columns:
        table.add_column(heading, justify="right" if form else "left", overflow="fold")
    before: Row = {}
    for row in rows:
        if before and (several and row["config"] != before["config"]):
            table.add_section()
        said = [name for name in ("config", "stage") if all(row.get(n) == before.get(n) for n in ("config", name))]
        table.add_row(*("" if names in said else _cell(row, names, form) for _, names, form in columns))
        before = row
    return table


def _cell(row: Row, names: str, form: str) -> str:
    values = [row[name] for name in names.split()]
    if None in values:
        return "-"
    return "-".join(format(value, form) for value in values)
