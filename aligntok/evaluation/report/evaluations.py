"""Sections on the results of evaluations: metrics, tables, pictures and settings, the paper's numbers beside them.

The paper's stand there only where a run is the paper's: its config, options that change nothing, images and metric.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aligntok.errors import DataError
from aligntok.evaluation.report.blocks import (
    NONE,
    Block,
    Cell,
    Group,
    Note,
    Section,
    Table,
    data,
    heading,
    not_found,
    number,
    plain,
    settings_table,
    side_by_side,
    table_of,
    without_place,
)
from aligntok.evaluation.report.collect import Evaluated, Run, Training, as_number, find, part
from aligntok.evaluation.report.figures import pictures
from aligntok.evaluation.results import Result
from aligntok.io.files import read_json
from aligntok.settings import flatten

LONG = 16  # metrics of a result; more are folded where it has tables, which tell the same
IN_FULL = 4  # results at steps of a training that are shown in full, of each run: the newest
#: Metrics that the paper calls otherwise, by kind.
_SAME = {("reconstruction", "fid"): "rfid", ("generation", "gfid"): "fid"}
_NEVER = {
    "latent_space": "the paper leaves open how many images, neighbours and seeds its latent-space numbers (Table 16) "
    "are of",
    "text_image": "the paper names no model of its CLIP score, and its PickScore is against systems of its own",
    "comparison": "a comparison's tokenizers are compared with one another",
}
#: Keys of a config, or beginnings of them, that a run of the paper's may set otherwise: no number depends on them.
FREE = {
    *("work_dir", "data_root", "seed", "checkpoint", "log", "validation", "compile", "grad_checkpointing", "attention"),
    *("deterministic", "data.workers", "data.timeout", "data.nominal_images"),
}
#: The same of a generator, without batch norm to see micro-batches; tokenizer, steps and scale are compared themselves.
FREE_FOR_GENERATORS = FREE | {"gradient_accumulation_steps", "tokenizer", "sampling.steps", "sampling.cfg_scale"}


class PaperNumbers(NamedTuple):
    """What the paper has to say of a result: values by metric's plain name with their table, or why there are none.

    tables: its cost tables by title.
    """

    note: str
    values: Mapping[str, tuple[float, str]] = {}
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = {}

    def of(self, kind: str, name: str) -> tuple[float, str] | None:
        """Return the paper's value of the metric of that very name, and the table that it is in."""
        own = plain(without_place(name))
        return self.values.get(_SAME.get((kind, own), own))


class Shown(NamedTuple):
    """A result as a column: of which run, under which heading, and what the paper says."""

    run: Run
    found: Evaluated
    title: str
    paper: PaperNumbers


def evaluation(runs: Sequence[Run], kind: str) -> Section:
    """Return what evaluations of a kind found; of those at several steps of a training the newest few."""
    shown: list[Shown] = []
    left = 0
    for run in runs:
        found = [each for each in run.results if each.result.kind == kind]
        found.sort(key=lambda each: (each.result.step or 0, str(each.path)))
        at_steps = [each for each in found if each.result.step is not None]
        left += len(at_steps[:-IN_FULL])
        found = [each for each in found if each.result.step is None] + at_steps[-IN_FULL:]
        for each in found:
            words = [run.name] if len(runs) > 1 else []
            if len(found) > 1:
                words.append("/".join(part for part in run.place_of(each) if part != "evaluation"))
                words += [f"step {each.result.step:,}"] if each.result.step is not None else []
            shown.append(Shown(run, each, ", ".join(filter(None, words)) or "value", compare(run, each)))
    blocks = _metrics(shown)
    if left:
        where = "their numbers are in the plots of convergence, their tables and pictures in their folders"
        blocks.append(Note(f"{left} more of earlier steps: {where}."))
    blocks += [Note(text) for text in dict.fromkeys(each.paper.note for each in shown)]
    details: dict[str, list[Block]] = {run.name: [] for run in runs}
    for column in shown:
        details[column.run.name] += _details(column, len(shown) > 1)
    blocks += side_by_side(details)
    costs = next((each.paper.tables for each in shown if each.paper.tables), {})
    blocks += [Group(f"The paper's {title}", [table_of(rows)]) for title, rows in costs.items()]
    return Section(kind.replace("_", "-"), kind.replace("_", " ").capitalize(), blocks)


