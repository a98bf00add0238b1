"""Reports: what trainings, samples and evaluations left in their folders, as one HTML page that loads nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import aligntok
from aligntok.errors import DataError
from aligntok.evaluation.report import sections
from aligntok.evaluation.report.blocks import (
    TIMES,
    Block,
    Cell,
    Group,
    Section,
    Table,
    metric,
    plain,
    side_table,
    write_seconds,
    write_value,
)
from aligntok.evaluation.report.collect import Run, Training, as_number, find, part
from aligntok.evaluation.report.evaluations import evaluation
from aligntok.evaluation.results import KINDS
from aligntok.evaluation.settings import ReportSettings
from aligntok.io.files import regular, writing_text
from aligntok.io.places import page_without_places

__all__ = ["write_report"]

#: What is shown first of the results of each kind, by plain name; any Fréchet distance counts as "fd". What ends in "-"
#: is the beginning of a name, which goes on with the model's.
_KEY = {
    "reconstruction": ("rfid", "fid", "fd", "psnr", "lpips", "stlpips", "ssim"),
    "generation": ("gfid", "fid", "fd", "is", "precision", "recall"),
    "text_image": ("hpsv2-", "hpsv2.1-", "pickscore-", "imagereward-", "geneval (hf)-", "vqascore-", "clipscore-"),
    "linear_probe": ("top1", "top5"),
    "latent_space": ("cknna-",),
}
_FROM_LOG = {"PyTorch": r"PyTorch: (\S+)", "Python": r"Python: (\S+)", "GPU": r"GPU 0[^:]*: (.+)"}
_NAMES, _SIZES = ("model", "model_name", "name"), {"stride": "stride", "ch": "ch"}
_GENERATOR_SIZES = {"hidden_size": "width", "depth": "depth", "num_heads": "heads", "num_classes": "classes"}
MOST = 8  # key numbers


def write_report(asked: ReportSettings) -> Path:
    """Write one self-contained HTML page about runs, whole or not at all; return its path.

    What is missing or damaged in them is named in the page. Raises DataError for a run that is not there or has nothing
    to report, and when the page cannot be written.
    """
    if not asked.runs:
        raise DataError("nothing to report on; give one or several work folders, samples, sweeps or evaluations")
    runs = _with_different_names([find(source) for source in asked.runs])
    first = Path(asked.runs[0]).expanduser()
    own = (first.parent if first.is_file() else first) / "report.html"
    path = own if asked.out is None else Path(asked.out).expanduser()
    page = page_without_places(render(runs, asked.title), runs[0].path.absolute().parent)
    with writing_text(path, "the report is not written. Make room, or give another --out") as file:
        file.write(page)
    return path


def _with_different_names(runs: Sequence[Run]) -> Sequence[Run]:
    """Name runs after their folders, and as much of what is above them as tells them apart."""
    for depth in range(2, 9):
        count = Counter(run.name for run in runs)
        for number, run in enumerate(runs, 1):
            if count[run.name] > 1:
                longer = "/".join(run.path.resolve().parts[-depth:])
                run.name = longer if depth < 8 else f"{run.name} ({number})"
    return runs


def render(runs: Sequence[Run], title: str | None = None) -> str:
    """Return the page about runs as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    options: dict[str, Any] = dict(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment = Environment(loader=PackageLoader(__name__, "templates"), autoescape=True, **options)
    shown, facts = page_sections(runs), {run.name: _facts(run) for run in runs}
    numbers = {run.name: key_numbers(run) for run in runs}
    compared = [side_table("key number", numbers, number=True)] if any(numbers.values()) else []
    terms: dict[str, str] = {}  # for those who cannot hover
    for cell in (cell for section in shown for cell in _named(section.blocks) if cell.hint):
        terms.setdefault(cell.text, cell.hint)
    return environment.get_template("page.html").render(
        title=title or " and ".join(run.name for run in runs[:3]) + (" and others" if len(runs) > 3 else ""),
        runs=runs,
        facts=facts[runs[0].name] if len(runs) == 1 else {},
        tiles=numbers[runs[0].name] if len(runs) == 1 else {},
        compared=[*compared, side_table("", facts)] if len(runs) > 1 else [],
        sections=shown,
        terms=dict(sorted(terms.items(), key=lambda term: term[0].lower())),
        made=datetime.now().strftime("%Y-%m-%d %H:%M"),
        version=aligntok.__version__,
    )


def _named(blocks: Sequence[Block]) -> Iterator[Cell]:
    """Yield the heads of the tables' columns and rows."""
    for block in blocks:
        if isinstance(block, Group):
            yield from _named(block.blocks)
        elif isinstance(block, Table):
            yield from (*block.head, *(row[0] for row in block.rows if row))


def page_sections(runs: Sequence[Run]) -> list[Section]:
    """Return the parts of the page, in the order in which they are read."""
    every = [
        *(evaluation(runs, kind) for kind in KINDS),
        sections.quality(runs),
        sections.reconstructions(runs),
        sections.samples(runs),
        sections.sweeps(runs),
        sections.stages(runs),
        sections.training_of_tokenizers(runs),
        sections.training_of_generators(runs),
        sections.settings(runs),
        sections.missing(runs),
    ]
    return [section for section in every if section.blocks]


def _facts(run: Run) -> dict[Cell, str]:
    """Return what a run is, by label."""
    options = run.origin.get("options") or {}
    changed = " ".join(f"{key}={value}" for key, value in options.items()) if isinstance(options, dict) else ""
    facts = {"Config": f"{run.origin.get('config', '')} {changed}".strip()}
    if run.stages:
        facts |= _tokenizer_facts(run.stages)
    for training in run.generators[:1]:
        generator = {"type": "?", **part(training.settings, "generator")}
        facts["Generator"] = _component(generator, ("size",), _GENERATOR_SIZES)
        facts["Training of the generator"] = f"{training.progress} steps of {training.batch} latents"
    if not run.trainings:
        results = [found.result for found in run.results]
        facts["Evaluated"] = ", ".join(dict.fromkeys(result.subject for result in results))
        facts["Results"] = ", ".join(dict.fromkeys(result.kind.replace("_", " ") for result in results))
        for _, settings, _ in [*run.samples, *run.sweeps][:1]:
            facts["Generator"] = str(part(settings, "generator").get("source") or "")
            facts["Sampling"] = sections.describe_sampling(settings)
            facts["Image size"] = write_value(settings.get("image_size") or "").replace(", ", f" {TIMES} ")
    facts["Trained"] = _when(run.trainings)
    processes, device = run.origin.get("processes", 1), str(run.origin.get("device") or "")
    several = device and isinstance(processes, int) and processes > 1
    facts["Machine"] = f"{processes} {TIMES} {device}" if several else device
    facts["Versions"] = _versions(run)
    return {Cell(label): text for label, text in facts.items() if text}


def _tokenizer_facts(stages: Sequence[Training]) -> dict[str, str]:
    tokenizer, seen = part(stages[-1].settings, "tokenizer"), sum(stage.step * stage.batch for stage in stages)
    factor, dim = tokenizer.get("downsample_factor", "?"), tokenizer.get("latent_dim", "?")
    return {
        "Encoder": _component(part(tokenizer, "encoder")),
        "Latents": f"f{factor}d{dim}: {factor} {TIMES} {factor} pixels to {dim} channels" if tokenizer else "",
        "Decoder": _component(part(tokenizer, "decoder")),
        "Stages": ", ".join(f"{stage.name} {stage.progress}" for stage in stages) + " steps",
        "Images seen": f"{seen:,} in batches of {stages[-1].batch}" if seen else "",
    }


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
        with suppress(OSError), open(path, errors="replace", opener=regular) as file:
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
        for stage in [stage for stage in run.stages if stage.metrics][-1:]:
            found |= _first(stage.metrics, _KEY["reconstruction"], f"held-out, after {stage.name}")
    for training in run.generators[:1]:
        found[Cell("Generator steps", "training")] = training.progress
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
            is_of_model = want.endswith("-") and short.lower().startswith(want)
            if (
                plain(short) == want
                or is_of_model
                or (is_distance and not {"fid", "rfid", "gfid"} & {*chosen.values()})
            ):
                chosen[name] = want
                break
    shown = [(metric(name), metrics[name]) for name in [*chosen][:4]]
    return {Cell(m.label, source, hint=m.meaning, arrow=m.better): m.write(value) for m, value in shown}
