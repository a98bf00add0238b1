"""What a config costs: parameters and multiply-accumulates, seconds and bytes of inference and of training steps."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from aligntok.device import device as this_device
from aligntok.device import multiplying
from aligntok.evaluation.cost.count import Counted, build_encoder, count_config, count_encoder
from aligntok.evaluation.cost.measure import CostRow, measure_part, measure_tokenizer, random_images
from aligntok.evaluation.cost.memory import GB
from aligntok.evaluation.cost.steps import for_measuring, measure_step
from aligntok.evaluation.results import Result
from aligntok.evaluation.settings import CostRequest, CostSettings
from aligntok.io.console import print_table
from aligntok.io.files import check_writable
from aligntok.ops.attention import force_backend
from aligntok.tokenizer import Tokenizer
from aligntok.training.alignment import expand_stages
from aligntok.training.config import load_config
from aligntok.training.generation import expand_generation

__all__ = ["measure_cost"]

Row = Mapping[str, Any]
CONVENTIONS = {
    "gmac": "10^9 multiply-accumulates of one image or latent: convolutions, linear layers, attention's two products",
    "gmac_as_in_paper": "the same without the products of transformers' attention, which the paper's counter left out",
    "frozen_as_in_paper_m": "without the adapter of the teacher",
    "trainable_m": "with the discriminator",
    "encoder": "with the adapter: image to latent",
    "peak_gb": "10^9 bytes; on a GPU what CUDA's allocator gave out at most; on a CPU the live tensors, without what a "
    "kernel allocates for itself",
    "device_hours": "steps of the schedule x median seconds a step x devices; exchanges between devices left out",
}
MODELS, SCHEDULE, STAGE_PARTS = "Parameters", "Stages", "Stages by part"
OPERATIONS = "Multiply-accumulates of a forward pass"
INFERENCE, STEPS, STEP_PARTS = "Encoder and decoder", "Training steps", "Training steps by part"
MILLION, BILLION = 1e6, 1e9
#: Columns of each table on the terminal; two columns of the rows joined by a dash are a range.
COLUMNS = {
    MODELS: "part parameters_m",
    SCHEDULE: "stage trainable_m frozen_m frozen_as_in_paper_m steps images_seen epochs",
    STAGE_PARTS: "stage part trainable_m frozen_m",
    OPERATIONS: "part size gmac gmac_attention gmac_as_in_paper",
    INFERENCE: "part resolution batch ms ms_lower_quartile-ms_upper_quartile calls peak_gb",
    STEPS: "stage images s_a_step s_lower_quartile-s_upper_quartile steps_timed peak_gb steps devices device_hours",
    STEP_PARTS: "stage part s share peak_gb",
}
#: Column -> how it is called there, if not as it is, and how its numbers are written.
HEADINGS = {
    "size": ("at", ""), "resolution": ("at", "d"), "batch": ("batch", "d"), "images": ("images", "d"),
    "parameters_m": ("M", ".2f"), "trainable_m": ("trainable M", ".2f"), "frozen_m": ("frozen M", ".2f"),
    "frozen_as_in_paper_m": ("paper's count", ".2f"), "gmac_as_in_paper": ("paper's count", ".4g"),
    "gmac": ("GMAC", ".4g"), "gmac_attention": ("of it attention", ".4g"), "peak_gb": ("peak GB", ".3f"),
    "ms": ("ms a call", ",.2f"), "ms_lower_quartile-ms_upper_quartile": ("quartiles", ",.2f"), "calls": ("calls", "d"),
    "s_a_step": ("s a step", ".3f"), "s_lower_quartile-s_upper_quartile": ("quartiles", ".3f"),
    "steps_timed": ("timed", "d"), "steps": ("steps", ",d"), "images_seen": ("images seen", ",d"),
    "epochs": ("epochs", ".2f"), "devices": ("devices", "d"), "device_hours": ("device-hours", ",.1f"),
    "s": ("s", ".4f"), "share": ("share", ".1%"),
}  # fmt: skip


def measure_cost(asked: CostRequest, console: Console | None = None) -> Result:
    """Count, and measure on this machine, what configs cost; print tables, write ``cost.json``, return what is in it.

    What is counted needs no run. Weights are random, images random unless `data_root` is set. Raises ConfigError and
    DataError before the first measurement.
    """
    console, measured = console or Console(), asked.measured
    settings = CostSettings(**{each.name: getattr(asked, each.name) for each in fields(CostSettings)})
    names, loaded = _names(asked.configs), [load_config(Path(path), asked.cfg_options) for path in asked.configs]
    folder = Path(asked.out).expanduser() if asked.out else Path(loaded[0]["work_dir"]) / "evaluation" / "cost"
    check_writable(folder)
    trained = [(expand_stages(config), expand_generation(config)) for config in loaded]
    for stage in (s for stages, generation in trained for s in (*stages, generation)):
        if stage is not None and "training" in measured:
            for_measuring(stage, Path(), settings.devices)
    counted = [count_config(name, *each, settings.resolutions) for name, each in zip(names, trained, strict=True)]
    factors = [c.tokenizer.settings.model.get("downsample_factor", 16) for c in counted if c.tokenizer is not None]
    factor = (factors or [16])[0]
    counted += [count_encoder(name, factor, settings.resolutions) for name in asked.encoders]
    device = this_device()
    rows, steps = _measure(counted, factor, settings, measured, device, console)
    tables = {**_counted_tables(counted), **measured_tables(rows, steps)}
    result = Result(
        kind="cost",
        subject=", ".join(names),
        metrics={**_counted_metrics(counted), **_measured_metrics(tables)},
        settings={
            **asdict(settings),
            "device": _device_name(device) if measured else None,
            "torch": torch.__version__,
            "conventions": CONVENTIONS,
            "notes": notes(counted, tables, [step for step in steps if not step.reads and not step.left_out]),
        },
        tables=tables,
    )
    print_tables(result.tables, result.settings["notes"], console)
    path = result.write(folder)
    console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)
    return result


def _names(configs: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return the configs' file names without suffix, or their paths where two have one name."""
    stems = [Path(path).stem for path in configs]
    return [stem if stems.count(stem) == 1 else str(path) for stem, path in zip(stems, configs, strict=True)]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def _measure(
    counted: Sequence[Counted],
    factor: int,
    settings: CostSettings,
    measured: Sequence[str],
    device: torch.device,
    console: Console,
) -> tuple[list[CostRow], list[CostRow]]:
    """Return the rows of encoders and decoders, and of training steps; `factor` is that of encoders by their name."""
    rows: list[CostRow] = []
    steps: list[CostRow] = []
    with multiplying(settings.precision), _attention_put_back(), tempfile.TemporaryDirectory() as folder:
        for known in counted if "inference" in measured else ():
            if known.tokenizer is not None:
                console.print(f"{known.name}: measuring encoder and decoder", highlight=False)
                stage = for_measuring(known.tokenizer, Path(folder), 1)
                force_backend(stage.settings.attention)
                rows += measure_tokenizer(Tokenizer(**stage.settings.model), known, settings, device)
            elif not known.stages:
                console.print(f"{known.name}: measuring the encoder", highlight=False)
                encoder = build_encoder(known.name, factor)
                rows += measure_part("encoder", encoder, random_images, known, settings, device)
        for number, known in enumerate(counted if "training" in measured else ()):
            for each in known.stages:
                console.print(f"{known.name}: measuring training steps of {each.stage.name}", highlight=False)
                steps.append(measure_step(known.name, each, settings, device, Path(folder) / str(number)))
    return rows, steps


