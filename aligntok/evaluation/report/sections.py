"""Sections with curves and pictures: what trainings logged, measured and drew, sets of samples, sweeps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from aligntok.evaluation.report.blocks import (
    DOWN,
    UP,
    Block,
    Folded,
    Panel,
    Plots,
    Section,
    metric,
    settings_table,
    side_by_side,
    table_of,
    write_value,
)
from aligntok.evaluation.report.collect import Curve, Run, Samples, Training
from aligntok.evaluation.report.pictures import contact_sheet, gallery, spread
from aligntok.evaluation.report.plots import Line, panel, short_number, smooth, thin

#: Families of logged quantities by the beginning of their names, in the order in which they are shown.
_FAMILIES = {
    "Losses": ("loss/",),
    "Balance of the losses": ("ratio/", "weight/", "logits/"),
    "Gradient norms": ("grad_norm/",),
    "Speed, learning rates and steps left out": ("",),
}
_SMOOTHED = "A strong line is the running mean over a tenth of a stage, the faint one what was logged."
_INTERVAL = r"[\d.]+-[\d.]+"  # of times
FILMSTRIP = 8  # earlier pictures that are shown


Trainings = Mapping[str, Sequence[Training]]  # by the name of a run


def _trainings(runs: Sequence[Run], what: str) -> Trainings:
    return {run.name: getattr(run, what) for run in runs if getattr(run, what)}


def training_sections(runs: Sequence[Run]) -> list[Section]:
    """Return a section on the tokenizers' training and one on the generators', where there are any."""
    stages, generators = _trainings(runs, "stages"), _trainings(runs, "generators")
    lead = "Stages follow one another along the axis of steps"
    if names := [f"{i} {each.name.replace('_', ' ')}" for i, each in _successive(stages)]:
        lead += f"; dotted lines show where each begins: {', '.join(names)}"
    generated = [*_families(generators, "generators"), *_time_bins(generators)]
    sections = [
        Section("training-stages", "Training of the tokenizer", [*_families(stages, "stages")], f"{lead}. {_SMOOTHED}"),
        Section("training-generators", "Training of the generator", generated, _SMOOTHED),
    ]
    return [section for section in sections if section.blocks]


def quality_section(runs: Sequence[Run]) -> Section:
    """Return how validation metrics, and evaluations of several steps, went over the training."""
    blocks: list[Block] = []
    for what, title in (
        ("stages", "Held-out images, while the tokenizer trained"),
        ("generators", "While the generator trained"),
    ):
        by_run = _trainings(runs, what)
        names = [name for name in _names(by_run, "measured") if not name.endswith("/images")]
        panels = [_over_steps(name, by_run, f"quality-{what}-{i}", "measured") for i, name in enumerate(names)]
        blocks += _plots(panels, title, _legend([*by_run]))
    blocks += _convergence(runs)
    lead = "What was measured on the way, over training steps; arrows show which way is better."
    return Section("quality", "Quality over training", blocks, lead)


def _names(by_run: Trainings, kind: str) -> list[str]:
    every = [getattr(each.history, kind) for stages in by_run.values() for each in stages]
    return list(dict.fromkeys(name for curves in every for name in curves))


def _successive(by_run: Trainings) -> list[tuple[int, Training]]:
    """Return the stages of the only run with their numbers, where there are several: where each begins is marked."""
    stages = next(iter(by_run.values())) if len(by_run) == 1 else []
    return list(enumerate(stages, 1)) if len(stages) > 1 else []


def _families(by_run: Trainings, where: str) -> Iterator[Block]:
    left = _names(by_run, "trained")
    for title, beginnings in _FAMILIES.items():
        own = [name for name in left if name.startswith(beginnings)]
        left = [name for name in left if name not in own]
        key = f"{where}-{re.sub(r'[^a-z0-9]+', '-', title.lower())}"
        is_folded = beginnings == ("",)
        panels = [_over_steps(name, by_run, f"{key}-{i}") for i, name in enumerate(own)]
        blocks = _plots(panels, "" if is_folded else title, _legend([*by_run]))
        yield from [Folded(title, blocks)] if is_folded and blocks else blocks


def _plots(panels: Iterable[Panel | None], title: str, legend: Mapping[int, str]) -> list[Block]:
    drawn = [each for each in panels if each]
    return [Plots(drawn, title, legend)] if drawn else []


def _legend(names: Sequence[str]) -> dict[int, str]:
    return dict(enumerate(names)) if len(names) > 1 else {}


def _plot(title: str, about: str, lines: Sequence[Line], key: str, last: str = "", **options: Any) -> Panel:
    """Draw lines under a title; `about` is said, before their numbers, to those who cannot see them."""
    strong = [line for line in lines if not line.faint and line.y]
    words = "; ".join(f"from {short_number(line.y[0])} to {short_number(line.y[-1])}" for line in strong[:6])
    return Panel(title, panel(lines, f"{about}: {words}", key, **options), last)


def _over_steps(name: str, by_run: Trainings, key: str, kind: str = "trained") -> Panel | None:
    """Return the plot of one quantity over the steps of all runs, or None where it never differs from 0."""
    lines: list[Line] = []
    for number, (run, stages) in enumerate(by_run.items()):
        found = [(getattr(each.history, kind).get(name), each.before) for each in stages]
        curves = [Curve([step + before for step in curve.steps], curve.values) for curve, before in found if curve]
        lines += _lines(curves, number, run, joined=kind == "measured")
    if not any(math.isfinite(y) and y for line in lines for y in line.y):
        return None
    shown = metric(name)
    marks = [(each.before, str(i)) for i, each in _successive(by_run)]
    total = max(each.before + each.step for stages in by_run.values() for each in stages)
    title, about = _title(name, kind == "measured"), f"{shown.label} over steps, {', '.join(by_run)}"
    last = f"last {shown.write(curves[-1].values[-1])}" if len(by_run) == 1 else ""
    return _plot(title, about, lines, key, last=last, marks=marks, until=total)


def _lines(curves: Sequence[Curve], number: int, label: str, joined: bool) -> Iterator[Line]:
    if joined and curves:
        curves = [Curve([s for c in curves for s in c.steps], [v for c in curves for v in c.values])]
    for curve in curves:
        even = Curve(curve.steps, smooth(curve.values))
        if even.values != curve.values:
            yield Line(*thin(curve), number, faint=True)
        shown = thin(even)
        yield Line(*shown, number, label, dots=joined or len(shown.steps) == 1)


def _dotted(points: Iterable[tuple[float, float]], number: int, label: str) -> Line:
    shown = list(points)
    return Line([x for x, _ in shown], [y for _, y in shown], number, label, dots=True)


def _title(name: str, arrow: bool = True) -> str:
    found = metric(name)
    return found.label + {UP: " ↑", DOWN: " ↓"}.get(found.better or "", "") * arrow


def _time_bins(by_run: Trainings) -> list[Block]:
    """Return the loss by time of the flow at a few steps of each generator."""
    blocks: list[Block] = []
    for number, (run, trainings) in enumerate(by_run.items()):
        bins = trainings[-1].history.bins
        steps, lines = sorted(bins), []
        for i, step in enumerate(sorted({steps[i * (len(steps) - 1) // 3] for i in range(4)}) if steps else []):
            values = {name: value for name, value in bins[step].items() if re.fullmatch(_INTERVAL, name)}
            middles = [sum(map(float, name.split("-"))) / 2 for name in values]
            lines.append(_dotted(zip(middles, values.values(), strict=True), i, f"step {step:,}"))
        if lines:
            about, of = f"loss by time, {run}", f", {run}" if len(by_run) > 1 else ""
            size = (3.7, 2.2)
            drawn = _plot(
                "velocity loss in intervals of t", about, lines, f"bins-{number}", x_label="t (0 is noise)", size=size
            )
            legend = {i: line.label for i, line in enumerate(lines)}
            blocks += _plots([drawn], f"Loss by time of the flow{of}", legend)
    return blocks


def _convergence(runs: Sequence[Run]) -> list[Block]:
    """Return evaluation metrics over steps of training, a panel a metric, a line a run and kind of folder."""
    curves: dict[tuple[str, str], dict[tuple[str, str], dict[int, float]]] = {}
    for run in runs:
        for found in run.results:
            if found.result.step is not None:
                key = (run.name, re.sub(r"\d+", "", "/".join(run.place_of(found))))
                for name, value in found.result.metrics.items():
                    of_metric = curves.setdefault((found.result.kind, name), {})
                    of_metric.setdefault(key, {})[found.result.step] = float(value)
    keys = sorted({key for lines in curves.values() for key, points in lines.items() if len(points) > 1})
    several = len({folder for _, folder in keys}) > 1
    names = [", ".join(key) if several else key[0] for key in keys]
    panels = []
    for i, ((kind, name), by_key) in enumerate(curves.items()):
        shown = [(keys.index(key), points) for key, points in by_key.items() if key in keys]
        lines = [_dotted(sorted(points.items()), number, names[number]) for number, points in shown]
        label = metric(name).label
        if lines and label != "Images":
            about = f"{label} ({kind}) over training steps"
            panels.append(_plot(_title(name), about, lines, f"convergence-{i}", x_label="training steps"))
    return _plots(panels, "Convergence: evaluations over training steps", _legend(names))


def sweep_section(runs: Sequence[Run]) -> Section:
    """Return the sweeps: every measured column over the guidance scale, and over steps where there are several."""
    blocks: list[Block] = []
    sweeps = [(run, sweep) for run in runs for sweep in run.sweeps]
    for number, (run, sweep) in enumerate(sweeps):
        where = f"{run.name}, {sweep.folder.name}" if sweep.folder != run.path else run.name
        num = sweep.settings.get("num")
        title = f"{where}: {num} samples each" if num else where
        for over, other, words, group in (
            ("cfg_scale", "steps", "guidance scale", "{} steps"),
            ("steps", "cfg_scale", "sampling steps", "scale {}"),
        ):
            groups = {value: group.format(short_number(value)) for value in sorted({r[other] for r in sweep.rows})}
            panels = _sweep_panels(sweep, over, other, words, f"sweep-{number}-{over}", [*groups])
            blocks += _plots(panels, f"{title}, over {words}", dict(enumerate(groups.values())))
        blocks.append(Folded(f"All numbers of the sweep ({len(sweep.rows)} combinations)", [table_of(sweep.rows)]))
    lead = "The same noise and labels at every guidance scale and number of sampling steps."
    return Section("sweeps", "Guidance and steps", blocks, lead)


def _sweep_panels(
    sweep: Samples, over: str, other: str, words: str, key: str, groups: Sequence[float]
) -> Iterator[Panel]:
    """Yield each measured column over one of the two that are swept, a line for each value of the other."""
    if len({row[over] for row in sweep.rows}) < 2:
        return
    columns = [name for name in dict.fromkeys(n for row in sweep.rows for n in row) if name not in (over, other)]
    for i, name in enumerate(columns):
        rows = [row for row in sweep.rows if name in row]
        points = [sorted((row[over], row[name]) for row in rows if row[other] == group) for group in groups]
        lines = [
            _dotted(each, i, short_number(group))
            for i, (group, each) in enumerate(zip(groups, points, strict=True))
            if each
        ]
        if lines:
            yield _plot(_title(name), f"{metric(name).label} over {words}", lines, f"{key}-{i}", x_label=words)


def reconstruction_section(runs: Sequence[Run]) -> Section:
    """Return the newest reconstructions of every run, and earlier ones as a strip."""
    blocks = side_by_side({run.name: _drawn(run.stages, "input, reconstruction, difference") for run in runs})
    lead = (
        "Fixed held-out images: input, reconstruction, and twice the absolute difference (black where there is none)."
    )
    return Section("reconstructions", "Reconstructions", blocks, lead)


def samples_section(runs: Sequence[Run]) -> Section:
    """Return the samples drawn while generators trained, the sets of samples, and the sweeps' pictures."""
    by_run: dict[str, list[Block]] = {}
    for run in runs:
        by_run[run.name] = blocks = _drawn(run.generators, "samples")
        for samples in run.samples:
            blocks += _sample_set(samples)
        for sweep in run.sweeps:
            blocks += gallery([(sweep.folder, "sweep_grid.png", "the first samples of every combination")])
    return Section("samples", "Samples", side_by_side(by_run))


