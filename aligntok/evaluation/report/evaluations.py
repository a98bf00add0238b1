"""Sections on the results of evaluations: metrics, tables, pictures and settings, the paper's numbers beside them.

The paper's stand there only where a run is the paper's, and measured as it measures: its config, options that change
nothing, a generator's tokenizer, images, settings of the evaluation and the samples, and metric.
"""

from __future__ import annotations

import json
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
from aligntok.evaluation.report.collect import Evaluated, Run, Training, as_number, find, is_number, part
from aligntok.evaluation.report.figures import pictures
from aligntok.evaluation.results import Result
from aligntok.evaluation.settings import NEUTRAL
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
FREE = {*NEUTRAL, "work_dir", "data_root", "seed", "deterministic", "process_timeout"}
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
    generator = str(part(result.settings, "samples", "generator").get("source") or "")
    run = run if run.trainings else _run_at(result.subject, generator) or run
    if kind == "cost":
        return _costs(run, result)
    wanted, images = data("paper")["evaluated"][kind], images_of(result)
    if images != wanted["images"]:
        seen = "an unknown number" if images is None else f"{images:,}"
        return _none(f"its own are of {wanted['images']:,} {wanted['of']}, these of {seen}")
    if other := next((name for name, own in wanted["settings"].items() if _value(result, name) not in own), None):
        return _none(f"its own are of {other}={json.dumps(wanted['settings'][other][0])}, these are not")
    trainings = _evaluated(run, result)
    if not trainings:
        return _none("the training that was evaluated is not there whole")
    what = "generator" if kind == "generation" else "tokenizer"
    on = _tokenizer_of(trainings[-1]) if kind == "generation" else ()
    same = next((entry for entry in data("paper")[f"{what}s"] if _is_the_papers(run, trainings, entry, on)), None)
    if same is None:
        # a result that came from elsewhere may name any folder: of a run that it is not in, nothing is told
        is_inside = found.path.resolve().is_relative_to(run.path.resolve())
        return _none(f"it has no such {what}" + f" ({_in_short(run, trainings, on)})" * is_inside)
    title, values = same["title"], same["values"]
    if kind == "generation":
        values, words = _as_sampled(result, trainings[-1], values)
        if values is None:
            return _none(f"it has none of {words}")
        title += f", {words}"
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


def _value(result: Result, name: str) -> Any:
    """Return a setting of a result by dotted name; None where it says nothing of it."""
    *keys, last = name.split(".")
    return (part(result.settings, *keys) if keys else result.settings).get(last)


def _as_sampled(
    result: Result, generator: Training, values: Sequence[Mapping[str, Any]]
) -> tuple[Mapping[str, Any] | None, str]:
    """Return those of the paper's values that are of samples drawn like a result's, if any, and how it was in words.

    Steps and guidance are the paper's, all else the sampling of the training's config, which is the paper's.
    """
    sampling, own = part(result.settings, "samples", "sampling"), part(generator.settings, "sampling")
    steps, scale = sampling.get("steps"), sampling.get("cfg_scale")
    free = {"steps", "cfg_scale"} | ({"cfg_interval", "cfg_channels", "preserve_energy"} if scale == 1 else set())
    other = [key for key in {**own, **sampling} if key not in free and (own.get(key) or 0) != (sampling.get(key) or 0)]
    if other:
        return None, f"samples with other settings than its config's: {', '.join(other)}"
    is_guided = scale > 1 if is_number(scale) and scale >= 1 else None  # below 1 it leads away from the class
    # published code counts a solver's times, one more than its steps
    alike = (v for v in values if steps in (v["sampler_steps"], v["sampler_steps"] - 1) and v["guided"] is is_guided)
    if (found := next(alike, None)) is None:
        return None, f"{steps or '?'} steps at scale {'?' if scale is None else scale}"
    return found, f"{found['sampler_steps']} sampling steps, {'with' if is_guided else 'without'} guidance"


def _run_at(*places: str) -> Run | None:
    """Return the run that the first of some places is, or is in, if any."""
    for place in filter(None, places):
        for folder in (Path(place), Path(place).parent):
            if any([*folder.glob("[0-9]*_*/stage.json"), *folder.glob("generation/stage.json")]):
                try:
                    return find(folder)
                except DataError:
                    continue
    return None


def _tokenizer_of(generator: Training) -> tuple[str, ...]:
    """Return the names of a generator's tokenizer: its file's, and the titles of the paper's trainings that made it."""
    place = str(generator.settings.get("tokenizer") or "")
    if (run := _run_at(place)) is None or not (stages := _stages_until(run, place)):
        return (Path(place).name,)
    entries = (entry for entry in data("paper")["tokenizers"] if _is_the_papers(run, stages, entry))
    return Path(place).name, *(entry["title"] for entry in entries)


def _stages_until(run: Run, subject: str) -> list[Training]:
    """Return the stages of a run up to the one that a place names, else all of them; nothing unless they are whole."""
    names, name = [stage.folder.resolve().name for stage in run.stages], Path(subject).name
    stages = run.stages[: names.index(name) + 1 if name in names else None]
    return [] if any(each.step < (each.steps or 1) for each in stages) else stages


def _evaluated(run: Run, result: Result) -> list[Training]:
    """Return what a result is of, a generator or the stages up to one; nothing where that was not at its end."""
    trainings = run.generators[-1:] if result.kind == "generation" else _stages_until(run, result.subject)
    is_early = trainings and result.step is not None and result.step < trainings[-1].steps
    return [] if is_early or any(each.step < (each.steps or 1) for each in trainings) else trainings


def _is_the_papers(run: Run, trainings: Sequence[Training], entry: Mapping[str, Any], on: Sequence[str] = ()) -> bool:
    """Tell whether trainings are those of an entry of paper.json: its config, and for a generator a tokenizer, `on`.

    The steps say up to which stage of a config it is.
    """
    schedule = [(steps, entry["batch"]) for steps in entry["steps"]]
    if [(each.steps, each.batch) for each in trainings] != schedule or not _is_run_of(run, entry["configs"]):
        return False
    wanted = dict(entry.get("tokenizer", {}))
    if wanted and wanted.pop("from") not in on:
        return False

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


def _in_short(run: Run, trainings: Sequence[Training], on: Sequence[str]) -> str:
    if not run.origin.get("config"):
        return "no run.json names the config that it was started with"
    steps = " + ".join(f"{training.steps:,}" for training in trainings)
    options = " ".join(["", "with", *_changed(run)]) if _changed(run) else ""
    tokenizer = f", on {on[-1] or 'no tokenizer that it names'}" if on else ""
    return f"{run.origin['config']}{options}, {steps} steps of {trainings[-1].batch}{tokenizer}"


def images_of(result: Result) -> int | None:
    """Return of how many images a result is, where it says so."""
    names = ("images", "num_images", "samples", "num_samples", "num")
    places = (result.metrics, result.settings)
    counts = (value for place in places for name, value in place.items() if without_place(name) in names)
    return next(filter(None, map(as_number, counts)), None)
