"""What a config costs: parameters and multiply-accumulates, seconds and bytes of inference and of training steps."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

import torch
from rich.console import Console

from aligntok.device import device as this_device
from aligntok.device import multiplying, repeatable
from aligntok.errors import DataError
from aligntok.evaluation.cost.count import Counted, build_encoder, count_config, count_encoder, parts_of
from aligntok.evaluation.cost.measure import Row, measure_part
from aligntok.evaluation.cost.steps import DATA, for_measuring, measure_step
from aligntok.evaluation.cost_settings import CostRequest, CostSettings
from aligntok.evaluation.results import Result
from aligntok.io.console import print_line, print_table, say
from aligntok.io.files import read_json
from aligntok.io.folders import check_writable
from aligntok.ops.attention import force_backend
from aligntok.tokenizer import Tokenizer
from aligntok.training.alignment import expand_stages
from aligntok.training.config import load_config
from aligntok.training.generation import expand_generation

__all__ = ["measure_cost", "names_of"]

MODELS, SCHEDULE, STAGE_PARTS = "Parameters", "Stages", "Stages by part"
OPERATIONS = "Multiply-accumulates of a forward pass"
INFERENCE, STEPS, STEP_PARTS = "Encoder and decoder", "Training steps", "Training steps by part"
MILLION, BILLION = 1e6, 1e9
#: Conventions of the numbers; of each table on the terminal its columns, two joined by a dash a range; and how a column
#: is called there, if not as it is, and its numbers are written.
CONVENTIONS, COLUMNS, HEADINGS = (
    read_json(Path(__file__).with_name("tables.json"), DataError, "install AlignTok again")[name]
    for name in ("conventions", "columns", "headings")
)
#: How metrics and notes call a row of what was measured.
NAMES = {
    INFERENCE: ("{config}/{part}_{resolution}_batch{batch}", "{config}: {part} at {resolution}, batch {batch}"),
    STEPS: ("{config}/{stage}", "{config}: training step of {stage}"),
}


def measure_cost(asked: CostRequest, console: Console | None = None) -> Result:
    """Count, and measure on this machine, what configs cost; print tables, write ``cost.json``, return what is in it.

    What is counted needs no run. Weights are random, images random unless `data_root` is set. Raises ConfigError and
    DataError before the first measurement.
    """
    console = console or Console()
    names = names_of(asked.configs)
    loaded = [load_config(Path(path), asked.cfg_options) for path in asked.configs]
    folder = Path(asked.out).expanduser() if asked.out else Path(loaded[0]["work_dir"]) / "evaluation" / "cost"
    check_writable(folder)
    counted = [
        count_config(name, expand_stages(config), expand_generation(config), asked.resolutions)
        for name, config in zip(names, loaded, strict=True)
    ]
    for known, config in zip(counted, loaded, strict=True):
        known.deterministic = config["deterministic"]
    for stage in (each.stage for c in counted for each in c.stages if "training" in asked.measured):
        for_measuring(stage, Path(), asked.devices)  # raises what measuring it would
    factors = (c.tokenizer.settings.model.get("downsample_factor", 16) for c in counted if c.tokenizer is not None)
    factor = next(factors, 16)
    counted += [count_encoder(name, factor, asked.resolutions) for name in asked.encoders]
    device, threads = this_device(), torch.get_num_threads()
    cpu = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    tables = {**_count(counted), **_measure(counted, factor, asked, device)}
    settings = {
        **{each.name: getattr(asked, each.name) for each in fields(CostSettings)},
        "device": (torch.cuda.get_device_name(device) if device.type == "cuda" else cpu) if asked.measured else None,
        "torch": torch.__version__,
        "conventions": CONVENTIONS,
        "notes": notes(counted, tables),
    }
    result = Result("cost", ", ".join(names), _metrics(counted, tables), settings, tables)
    print_tables(tables, settings["notes"], console)
    path = result.write(folder)
    print_line(f"Written: {path}", console)
    return result


def names_of(configs: Sequence[str | Path]) -> list[str]:
    """Return what configs are called in tables: by their files' names, or whole paths where two share one."""
    stems = [Path(path).stem for path in configs]
    return [name if stems.count(name) == 1 else str(path) for name, path in zip(stems, configs, strict=True)]


def _measure(counted: Sequence[Counted], factor: int, asked: CostRequest, device: torch.device) -> dict[str, list[Row]]:
    """Return the rows, by title, of what was measured; `factor` is that of encoders by their name."""
    tables: dict[str, list[Row]] = {title: [] for title in (INFERENCE, STEPS, STEP_PARTS)}
    with multiplying(asked.precision), tempfile.TemporaryDirectory() as folder, ExitStack() as at_the_end:
        at_the_end.callback(force_backend, None)  # chosen anew afterwards, whatever configs set
        for known in counted if "inference" in asked.measured else ():
            if known.tokenizer is not None:
                say(f"{known.name}: measuring encoder and decoder")
                force_backend(known.tokenizer.settings.attention)
                parts = parts_of(Tokenizer(**known.tokenizer.without_pretrained().settings.model))
            elif not known.stages:
                say(f"{known.name}: measuring the encoder")
                parts = [build_encoder(known.name, factor)]
            else:
                continue
            tables[INFERENCE] += [row for part in parts for row in measure_part(part, known, asked, device)]
        for number, known in enumerate(counted if "training" in asked.measured else ()):
            for each in known.stages:
                say(f"{known.name}: measuring training steps of {each.stage.name}")
                with repeatable(known.deterministic):
                    row, rows = measure_step(known.name, each, asked, device, Path(folder) / str(number))
                tables[STEPS].append(row)
                tables[STEP_PARTS] += rows
    return tables