def _drawn(trainings: Sequence[Training], what: str) -> list[Block]:
    """Return the newest picture of some trainings, one after another, and a strip of earlier ones."""
    pictures = [
        (training.folder, path, f"{training.name.replace('_', ' ')}, step {step:,}: {what}")
        for training in trainings
        for step, path in sorted(training.pictures.items())
    ]
    return [*gallery(pictures[-1:]), *gallery(spread(pictures[:-1], FILMSTRIP), "Earlier", strip=True)]


def _sample_set(samples: Samples) -> list[Block]:
    folder, words = samples.folder, f"{samples.folder.name}: {describe_sampling(samples.settings)}"
    named = {"grid.png": words, "beside_real.png": "samples beside real images of their class"}
    blocks = gallery([(folder, name, caption) for name, caption in named.items() if (folder / name).is_file()])
    if not (folder / "grid.png").is_file():
        blocks.append(contact_sheet(folder / "images", words))
    short = {name: value for name, value in samples.settings.items() if name != "labels"}
    return [*blocks, settings_table(short, f"How the samples in {folder.name} were drawn")]


def describe_sampling(settings: Mapping[str, Any]) -> str:
    """Return how samples were drawn, in a few words."""
    sampling = settings.get("sampling")
    how = sampling if isinstance(sampling, Mapping) else {}
    scale = how.get("cfg_scale")
    words = [
        f"{write_value(settings['num'])} samples" if "num" in settings else "",
        f"{write_value(how['steps'])} steps of {how.get('sampler', 'the sampler')}" if "steps" in how else "",
        "" if scale is None else "no guidance" if scale == 1 else f"guidance {write_value(scale)}",
        f"seed {settings['seed']}" if "seed" in settings else "",
        "" if settings.get("finished", True) else "not finished",
    ]
    return ", ".join(filter(None, words)) or "how they were drawn is not noted"
