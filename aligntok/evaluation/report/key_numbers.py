"""Sections that say what runs are: facts and key numbers at the head of the page, stages, settings, what is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

import aligntok
from aligntok.evaluation.report.blocks import (
    NONE,
    TIMES,
    Block,
    Cell,
    Note,
    Section,
    is_number,
    metric,
    plain,
    settings_table,
    table_of,
    write_seconds,
    write_value,
)
from aligntok.evaluation.report.collect import Run, Training, as_number, part
from aligntok.evaluation.report.sections import describe_sampling

#: What is shown first of the results of each kind, by plain name; any Fréchet distance counts as "fd".
_KEY = {
    "reconstruction": ("rfid", "fid", "fd", "psnr", "lpips", "stlpips", "ssim"),
    "generation": ("gfid", "fid", "fd", "is", "precision", "recall"),
    "linear_probe": ("top1", "top5"),
    "latent_space": ("cknna",),
}
_FROM_LOG = {"PyTorch": r"PyTorch: (\S+)", "Python": r"Python: (\S+)", "GPU": r"GPU 0[^:]*: (.+)"}
_NAMES, _SIZES = ("model", "model_name", "name"), {"stride": "stride", "ch": "ch"}
_GENERATOR_SIZES = {"hidden_size": "width", "depth": "depth", "num_heads": "heads", "num_classes": "classes"}
MOST = 8  # key numbers


class Head(NamedTuple):
    """What a run is: its name, place, purpose, the rest of its config's docstring, facts by label."""

    name: str
    path: str
    purpose: str
    more: str
    facts: Mapping[Cell, str]


def describe(run: Run) -> Head:
    """Return what a run is."""
    purpose, _, more = str(run.origin.get("docstring") or "").strip().partition("\n")
    return Head(run.name, str(run.path), purpose, more.strip("\n"), {Cell(k): v for k, v in _facts(run) if v})


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    options = run.origin.get("options") or {}
    changed = " ".join(f"{key}={value}" for key, value in options.items()) if isinstance(options, dict) else ""
    yield "Config", f"{run.origin.get('config', '')} {changed}".strip()
    if run.stages:
        yield from _tokenizer_facts(run.stages)
    for generator in run.generators[:1]:
        yield (
            "Generator",
            _component({"type": "?"} | part(generator.settings, "generator"), ("size",), _GENERATOR_SIZES),
        )
        yield "Training of the generator", f"{_steps(generator)} steps of {generator.batch} latents"
    if not run.trainings:
        yield "Evaluated", ", ".join(dict.fromkeys(found.result.subject for found in run.results))
        yield "Results", ", ".join(dict.fromkeys(found.result.kind.replace("_", " ") for found in run.results))
    for samples in [] if run.trainings else [*run.samples, *run.sweeps][:1]:
        yield "Generator", str(part(samples.settings, "generator").get("source") or "")
        yield "Sampling", describe_sampling(samples.settings)
        yield "Image size", write_value(samples.settings.get("image_size") or "").replace(", ", f" {TIMES} ")
    yield "Trained", _when(run.trainings)
    processes, device = run.origin.get("processes", 1), str(run.origin.get("device") or "")
    several = device and isinstance(processes, int) and processes > 1
    yield "Machine", f"{processes} {TIMES} {device}" if several else device
    yield "Versions", _versions(run)


def _tokenizer_facts(stages: Sequence[Training]) -> Iterator[tuple[str, str]]:
    tokenizer = part(stages[-1].settings, "tokenizer")
    yield "Encoder", _component(part(tokenizer, "encoder"))
    if tokenizer:
        factor, dim = tokenizer.get("downsample_factor", "?"), tokenizer.get("latent_dim", "?")
        yield "Latents", f"f{factor}d{dim}: {factor} {TIMES} {factor} pixels to {dim} channels"
    yield "Decoder", _component(part(tokenizer, "decoder"))
    yield "Stages", ", ".join(f"{stage.name} {_steps(stage)}" for stage in stages) + " steps"
    seen = sum(stage.step * stage.batch for stage in stages)
    yield "Images seen", f"{seen:,} in batches of {stages[-1].batch}" if seen else ""


def _steps(training: Training) -> str:
    wanted = training.steps or training.step
    return f"{wanted:,}" if training.step >= wanted else f"{training.step:,} of {wanted:,}"


def _component(settings: Mapping[str, Any], names: Sequence[str] = _NAMES, sizes: Mapping[str, str] = _SIZES) -> str:
    """Return a component's type and names, and what tells its sizes apart."""
    words = [str(settings.get(key) or "") for key in ("type", *names)]
    words += [f"{word} {settings[key]}" for key, word in sizes.items() if key in settings]
    return ", ".join(filter(None, words))


def _when(trainings: Sequence[Training]) -> str:
    names = [p.parent.parent.name for t in trainings for p in t.folder.glob("*/vis_data/scalars.json")]
    starts = sorted(name for name in names if re.fullmatch(r"\d{8}_\d{6}", name))
    seconds = sum(as_number(training.result.get("seconds")) for training in trainings)
    took = f"; the stages took {write_seconds(seconds)}" if seconds else ""
    try:
        return datetime.strptime(starts[0], "%Y%m%d_%H%M%S").strftime("begun %Y-%m-%d %H:%M") + took if starts else ""
    except ValueError:
        return ""


