"""Sections on trainings, samples and sweeps: curves of what was logged and measured, pictures, stages, settings."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aligntok.evaluation.report.blocks import (
    DOWN,
    NONE,
    UP,
    Block,
    Cell,
    Figure,
    Gallery,
    Group,
    Note,
    Section,
    metric,
    settings_table,
    side_by_side,
    table_of,
    write_seconds,
    write_value,
)
from aligntok.evaluation.report.collect import Curve, Run, Samples, Training, is_number, part
from aligntok.evaluation.report.figures import Line, contact_sheet, pictures, plot, short_number, smooth, thin

#: Families of logged quantities by the beginning of their names, in the order in which they are shown.
_FAMILIES = {
    "Losses": ("loss/",),
    "Balance of the losses": ("ratio/", "weight/", "logits/"),
    "Gradient norms": ("grad_norm/",),
}
_SMOOTHED = "A strong line is the running mean over a tenth of a stage, the faint one what was logged."
#: What a sweep's plots are over, what tells their lines apart, in words.
_SWEPT = (("cfg_scale", "steps", "guidance scale", "{} steps"), ("steps", "cfg_scale", "sampling steps", "scale {}"))
_INTERVAL = r"[\d.]+-[\d.]+"  # of times
FILMSTRIP = 8  # earlier pictures that are shown


Trainings = Mapping[str, Sequence[Training]]  # by the name of a run


def _trainings(runs: Sequence[Run], what: str) -> Trainings:
    return {run.name: getattr(run, what) for run in runs if getattr(run, what)}


def training_of_tokenizers(runs: Sequence[Run]) -> Section:
    """Return what the stages of the tokenizers' training logged."""
    by_run, lead = _trainings(runs, "stages"), "Stages follow one another along the axis of steps"
    if names := [f"{i} {stage.name}" for i, stage in _successive(by_run)]:
        lead += f"; dotted lines show where each begins: {', '.join(names)}"
    return Section("training-stages", "Training of the tokenizer", _logged(by_run), f"{lead}. {_SMOOTHED}")


def training_of_generators(runs: Sequence[Run]) -> Section:
    """Return what the generators' training logged, and their loss by time."""
    by_run = _trainings(runs, "generators")
    blocks = [*_logged(by_run), *_time_bins(by_run)]
    return Section("training-generators", "Training of the generator", blocks, _SMOOTHED)


def quality(runs: Sequence[Run]) -> Section:
    """Return how validation metrics, and evaluations of several steps, went over the training."""
    blocks: list[Block] = []
    titles = {"stages": "Held-out images, while the tokenizer trained", "generators": "While the generator trained"}
    for what, title in titles.items():
        by_run = _trainings(runs, what)
        names = [name for name in _names(by_run, "measured") if not name.endswith("/images")]
        blocks += _over_steps(by_run, "measured", names, title)
    lead = "What was measured on the way, over training steps; arrows show which way is better."
    return Section("quality", "Quality over training", [*blocks, *_convergence(runs)], lead)


def _names(by_run: Trainings, kind: str) -> list[str]:
    every = [getattr(each.history, kind) for stages in by_run.values() for each in stages]
    return list(dict.fromkeys(name for curves in every for name in curves))


def _successive(by_run: Trainings) -> list[tuple[int, Training]]:
    """Return the stages of the only run with their numbers, where there are several: where each begins is marked."""
    stages = next(iter(by_run.values())) if len(by_run) == 1 else []
    return list(enumerate(stages, 1)) if len(stages) > 1 else []


def _logged(by_run: Trainings) -> list[Block]:
    """Return plots of logged quantities, a family after another; what is of none is shown on demand."""
    blocks: list[Block] = []
    left = _names(by_run, "trained")
    for title, beginnings in _FAMILIES.items():
        own = [name for name in left if name.startswith(beginnings)]
        left = [name for name in left if name not in own]
        blocks += _over_steps(by_run, "trained", own, title)
    others = _over_steps(by_run, "trained", left)
    return [*blocks, Group("Speed, learning rates and steps left out", others)] if others else blocks


def _plots(drawn: Sequence[Figure], title: str, legend: Iterable[str]) -> list[Block]:
    return [Gallery(drawn, title, "plots", [*legend])] if drawn else []


def _over_steps(by_run: Trainings, kind: str, names: Sequence[str], title: str = "") -> list[Block]:
    """Return plots of quantities over the steps of all runs, without those that never differ from 0."""
    is_one, is_measured, drawn = len(by_run) == 1, kind == "measured", []
    marks = [(each.before, str(i)) for i, each in _successive(by_run)]
    until = max((each.before + each.step for stages in by_run.values() for each in stages), default=0)
    for name in names:
        lines: list[Line] = []
        for colour, stages in enumerate(by_run.values()):
            found = [(getattr(each.history, kind).get(name), each.before) for each in stages]
            curves = [{step + before: value for step, value in curve.items()} for curve, before in found if curve]
            if is_measured and curves:  # one line through all stages
                curves = [dict(item for curve in curves for item in curve.items())]
            lines += [line for curve in curves for line in _lines(curve, colour, is_measured)]
        if any(math.isfinite(y) and y for line in lines for y in line.points.values()):
            shown = metric(name)
            about, last = f"{shown.label} over steps, {', '.join(by_run)}", ""
            if is_one:
                last = f"last {shown.write([*curves[-1].values()][-1])}"
            drawn.append(plot(_title(name, is_measured), about, lines, last=last, marks=marks, until=until))
    return _plots(drawn, title, [] if is_one else by_run)