def _metrics(shown: Sequence[Shown]) -> list[Block]:
    """Return the metrics of results as one table, the paper's beside those of results that it has any of."""
    names = list(dict.fromkeys(name for each in shown for name in each.found.result.metrics))
    names.sort(key=lambda name: without_place(name) == "images")  # last: it is not what was asked for
    head, rows = [Cell("metric")], [[heading(name)] for name in names]
    for _, found, title, paper in shown:
        head += [Cell(text, number=True) for text in (title, *(["paper"] if paper.values else []))]
        for name, row in zip(names, rows, strict=True):
            row.append(number(name, found.result.metrics.get(name)))
            if paper.values:
                theirs = paper.of(found.result.kind, name)
                row.append(number(name, *theirs) if theirs else Cell(NONE, number=True))
    table = Table(head, rows)
    of_several = any("/" in without_place(name) for name in names)
    if (of_several or len(names) > LONG) and any(each.found.result.tables for each in shown):
        return [Group("All numbers by name", [table])]
    return [table] if names else []


def _details(shown: Shown, several: bool) -> list[Block]:
    path, result = shown.found
    of = f" ({shown.title})" if several else ""
    blocks: list[Block] = []
    for title, rows in result.tables.items():
        is_whole = isinstance(rows, (list, tuple)) and all(isinstance(row, Mapping) for row in rows)
        if rows != []:
            blocks.append(table_of(rows, title) if is_whole else not_found(f"rows of the table '{title}'"))
    blocks += pictures([(path.parent, name, f"{caption}{of}") for caption, name in result.pictures.items()])
    subject: dict[str, Any] = {"subject": result.subject, "file": str(path)}
    subject |= {"step of training": result.step} if result.step is not None else {}
    return [*blocks, settings_table({**subject, **result.settings}, f"What fixes these numbers{of}")]


# The paper's numbers


def compare(run: Run, found: Evaluated) -> PaperNumbers:
    """Return the paper's numbers for a result of a run, or the reason why none is put beside it."""
    kind, result = found.result.kind, found.result
    if kind in _NEVER:
        return _none(_NEVER[kind])
    run = run if run.trainings else _run_behind(run, result)
    if kind == "cost":
        return _costs(run, result)
    wanted, images = data("paper")["evaluated"][kind], images_of(result)
    if images != wanted["images"]:
        seen = "an unknown number" if images is None else f"{images:,}"
        return _none(f"its own are of {wanted['images']:,} {wanted['of']}, these of {seen}")
    trainings = _evaluated(run, result)
    if not trainings:
        return _none("the training that was evaluated is not there whole")
    what = "generator" if kind == "generation" else "tokenizer"
    same = next((entry for entry in data("paper")[f"{what}s"] if _is_the_papers(run, trainings, entry)), None)
    if same is None:
        # a result that came from elsewhere may name any folder: of a run that it is not in, nothing is told
        is_inside = found.path.resolve().is_relative_to(run.path.resolve())
        return _none(f"it has no such {what}" + f" ({_in_short(run, trainings)})" * is_inside)
    title, values = same["title"], same["values"]
    if kind == "generation":
        sampling = part(result.settings, "samples", "sampling")
        steps, scale = sampling.get("steps"), sampling.get("cfg_scale")
        is_guided = None if scale is None else scale != 1
        # published code counts a solver's times, one more than its steps
        alike = (
            v for v in values if steps in (v["sampler_steps"], v["sampler_steps"] - 1) and v["guided"] is is_guided
        )
        values = next(alike, None)
        if values is None:
            return _none(f"it has none of {steps or '?'} steps at scale {scale or '?'}")
        title += f", {values['sampler_steps']} sampling steps, {'with' if is_guided else 'without'} guidance"
    tables = {plain(name): (value["value"], value["table"]) for name, value in values.get(kind, {}).items()}
    return PaperNumbers(f"The paper's column: {title}. Only metrics of the very same name are compared.", tables)