def _count(counted: Sequence[Counted]) -> dict[str, list[Row]]:
    """Return the rows, by title, of what needs no run: parameters in millions, operations in 10^9 (GMAC)."""
    tables: dict[str, list[Row]] = {title: [] for title in (MODELS, SCHEDULE, STAGE_PARTS, OPERATIONS)}
    for c in counted:
        own = {"config": c.name}
        tables[MODELS] += [{**own, "part": part, "parameters_m": n / MILLION} for part, n in c.parts.items()]
        for stage, plan, frozen_as_in_paper in c.stages:
            where = {**own, "stage": stage.name}
            row = {**where, "trainable_m": plan.trainable / MILLION, "frozen_m": plan.frozen / MILLION}
            row["frozen_as_in_paper_m"] = frozen_as_in_paper / MILLION
            tables[SCHEDULE].append({**row, **{n: getattr(plan, n) for n in ("steps", "images_seen", "epochs")}})
            tables[STAGE_PARTS] += [
                {**where, "part": part, "trainable_m": trainable / MILLION, "frozen_m": frozen / MILLION}
                for part, (trainable, frozen) in plan.parameters.items()
            ]
        order = sorted(c.operations.items(), key=lambda item: ("encoder", "decoder", "generator").index(item[0][0]))
        for (part, size), found in order:
            counts = zip(("gmac", "gmac_attention", "gmac_as_in_paper"), found, strict=True)
            row = {**own, "part": part, "size": size, **{name: n / BILLION for name, n in counts}}
            tables[OPERATIONS].append(row)
    return tables


def _metrics(counted: Sequence[Counted], tables: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """Return parameters, GMAC, milliseconds or seconds, GB and hours by name."""
    found: dict[str, float] = {}
    for c in counted:
        found |= {f"{c.name}/{part}/parameters": float(number) for part, number in c.parts.items()}
        found |= {f"{c.name}/{part}_{size}/gmac": o.total / BILLION for (part, size), o in c.operations.items()}
        for stage, plan, _ in c.stages:
            where = f"{c.name}/{stage.name}"
            found |= {f"{where}/trainable": float(plan.trainable), f"{where}/frozen": float(plan.frozen)}
    for title, (name, _) in NAMES.items():
        for row in (row for row in tables[title] if not row["left_out"]):
            columns = [column for column in ("ms", "s_a_step", "peak_gb", "device_hours") if column in row]
            found |= {f"{name.format(**row)}/{column}": row[column] for column in columns}
    return found


def notes(counted: Sequence[Counted], tables: Mapping[str, Sequence[Row]]) -> list[str]:
    """Return what was not counted, not measured, or measured without its data, and why, a line each."""
    lines = [note for c in counted for note in c.not_counted]
    for title, (_, name) in NAMES.items():
        lines += [f"{name.format(**row)}: {row['left_out']}" for row in tables[title] if row["left_out"]]
    reading = [(row["config"], row["stage"]) for row in tables[STEP_PARTS] if row["part"] == DATA]
    unread = [row for row in tables[STEPS] if not row["left_out"] and (row["config"], row["stage"]) not in reading]
    for config in dict.fromkeys(row["config"] for row in unread):
        stages = ", ".join(row["stage"] for row in unread if row["config"] == config)
        lines.append(f"{config}: reading data is not in the steps of {stages}: data_root names none that can be read")
    return lines


def print_tables(tables: Mapping[str, Sequence[Row]], notes: Sequence[str], console: Console) -> None:
    """Print the tables that have rows, several configs below one another, and the notes."""
    several = len({row["config"] for rows in tables.values() for row in rows}) > 1
    for title, rows in ((title, rows) for title, rows in tables.items() if rows):
        columns = [*(["config"] if several else []), *COLUMNS[title].split()]
        forms = {column: HEADINGS.get(column, (column, "")) for column in columns}
        cells: list[list[str] | None] = []
        for before, row in zip(({}, *rows), rows, strict=False):
            if before and several and row["config"] != before["config"]:
                cells.append(None)
            said = [name for name in ("config", "stage") if all(row.get(n) == before.get(n) for n in ("config", name))]
            texts = []
            for column, (_, form) in forms.items():
                values = [] if column in said else [row[name] for name in column.split("-")]
                texts.append("-" if None in values else "-".join(format(value, form) for value in values))
            cells.append(texts)
        words = [heading for heading, form in forms.values() if not form]
        print_table(title, [heading for heading, _ in forms.values()], cells, words, console)
    for note in notes:
        print_line(note, console)
