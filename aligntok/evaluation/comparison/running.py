"""The parts of a comparison that take time: references, real images, and an arm with all that is measured of it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from aligntok.caching import cache_latents
from aligntok.caching.settings import CacheRequest
from aligntok.data.listing import must_not_change
from aligntok.data.sources import open_source
from aligntok.distributed import barrier, is_first
from aligntok.errors import ConfigError, DataError
from aligntok.evaluation.comparison.criterion import RECONSTRUCTIONS, names_on
from aligntok.evaluation.comparison.plan import Arm, Comparison
from aligntok.evaluation.comparison.records import Made, made_with, references_made_with
from aligntok.evaluation.images import EvaluationImages, frozen
from aligntok.evaluation.latent_analysis import analyze_latents
from aligntok.evaluation.linear_probe import linear_probe
from aligntok.evaluation.metrics.features import build_extractor
from aligntok.evaluation.metrics.image_quality import to_pixels
from aligntok.evaluation.metrics.online import GenerationMetric
from aligntok.evaluation.reconstruction import evaluate_reconstruction
from aligntok.evaluation.references import make_reference
from aligntok.evaluation.results import Result
from aligntok.evaluation.settings import (
    ImageSettings,
    LatentAnalysis,
    ProbeSettings,
    ReconstructionSettings,
    ReferenceSettings,
)
from aligntok.io import console
from aligntok.io.files import read_json, write_json
from aligntok.io.folders import told_apart
from aligntok.loading import load_tokenizer
from aligntok.training.run import run
from aligntok.training.run_info import run_info_of

REAL_IMAGES = "real_images"  # the folder of what they themselves are measured to be
EVALUATION, GENERATOR = "evaluation", "generator"  # folders of an arm
NOTE, SECONDS = "made_with.json", "seconds.json"
#: Settings, or beginnings of them, that have to do with a tokenizer's measures alone, with its generator, with both.
_OF_EVALUATION = tuple(f"measuring.{name}" for name in ("probe", "perceptual", "reference_encoder", "num_val"))
_OF_GENERATOR = ("generator", "metric", *(f"measuring.samples.{name}" for name in ("variants", "every", "between")))
_OF_LATENTS = tuple(f"measuring.{name}" for name in ("precision", "image_size", "train_split"))
_MEASURED = ("measuring", "generator", "metric")
_ANEW = "remove it: it is written anew"


def make_references(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Return the configs of the metrics that samples are measured by, their references made of training images.

    By extractor's title. Raises DataError when those images changed since the first was made, ConfigError when others
    are asked for.
    """
    metrics = {}
    images = comparison.images("train", num_images=comparison.settings.num_reference)
    folder = comparison.work_dir / "references"
    if is_first():
        must_not_change(folder, open_source(images["data"], images["split"]))
    begin(folder, references_made_with(comparison), lambda _: sorted(folder.glob("*.safetensors")))
    for extractor in comparison.settings.extractors:
        built = build_extractor(extractor)
        path = folder / f"{built.title}.safetensors"
        if missing(path):
            say(f"Reference on {built.title}: {path}")
            batch_size = comparison.settings.samples.batch_size
            make_reference(ReferenceSettings(out=path, extractor=extractor, batch_size=batch_size, **images))
        metrics[built.title] = {"type": "generation", "reference": str(path), "extractor": extractor}
    return metrics


def run_arm(comparison: Comparison, arm: Arm, references: Mapping[str, dict[str, Any]]) -> None:
    """Train an arm's tokenizer, measure it, encode the training images, train the generator on them.

    Of an arm of the grid only what the grid needs. Raises ConfigError for a folder with what other settings made.
    """
    begin(arm.folder, made_with(comparison, arm), partial(spoiled, arm))
    with timed(arm, "tokenizer"):
        run(comparison.tokenizer_config(arm), run_info=run_info_of(arm.config, {**arm.options, "seed": arm.seed}))
    with timed(arm, EVALUATION):
        if arm.number is None:
            measure(comparison, arm, references)
        else:
            reconstruct(comparison, arm, arm.folder / EVALUATION / "reconstruction", None)
    if comparison.generator is None:
        return
    with timed(arm, "latents"):
        images = comparison.images("train", precision=comparison.settings.precision)
        cache_latents(CacheRequest(tokenizer=arm.tokenizer, out=arm.folder / "latents", **images))
    with timed(arm, GENERATOR):
        generator = comparison.generator_config(arm, judges(comparison, arm, references))
        run(generator, run_info=run_info_of(comparison.generator, {"seed": arm.seed}))


