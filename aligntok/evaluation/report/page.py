"""The page: everything found about runs, as one HTML file that opens from disk and loads nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import aligntok
from aligntok.errors import DataError
from aligntok.evaluation.report.blocks import Block, Cell, Columns, Folded, Note, Section, Table, settings_table
from aligntok.evaluation.report.curves import quality_section, sweep_section, training_sections
from aligntok.evaluation.report.evaluations import evaluation_sections
from aligntok.evaluation.report.found import Run, find
from aligntok.evaluation.report.grids import reconstruction_section, samples_section
from aligntok.evaluation.report.head import Head, Tile, compare_tiles, describe, stages_table, tiles
from aligntok.evaluation.report.names import NONE
from aligntok.io.files import replacing


def write_report(
    sources: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], title: str | None = None
) -> Path:
    """Write one self-contained HTML page about all `sources` to `out`, whole or not at all; return its path.

    sources: work folders of a training, folders of samples, sweeps or evaluations, or a result's JSON file; several are
    shown side by side. What is missing or damaged in them is named in the page. Raises DataError for a source that is
    not there or has nothing to report, and when the page cannot be written.
    """
    if not sources:
        raise DataError("nothing to report on; give one or several work folders, samples, sweeps or evaluations")
    runs = _with_different_names([find(source) for source in sources])
    path = Path(out).expanduser()
    page = render(runs, title)
    with replacing(path, "the report is not written. Make room, or give another --out") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _with_different_names(runs: Sequence[Run]) -> list[Run]:
    """Name runs after their folders, and as much of what is above them as tells them apart."""
    names = [run.name for run in runs]
    depth = 2
    while (count := Counter(names)) and max(count.values()) > 1 and depth < 8:
        names = [
            "/".join(r.path.resolve().parts[-depth:]) if count[n] > 1 else n for r, n in zip(runs, names, strict=True)
        ]
        depth += 1
    for number, (run, name) in enumerate(zip(runs, names, strict=True), 1):
        run.name = name if names.count(name) == 1 else f"{name} ({number})"
    return list(runs)


def render(runs: Sequence[Run], title: str | None = None) -> str:
    """Return the page about runs as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("aligntok.evaluation.report", "templates")
    options: dict[str, Any] = dict(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment = Environment(loader=loader, autoescape=True, **options)
    heads, sections = [describe(run) for run in runs], page_sections(runs)
    key_numbers = {run.name: tiles(run) for run in runs}
    return environment.get_template("page.html").render(
        title=title or " and ".join(run.name for run in runs[:3]) + (" and others" if len(runs) > 3 else ""),
        heads=heads,
        tiles=next(iter(key_numbers.values())) if len(runs) == 1 else [],
        compared=_compared(heads, key_numbers),
        sections=sections,
        terms=_terms(sections),
        made=datetime.now().strftime("%Y-%m-%d %H:%M"),
        version=aligntok.__version__,
    )


def _compared(heads: Sequence[Head], key_numbers: Mapping[str, Sequence[Tile]]) -> list[Block]:
    """Return what several runs are, and their key numbers, as tables; nothing for one."""
    if len(heads) < 2:
        return []
    labels = list(dict.fromkeys(label for head in heads for label in head.facts))
    rows = [[Cell(label), *(Cell(head.facts.get(label, NONE)) for head in heads)] for label in labels]
    facts = Table([Cell(""), *(Cell(head.name) for head in heads)], rows)
    return [*([compare_tiles(key_numbers)] if any(key_numbers.values()) else []), facts]


def page_sections(runs: Sequence[Run]) -> list[Section]:
    """Return the parts of the page, in the order in which they are read."""
    found = [
        *evaluation_sections(runs),
        quality_section(runs),
        reconstruction_section(runs),
        samples_section(runs),
        sweep_section(runs),
        _stages_section(runs),
        *training_sections(runs),
        _settings_section(runs),
        _missing_section(runs),
    ]
    return [section for section in found if section is not None and section.blocks]


def _stages_section(runs: Sequence[Run]) -> Section | None:
    tables = {run.name: table for run in runs if (table := stages_table(run))}
    blocks = [
        Table(table.head, table.rows, name if len(runs) > 1 else "", table.note) for name, table in tables.items()
    ]
    return Section("stages", "Stages", blocks) if blocks else None


def _settings_section(runs: Sequence[Run]) -> Section | None:
    blocks: list[Block] = []
    for run in runs:
        for training in run.trainings:
            shown = {name: value for name, value in training.settings.items() if name not in ("stage", "statistics")}
            where = f"{run.name}: " if len(runs) > 1 else ""
            blocks.append(settings_table(shown, f"{where}{training.name.replace('_', ' ')}"))
    lead = "All settings of each training, as they were noted when it began."
    return Section("settings", "Settings", blocks, lead) if blocks else None


def _missing_section(runs: Sequence[Run]) -> Section | None:
    notes: list[Block] = []
    for run in runs:
        where = f"{run.name}: " if len(runs) > 1 else ""
        notes += [Note(f"{where}not found: {text}", missing=True) for text in dict.fromkeys(run.missing)]
    return (
        Section("missing", "Not found", notes, "What a report can show, and these folders do not have.")
        if notes
        else None
    )


def _terms(sections: Sequence[Section]) -> dict[str, str]:
    """Return the metrics of the page's tables with their meaning, for those who cannot hover."""
    found: dict[str, str] = {}
    for section in sections:
        for table in _tables(section.blocks):
            for cell in [*table.head, *(row[0] for row in table.rows if row)]:
                if cell.hint:
                    found.setdefault(cell.text, cell.hint)
    return dict(sorted(found.items(), key=lambda term: term[0].lower()))


def _tables(blocks: Sequence[Block]) -> list[Table]:
    tables = []
    for block in blocks:
        if isinstance(block, Table):
            tables.append(block)
        elif isinstance(block, Folded):
            tables += _tables(block.blocks)
        elif isinstance(block, Columns):
            tables += [table for column in block.columns.values() for table in _tables(column)]
    return tables
