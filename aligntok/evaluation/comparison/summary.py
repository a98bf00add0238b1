"""What a comparison found: a row a tokenizer, means over seeds with their deviation; curves; pictures side by side."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from aligntok.data.transforms import open_image
from aligntok.distributed.job import batched
from aligntok.errors import DataError, ImageError
from aligntok.evaluation.comparison.plan import Arm, Comparison
from aligntok.evaluation.report import write_report
from aligntok.evaluation.report.collect import Curve, read_history
from aligntok.evaluation.results import Result, read_result
from aligntok.evaluation.settings import ReportSettings
from aligntok.io.console import print_table
from aligntok.io.files import read_bytes, replacing
from aligntok.io.pictures import save_picture, sheet
from aligntok.loading import GENERATION

WITHOUT_PLACE = "images"  # numbers that are the same for all
RECONSTRUCTIONS = "reconstructions"  # begins the names of both: images are what a perfect tokenizer makes of them
REAL_IMAGES = "real_images"  # the folder of what they themselves are measured to be
CURVES, SAMPLES = "convergence.png", "samples.png"
GRIDS_A_ROW = 3  # of the samples, so that a page can show them


def summarise(comparison: Comparison) -> Result:
    """Write and print the summary of a finished comparison, and return it; for the first process."""
    folder, arms = comparison.work_dir, comparison.arms
    found = {arm: measured(comparison, arm) for arm in arms}
    curves = {arm: generation_curves(arm) for arm in arms}
    names = list(dict.fromkeys(arm.name for arm in arms))
    final = {
        arm: {**found[arm], **{name: [*curve.values()][-1] for name, curve in curves[arm].items()}} for arm in arms
    }
    means = {name: over_seeds([final[arm] for arm in arms if arm.name == name]) for name in names}
    plot_convergence(folder / CURVES, curves, means)
    show_samples(folder / SAMPLES, [arm for arm in arms if arm.seed == comparison.settings.seeds[0]])
    rows: list[dict[str, Any]] = [{"tokenizer": name, **means[name]} for name in names]
    real = read_result(folder / REAL_IMAGES / "generation.json")
    own = dict.fromkeys(name for values in found.values() for name in values)
    more = dict.fromkeys(name for of_arm in curves.values() for name in of_arm if not is_distance(name))
    tables: dict[str, Sequence[Mapping[str, Any]]] = {
        "Tokenizers": _columns(rows, [name for name in own if not name.startswith(f"{RECONSTRUCTIONS}/")]),
        "Generators on them, after the last step": distances_table(rows, real),
        "More about the generators": [
            {"metric": name, **{row["tokenizer"]: shown(row[name]) for row in rows if name in row}} for name in more
        ],
        "On the way": steps_table(names, curves),
    }
    budget = {
        "tokenizers": {arm.name: comparison.tokenizer_budget(arm)._asdict() for arm in arms},
        "generator": comparison.generator_budget()._asdict(),
    }
    result = Result(
        "comparison",
        str(comparison.source),
        {f"{arm.name}/seed_{arm.seed}/{name}": n for arm, values in final.items() for name, n in values.items()},
        {**asdict(comparison.settings), "budget": budget},
        tables,
        {"Fréchet distance over training steps": CURVES, "Samples of the same seeds and classes": SAMPLES},
    )
    path = result.write(folder)
    write_markdown(folder / "comparison.md", result.tables)
    for title, table in result.tables.items():
        print_table(title, *texts_of(table), left=["tokenizer"])
    print(f"Result: {path}\nReport: {write_report(ReportSettings(runs=(path,)))}")
    return result


def measured(comparison: Comparison, arm: Arm) -> dict[str, float]:
    """Return what an arm's tokenizer was measured to be, by name."""
    values: dict[str, float] = {}
    for path in sorted((arm.folder / "evaluation").glob("*/*.json")):
        values |= {name: value for name, value in read_result(path).metrics.items() if name != WITHOUT_PLACE}
    latents = comparison.work_dir / "latent_space" / f"seed_{arm.seed}" / "latent_space.json"
    several = len({each.name for each in comparison.arms}) > 1  # names begin with the tokenizer's only then
    for name, value in read_result(latents).metrics.items():
        if not several or name.startswith(f"{arm.name}/"):
            values[name.removeprefix(f"{arm.name}/")] = value
    return values


