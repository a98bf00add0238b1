"""The head of the page: what each run is, and its key numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import aligntok
from aligntok.evaluation.report.blocks import Cell, Table, heading, number
from aligntok.evaluation.report.found import Run, Samples, Sweep, Training, as_number, part
from aligntok.evaluation.report.grids import describe_sampling
from aligntok.evaluation.report.names import NONE, TIMES, metric, plain, write_seconds, write_value

#: What is shown first of the results of each kind, by plain name; any Fréchet distance counts as "fd".
_KEY = {
    "reconstruction": ("rfid", "fid", "fd", "psnr", "lpips", "stlpips", "ssim"),
    "generation": ("gfid", "fid", "fd", "is", "precision", "recall"),
    "linear_probe": ("top1", "top5"),
    "latent_space": ("cknna",),
}
_FROM_LOG = {"PyTorch": r"PyTorch: (\S+)", "Python": r"Python: (\S+)", "GPU": r"GPU 0[^:]*: (.+)"}
_SIZES = {"hidden_size": "width", "depth": "depth", "num_heads": "heads", "num_classes": "classes"}
TILES = 8


@dataclass(frozen=True)
class Head:
    """What a run is: its name, place, purpose, the rest of its config's docstring, facts by label."""

    name: str
    path: str
    purpose: str
    more: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Tile:
    """A key number: label, text, unit, where it is from, which way is better, what it means."""

    label: str
    text: str
    source: str
    better: str | None
    hint: str


def describe(run: Run) -> Head:
    """Return what a run is."""
    purpose, _, more = str(run.origin.get("docstring") or "").strip().partition("\n")
    return Head(run.name, str(run.path), purpose, more.strip("\n"), {k: v for k, v in _facts(run) if v})


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    options = run.origin.get("options") or {}
    changed = " ".join(f"{key}={value}" for key, value in options.items()) if isinstance(options, dict) else ""
    yield "Config", f"{run.origin.get('config', '')} {changed}".strip()
    if run.stages:
        yield from _tokenizer_facts(run.stages)
    for generator in run.generators[:1]:
        yield from _generator_facts(generator)
    if not run.trainings:
        yield "Evaluated", ", ".join(dict.fromkeys(found.result.subject for found in run.results))
        yield "Results", ", ".join(dict.fromkeys(found.result.kind.replace("_", " ") for found in run.results))
    drawn: list[Samples | Sweep] = [] if run.trainings else [*run.samples, *run.sweeps]
    for samples in drawn[:1]:
        yield "Generator", str(part(samples.settings, "generator").get("source") or "")
        yield "Sampling", describe_sampling(samples.settings)
        yield "Image size", write_value(samples.settings.get("image_size") or "").replace(", ", f" {TIMES} ")
    yield "Trained", _when(run.trainings)
    yield "Machine", _machine(run.origin)
    yield "Versions", _versions(run)


def _tokenizer_facts(stages: Sequence[Training]) -> Iterator[tuple[str, str]]:
    settings = stages[-1].settings
    tokenizer = part(settings, "tokenizer")
    yield "Encoder", _component(part(tokenizer, "encoder"))
    if tokenizer:
        factor, dim = tokenizer.get("downsample_factor", "?"), tokenizer.get("latent_dim", "?")
        yield "Latents", f"f{factor}d{dim}: {factor} {TIMES} {factor} pixels to {dim} channels"
    yield "Decoder", _component(part(tokenizer, "decoder"))
    steps = [f"{stage.name.replace('_', ' ')} {_steps(stage)}" for stage in stages]
    yield "Stages", ", ".join(steps) + " steps"
    seen = sum(stage.step * stage.batch for stage in stages)
    yield "Images seen", f"{seen:,} in batches of {stages[-1].batch}" if seen else ""


def _generator_facts(training: Training) -> Iterator[tuple[str, str]]:
    settings = training.settings
    generator = part(settings, "generator")
    words = [
        str(generator.get("size") or ""),
        *(f"{word} {generator[key]}" for key, word in _SIZES.items() if key in generator),
    ]
    name = str(generator.get("type", "?"))
    yield "Generator", ", ".join(filter(None, [name, *words]))
    yield "Training of the generator", f"{_steps(training)} steps of {training.batch} latents"


def _steps(training: Training) -> str:
    wanted = training.steps or training.step
    return f"{wanted:,}" if training.step >= wanted else f"{training.step:,} of {wanted:,}"


def _component(settings: Mapping[str, Any]) -> str:
    words = [str(settings.get("type", ""))]
    words += [str(settings[key]) for key in ("model", "model_name", "name") if key in settings]
    words += [f"{key} {settings[key]}" for key in ("stride", "ch") if key in settings]  # what tells its sizes apart
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


def _machine(origin: Mapping[str, Any]) -> str:
    processes = origin.get("processes", 1)
    times = f"{processes} {TIMES} " if isinstance(processes, int) and processes > 1 else ""
    return f"{times}{origin['device']}" if origin.get("device") else ""