def _versions(run: Run) -> str:
    found = {"AlignTok": str(run.origin.get("aligntok_version") or "")}
    for training in run.trainings:
        tokenizer = part(training.settings, "tokenizer")
        found["AlignTok"] = found["AlignTok"] or str(tokenizer.get("aligntok_version") or "")
        for plugin in part(tokenizer, "plugins").values():
            if isinstance(plugin, dict) and plugin.get("distribution") not in (None, "aligntok"):
                found[str(plugin["distribution"])] = str(plugin.get("version", ""))
    for path in sorted(log for training in run.trainings for log in training.folder.glob("*/*.log"))[-1:]:
        with suppress(OSError), path.open(errors="replace") as file:
            head = file.read(8000)  # mmengine's words on the machine
            matches = {name: re.search(pattern, head) for name, pattern in _FROM_LOG.items()}
            found |= {name: match[1].strip() for name, match in matches.items() if match}
    found["AlignTok"] = found["AlignTok"] or f"{aligntok.__version__} (of this report)"
    return ", ".join(f"{name} {version}" for name, version in found.items() if version)


def key_numbers(run: Run) -> dict[Cell, str]:
    """Return the key numbers of a run: of its evaluations, else of the last validation, then of its training.

    Each is a text under a cell with its name, where it is from, which way is better, and what it means.
    """
    found: dict[Cell, str] = {}
    for kind, names in _KEY.items():
        results = [each.result for each in run.results if each.result.kind == kind]
        for result in sorted(results, key=lambda result: result.step or 0)[-1:]:
            found |= _first(result.metrics, names, kind.replace("_", " "))
    if not any(head.note == "reconstruction" for head in found):
        for stage in [stage for stage in run.stages if _numbers(stage)][-1:]:
            found |= _first(_numbers(stage), _KEY["reconstruction"], f"held-out, after {stage.name}")
    for training in run.generators[:1]:
        found[Cell("Generator steps", "training")] = _steps(training)
    if run.stages:
        found[Cell("Tokenizer steps", "training")] = f"{sum(stage.step for stage in run.stages):,}"
    return dict([*found.items()][:MOST])


def _first(metrics: Mapping[str, float], wanted: Sequence[str], source: str) -> dict[Cell, str]:
    """Return the metrics that are wanted, at most four in that order, and at most one Fréchet distance."""
    chosen: dict[str, str] = {}  # name -> what was wanted
    for want in wanted:
        for name in metrics:
            short = name.rpartition("/")[2]
            is_distance = want == "fd" and re.match(r"[rg]?FD-", short)
            if plain(short) == want or (is_distance and not {"fid", "rfid", "gfid"} & {*chosen.values()}):
                chosen[name] = want
                break
    shown = [(metric(name), metrics[name]) for name in [*chosen][:4]]
    return {Cell(m.label, source, hint=m.meaning, arrow=m.better): m.write(value) for m, value in shown}


def stages(runs: Sequence[Run]) -> Section:
    """Return what each stage trained, for how long, and what the validation after it measured."""
    note, blocks = "Measured on held-out images after the last step of a stage.", []
    for run in (run for run in runs if run.stages):
        rows = [_stage_row(stage) | _numbers(stage) for stage in run.stages]
        blocks.append(table_of(rows, run.name if len(runs) > 1 else "", note))
    return Section("stages", "Stages", blocks)


def _stage_row(stage: Training) -> dict[str, Any]:
    seconds = stage.result.get("seconds")
    numbers = {
        "steps": _steps(stage),
        "batch": write_value(stage.batch),
        "learning rate": write_value(part(stage.settings, "optimizer").get("lr")),
        "time": write_seconds(seconds) if isinstance(seconds, (int, float)) else NONE,
    }
    words = {"stage": Cell(stage.name), "trains": Cell(write_value(stage.settings.get("trainable")))}
    return words | {name: Cell(text, number=True) for name, text in numbers.items()}


def _numbers(stage: Training) -> dict[str, Any]:
    metrics = part(stage.result, "metrics")
    return {name: float(value) for name, value in metrics.items() if is_number(value)}


def settings(runs: Sequence[Run]) -> Section:
    """Return all settings of each training, on demand."""
    blocks: list[Block] = []
    for run, training in [(each, training) for each in runs for training in each.trainings]:
        shown = {name: value for name, value in training.settings.items() if name not in ("stage", "statistics")}
        blocks.append(settings_table(shown, _of(run, runs) + training.name))
    return Section("settings", "Settings", blocks, "All settings of each training, as they were noted when it began.")


def missing(runs: Sequence[Run]) -> Section:
    """Return notes on what is not there or cannot be read."""
    texts = [f"{_of(run, runs)}not found: {text}" for run in runs for text in dict.fromkeys(run.missing)]
    blocks = [Note(text, missing=True) for text in texts]
    return Section("missing", "Not found", blocks, "What a report can show, and these folders do not have.")


def _of(run: Run, runs: Sequence[Run]) -> str:
    return f"{run.name}: " if len(runs) > 1 else ""