def generation_curves(arm: Arm) -> dict[str, Curve]:
    """Return what an arm's generator was measured to be over training, by name."""
    history = read_history(arm.folder / "generator" / GENERATION)
    return {name: curve for name, curve in history.measured.items() if not name.endswith(f"/{WITHOUT_PLACE}")}


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


def distances_table(rows: Sequence[Mapping[str, Any]], real: Result) -> list[dict[str, str]]:
    """Return a row a tokenizer: each Fréchet distance of the generator's samples behind that of the reconstructions.

    The last row is of the `real` images themselves: as many held-out ones as there are samples.
    """
    names, columns = [name for name in rows[0] if is_distance(name)], []
    for title in dict.fromkeys(name.rpartition("/")[2] for name in names):
        columns += [f"r{title}", *(name for name in names if name.endswith(f"/{title}"))]
    own = {name: shown((value, None)) for name, value in real.metrics.items() if is_distance(name)}
    return [*_columns(rows, columns), {"tokenizer": "real images", **own}]


def _columns(rows: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[dict[str, str]]:
    wanted = dict.fromkeys(["tokenizer", *names])
    return [{name: shown(row[name]) for name in wanted if name in row} for row in rows]


def steps_table(names: Sequence[str], curves: Mapping[Arm, Mapping[str, Curve]]) -> list[dict[str, str]]:
    """Return a row a tokenizer and step, its Fréchet distances as columns, means over seeds."""
    rows = []
    for name in names:
        own = [curves[arm] for arm in curves if arm.name == name]
        distances = [metric for metric in own[0] if is_distance(metric)]
        for step in own[0][distances[0]] if distances else []:
            at = [{d: c[d][step] for d in distances if step in c[d]} for c in own]
            rows.append({"tokenizer": name, "step": f"{step:,}", **{n: shown(v) for n, v in over_seeds(at).items()}})
    return rows


def is_distance(name: str) -> bool:
    """Tell whether a metric is a Fréchet distance on pooled features, such as ``guided/FD-timm-resnet50``."""
    return name.rpartition("/")[2].startswith(("FID", "FD-"))


def plot_convergence(
    path: Path, curves: Mapping[Arm, Mapping[str, Curve]], means: Mapping[str, Mapping[str, Any]]
) -> None:
    """Draw every Fréchet distance over training steps: a panel a distance, a line a tokenizer, a dot a seed.

    A dotted line is where the tokenizer's own reconstructions are, from the `means` of each.
    """
    from matplotlib.figure import Figure  # not pyplot: no window, and no state that others share
    from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

    metrics = list(dict.fromkeys(name for own in curves.values() for name in own if is_distance(name)))
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
            line = [statistics.fmean(values) for values in zip(*(curve.values() for curve in own), strict=False)]
            axis.plot([*own[0]][: len(line)], line, color=f"C{colour}", label=name)
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


def show_samples(path: Path, arms: Sequence[Arm]) -> None:
    """Lay the last grids of samples of several arms side by side, three a row, under their names."""
    grids = []
    for arm in arms:
        for last in sorted((arm.folder / "generator" / GENERATION / "pictures").glob("*.png"))[-1:]:
            try:
                grids.append((arm.name, open_image(read_bytes(last))))
            except ImageError as error:
                raise DataError(f"{last} cannot be read ({error}); remove it: the one before is shown then") from error
    if not grids:
        return
    parts = batched(grids, GRIDS_A_ROW)
    rows = [sheet([[grid for _, grid in part]], [name for name, _ in part], letters=14) for part in parts]
    everything = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    for i, row in enumerate(rows):
        everything.paste(row, (0, i * rows[0].height))
    save_picture(path, everything)


def write_markdown(path: Path, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write the tables as Markdown, for a page or a paper."""
    lines: list[str] = []
    for title, table in tables.items():
        columns, rows = texts_of(table)
        lines += [f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [*(f"| {' | '.join(row)} |" for row in rows), ""]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def texts_of(table: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the columns of a table, and the text of each cell; of one that is not there an empty one."""
    columns = list(dict.fromkeys(name for row in table for name in row))
    return columns, [[str(row.get(name, "")) for name in columns] for row in table]
