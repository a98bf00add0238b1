"""Measuring what configs cost: counting, inference, training steps, side by side in one result."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from aligntok.device import PRECISIONS
from aligntok.errors import ConfigError, at_least
from aligntok.evaluation.cost import inference, tables, training
from aligntok.evaluation.cost.counting import Counted, build_encoder, count_config, count_encoder
from aligntok.evaluation.cost.inference import How, Measured
from aligntok.evaluation.cost.steps import for_measuring
from aligntok.evaluation.cost.training import MeasuredStep
from aligntok.evaluation.results import Result
from aligntok.io.files import check_writable
from aligntok.ops.attention import force_backend
from aligntok.tokenizer import Tokenizer
from aligntok.training.config import load_config
from aligntok.training.generation.settings import Generation, expand_generation
from aligntok.training.stages import Stage, expand_stages

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


@dataclass(frozen=True)
class Subject:
    """A config to measure: its name in the tables, its stages and generator's training."""

    name: str
    stages: Sequence[Stage]
    generation: Generation | None

    @property
    def trainings(self) -> list[Any]:
        """All that it trains, in order."""
        return [*self.stages, *([self.generation] if self.generation else [])]


def measure_cost(
    configs: Sequence[str | os.PathLike[str]],
    options: Mapping[str, Any] | None = None,
    how: How | None = None,
    encoders: Sequence[str] = (),
    measured: Sequence[str] = ("inference", "training"),
    out: str | os.PathLike[str] | None = None,
    console: Console | None = None,
) -> Result:
    """Count, and measure on this machine, what configs cost; print tables, write ``cost.json``, return what is in it.

    options: as ``--cfg-options``, for every config. encoders: of the registry, to count and measure beside them.
    measured: which of "inference" and "training" to run; neither needs a run for what is counted. out: a folder (None:
    ``evaluation/cost`` in the first config's work_dir). Weights are random, images random unless `data_root` is set.
    Raises ConfigError and DataError before the first measurement.
    """
    how, console = how or How(), console or Console()
    _check(how)
    loaded = [load_config(Path(path), options) for path in configs]
    folder = Path(out).expanduser() if out else Path(loaded[0]["work_dir"]) / "evaluation" / "cost"
    check_writable(folder)
    subjects = [
        Subject(name, expand_stages(config), expand_generation(config))
        for name, config in zip(_names(configs), loaded, strict=True)
    ]
    for training_ in (t for s in subjects for t in s.trainings if "training" in measured):
        for_measuring(training_, Path(), how.devices)
    counted = [count_config(s.name, s.stages, s.generation, how.resolutions) for s in subjects]
    factors = [s.stages[-1]["model"].get("downsample_factor", 16) for s in subjects if s.stages]
    beside = [count_encoder(name, (factors or [16])[0], how.resolutions) for name in encoders]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found, steps = _run(subjects, counted, beside, (factors or [16])[0], how, measured, device, console)
    result = _result(subjects, [*counted, *beside], found, steps, how, device if measured else None)
    tables.print_tables(result.tables, result.settings["notes"], console)
    path = result.write(folder)
    console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)
    return result


def _run(
    subjects: Sequence[Subject],
    counted: Sequence[Counted],
    beside: Sequence[Counted],
    factor: int,
    how: How,
    measured: Sequence[str],
    device: torch.device,
    console: Console,
) -> tuple[list[Measured], list[MeasuredStep]]:
    found: list[Measured] = []
    steps: list[MeasuredStep] = []
    with _settings_restored(), tempfile.TemporaryDirectory() as folder:
        torch.set_float32_matmul_precision("high" if how.precision == "tf32" else "highest")
        for subject, known in zip(subjects, counted, strict=True):
            if "inference" in measured and subject.stages:
                console.print(f"{subject.name}: measuring encoder and decoder", highlight=False)
                stage = for_measuring(subject.stages[-1], Path(folder), 1)
                force_backend(stage["attention"])
                found += inference.measure_tokenizer(Tokenizer(**stage["model"]), known, how, device)
        for known in beside if "inference" in measured else ():
            console.print(f"{known.name}: measuring the encoder", highlight=False)
            found += inference.measure_encoder(build_encoder(known.name, factor), known, how, device)
        for number, (subject, known) in enumerate(zip(subjects, counted, strict=True)):
            for stage, of_stage in zip(subject.trainings, known.stages, strict=True):
                if "training" in measured:
                    console.print(f"{subject.name}: measuring training steps of {stage.name}", highlight=False)
                    logs = Path(folder) / str(number)
                    steps.append(training.measure_step(subject.name, of_stage, stage, how, device, logs))
    return found, steps


@contextmanager
def _settings_restored() -> Iterator[None]:
    """Put back what a config sets for the whole process."""
    before = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        force_backend(None)


def _result(
    subjects: Sequence[Subject],
    counted: Sequence[Counted],
    found: Sequence[Measured],
    steps: Sequence[MeasuredStep],
    how: How,
    device: torch.device | None,
) -> Result:
    notes = [*(n for c in counted for n in c.not_counted), *inference.left_out(found), *training.notes(steps)]
    return Result(
        kind="cost",
        subject=", ".join(s.name for s in subjects),
        metrics={**_counted_metrics(counted), **inference.as_metrics(found), **training.as_metrics(steps)},
        settings={
            **asdict(how),
            "device": None if device is None else _describe(device),
            "torch": torch.__version__,
            "conventions": CONVENTIONS,
            "notes": notes,
        },
        tables={
            **tables.counted_tables(counted),
            tables.INFERENCE: [row.row() for row in found],
            tables.STEPS: [step.row() for step in steps],
            tables.STEP_PARTS: [row for step in steps for row in step.part_rows()],
        },
    )


def _counted_metrics(counted: Sequence[Counted]) -> dict[str, float]:
    found: dict[str, float] = {}
    for c in counted:
        found |= {f"{c.name}/{part}/parameters": float(number) for part, number in c.parts.items()}
        found |= {f"{c.name}/{part}_{size}/gmac": o.total / 1e9 for (part, size), o in c.operations.items()}
        for stage in c.stages:
            where = f"{c.name}/{stage.name}"
            found |= {f"{where}/trainable": float(stage.trainable), f"{where}/frozen": float(stage.frozen)}
    return found


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def _names(configs: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return the configs' file names without suffix, or their paths where two have one name."""
    stems = [Path(path).stem for path in configs]
    return [stem if stems.count(stem) == 1 else str(path) for stem, path in zip(stems, configs, strict=True)]


def _check(how: How) -> None:
    at_least(1, repeats=how.repeats, devices=how.devices)
    for size in how.resolutions:
        at_least(1, resolution=size)
    for batch in how.batch_sizes:
        at_least(1, batch_size=batch)
    if how.precision not in PRECISIONS:
        raise ConfigError(f"precision '{how.precision}' is unknown; known: {', '.join(PRECISIONS)}")
    if how.max_seconds <= 0:
        raise ConfigError(f"--max-seconds {how.max_seconds:g}; it must be above 0")