@contextmanager
def _attention_put_back() -> Iterator[None]:
    """Choose attention's backend anew afterwards, whatever configs set."""
    try:
        yield
    finally:
        force_backend(None)


def _counted_tables(counted: Sequence[Counted]) -> dict[str, list[Row]]:
    """Return the rows, by title, of what needs no run: parameters in millions, operations in 10^9 (GMAC)."""
    tables: dict[str, list[Row]] = {title: [] for title in (MODELS, SCHEDULE, STAGE_PARTS, OPERATIONS)}
    for c in counted:
        own = {"config": c.name}
        tables[MODELS] += [{**own, "part": part, "parameters_m": n / MILLION} for part, n in c.parts.items()]
        for each in c.stages:
            plan, where = each.plan, {**own, "stage": each.stage.name}
            row = {**where, "trainable_m": plan.trainable / MILLION, "frozen_m": plan.frozen / MILLION}
            row["frozen_as_in_paper_m"] = each.frozen_as_in_paper / MILLION
            tables[SCHEDULE].append({**row, **{n: getattr(plan, n) for n in ("steps", "images_seen", "epochs")}})
            tables[STAGE_PARTS] += [
                {**where, "part": part, "trainable_m": trainable / MILLION, "frozen_m": frozen / MILLION}
                for part, (trainable, frozen) in plan.parameters.items()
            ]
        order = sorted(c.operations.items(), key=lambda item: ("encoder", "decoder", "generator").index(item[0][0]))
        for (part, size), found in order:
            counts = {"gmac": found.total, "gmac_attention": found.attention, "gmac_as_in_paper": found.as_in_paper}
            row = {name: n / BILLION for name, n in counts.items()}
            tables[OPERATIONS].append({**own, "part": part, "size": size, **row})
    return tables


