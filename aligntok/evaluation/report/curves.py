"""Sections with curves: what was logged while training, what was measured on the way, sweeps of guidance and steps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from aligntok.evaluation.report.blocks import Block, Folded, Note, Panel, Plots, Section, table_of
from aligntok.evaluation.report.found import Run, Sweep, Training
from aligntok.evaluation.report.names import in_words, metric
from aligntok.evaluation.report.plots import Line, panel, short_number
from aligntok.evaluation.report.scalars import Curve, smooth, thin

#: Families of logged quantities by the beginning of their names, in the order in which they are shown.
_FAMILIES = {
    "Losses": ("loss/",),
    "Balance of the losses": ("ratio/", "weight/", "logits/"),
    "Gradient norms": ("grad_norm/",),
    "Speed, learning rates and steps left out": ("",),
}
_SMOOTHED = "A strong line is the running mean over a tenth of a stage, the faint one what was logged."


class Placed(NamedTuple):
    """A training within its run: how many steps came before it."""

    training: Training
    before: int


def place(trainings: Sequence[Training]) -> list[Placed]:
    """Return trainings one after another."""
    placed, before = [], 0
    for training in trainings:
        placed.append(Placed(training, before))
        before += max(training.step, training.steps if training is not trainings[-1] else 0)
    return placed


def training_sections(runs: Sequence[Run]) -> list[Section]:
    """Return a section on the tokenizers' training and one on the generators', where there are any."""
    sections = []
    for what, title in (("stages", "Training of the tokenizer"), ("generators", "Training of the generator")):
        placed = {run.name: place(getattr(run, what)) for run in runs if getattr(run, what)}
        blocks = list(_families(placed, what)) if placed else []
        if what == "generators":
            blocks += _time_bins(placed)
        if blocks:
            lead = _stages_in_words(placed) if what == "stages" else ""
            sections.append(Section(f"training-{what}", title, blocks, f"{lead} {_SMOOTHED}".strip()))
    return sections


def _stages_in_words(placed: Mapping[str, Sequence[Placed]]) -> str:
    if len(placed) > 1 or len(stages := next(iter(placed.values()))) < 2:
        return "Stages follow one another along the axis of steps."
    names = ", ".join(f"{i} {each.training.name.replace('_', ' ')}" for i, each in enumerate(stages, 1))
    return f"Stages follow one another along the axis of steps; dotted lines show where each begins: {names}."


def _families(placed: Mapping[str, Sequence[Placed]], where: str) -> Iterator[Block]:
    names = list(
        dict.fromkeys(n for stages in placed.values() for each in stages for n in each.training.history.trained)
    )
    left = set(names)
    for title, beginnings in _FAMILIES.items():
        own = [name for name in names if name in left and name.startswith(beginnings)]
        left -= set(own)
        panels = [p for i, name in enumerate(own) if (p := _panel(name, placed, f"{where}-{_slug(title)}-{i}"))]
        if panels:
            plots = Plots(panels, title, legend=_legend(placed))
            yield Folded(title, [Plots(panels, legend=_legend(placed))]) if beginnings == ("",) else plots


def _legend(placed: Mapping[str, object]) -> dict[int, str]:
    return dict(enumerate(placed)) if len(placed) > 1 else {}


def _panel(name: str, placed: Mapping[str, Sequence[Placed]], key: str, measured: bool = False) -> Panel | None:
    """Return the plot of one quantity over the steps of all runs, or None where it never differs from 0."""
    lines, last = [], ""
    for number, (run, stages) in enumerate(placed.items()):
        own = []
        for training, before in stages:
            history = training.history.measured if measured else training.history.trained
            curve = history.get(name)
            if curve is not None:
                own.append(Curve([step + before for step in curve.steps], curve.values))
        lines += list(_lines(own, number, run, joined=measured))
        if own and len(placed) == 1:
            last = f"last {metric(name).write(own[-1].values[-1])}"
    if not any(math.isfinite(y) and y for line in lines for y in line.y):
        return None
    found = metric(name)
    title = in_words(name) if found.label == name else found.label
    alt = f"{title} over steps, {', '.join(placed)}: {_in_words(lines)}"
    title += _arrow(name) if measured else ""
    total = max(before + training.step for stages in placed.values() for training, before in stages)
    return Panel(title, panel(lines, alt, key, marks=_marks(placed), until=total), last)


def _lines(curves: Sequence[Curve], number: int, label: str, joined: bool) -> Iterator[Line]:
    if joined and curves:
        curves = [Curve([s for c in curves for s in c.steps], [v for c in curves for v in c.values])]
    for curve in curves:
        even = Curve(curve.steps, smooth(curve.values))
        if even.values != curve.values:
            raw = thin(curve)
            yield Line(raw.steps, raw.values, number, faint=True)
        shown = thin(even)
        yield Line(shown.steps, shown.values, number, label, dots=joined or len(shown.steps) == 1)


def _marks(placed: Mapping[str, Sequence[Placed]]) -> list[tuple[float, str]]:
    if len(placed) > 1 or len(stages := next(iter(placed.values()))) < 2:
        return []
    return [(each.before, str(i)) for i, each in enumerate(stages, 1)]


def _in_words(lines: Sequence[Line]) -> str:
    strong = [line for line in lines if not line.faint and line.y]
    return "; ".join(f"from {short_number(line.y[0])} to {short_number(line.y[-1])}" for line in strong[:6])


def _arrow(name: str) -> str:
    return {"up": " ↑", "down": " ↓"}.get(metric(name).better or "", "")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _time_bins(placed: Mapping[str, Sequence[Placed]]) -> list[Block]:
    """Return the loss by time of the flow at a few steps of each generator."""
    panels = []
    for number, (run, trainings) in enumerate(placed.items()):
        bins = trainings[-1].training.history.bins
        steps = sorted(bins)
        shown = sorted({steps[i * (len(steps) - 1) // 3] for i in range(4)}) if steps else []
        lines = []
        for i, step in enumerate(shown):
            middles = [
                sum(map(float, name.split("-"))) / 2 for name in bins[step] if re.fullmatch(r"[\d.]+-[\d.]+", name)
            ]
            values = [value for name, value in bins[step].items() if re.fullmatch(r"[\d.]+-[\d.]+", name)]
            lines.append(Line(middles, values, i, f"step {step:,}", dots=True))
        if lines:
            alt = f"loss by time, {run}: {_in_words(lines)}"
            drawn = panel(lines, alt, f"bins-{number}", "t (0 is noise)", size=(3.7, 2.2))
            title = "Loss by time of the flow" + (f", {run}" if len(placed) > 1 else "")
            legend = {i: line.label for i, line in enumerate(lines)}
            panels.append(Plots([Panel("velocity loss in intervals of t", drawn)], title, legend=legend))
    return list(panels)


def quality_section(runs: Sequence[Run]) -> Section | None:
    """Return how validation metrics, and evaluations of several steps, went over the training."""
    blocks: list[Block] = []
    for what, title in (
        ("stages", "Held-out images, while the tokenizer trained"),
        ("generators", "While the generator trained"),
    ):
        placed = {run.name: place(getattr(run, what)) for run in runs if getattr(run, what)}
        every = [each.training.history.measured for stages in placed.values() for each in stages]
        names = [
            name for name in dict.fromkeys(n for measured in every for n in measured) if not name.endswith("/images")
        ]
        panels = [p for i, n in enumerate(names) if (p := _panel(n, placed, f"quality-{what}-{i}", measured=True))]
        if panels:
            blocks.append(Plots(panels, title, legend=_legend(placed)))
    blocks += _convergence(runs)
    lead = "What was measured on the way, over training steps; arrows show which way is better."
    return Section("quality", "Quality over training", blocks, lead) if blocks else None


def _convergence(runs: Sequence[Run]) -> list[Block]:
    """Return evaluation metrics over steps of training, a panel a metric, a line a run and kind of folder."""
    curves: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for run in runs:
        for found in run.results:
            if found.result.step is not None:
                where = re.sub(r"\d+", "", str(found.path.parent.resolve().relative_to(_top(run, found.path))))
                for name, value in found.result.metrics.items():
                    line = curves.setdefault((found.result.kind, name), {}).setdefault(f"{run.name}\0{where}", {})
                    line[found.result.step] = float(value)
    labels = sorted({key for lines in curves.values() for key, points in lines.items() if len(points) > 1})
    several = len({label.split("\0")[1] for label in labels}) > 1
    names = {label: label.replace("\0", ", ") if several else label.split("\0")[0] for label in labels}
    panels = []
    for i, ((kind, name), by_label) in enumerate(curves.items()):
        lines = [
            Line(sorted(points), [points[step] for step in sorted(points)], labels.index(key), names[key], dots=True)
            for key, points in by_label.items()
            if key in names
        ]
        found_metric = metric(name)
        if lines and found_metric.label != "Images":
            alt = f"{found_metric.label} ({kind}) over training steps: {_in_words(lines)}"
            drawn = panel(lines, alt, f"convergence-{i}", "training steps")
            panels.append(Panel(found_metric.label + _arrow(name), drawn))
    legend = {i: names[label] for i, label in enumerate(labels)} if len(labels) > 1 else {}
    return [Plots(panels, "Convergence: evaluations over training steps", legend=legend)] if panels else []


def _top(run: Run, path: object) -> str:
    top = run.path.resolve()
    return str(top if top.is_dir() else top.parent)


def sweep_section(runs: Sequence[Run]) -> Section | None:
    """Return the sweeps: every measured column over the guidance scale, and over steps where there are several."""
    blocks: list[Block] = []
    sweeps = [(run, sweep) for run in runs for sweep in run.sweeps]
    for number, (run, sweep) in enumerate(sweeps):
        where = f"{run.name}, {sweep.folder.name}" if sweep.folder != run.path else run.name
        num = sweep.settings.get("num")
        title = f"{where}: {num} samples each" if num else where
        for over, other, words in (("cfg_scale", "steps", "guidance scale"), ("steps", "cfg_scale", "sampling steps")):
            drawn = _sweep_plots(sweep, over, other, words, f"sweep-{number}-{over}")
            if drawn:
                blocks.append(Plots(drawn.panels, f"{title}, over {words}", legend=drawn.legend))
        blocks.append(Folded(f"All numbers of the sweep ({len(sweep.rows)} combinations)", [table_of(sweep.rows)]))
    lead = "The same noise and labels at every guidance scale and number of sampling steps."
    return Section("sweeps", "Guidance and steps", blocks, lead) if blocks else None


def _sweep_plots(sweep: Sweep, over: str, other: str, words: str, key: str) -> Plots | None:
    places = {row[over] for row in sweep.rows if over in row}
    if len(places) < 2:
        return None
    groups = sorted({row[other] for row in sweep.rows})
    columns = [name for name in dict.fromkeys(n for row in sweep.rows for n in row) if name not in (over, other)]
    panels = []
    for i, name in enumerate(columns):
        lines = []
        for g, group in enumerate(groups):
            points = sorted((row[over], row[name]) for row in sweep.rows if row[other] == group and name in row)
            if points:
                x, y = zip(*points, strict=True)
                lines.append(Line(x, y, g, short_number(group), dots=True))
        if lines:
            found = metric(name)
            alt = f"{found.label} over {words}: {_in_words(lines)}"
            panels.append(Panel(found.label + _arrow(name), panel(lines, alt, f"{key}-{i}", words)))
    unit = " steps" if other == "steps" else ""
    before = "" if other == "steps" else "scale "
    return Plots(panels, legend={g: f"{before}{short_number(group)}{unit}" for g, group in enumerate(groups)})


def missing_note(texts: Sequence[str]) -> list[Block]:
    """Return what is missing as notes."""
    return [Note(f"not found: {text}", missing=True) for text in texts]
