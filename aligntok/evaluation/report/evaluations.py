"""Sections on the results of evaluations: metrics with the paper's beside them, tables, pictures, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aligntok.evaluation.report.blocks import (
    Block,
    Cell,
    Folded,
    Gallery,
    Note,
    Section,
    Table,
    heading,
    number,
    settings_table,
    side_by_side,
    table_of,
)
from aligntok.evaluation.report.found import Evaluated, Run
from aligntok.evaluation.report.names import NONE, without_place
from aligntok.evaluation.report.paper import PaperNumbers, compare, paper_costs
from aligntok.evaluation.report.pictures import Picture, embed
from aligntok.evaluation.results import KINDS

_TITLES = {
    "comparison": "Comparison",
    "reconstruction": "Reconstruction",
    "generation": "Generation",
    "linear_probe": "Linear probe",
    "latent_space": "Latent space",
    "cost": "Cost",
}
LONG = 16  # metrics of a result; more are folded where it has tables, which tell the same
IN_FULL = 4  # results at steps of a training that are shown in full, of each run: the newest


class Shown(NamedTuple):
    """A result as a column: of which run, under which heading, and what the paper says."""

    run: Run
    found: Evaluated
    title: str
    paper: PaperNumbers


def evaluation_sections(runs: Sequence[Run]) -> list[Section]:
    """Return a section for each kind of evaluation that there are results of."""
    sections = []
    for kind in KINDS:
        shown = [each for run in runs for each in _of_kind(run, kind, len(runs) > 1)]
        if not shown:
            continue
        blocks = [*_metrics(shown), *_earlier(runs, kind)]
        blocks += [Note(text) for text in dict.fromkeys(each.paper.note for each in shown)]
        by_run: dict[str, list[Block]] = {run.name: [] for run in runs}
        for each in shown:
            by_run[each.run.name].extend(_details(each, len(shown) > 1))
        blocks += side_by_side(by_run)
        if kind == "cost":
            blocks += _paper_costs(shown)
        sections.append(Section(kind.replace("_", "-"), _TITLES[kind], blocks))
    return sections


def _metrics(shown: Sequence[Shown]) -> list[Block]:
    table = _metrics_table(shown)
    of_several = any("/" in without_place(name) for each in shown for name in each.found.result.metrics)
    if (of_several or len(table.rows) > LONG) and any(each.found.result.tables for each in shown):
        return [Folded("All numbers by name", [table])]
    return [table] if table.rows else []


def _of_kind(run: Run, kind: str, several: bool) -> list[Shown]:
    found = newest(run, kind)
    shown = []
    for each in found:
        words = [run.name] if several else []
        if len(found) > 1:
            words.append(_where(run, each))
            words += [f"step {each.result.step:,}"] if each.result.step is not None else []
        title = ", ".join(filter(None, words)) or "value"
        shown.append(Shown(run, each, title, compare(run, each)))
    return shown


def newest(run: Run, kind: str) -> list[Evaluated]:
    """Return the results of a kind: of those at several steps of a training the newest few, all others."""
    found = sorted((each for each in run.results if each.result.kind == kind), key=_order)
    at_steps = [each for each in found if each.result.step is not None]
    return [*(each for each in found if each.result.step is None), *at_steps[-IN_FULL:]]


def _earlier(runs: Sequence[Run], kind: str) -> list[Block]:
    left = sum(sum(each.result.kind == kind for each in run.results) - len(newest(run, kind)) for run in runs)
    where = (
        "of earlier steps: their numbers are in the plots of convergence, their tables and pictures in their folders"
    )
    return [Note(f"{left} more {where}.")] if left else []


def _order(found: Evaluated) -> tuple[int, str]:
    return (found.result.step or 0, str(found.path))


def _where(run: Run, found: Evaluated) -> str:
    folder, top = found.path.parent.resolve(), run.path.resolve()
    parts = folder.relative_to(top).parts if folder.is_relative_to(top) else (folder.name,)
    return "/".join(part for part in parts if part != "evaluation")


def _metrics_table(shown: Sequence[Shown]) -> Table:
    names = list(dict.fromkeys(name for each in shown for name in each.found.result.metrics))
    names.sort(key=lambda name: without_place(name) == "images")  # last: it is not what was asked for
    head = [Cell("metric")]
    for each in shown:
        head.append(Cell(each.title, number=True))
        if each.paper.values:
            head.append(Cell("paper", number=True))
    rows = []
    for name in names:
        row = [heading(name)]
        for each in shown:
            row.append(number(name, each.found.result.metrics.get(name)))
            if each.paper.values:
                theirs = each.paper.of(each.found.result.kind, name)
                row.append(number(name, theirs[0], theirs[1]) if theirs else Cell(NONE, number=True))
        rows.append(row)
    return Table(head, rows)


def _details(shown: Shown, several: bool) -> list[Block]:
    result, folder = shown.found.result, shown.found.path.parent
    blocks: list[Block] = []
    for title, rows in result.tables.items():
        if rows != []:
            blocks.append(_table(title, rows))
    blocks += pictures_of(result.pictures, folder, shown.title if several else "")
    about = f"What fixes these numbers{f' ({shown.title})' if several else ''}"
    subject: dict[str, Any] = {"subject": result.subject, "file": str(shown.found.path)}
    subject |= {"step of training": result.step} if result.step is not None else {}
    return [*blocks, settings_table({**subject, **result.settings}, about)]


def _table(title: str, rows: Any) -> Block:
    good = isinstance(rows, (list, tuple)) and all(isinstance(row, Mapping) for row in rows)
    if not good:
        return Note(f"not found: rows of the table '{title}'", missing=True)
    return table_of(rows, title)


def pictures_of(pictures: Mapping[str, str], folder: Any, of: str) -> list[Block]:
    """Return the pictures of a result with their captions; those that are not there are named."""
    there: list[Picture] = []
    missing: list[Block] = []
    for caption, name in pictures.items():
        try:
            words = f"{caption} ({of})" if of else caption
            there.append(embed(folder / str(name), words, words))
        except (OSError, ValueError) as error:
            missing.append(Note(f"not found: {folder / str(name)} ({type(error).__name__}), {caption}", missing=True))
    return [*([Gallery(there)] if there else []), *missing]


def _paper_costs(shown: Sequence[Shown]) -> list[Block]:
    for each in shown:
        tables = paper_costs(each.run, each.found.result)
        if tables:
            return [Folded(f"The paper's {title}", [table_of(rows)]) for title, rows in tables.items()]
    return []
