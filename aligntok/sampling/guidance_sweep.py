"""What guidance does: the same noise and labels at several scales and numbers of steps, measured and shown."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from aligntok.data.transforms import to_tensor
from aligntok.diffusion.settings import Sampling
from aligntok.distributed import is_first, total, world
from aligntok.distributed.job import batched, in_full_rounds, job, shares
from aligntok.distributed.output_folder import output_folder
from aligntok.errors import Preempted
from aligntok.io.console import print_table
from aligntok.io.files import write_json, writing_text
from aligntok.io.folders import remove_leftovers
from aligntok.io.pictures import image_grid, save_picture, sheet, to_picture
from aligntok.io.places import without_places
from aligntok.registry import METRICS, with_keywords
from aligntok.sampling.folder import Pixels, compared
from aligntok.sampling.pipeline import SamplePipeline
from aligntok.sampling.samples import default_folder
from aligntok.sampling.settings import SampleRequest

DESCRIPTION = "sweep.json"
SHOWN = 4  # samples in each cell of the picture
SMALLEST_TILE = 96  # pixels: smaller samples are shown enlarged


#: Columns of sweep.csv: their headings in the printed table, and how a number is written there.
COLUMNS = {
    "cfg_scale": ("cfg", "g"),
    "steps": ("steps", "d"),
    "evaluations_per_sample": ("evaluations", ".1f"),
    "seconds_per_sample": ("seconds", ".4f"),
    "rms_from_unguided": ("difference", ".2f"),
    "latent_std": ("latent std", ".3f"),
    "saturated": ("saturated", ".4f"),
}
_MEASURED = 6  # numbers of a sample: evaluations, seconds, RMS difference, mean and mean square of latents, saturated


class SweepPoint(NamedTuple):
    """A combination, and what was measured of it: means over the samples.

    evaluations: passes through generators, a guided one counted as two. seconds: of one process, decoding included.
    rms: the root mean square difference, in grey levels, from the unguided sample of the same noise and steps.
    latent_std: of the normalised latents; that of the data is 1. saturated: the share of values that are 0 or 255.
    distances: metrics of the samples as a whole, such as FID, by name.
    """

    scale: float
    steps: int
    evaluations: float
    seconds: float
    rms: float
    latent_std: float
    saturated: float
    distances: Mapping[str, float] = {}

    def row(self) -> dict[str, tuple[float, str]]:
        """Return heading in sweep.csv -> (value, how a number is written in the table)."""
        own: dict[str, tuple[float, str]] = {
            column: (value, form) for value, (column, (_, form)) in zip(self[:-1], COLUMNS.items(), strict=True)
        }
        return {**own, **{name: (value, ".4g") for name, value in self.distances.items()}}


def sweep_guidance(request: SampleRequest) -> Path:
    """Draw samples at every guidance scale, 1 among them, and number of steps; return the folder of the results.

    All combinations begin with the same noise and labels. Writes ``sweep.csv``, a row a combination, ``sweep.png``, its
    curves, ``sweep_grid.png``, the first samples of each, and ``sweep.json``, the settings; prints the table. With a
    reference, the distance of each combination's samples from it is among the numbers. Without `out` it is a folder in
    the generator's own. Collective under torchrun.

    Raises ConfigError for options that cannot be, what drawing raises, and Preempted after SIGTERM: a sweep is not
    gone on with.
    """
    batch_size = request.batch_size
    with job():
        drawer = SamplePipeline(request)
        num = drawer.num
        grid = combinations(drawer.sampling, request.guidance_sweep or (), request.sweep_steps)
        drawer.check(num, *grid)
        swept = {name: sorted({getattr(each, name) for each in grid}) for name in ("cfg_scale", "steps")}
        settings = drawer.describe()
        settings |= {"sampling": settings["sampling"] | swept, "num": num, "batch_size": batch_size}
        metrics = []
        if request.reference is not None:
            extractor = with_keywords(request.extractor, request.extractor_options, "extractor_options")
            measured = {"reference": str(request.reference), "extractor": extractor, "features": False}
            settings["metrics"] = [{"type": "generation", **measured}]
            metrics = [METRICS.build({**settings["metrics"][0], "variants": [_name(each) for each in grid]})]
        listed = {name.removesuffix("_scale"): "-".join(f"{x:g}" for x in values) for name, values in swept.items()}
        named = default_folder(drawer, settings, "sweep", drawer.sampling.sampler, *map("-".join, listed.items()))
        path = named if request.out is None else Path(request.out).expanduser()
        with output_folder(path, DESCRIPTION, settings, compared, "another generator", goes_on=False):
            points, pictures = measure(drawer, grid, num, batch_size, metrics)
            if is_first():
                remove_leftovers(path)
                write_json(path / DESCRIPTION, without_places(settings, path))
                with writing_text(path / "sweep.csv") as file:
                    writer = csv.writer(file)
                    writer.writerow(points[0].row())
                    writer.writerows([value for value, _ in point.row().values()] for point in sorted(points))
                save_picture(path / "sweep.png", plot(points))
                save_picture(path / "sweep_grid.png", draw_grid(pictures))
                print_points(points, num)
                print(f"Sweep: {path}   (sweep.csv, sweep.png, sweep_grid.png)")
    return path


def combinations(own: Sampling, scales: Sequence[float], steps: Sequence[int]) -> list[Sampling]:
    """Return the settings of every scale, 1 among them, at every number of steps, in order, scale by scale for each.

    Raises ConfigError for values that cannot be.
    """
    return [
        replace(own, steps=each, cfg_scale=scale)
        for each in sorted({*(steps or [own.steps])})
        for scale in sorted({1.0, *map(float, scales)}, key=lambda scale: (scale != 1, scale))
    ]


def measure(
    drawer: SamplePipeline, grid: Sequence[Sampling], num: int, batch_size: int, metrics: Sequence[Any] = ()
) -> tuple[list[SweepPoint], dict[tuple[float, int], list[Pixels]]]:
    """Draw and measure every combination; collective. Return the points, and the first pictures of each (H, W, 3).

    Of each number of steps, scale 1 comes first in `grid`. Raises Preempted.
    """
    batches, (rank, processes) = batched(range(num), batch_size), world()
    table = torch.zeros(len(grid), num, _MEASURED, dtype=torch.float64)
    first = torch.zeros(len(grid), min(SHOWN, num), *drawer.image_size, 3, dtype=torch.uint8)
    for warming in batches[rank : rank + 1]:
        drawer.to_device()
        drawer.draw(warming, replace(grid[-1], steps=1))  # so that no combination pays for what comes once
    unguided: dict[int, Pixels] = {}
    rounds = batched(in_full_rounds(batches, range(0)), processes)  # a process takes its batch through all of the grid
    work = [(place, batch) for round in rounds for place in range(len(grid)) for batch in round]
    stopped = Preempted("stopped by SIGTERM; a guidance sweep is not gone on with, it begins anew")
    for place, batch in shares(work, "guidance sweep", stopped, size=lambda item: len(item[1])):
        if not batch:
            continue
        table[place, batch.start : batch.stop], pixels = _measure(drawer, grid[place], batch, unguided)
        for i in range(batch.start, min(batch.stop, first.shape[1])):
            first[place, i] = torch.from_numpy(pixels[i - batch.start])
        for metric in metrics:
            images = zip(torch.from_numpy(pixels).permute(0, 3, 1, 2), batch, strict=True)
            metric.process(None, [dict(pixels=image, index=i, variant=_name(grid[place])) for image, i in images])
    means, shown = total(table).mean(dim=1).tolist(), total(first).numpy()
    found = {name: value for metric in metrics for name, value in metric.evaluate(num).items()}
    points, pictures = [], {}
    for sampling, (evaluations, seconds, rms, mean, square, saturated), samples in zip(grid, means, shown, strict=True):
        own, deviation = f"{_name(sampling)}/", math.sqrt(max(square - mean**2, 0))
        distances = {name.removeprefix(own): value for name, value in found.items() if name.startswith(own)}
        measured = evaluations, seconds, rms, deviation, saturated
        point = SweepPoint(sampling.cfg_scale, sampling.steps, *measured, distances)
        points.append(point)
        pictures[point.scale, point.steps] = list(samples)
    return points, pictures


def _measure(
    drawer: SamplePipeline, sampling: Sampling, batch: range, unguided: dict[int, Pixels]
) -> tuple[Tensor, Pixels]:
    """Return what is measured of each sample of a batch (N, 6), and its pictures (N, H, W, 3)."""
    passes: list[int] = []  # the number of latents in each through a generator
    models = [model for model in (drawer.model.generator, drawer.weak) if model is not None]
    hooks = [model.register_forward_pre_hook(lambda _, given: passes.append(len(given[0]))) for model in models]
    try:
        began = _now(drawer.device)
        latents, pixels = drawer.draw(batch, sampling)
        seconds = _now(drawer.device) - began
    finally:
        for hook in hooks:
            hook.remove()
    if sampling.cfg_scale == 1:
        unguided[sampling.steps] = pixels
    values = torch.zeros(len(batch), _MEASURED, dtype=torch.float64)
    values[:, 0], values[:, 1] = sum(passes) / len(batch), seconds / len(batch)
    away = pixels.astype(np.float64) - unguided[sampling.steps]
    values[:, 2] = torch.from_numpy(np.sqrt(np.square(away).mean(axis=(1, 2, 3))))
    flat = latents.double().flatten(1).cpu()
    values[:, 3], values[:, 4] = flat.mean(1), flat.square().mean(1)
    values[:, 5] = torch.from_numpy(((pixels == 0) | (pixels == 255)).mean(axis=(1, 2, 3)))
    return values, pixels


def _name(sampling: Sampling) -> str:
    return f"cfg {sampling.cfg_scale:g}, {sampling.steps} steps"


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def print_points(points: Sequence[SweepPoint], num: int, console: Console | None = None) -> None:
    """Print the table of the combinations."""
    title = f"Guidance sweep: means of {num} samples; difference from the unguided ones in grey levels (RMS)"
    columns = [COLUMNS.get(column, (column, ""))[0] for column in points[0].row()]
    rows = [[f"{value:{form}}" for value, form in point.row().values()] for point in sorted(points)]
    print_table(title, columns, rows, console=console)


def plot(points: Sequence[SweepPoint]) -> Any:
    """Return a matplotlib figure: what was measured against the scale, a curve a number of steps."""
    from matplotlib.figure import Figure  # not pyplot: no window, and no state that others share

    panels = {
        "rms": "difference from unguided (RMS, grey levels)",
        "latent_std": "deviation of normalised latents (data: 1)",
        "saturated": "share of saturated values",
        "evaluations": "evaluations a sample",
        "seconds": "seconds a sample",
    }
    panels.update({name: name for name in points[0].distances})
    rows = math.ceil((len(panels) + 1) / 3)
    figure = Figure(figsize=(15, 4.25 * rows), dpi=100, layout="constrained")
    axes = figure.subplots(rows, 3).flatten()
    for axis in axes[len(panels) :]:
        axis.axis("off")
    for axis, (name, title) in zip(axes, panels.items(), strict=False):
        for steps in sorted({point.steps for point in points}):
            curve = sorted(point for point in points if point.steps == steps)
            scales = [point.scale for point in curve]
            values = [point.distances[name] if name in point.distances else getattr(point, name) for point in curve]
            axis.plot(scales, values, marker="o", label=f"{steps} steps")
        axis.set(title=title, xlabel="cfg_scale")
        axis.grid(alpha=0.3)
    axes[1].axhline(1, color="grey", linestyle="--")
    axes[-1].legend(*axes[0].get_legend_handles_labels(), loc="center")
    return figure


def draw_grid(pictures: dict[tuple[float, int], list[Pixels]]) -> Image.Image:
    """Return a picture: rows are scales, columns numbers of steps; in cells the first samples, enlarged if small."""
    scales, counts = sorted({scale for scale, _ in pictures}), sorted({steps for _, steps in pictures})
    times = max(1, SMALLEST_TILE // min(next(iter(pictures.values()))[0].shape[:2]))

    def tile(shown: Sequence[Pixels]) -> Image.Image:
        images = [to_tensor(each).repeat_interleave(times, dim=1).repeat_interleave(times, dim=2) for each in shown]
        return to_picture(image_grid(images, columns=2))

    rows = [[tile(pictures[scale, steps]) for steps in counts] for scale in scales]
    return sheet(rows, [f"{steps} steps" for steps in counts], [f"cfg {scale:g}" for scale in scales])