def _versions(run: Run) -> str:
    found = {"AlignTok": str(run.origin.get("aligntok_version") or "")}
    for training in run.trainings:
        tokenizer = part(training.settings, "tokenizer")
        found["AlignTok"] = found["AlignTok"] or str(tokenizer.get("aligntok_version") or "")
        for plugin in part(tokenizer, "plugins").values():
            if isinstance(plugin, dict) and plugin.get("distribution") not in (None, "aligntok"):
                found[str(plugin["distribution"])] = str(plugin.get("version", ""))
    for path in sorted(log for training in run.trainings for log in training.folder.glob("*/*.log"))[-1:]:
        found.update(_from_log(path))
    found["AlignTok"] = found["AlignTok"] or f"{aligntok.__version__} (of this report)"
    return ", ".join(f"{name} {version}" for name, version in found.items() if version)


def _from_log(path: Path) -> dict[str, str]:
    """Return what the head of mmengine's log says of the machine."""
    try:
        with path.open(errors="replace") as file:
            text = file.read(8000)
    except OSError:
        return {}
    matches = {name: re.search(pattern, text) for name, pattern in _FROM_LOG.items()}
    return {name: match[1].strip() for name, match in matches.items() if match}


def tiles(run: Run) -> list[Tile]:
    """Return the key numbers of a run: of its evaluations, else of the last validation, then of its training."""
    found: dict[str, Tile] = {}
    for kind, names in _KEY.items():
        results = [each.result for each in run.results if each.result.kind == kind]
        for result in sorted(results, key=lambda result: result.step or 0)[-1:]:
            for name in _first(result.metrics, names):
                found.setdefault(f"{kind}/{name}", _tile(name, result.metrics[name], kind.replace("_", " ")))
    for stage in run.stages[::-1]:
        measured = _numbers(stage.result.get("metrics"))
        if measured and not any(key.startswith("reconstruction/") for key in found):
            for name in _first(measured, _KEY["reconstruction"]):
                found[name] = _tile(name, measured[name], f"held-out, after {stage.name.replace('_', ' ')}")
            break
    for training in run.generators[:1]:
        found["generator"] = Tile("Generator steps", _steps(training), "training", None, "")
    if run.stages:
        total = sum(stage.step for stage in run.stages)
        found["steps"] = Tile("Tokenizer steps", f"{total:,}", "training", None, "")
    return list(found.values())[:TILES]


def _first(metrics: Mapping[str, float], wanted: Sequence[str]) -> list[str]:
    """Return the names of the metrics that are wanted, in that order, at most one Fréchet distance."""
    chosen: list[str] = []
    for want in wanted:
        for name in metrics:
            short = name.rpartition("/")[2]
            is_distance = want == "fd" and re.match(r"[rg]?FD-", short)
            if (plain(short) == want or is_distance) and not (is_distance and any(_is_fid(each) for each in chosen)):
                chosen.append(name)
                break
    return chosen[:4]


def _is_fid(name: str) -> bool:
    return plain(name.rpartition("/")[2]) in ("fid", "rfid", "gfid")


def _tile(name: str, value: float, source: str) -> Tile:
    found = metric(name)
    return Tile(found.label, found.write(value), source, found.better, found.meaning)


def compare_tiles(by_run: Mapping[str, Sequence[Tile]]) -> Table:
    """Return the key numbers of several runs as a table, a column a run."""
    keys = list(dict.fromkeys((tile.label, tile.source) for tiles_ in by_run.values() for tile in tiles_))
    rows = []
    for label, source in keys:
        own = [next((t for t in tiles_ if (t.label, t.source) == (label, source)), None) for tiles_ in by_run.values()]
        some = next(tile for tile in own if tile)
        head = Cell(label, note=source, hint=some.hint, arrow=some.better)
        rows.append([head, *(Cell(tile.text if tile else NONE, number=True) for tile in own)])
    return Table([Cell("key number"), *(Cell(name, number=True) for name in by_run)], rows)


def stages_table(run: Run) -> Table | None:
    """Return what each stage trained, for how long, and what the validation after it measured."""
    if not run.stages:
        return None
    names = list(dict.fromkeys(name for stage in run.stages for name in _numbers(stage.result.get("metrics"))))
    head = [Cell(text) for text in ("stage", "trains", "steps", "batch", "learning rate", "time")]
    rows = []
    for stage in run.stages:
        settings, measured = stage.settings, _numbers(stage.result.get("metrics"))
        seconds = stage.result.get("seconds")
        texts = [
            write_value(stage.settings.get("trains")),
            _steps(stage),
            write_value(stage.batch),
            write_value(part(settings, "optimizer").get("lr")),
            write_seconds(seconds) if isinstance(seconds, (int, float)) else NONE,
        ]
        cells = [Cell(stage.name.replace("_", " ")), Cell(texts[0]), *(Cell(text, number=True) for text in texts[1:])]
        rows.append([*cells, *(number(name, measured.get(name)) for name in names)])
    return Table(
        [*head, *map(heading, names)], rows, note="Measured on held-out images after the last step of a stage."
    )


def _numbers(metrics: Any) -> dict[str, float]:
    if not isinstance(metrics, dict):
        return {}
    return {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