def judges(comparison: Comparison, arm: Arm, references: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the metrics of an arm's samples: all, or in the grid the one that it is judged by."""
    grid = comparison.settings.grid
    if arm.number is None or grid is None:
        return [*references.values()]
    return [own for title, own in references.items() if grid.metric.rpartition("/")[2] in names_on(title)]


def measure(comparison: Comparison, arm: Arm, references: Mapping[str, dict[str, Any]]) -> None:
    """Measure an arm's tokenizer, as far as that is not done: reconstructions, probe, latents."""
    settings, folder = comparison.settings, arm.folder / EVALUATION
    names = told_apart([re.sub(r"\W", "_", title) for title in references])
    for name, metric in zip(names, references.values(), strict=True):
        reconstruct(comparison, arm, folder / f"reconstruction_{name}", metric["extractor"])
    if missing(folder / "linear_probe" / "linear_probe.json"):
        own = ("image_size", "train_split", "val_split", "num_val", "workers", "precision")
        more = {**asdict(settings.probe), **{key: getattr(settings, key) for key in own}}
        linear_probe(
            ProbeSettings(tokenizer=arm.tokenizer, data=comparison.data_root, out=folder / "linear_probe", **more)
        )
    if missing(folder / "latent_space" / "latent_space.json"):
        analysis = LatentAnalysis(
            tokenizers=(str(arm.tokenizer),),
            out=folder / "latent_space",
            encoder=settings.reference_encoder,
            names=(arm.name,),
            precision=settings.precision,
            **comparison.images("val", num_images=settings.num_val),
        )
        analyze_latents(analysis)
    if missing(folder / "against_references" / "generation.json"):
        made = frozen(load_tokenizer(arm.tokenizer), settings.precision)
        measure_real_images(comparison, [*references.values()], folder / "against_references", made)


def reconstruct(comparison: Comparison, arm: Arm, folder: Path, extractor: Any) -> None:
    """Measure an arm's reconstructions of held-out images; perceptual distances once, with the first extractor."""
    settings = comparison.settings
    if missing(folder / "reconstruction.json"):
        perceptual = settings.perceptual if extractor == settings.extractors[0] else ()
        how: dict[str, Any] = dict(out=folder, perceptual=perceptual, extractor=extractor, precision=settings.precision)
        held_out = comparison.images("val", num_images=settings.num_val)
        evaluate_reconstruction(ReconstructionSettings(tokenizer=arm.tokenizer, **how, **held_out))


def measure_real_images(
    comparison: Comparison,
    references: Sequence[Mapping[str, Any]],
    folder: Path,
    made_of: Callable[[Tensor], Tensor] = lambda images: images,
) -> None:
    """Write how far held-out images, or what is `made_of` them, are from the references.

    No generator can be expected nearer than the images themselves, none on a tokenizer than its reconstructions.
    Raises DataError for fewer images than samples where a criterion compares the two: a small set's bias is larger.
    """
    samples = comparison.settings.samples
    wanted = comparison.images("val", num_images=samples.num_samples, batch_size=samples.batch_size)
    images = EvaluationImages(ImageSettings(**wanted))
    if comparison.settings.criterion is not None and len(images) < samples.num_samples:
        raise DataError(
            f"{images.source.where} has {len(images)} images, and {samples.num_samples} samples are drawn, while the "
            f"criterion compares distances of as many: set samples.num_samples={len(images)}, or hold out more"
        )
    metrics = [GenerationMetric(each["reference"], each["extractor"], (RECONSTRUCTIONS,)) for each in references]
    for batch in images:
        pixels = to_pixels(made_of(batch.images))
        for metric in metrics:
            metric.add(pixels, batch.indices.tolist())
    found = {name: value for metric in metrics for name, value in metric.evaluate(len(images)).items()}
    if is_first():
        settings = {"split": comparison.settings.val_split, "images": len(images) - images.skipped}
        Result("generation", RECONSTRUCTIONS, found, settings).write(folder)
    barrier()


def spoiled(arm: Arm, changes: Iterable[str]) -> list[Path]:
    """Return what settings, by name, have to do with in an arm's folder: all of it, or what follows the tokenizer."""
    evaluation, generator = arm.folder / EVALUATION, arm.folder / GENERATOR
    names = [*changes]
    for own, paths in (
        (_OF_EVALUATION, [evaluation]),
        (_OF_GENERATOR, [generator]),
        (_MEASURED, [evaluation, generator]),
    ):
        if all(name.startswith(own) for name in names):
            encoded = any(name.startswith(_OF_LATENTS) for name in names)
            return [*paths, arm.folder / "latents"] if encoded else paths
    return [arm.folder]


def begin(folder: Path, made: Made, spoils: Callable[[Iterable[str]], list[Path]]) -> None:
    """Note with which settings things are made in a folder; refuse one in which others have made some.

    spoils: what names of settings that differ have made otherwise. Raises ConfigError.
    """
    path = folder / NOTE
    if not path.is_file() and (stale := [each for each in spoils(made.settings) if each.exists()]):
        raise ConfigError(
            f"{folder} has no {NOTE}, so nobody can tell with which settings {', '.join(map(str, stale))} was made; "
            "remove it to make it anew"
        )
    if path.is_file():  # in every process: all of them end
        before = read_json(path, DataError, _ANEW, lambda told: Made(**told))
        changes = before.differences(made)
        if before.precision != made.precision:
            changes["the precision that 'auto' means"] = before.precision, made.precision
        if changes and (stale := [each for each in spoils(changes) if each.exists()]):
            shown = ", ".join(map(str, stale))
            raise ConfigError(
                f"{folder} was made with other settings ({in_words(changes)}); set them back, or remove {shown} to "
                "make it anew"
            )
    barrier()
    if is_first():
        write_json(path, asdict(made))
    barrier()


def in_words(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """Return what differs between two arms' settings."""
    return "; ".join(key if old == new else f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items())


@contextmanager
def timed(arm: Arm, part: str) -> Iterator[None]:
    """Add the seconds that something takes to what is kept of an arm, however it ends, but for a kill."""
    begun = time.monotonic()
    try:
        yield
    finally:
        if is_first():
            path = arm.folder / SECONDS
            before = read_seconds(arm)
            write_json(path, {**before, part: round(before.get(part, 0.0) + time.monotonic() - begun, 1)})


def read_seconds(arm: Arm) -> dict[str, float]:
    """Return the seconds that each part of an arm took, over all starts."""
    path = arm.folder / SECONDS
    if not path.is_file():
        return {}
    return read_json(path, DataError, _ANEW, lambda told: {part: float(took) for part, took in told.items()})


def missing(path: Path) -> bool:
    """Tell, alike in every process, whether a file is still to be made; collective."""
    barrier()  # nobody has begun to make it
    there = path.is_file()
    barrier()
    return not there


def say(text: str) -> None:
    """Tell in the first process."""
    if is_first():
        console.say(text)