def measured_tables(rows: Sequence[CostRow], steps: Sequence[CostRow]) -> dict[str, list[Row]]:
    """Return the rows, by title, of what was measured: milliseconds, seconds, GB, hours."""
    ms, s = ("ms", "ms_lower_quartile", "ms_upper_quartile"), ("s_a_step", "s_lower_quartile", "s_upper_quartile")
    of_steps = [(step, {"steps": step.steps, "device_hours": step.hours}) for step in steps]
    return {
        INFERENCE: [{**_numbers(r, ms, "calls", 1e3), "left_out": r.left_out} for r in rows],
        STEPS: [{**_numbers(r, s, "steps_timed"), **more, "left_out": r.left_out} for r, more in of_steps],
        STEP_PARTS: [row for step in steps for row in _part_rows(step)],
    }


def _numbers(row: CostRow, spread: Sequence[str], calls: str, unit: float = 1.0) -> Row:
    """Return a row's columns as JSON types: what, seconds in a unit under three names, calls, peak."""
    timing, peak = row.timing, None if row.peak is None else row.peak / GB
    seconds = (None, None, None) if timing is None else (timing.median, timing.low, timing.high)
    numbers = {name: None if n is None else n * unit for name, n in zip(spread, seconds, strict=True)}
    return {**row.what, **numbers, calls: None if timing is None else timing.calls, "peak_gb": peak}


def _part_rows(step: CostRow) -> list[Row]:
    """Return one row a part of a training step: seconds, share of their sum, peak of GB while it ran."""
    total, where = sum(step.seconds.values()) or 1.0, {name: step.what[name] for name in ("config", "stage")}
    return [
        {**where, "part": part, "s": step.seconds[part], "share": step.seconds[part] / total, "peak_gb": peak / GB}
        for part, peak in step.peaks.items()
    ]


def _counted_metrics(counted: Sequence[Counted]) -> dict[str, float]:
    found: dict[str, float] = {}
    for c in counted:
        found |= {f"{c.name}/{part}/parameters": float(number) for part, number in c.parts.items()}
        found |= {f"{c.name}/{part}_{size}/gmac": o.total / BILLION for (part, size), o in c.operations.items()}
        for each in c.stages:
            where = f"{c.name}/{each.stage.name}"
            found |= {f"{where}/trainable": float(each.plan.trainable), f"{where}/frozen": float(each.plan.frozen)}
    return found


def _measured_metrics(tables: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """Return milliseconds or seconds, GB and hours by name."""
    found: dict[str, float] = {}
    for title, name, columns in (
        (INFERENCE, "{config}/{part}_{resolution}_batch{batch}", ("ms", "peak_gb")),
        (STEPS, "{config}/{stage}", ("s_a_step", "peak_gb", "device_hours")),
    ):
        for row in (row for row in tables[title] if not row["left_out"]):
            found |= {f"{name.format(**row)}/{column}": row[column] for column in columns}
    return found


def notes(counted: Sequence[Counted], tables: Mapping[str, Sequence[Row]], unread: Sequence[CostRow]) -> list[str]:
    """Return what was not counted, not measured, or measured without its data, and why, a line each."""
    lines = [note for c in counted for note in c.not_counted]
    for title, name in (
        (INFERENCE, "{config}: {part} at {resolution}, batch {batch}: {left_out}"),
        (STEPS, "{config}: training step of {stage}: {left_out}"),
    ):
        lines += [name.format(**row) for row in tables[title] if row["left_out"]]
    for config in dict.fromkeys(row.what["config"] for row in unread):
        stages = ", ".join(row.what["stage"] for row in unread if row.what["config"] == config)
        lines.append(f"{config}: reading data is not in the steps of {stages}: data_root names none that can be read")
    return lines


def print_tables(tables: Mapping[str, Sequence[Row]], notes: Sequence[str], console: Console) -> None:
    """Print the tables that have rows, several configs below one another, and the notes."""
    several = len({row["config"] for rows in tables.values() for row in rows}) > 1
    for title, rows in tables.items():
        if rows:
            _print_table(title, rows, several, console)
    for note in notes:
        console.print(note, markup=False, highlight=False)


def _print_table(title: str, rows: Sequence[Row], several: bool, console: Console) -> None:
    columns = [*(["config"] if several else []), *COLUMNS[title].split()]
    forms = {column: HEADINGS.get(column, (column, "")) for column in columns}
    before: Row = {}
    cells: list[list[str] | None] = []
    for row in rows:
        if before and several and row["config"] != before["config"]:
            cells.append(None)
        said = [name for name in ("config", "stage") if all(row.get(n) == before.get(n) for n in ("config", name))]
        cells.append(["" if name in said else _cell(row, name, form) for name, (_, form) in forms.items()])
        before = row
    words = [heading for heading, form in forms.values() if not form]
    print_table(title, [heading for heading, _ in forms.values()], cells, words, console)


def _cell(row: Row, column: str, form: str) -> str:
    values = [row[name] for name in column.split("-")]
    return "-" if None in values else "-".join(format(value, form) for value in values)
