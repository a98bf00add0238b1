"""What a comparison found: a row a tokenizer, means over seeds with their deviation; curves; pictures side by side."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from aligntok.distributed.job import batched
from aligntok.evaluation.comparison.criterion import RECONSTRUCTIONS, Found, Judged, judge, mean_curve
from aligntok.evaluation.comparison.grid import grid_table
from aligntok.evaluation.comparison.kept import read_grid, shown_grid
from aligntok.evaluation.comparison.plan import Arm, Comparison
from aligntok.evaluation.comparison.records import Record
from aligntok.evaluation.report import write_report
from aligntok.evaluation.report.collect import Curve
from aligntok.evaluation.results import Result
from aligntok.evaluation.settings import ReportSettings
from aligntok.io.console import print_line, print_table, say
from aligntok.io.files import writing_text
from aligntok.io.pictures import save_picture, sheet

CURVES, SAMPLES = "convergence.png", "samples.png"
PICTURES = {"Fréchet distance over training steps": CURVES, "Samples of the same seeds and classes": SAMPLES}
OF_SAMPLES, OF_RECONSTRUCTIONS = "Generators on them, after the last step", "Reconstructions beside real images"
GRIDS_A_ROW = 3  # of the samples, so that a page can show them


def summarise(
    comparison: Comparison, records: Mapping[Arm, Record], real: Record, tried: Mapping[Arm, Record]
) -> Result:
    """Write and print the summary of what is kept of all arms, and return it; for the first process.

    real: of real images. tried: of the sets of the grid, if there is one.
    """
    folder, arms = comparison.work_dir, comparison.arms
    names = list(dict.fromkeys(arm.name for arm in arms))
    means = {name: over_seeds([records[arm].final for arm in arms if arm.name == name]) for name in names}
    curves = {arm: records[arm].curves for arm in arms}
    plot_convergence(folder / CURVES, curves, means)
    first = [arm for arm in arms if arm.seed == comparison.settings.seeds[0]]
    show_samples(folder / SAMPLES, {arm.name: shown_grid(comparison, arm) for arm in first})
    judged = judged_by(comparison, records, real)
    tables = {**tables_of(comparison, records, real, means), **({} if judged is None else {"Criterion": judged.rows})}
    if tried:
        tables["The grid"] = grid_table(comparison, tried)
    budget = {
        "tokenizers": {arm.name: comparison.tokenizer_budget(arm)._asdict() for arm in arms},
        "generator": comparison.generator_budget()._asdict(),
    }
    kept = {each.title: {"hash": own.made.hash, **own.machine, "seconds": own.seconds} for each, own in records.items()}
    told = {} if judged is None else {"verdict": judged.verdict}
    result = Result(
        "comparison",
        str(comparison.source),
        {f"{arm.name}/seed_{arm.seed}/{name}": n for arm in arms for name, n in records[arm].final.items()},
        {**asdict(comparison.settings), "budget": budget, "arms": kept, **told},
        tables,
        {title: name for title, name in PICTURES.items() if (folder / name).is_file()},
    )
    path = result.write(folder)
    write_markdown(folder / "comparison.md", result.tables, told)
    for title, table in result.tables.items():
        print_table(title, *texts_of(table), left=["tokenizer"])
    warn_of_precisions(records)
    if judged is not None:
        print_line(f"Criterion: {judged.verdict}.")
    print(f"Result: {path}\nReport: {write_report(ReportSettings(runs=(path,)))}")
    return result


def tables_of(
    comparison: Comparison, records: Mapping[Arm, Record], real: Record, means: Mapping[str, Mapping[str, Any]]
) -> dict[str, Sequence[Mapping[str, Any]]]:
    """Return the tables of means over seeds, by title."""
    rows: list[dict[str, Any]] = [{"tokenizer": name, **mean} for name, mean in means.items()]
    curves = {arm: record.curves for arm, record in records.items()}
    own = dict.fromkeys(name for record in records.values() for name in record.metrics)
    more = dict.fromkeys(name for record in records.values() for name in record.curves if not is_distance(name))
    distances = OF_RECONSTRUCTIONS if comparison.generator is None else OF_SAMPLES
    tables: dict[str, Sequence[Mapping[str, Any]]] = {
        "Tokenizers": _columns(rows, [name for name in own if not name.startswith(f"{RECONSTRUCTIONS}/")]),
        distances: distances_table(rows, real, comparison.settings.samples.num_samples),
        "More about the generators": [
            {"metric": name, **{row["tokenizer"]: shown(row[name]) for row in rows if name in row}} for name in more
        ],
        "On the way": steps_table([*means], curves),
    }
    return {title: table for title, table in tables.items() if table}


def judged_by(comparison: Comparison, records: Mapping[Arm, Record], real: Record) -> Judged | None:
    """Return what became of the criterion, with it; None without one."""
    settings, criterion = comparison.settings, comparison.settings.criterion
    if criterion is None:
        return None
    return judge(settings, criterion, Found([*records.values()], real))


def warn_of_precisions(records: Mapping[Arm, Record]) -> None:
    """Tell where "auto" was bf16 for some of the arms, and fp32 for others."""
    taken = {arm.title: record.made.precision for arm, record in records.items()}
    if len({*taken.values()}) > 1:
        told = ", ".join(f"{title} {precision}" for title, precision in taken.items())
        say(f"precision='auto' was not the same for all, so differences may be of rounding: {told}")


def over_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float | None]]:
    """Return mean and sample deviation (None of one run) over seeds, by name."""
    names = [name for name in runs[0] if all(name in run for run in runs)]
    values = {name: [run[name] for run in runs] for name in names}
    return {n: (statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else None) for n, v in values.items()}


def shown(value: Any) -> str:
    """Return a mean, with its deviation if there is one, as text."""
    if not isinstance(value, tuple):
        return str(value)
    mean, deviation = value
    return f"{mean:.4g}" if deviation is None else f"{mean:.4g} ± {deviation:.2g}"


def distances_table(rows: Sequence[Mapping[str, Any]], real: Record, samples: int) -> list[dict[str, str]]:
    """Return a row a tokenizer: each distance of the generator's `samples` behind that of the reconstructions.

    Fréchet's and then the kernel's, on each extractor. The last row is of the `real` images themselves: as many
    held-out ones as there are samples.
    """
    names, columns = [name for name in rows[0] if is_distance(name)], ["samples"]
    for title in sorted(dict.fromkeys(name.rpartition("/")[2] for name in names), key=is_kernel):
        columns += [f"r{title}", *(name for name in names if name.endswith(f"/{title}"))]
    own = {name: shown((value, None)) for name, value in real.metrics.items() if is_distance(name)}
    counted = [{**row, "samples": f"{samples:,}"} for row in rows]
    return [*_columns(counted, columns), {"tokenizer": "real images", "samples": f"{real.images:,}", **own}]


def _columns(rows: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[dict[str, str]]:
    wanted = dict.fromkeys(["tokenizer", *names])
    return [{name: shown(row[name]) for name in wanted if name in row} for row in rows]


def steps_table(names: Sequence[str], curves: Mapping[Arm, Mapping[str, Curve]]) -> list[dict[str, str]]:
    """Return a row a tokenizer and step, its Fréchet distances as columns, means over seeds."""
    rows = []
    for name in names:
        own = [curves[arm] for arm in curves if arm.name == name]
        distances = [metric for metric in own[0] if is_distance(metric)]
        for step in sorted({step for distance in distances for step in own[0][distance]}):
            at = [{d: c[d][step] for d in distances if step in c[d]} for c in own]
            rows.append({"tokenizer": name, "step": f"{step:,}", **{n: shown(v) for n, v in over_seeds(at).items()}})
    return rows


def is_distance(name: str) -> bool:
    """Tell whether a metric is a distance of pooled features, such as ``guided/FD-timm-resnet50`` or ``guided/KID``."""
    return is_frechet(name) or is_kernel(name)


def is_frechet(name: str) -> bool:
    """Tell whether a metric is a Fréchet distance on pooled features."""
    return name.rpartition("/")[2].startswith(("FID", "FD-"))


def is_kernel(name: str) -> bool:
    """Tell whether a metric is a kernel distance."""
    return name.rpartition("/")[2].startswith(("KID", "KD-")) and not name.endswith("_se")


def plot_convergence(
    path: Path, curves: Mapping[Arm, Mapping[str, Curve]], means: Mapping[str, Mapping[str, Any]]
) -> None:
    """Draw every Fréchet distance over training steps: a panel a distance, a line a tokenizer, a dot a seed.

    A dotted line is where the tokenizer's own reconstructions are, from the `means` of each.
    """
    from matplotlib.figure import Figure  # not pyplot: no window, and no state that others share
    from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

    metrics = list(dict.fromkeys(name for own in curves.values() for name in own if is_frechet(name)))
    if not metrics:
        return
    down, across = (len(metrics) + 1) // 2, min(2, len(metrics))
    figure = Figure(figsize=(5.5 * across, 4 * down), dpi=110, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis, metric in zip(axes, metrics, strict=False):
        for colour, (name, mean) in enumerate(means.items()):
            own = [of_arm[metric] for arm, of_arm in curves.items() if arm.name == name and metric in of_arm]
            for curve in own:
                axis.plot([*curve], [*curve.values()], ".", color=f"C{colour}", alpha=0.5)
            line = mean_curve(own)
            axis.plot([*line], [*line.values()], color=f"C{colour}", label=name)
            reached = mean[f"{RECONSTRUCTIONS}/{metric.rpartition('/')[2]}"][0]
            axis.axhline(reached, color=f"C{colour}", linestyle=":", linewidth=1)
        axis.set(title=metric, xlabel="training steps", yscale="log")
        axis.yaxis.set(major_locator=MaxNLocator(7), major_formatter=ScalarFormatter())  # a decade has too few places
        axis.yaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
    for axis in axes[len(metrics) :]:
        axis.axis("off")
    axes[0].legend(fontsize="small")
    save_picture(path, figure)


def show_samples(path: Path, pictures: Mapping[str, Path | None]) -> None:
    """Lay grids of samples, where there are such, side by side, three a row, under the names of their arms."""
    grids = [(name, read_grid(picture)) for name, picture in pictures.items() if picture is not None]
    if not grids:
        return
    parts = batched(grids, GRIDS_A_ROW)
    rows = [sheet([[grid for _, grid in part]], [name for name, _ in part], letters=14) for part in parts]
    everything = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    for i, row in enumerate(rows):
        everything.paste(row, (0, i * rows[0].height))
    save_picture(path, everything)


def write_markdown(
    path: Path, tables: Mapping[str, Sequence[Mapping[str, Any]]], told: Mapping[str, str] | None = None
) -> None:
    """Write the tables as Markdown, for a page or a paper; below them what else is `told`, by name."""
    lines: list[str] = []
    for title, table in tables.items():
        columns, rows = texts_of(table)
        lines += [f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [*(f"| {' | '.join(row)} |" for row in rows), ""]
    lines += [f"{name.capitalize()}: {text}" for name, text in (told or {}).items()]
    with writing_text(path) as file:
        file.write("\n".join(lines))


def texts_of(table: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the columns of a table, and the text of each cell; of one that is not there an empty one."""
    columns = list(dict.fromkeys(name for row in table for name in row))
    return columns, [[str(row.get(name, "")) for name in columns] for row in table]
