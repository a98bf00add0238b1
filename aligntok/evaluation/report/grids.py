"""Sections of pictures: reconstructions and samples while training, and sets of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aligntok.evaluation.report.blocks import (
    Block,
    Gallery,
    Note,
    Section,
    settings_table,
    side_by_side,
)
from aligntok.evaluation.report.found import Run, Samples, Training
from aligntok.evaluation.report.names import write_value
from aligntok.evaluation.report.pictures import Picture, contact_sheet, embed, spread

FILMSTRIP = 8  # earlier pictures that are shown
THUMBNAIL = 520  # pixels, the longer side of those that are reduced
THUMBNAIL_BYTES = 250_000
SHEET = 36  # samples of a set that has no grid of its own


def reconstruction_section(runs: Sequence[Run]) -> Section | None:
    """Return the newest reconstructions of every run, and earlier ones as a strip."""
    by_run = {run.name: _drawn(run.stages, "input, reconstruction, difference") for run in runs}
    blocks = side_by_side(by_run)
    lead = (
        "Fixed held-out images: input, reconstruction, and twice the absolute difference (black where there is none)."
    )
    return Section("reconstructions", "Reconstructions", blocks, lead) if blocks else None


def samples_section(runs: Sequence[Run]) -> Section | None:
    """Return the samples drawn while generators trained, the sets of samples, and the sweeps' pictures."""
    by_run: dict[str, list[Block]] = {}
    for run in runs:
        blocks = _drawn(run.generators, "samples")
        for samples in run.samples:
            blocks += _sample_set(samples)
        for sweep in run.sweeps:
            blocks += _from_folder(sweep.folder, {"sweep_grid.png": "the first samples of every combination"})
        by_run[run.name] = blocks
    found = side_by_side(by_run)
    return Section("samples", "Samples", found) if found else None


def _drawn(trainings: Sequence[Training], what: str) -> list[Block]:
    """Return the newest picture of some trainings, one after another, and a strip of earlier ones."""
    steps = [(t, step, path) for t in trainings for step, path in sorted(t.pictures.items())]
    blocks: list[Block] = []
    newest, earlier = steps[-1:], steps[:-1]
    for training, step, path in newest:
        words = _words(training, step, what)
        blocks += _gallery([(path, words)], "")
    shown = [(path, _words(training, step, what)) for training, step, path in spread(earlier, FILMSTRIP)]
    if shown:
        blocks += _gallery(shown, "Earlier", strip=True)
    return blocks


def _words(training: Training, step: int, what: str) -> str:
    return f"{training.name.replace('_', ' ')}, step {step:,}: {what}"


def _gallery(shown: Sequence[tuple[Path, str]], title: str, strip: bool = False) -> list[Block]:
    pictures: list[Picture] = []
    missing: list[Block] = []
    limits: dict[str, Any] = dict(side=THUMBNAIL, limit=THUMBNAIL_BYTES) if strip else {}
    for path, words in shown:
        try:
            pictures.append(embed(path, words, words.partition(": ")[0] if strip else words, **limits))
        except (OSError, ValueError) as error:
            missing.append(Note(f"not found: {path} ({type(error).__name__}), {words}", missing=True))
    return [*([Gallery(pictures, title, strip)] if pictures else []), *missing]


def _sample_set(samples: Samples) -> list[Block]:
    blocks: list[Block] = []
    words = describe_sampling(samples.settings)
    named = {
        "grid.png": f"{samples.folder.name}: {words}",
        "beside_real.png": "samples beside real images of their class",
    }
    there = {name: caption for name, caption in named.items() if (samples.folder / name).is_file()}
    blocks += _from_folder(samples.folder, there)
    if "grid.png" not in there:
        blocks += _sheet(samples.folder, named["grid.png"])
    short = {name: value for name, value in samples.settings.items() if name != "labels"}
    return [*blocks, settings_table(short, f"How the samples in {samples.folder.name} were drawn")]


def _from_folder(folder: Path, captions: Mapping[str, str]) -> list[Block]:
    return _gallery([(folder / name, caption) for name, caption in captions.items()], "") if captions else []


def _sheet(folder: Path, caption: str) -> list[Block]:
    paths = sorted((folder / "images").glob("*.png"))[:SHEET]
    if not paths:
        return [Note(f"not found: {folder / 'images'}, the samples themselves", missing=True)]
    try:
        return [Gallery([contact_sheet(paths, caption, f"{caption}; the first {len(paths)}")])]
    except (OSError, ValueError) as error:
        return [
            Note(f"not found: a picture among the first of {folder / 'images'} ({type(error).__name__})", missing=True)
        ]


def describe_sampling(settings: Mapping[str, Any]) -> str:
    """Return how samples were drawn, in a few words."""
    sampling = settings.get("sampling")
    how = sampling if isinstance(sampling, Mapping) else {}
    scale = how.get("cfg_scale")
    words = [
        f"{write_value(settings['num'])} samples" if "num" in settings else "",
        f"{write_value(how['steps'])} steps of {how.get('sampler', 'the sampler')}" if "steps" in how else "",
        "" if scale is None else "no guidance" if scale == 1 else f"guidance {write_value(scale)}",
        f"seed {settings['seed']}" if "seed" in settings else "",
        "" if settings.get("finished", True) else "not finished",
    ]
    return ", ".join(filter(None, words)) or "how they were drawn is not noted"
