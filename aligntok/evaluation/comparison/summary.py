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
from aligntok.evaluation.comparison.plan import Arm, Comparison, generator_budget, tokenizer_budget
from aligntok.evaluation.report import write_report
from aligntok.evaluation.report.collect import Curve, read_history
from aligntok.evaluation.results import Result, read_result
from aligntok.evaluation.settings import ReportSettings
from aligntok.io.console import print_table
from aligntok.io.files import replacing
from aligntok.io.pictures import save_picture, sheet
from aligntok.loading import GENERATION

WITHOUT_PLACE = "images"  # numbers that are the same for all
RECONSTRUCTIONS = "reconstructions"  # begins the names of both: images are what a perfect tokenizer makes of them
REAL_IMAGES = "real_images"  # the folder of what they themselves are measured to be
CURVES, SAMPLES = "convergence.png", "samples.png"
GRIDS_A_ROW = 3  # of the samples, so that a page can show them


def summarise(comparison: Comparison) -> Result:
    """Write and print the summary of a finished comparison, and return it; for the first process."""
    found = {arm: measured(comparison, arm) for arm in comparison.arms}
    curves = {arm: generation_curves(arm) for arm in comparison.arms}
    names = list(dict.fromkeys(arm.name for arm in comparison.arms))
    final = {
        arm: {**found[arm], **{name: [*curve.values()][-1] for name, curve in curves[arm].items()}} for arm in found
    }
    rows = [{"tokenizer": name, **over_seeds([final[arm] for arm in final if arm.name == name])} for name in names]
    folder = comparison.work_dir
    plot_convergence(folder / CURVES, curves, dict(zip(names, rows, strict=True)))
    show_samples(folder / SAMPLES, [arm for arm in comparison.arms if arm.seed == comparison.settings.seeds[0]])
    tables = {
        "Tokenizers": tokenizers_table(rows, [name for values in found.values() for name in values]),
        "Generators on them, after the last step": [*distances_table(rows), real_images(comparison)],
        "More about the generators": _transposed(rows, [name for own in curves.values() for name in own]),
    }
    result = Result(
        "comparison",
        str(comparison.source),
        {
            f"{arm.name}/seed_{arm.seed}/{name}": value
            for arm, values in final.items()
            for name, value in values.items()
        },
        {**asdict(comparison.settings), "budget": _budget(comparison)},
        {**tables, "On the way": steps_table(names, curves)},
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
        metrics = read_result(path).metrics
        values.update({name: value for name, value in metrics.items() if name != WITHOUT_PLACE})
    latents = comparison.work_dir / "latent_space" / f"seed_{arm.seed}" / "latent_space.json"
    own = f"{arm.name}/"
    several = len({each.name for each in comparison.arms}) > 1
    for name, value in read_result(latents).metrics.items():
        if not several or name.startswith(own):
            values[name.removeprefix(own)] = value
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


def real_images(comparison: Comparison) -> dict[str, str]:
    """Return the row of the images themselves in the table of distances: as many held-out ones as there are samples."""
    found = read_result(comparison.work_dir / REAL_IMAGES / "generation.json").metrics
    own = {name: shown((value, None)) for name, value in found.items() if is_distance(name)}
    return {"tokenizer": "real images", **own}


def tokenizers_table(rows: Sequence[Mapping[str, Any]], measured: Iterable[str]) -> list[dict[str, str]]:
    """Return a row a tokenizer: all that was `measured` of the tokenizers themselves."""
    return _chosen(rows, ["tokenizer", *(name for name in measured if not name.startswith(f"{RECONSTRUCTIONS}/"))])


def distances_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return a row a tokenizer: each Fréchet distance of the generator's samples behind that of the reconstructions."""
    names = [name for name in rows[0] if is_distance(name)]
    columns = ["tokenizer"]
    for title in dict.fromkeys(name.rpartition("/")[2] for name in names):
        columns += [f"r{title}", *(name for name in names if name.endswith(f"/{title}"))]
    return _chosen(rows, columns)


def _chosen(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> list[dict[str, str]]:
    names = list(dict.fromkeys(columns))
    return [{name: shown(row[name]) for name in names if name in row} for row in rows]


def _transposed(rows: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[dict[str, str]]:
    wanted = [name for name in dict.fromkeys(names) if not is_distance(name)]
    return [{"metric": name, **{row["tokenizer"]: shown(row[name]) for row in rows if name in row}} for name in wanted]


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


def reconstructed(metric: str) -> str:
    """Return the name of a distance of samples as one of reconstructions: ``reconstructions/FD-timm-resnet50``."""
    return f"{RECONSTRUCTIONS}/{metric.rpartition('/')[2]}"


def _budget(comparison: Comparison) -> dict[str, Any]:
    seen = {arm.name: tokenizer_budget(comparison, arm)._asdict() for arm in comparison.arms}
    return {"tokenizers": seen, "generator": generator_budget(comparison)._asdict()}


def plot_convergence(
    path: Path, curves: Mapping[Arm, Mapping[str, Curve]], means: Mapping[str, Mapping[str, Any]]
) -> None:
    """Draw every Fréchet distance over training steps: a panel a distance, a line a tokenizer, a dot a seed.

    A dotted line is where the tokenizer's own reconstructions are, from the `means` of each.
    """
    from matplotlib.figure import Figure  # not pyplot: no window, and no state that others share

    metrics = list(dict.fromkeys(name for own in curves.values() for name in own if is_distance(name)))
    if not metrics:
        return
    figure = Figure(figsize=(5.5 * min(2, len(metrics)), 4 * ((len(metrics) + 1) // 2)), dpi=110, layout="constrained")
    axes = figure.subplots((len(metrics) + 1) // 2, min(2, len(metrics)), squeeze=False).flatten()
    for axis, metric in zip(axes, metrics, strict=False):
        for colour, name in enumerate(dict.fromkeys(arm.name for arm in curves)):
            own = [curves[arm][metric] for arm in curves if arm.name == name and metric in curves[arm]]
            _draw_tokenizer(axis, f"C{colour}", name, own, means[name][reconstructed(metric)][0])
        _label(axis, metric)
    for axis in axes[len(metrics) :]:
        axis.axis("off")
    axes[0].legend(fontsize="small")
    save_picture(path, figure)


def _draw_tokenizer(axis: Any, colour: str, name: str, curves: Sequence[Curve], reconstructions: float) -> None:
    for curve in curves:
        axis.plot([*curve], [*curve.values()], ".", color=colour, alpha=0.5)
    line = [statistics.fmean(values) for values in zip(*(curve.values() for curve in curves), strict=False)]
    axis.plot([*curves[0]][: len(line)], line, color=colour, label=name)
    axis.axhline(reconstructions, color=colour, linestyle=":", linewidth=1)


def _label(axis: Any, metric: str) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

    axis.set(title=metric, xlabel="training steps", yscale="log")
    axis.yaxis.set(major_locator=MaxNLocator(7), major_formatter=ScalarFormatter())  # a decade has too few places
    axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.3)


def show_samples(path: Path, arms: Sequence[Arm]) -> None:
    """Lay the last grids of samples of several arms side by side, three a row, under their names."""
    grids = [(arm.name, grid) for arm in arms if (grid := _last_samples(arm))]
    if not grids:
        return
    rows = [
        sheet([[grid for _, grid in row]], [name for name, _ in row], letters=14) for row in batched(grids, GRIDS_A_ROW)
    ]
    everything = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    for i, row in enumerate(rows):
        everything.paste(row, (0, i * rows[0].height))
    save_picture(path, everything)


def _last_samples(arm: Arm) -> Image.Image | None:
    pictures = sorted((arm.folder / "generator" / GENERATION / "pictures").glob("*.png"))
    if not pictures:
        return None
    try:
        return open_image(pictures[-1].read_bytes())
    except ImageError as error:
        raise DataError(f"{pictures[-1]} cannot be read ({error}); remove it: the one before is shown then") from error


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