def _lines(curve: Curve, colour: int, dots: bool) -> list[Line]:
    """Return a curve as its running mean, with what it is the mean of where that differs."""
    even = dict(zip(curve, smooth([*curve.values()]), strict=True))
    faint = [Line(thin(curve), colour, faint=True)] if even != curve else []
    return [*faint, Line(thin(even), colour, dots=dots or len(even) == 1)]


def _title(name: str, arrow: bool = True) -> str:
    found = metric(name)
    return found.label + {UP: " ↑", DOWN: " ↓"}.get(found.better or "", "") * arrow


def _time_bins(by_run: Trainings) -> list[Block]:
    """Return the loss by time of the flow at a few steps of each generator."""
    blocks: list[Block] = []
    for run, generators in by_run.items():
        bins = [(name, curve) for name, curve in generators[-1].history.bins.items() if re.fullmatch(_INTERVAL, name)]
        middles = [(sum(map(float, name.split("-"))) / 2, losses) for name, losses in bins]
        steps = sorted({step for _, losses in middles for step in losses})
        chosen = sorted({steps[i * (len(steps) - 1) // 3] for i in range(4)}) if steps else []
        points = [{middle: losses[step] for middle, losses in middles if step in losses} for step in chosen]
        lines = [Line(each, colour, dots=True) for colour, each in enumerate(points)]
        if lines:
            title, about = "velocity loss in intervals of t", f"loss by time, {run}"
            drawn = [plot(title, about, lines, x_label="t (0 is noise)", height=2.2)]
            of = f", {run}" if len(by_run) > 1 else ""
            blocks += _plots(drawn, f"Loss by time of the flow{of}", [f"step {step:,}" for step in chosen])
    return blocks


def _convergence(runs: Sequence[Run]) -> list[Block]:
    """Return evaluation metrics over steps of training, a plot a metric, a line a run and kind of folder."""
    #: values by step of training, by run and folder without its numbers, by kind of evaluation and metric
    curves: Any = defaultdict(lambda: defaultdict(dict))
    for run, found in [(each, found) for each in runs for found in each.results if found.result.step is not None]:
        key = (run.name, re.sub(r"\d+", "", "/".join(run.place_of(found))))
        for name, value in found.result.metrics.items():
            curves[found.result.kind, name][key][found.result.step] = float(value)
    keys = sorted({key for by_key in curves.values() for key, points in by_key.items() if len(points) > 1})
    several = len({folder for _, folder in keys}) > 1
    drawn = []
    for (kind, name), by_key in curves.items():
        shown = [(keys.index(key), points) for key, points in by_key.items() if key in keys]
        lines = [Line(dict(sorted(points.items())), colour, dots=True) for colour, points in shown]
        label = metric(name).label
        if lines and label != "Images":
            about = f"{label} ({kind}) over training steps"
            drawn.append(plot(_title(name), about, lines, x_label="training steps"))
    names = [", ".join(key) if several else key[0] for key in keys]
    return _plots(drawn, "Convergence: evaluations over training steps", names if len(names) > 1 else [])


def sweeps(runs: Sequence[Run]) -> Section:
    """Return the sweeps: every measured column over the guidance scale, and over steps where there are several."""
    blocks: list[Block] = []
    for run, sweep in [(each, sweep) for each in runs for sweep in each.sweeps]:
        where = f"{run.name}, {sweep.folder.name}" if sweep.folder != run.path else run.name
        num = sweep.settings.get("num")
        title = f"{where}: {num} samples each" if num else where
        rows = sorted(sweep.rows, key=lambda row: (row["cfg_scale"], row["steps"]))
        columns = dict.fromkeys(name for row in sweep.rows for name in row if name not in ("cfg_scale", "steps"))
        for over, other, words, group in _SWEPT:
            values, drawn = sorted({row[other] for row in rows}), []
            for name in columns if len({row[over] for row in rows}) > 1 else []:
                those = [[row for row in rows if name in row and row[other] == value] for value in values]
                points = [{row[over]: row[name] for row in each} for each in those]
                lines = [Line(each, colour, dots=True) for colour, each in enumerate(points) if each]
                drawn.append(plot(_title(name), f"{metric(name).label} over {words}", lines, x_label=words))
            blocks += _plots(drawn, f"{title}, over {words}", [group.format(short_number(value)) for value in values])
        blocks.append(Group(f"All numbers of the sweep ({len(sweep.rows)} combinations)", [table_of(sweep.rows)]))
    lead = "The same noise and labels at every guidance scale and number of sampling steps."
    return Section("sweeps", "Guidance and steps", blocks, lead)


def reconstructions(runs: Sequence[Run]) -> Section:
    """Return the newest reconstructions of every run, and earlier ones as a strip."""
    blocks = side_by_side({run.name: _drawn(run.stages, "input, reconstruction, difference") for run in runs})
    what = "input, reconstruction, and twice the absolute difference (black where there is none)"
    return Section("reconstructions", "Reconstructions", blocks, f"Fixed held-out images: {what}.")


def samples(runs: Sequence[Run]) -> Section:
    """Return the samples drawn while generators trained, the sets of samples, and the sweeps' pictures."""
    by_run: dict[str, list[Block]] = {}
    for run in runs:
        by_run[run.name] = blocks = _drawn(run.generators, "samples")
        for drawn in run.samples:
            blocks += _sample_set(drawn)
        for sweep in run.sweeps:
            blocks += pictures([(sweep.folder, "sweep_grid.png", "the first samples of every combination")])
    return Section("samples", "Samples", side_by_side(by_run))


def _drawn(shown: Sequence[Training], what: str) -> list[Block]:
    """Return the newest picture of some trainings, one after another, and a strip of earlier ones, evenly spread."""
    every = [
        (training.folder, path, f"{training.name}, step {step:,}: {what}")
        for training in shown
        for step, path in sorted(training.pictures.items())
    ]
    last = len(every) - 2  # of the earlier ones
    if last >= FILMSTRIP:
        every = [*(every[round(i * last / (FILMSTRIP - 1))] for i in range(FILMSTRIP)), every[-1]]
    return [*pictures(every[-1:]), *pictures(every[:-1], "Earlier", "strip")]


def _sample_set(drawn: Samples) -> list[Block]:
    folder, words = drawn.folder, f"{drawn.folder.name}: {describe_sampling(drawn.settings)}"
    named = {"grid.png": words, "beside_real.png": "samples beside real images of their class"}
    blocks = pictures([(folder, name, caption) for name, caption in named.items() if (folder / name).is_file()])
    if not (folder / "grid.png").is_file():
        blocks.append(contact_sheet(folder / "images", words))
    short = {name: value for name, value in drawn.settings.items() if name != "labels"}
    return [*blocks, settings_table(short, f"How the samples in {folder.name} were drawn")]


def describe_sampling(settings: Mapping[str, Any]) -> str:
    """Return how samples were drawn, in a few words."""
    how = part(settings, "sampling")
    scale = how.get("cfg_scale")
    words = [
        f"{write_value(settings['num'])} samples" if "num" in settings else "",
        f"{write_value(how['steps'])} steps of {how.get('sampler', 'the sampler')}" if "steps" in how else "",
        "" if scale is None else "no guidance" if scale == 1 else f"guidance {write_value(scale)}",
        f"seed {settings['seed']}" if "seed" in settings else "",
        "" if settings.get("finished", True) else "not finished",
    ]
    return ", ".join(filter(None, words)) or "how they were drawn is not noted"


def stages(runs: Sequence[Run]) -> Section:
    """Return what each stage trained, for how long, and what the validation after it measured."""
    note, blocks = "Measured on held-out images after the last step of a stage.", []
    for run in (run for run in runs if run.stages):
        rows = []
        for stage in run.stages:
            words = {"stage": stage.name, "trains": write_value(stage.settings.get("trainable"))}
            seconds = stage.result.get("seconds")
            numbers = {
                "steps": stage.progress,
                "batch": write_value(stage.batch),
                "learning rate": write_value(part(stage.settings, "optimizer").get("lr")),
                "time": write_seconds(seconds) if is_number(seconds) and math.isfinite(seconds) else NONE,
            }
            cells = {name: Cell(text, number=name in numbers) for name, text in (words | numbers).items()}
            rows.append(cells | stage.metrics)
        blocks.append(table_of(rows, run.name if len(runs) > 1 else "", note))
    return Section("stages", "Stages", blocks)


def settings(runs: Sequence[Run]) -> Section:
    """Return all settings of each training, on demand."""
    blocks: list[Block] = []
    for name, training in [(run.name, training) for run in runs for training in run.trainings]:
        shown = {key: value for key, value in training.settings.items() if key not in ("stage", "statistics")}
        blocks.append(settings_table(shown, f"{name}: {training.name}" if len(runs) > 1 else training.name))
    return Section("settings", "Settings", blocks, "All settings of each training, as they were noted when it began.")


def missing(runs: Sequence[Run]) -> Section:
    """Return notes on what is not there or cannot be read."""
    texts = [(f"{run.name}: " if len(runs) > 1 else "", text) for run in runs for text in dict.fromkeys(run.missing)]
    blocks = [Note(f"{name}not found: {text}", missing=True) for name, text in texts]
    return Section("missing", "Not found", blocks, "What a report can show, and these folders do not have.")