def _none(why: str) -> PaperNumbers:
    return PaperNumbers(f"No numbers of the paper beside these: {why}.")


def _costs(run: Run, result: Result) -> PaperNumbers:
    cost, measured = data("paper")["cost"], [Path(word).stem for word in result.subject.split(", ")]
    if Path(cost["configs"][0]).stem in measured or (run.stages and _is_run_of(run, cost["configs"])):
        note = "The paper's cost of this model is below; its seconds and gigabytes are of its own GPUs."
        return PaperNumbers(note, tables=cost["tables"])
    return PaperNumbers("No costs of the paper beside these: its tables are of DINOv2-L, f16d32, with the LDM decoder.")


def _run_behind(run: Run, result: Result) -> Run:
    """Return the run that an evaluation alone is of, where its subject leads to one."""
    generator = str(part(result.settings, "samples", "generator").get("source") or "")
    for place in filter(None, (result.subject, generator)):
        for folder in (Path(place), Path(place).parent):
            if any([*folder.glob("[0-9]*_*/stage.json"), *folder.glob("generation/stage.json")]):
                try:
                    return find(folder)
                except DataError:
                    continue
    return run


def _evaluated(run: Run, result: Result) -> list[Training]:
    """Return what a result is of, a generator or the stages up to one; nothing where that was not at its end."""
    stages = run.stages
    names, subject = [stage.folder.resolve().name for stage in stages], Path(result.subject).name
    until = names.index(subject) + 1 if subject in names else len(stages)
    trainings = run.generators[-1:] if result.kind == "generation" else stages[:until]
    is_early = trainings and result.step is not None and result.step < trainings[-1].steps
    return [] if is_early or any(each.step < (each.steps or 1) for each in trainings) else trainings


def _is_the_papers(run: Run, trainings: Sequence[Training], entry: Mapping[str, Any]) -> bool:
    """Tell whether trainings are those of an entry of paper.json: its config, its tokenizer for a generator.

    The steps say up to which stage of a config it is.
    """
    schedule = [(steps, entry["batch"]) for steps in entry["steps"]]
    if [(each.steps, each.batch) for each in trainings] != schedule or not _is_run_of(run, entry["configs"]):
        return False
    wanted = entry.get("tokenizer", {})

    def has_them(own: dict[str, Any]) -> bool:
        return all(value == (own[key]["type"] if key == "encoder" else own[key]) for key, value in wanted.items())

    try:
        return not wanted or read_json(trainings[-1].folder / "tokenizer/config.json", DataError, "", has_them)
    except DataError:
        return False


def _is_run_of(run: Run, configs: Sequence[str]) -> bool:
    """Tell whether a run was started with one of the configs, and without an option on which numbers depend."""
    return any(f"/{run.origin.get('config')}".endswith(f"/{config}") for config in configs) and not _changed(run)


def _changed(run: Run) -> list[str]:
    """Return the options of a run's start on which its numbers may depend, as they were given."""
    options = run.origin.get("options")
    if not isinstance(options, Mapping):
        return ["options that are not noted"]
    free, given = FREE if run.stages else FREE_FOR_GENERATORS, flatten(options)
    plain_names = {name: re.sub(r"^stages\.\d+\.", "", name) for name in given}
    return [f"{n}={v}" for n, v in given.items() if not any(f"{plain_names[n]}.".startswith(f"{k}.") for k in free)]


def _in_short(run: Run, trainings: Sequence[Training]) -> str:
    if not run.origin.get("config"):
        return "no run.json names the config that it was started with"
    steps = " + ".join(f"{training.steps:,}" for training in trainings)
    options = " ".join(["", "with", *_changed(run)]) if _changed(run) else ""
    return f"{run.origin['config']}{options}, {steps} steps of {trainings[-1].batch}"


def images_of(result: Result) -> int | None:
    """Return of how many images a result is, where it says so."""
    names = ("images", "num_images", "samples", "num_samples", "num")
    places = (result.metrics, result.settings)
    counts = (value for place in places for name, value in place.items() if without_place(name) in names)
    return next(filter(None, map(as_number, counts)), None)
