"""Reports: what trainings, samples and evaluations left in their folders, as one HTML page that loads nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import aligntok
from aligntok.errors import DataError
from aligntok.evaluation.report import key_numbers, sections
from aligntok.evaluation.report.blocks import Block, Cell, Group, Section, Table, side_table
from aligntok.evaluation.report.collect import Run, find
from aligntok.evaluation.report.evaluations import evaluation
from aligntok.evaluation.results import KINDS
from aligntok.evaluation.settings import ReportSettings
from aligntok.io.files import replacing

__all__ = ["write_report"]


def write_report(asked: ReportSettings) -> Path:
    """Write one self-contained HTML page about runs, whole or not at all; return its path.

    What is missing or damaged in them is named in the page. Raises DataError for a run that is not there or has nothing
    to report, and when the page cannot be written.
    """
    if not asked.runs:
        raise DataError("nothing to report on; give one or several work folders, samples, sweeps or evaluations")
    runs = _with_different_names([find(source) for source in asked.runs])
    first = Path(asked.runs[0]).expanduser()
    own = (first.parent if first.is_file() else first) / "report.html"
    path = own if asked.out is None else Path(asked.out).expanduser()
    page = render(runs, asked.title)
    with replacing(path, "the report is not written. Make room, or give another --out") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _with_different_names(runs: Sequence[Run]) -> Sequence[Run]:
    """Name runs after their folders, and as much of what is above them as tells them apart."""
    for depth in range(2, 9):
        count = Counter(run.name for run in runs)
        for number, run in enumerate(runs, 1):
            if count[run.name] > 1:
                longer = "/".join(run.path.resolve().parts[-depth:])
                run.name = longer if depth < 8 else f"{run.name} ({number})"
    return runs


def render(runs: Sequence[Run], title: str | None = None) -> str:
    """Return the page about runs as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    options: dict[str, Any] = dict(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment = Environment(loader=PackageLoader(__name__, "templates"), autoescape=True, **options)
    heads, shown = [key_numbers.describe(run) for run in runs], page_sections(runs)
    numbers = {run.name: key_numbers.key_numbers(run) for run in runs}
    compared = [side_table("key number", numbers, number=True)] if any(numbers.values()) else []
    compared.append(side_table("", {head.name: head.facts for head in heads}))
    terms: dict[str, str] = {}  # for those who cannot hover
    for cell in (cell for section in shown for cell in _named(section.blocks) if cell.hint):
        terms.setdefault(cell.text, cell.hint)
    return environment.get_template("page.html").render(
        title=title or " and ".join(run.name for run in runs[:3]) + (" and others" if len(runs) > 3 else ""),
        heads=heads,
        tiles=numbers[runs[0].name] if len(runs) == 1 else {},
        compared=compared if len(runs) > 1 else [],
        sections=shown,
        terms=dict(sorted(terms.items(), key=lambda term: term[0].lower())),
        made=datetime.now().strftime("%Y-%m-%d %H:%M"),
        version=aligntok.__version__,
    )


def _named(blocks: Sequence[Block]) -> Iterator[Cell]:
    """Yield the heads of the tables' columns and rows."""
    for block in blocks:
        if isinstance(block, Group):
            yield from _named(block.blocks)
        elif isinstance(block, Table):
            yield from (*block.head, *(row[0] for row in block.rows if row))


def page_sections(runs: Sequence[Run]) -> list[Section]:
    """Return the parts of the page, in the order in which they are read."""
    every = [
        *(evaluation(runs, kind) for kind in KINDS),
        sections.quality(runs),
        sections.reconstructions(runs),
        sections.samples(runs),
        sections.sweeps(runs),
        key_numbers.stages(runs),
        sections.training_of_tokenizers(runs),
        sections.training_of_generators(runs),
        key_numbers.settings(runs),
        key_numbers.missing(runs),
    ]
    return [section for section in every if section.blocks]
