"""Comparisons: several tokenizers at one budget, a generator on each, and what all of them are measured to be.

What the distances of samples are read against are those of real images themselves, and of their reconstructions. All
are measured against the same reference and on as many images as there are samples, so that a finite set's bias is in
each of them: what a generator adds is its distance less that of its tokenizer's reconstructions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from aligntok.caching import cache_latents
from aligntok.caching.settings import CacheRequest
from aligntok.data.listing import must_not_change
from aligntok.data.sources import open_source
from aligntok.data.transforms import parse_image_size
from aligntok.distributed import barrier, is_first, start_processes
from aligntok.errors import ConfigError, unknown
from aligntok.evaluation.comparison.plan import Arm, Comparison, read_comparison
from aligntok.evaluation.comparison.summary import REAL_IMAGES, RECONSTRUCTIONS, summarise
from aligntok.evaluation.cost import measure_cost
from aligntok.evaluation.cost_settings import CostRequest
from aligntok.evaluation.images import EvaluationImages, frozen
from aligntok.evaluation.latent_analysis import analyze_latents
from aligntok.evaluation.linear_probe import linear_probe
from aligntok.evaluation.metrics.features import build_extractor
from aligntok.evaluation.metrics.image_quality import to_pixels
from aligntok.evaluation.metrics.online import GenerationMetric
from aligntok.evaluation.reconstruction import evaluate_reconstruction
from aligntok.evaluation.references import make_reference
from aligntok.evaluation.results import Result, check_out, read_result
from aligntok.evaluation.settings import (
    ComparisonRequest,
    ImageSettings,
    LatentAnalysis,
    ProbeSettings,
    ReconstructionSettings,
    ReferenceSettings,
)
from aligntok.io import console
from aligntok.loading import load_tokenizer
from aligntok.training.run import run
from aligntok.training.run_info import run_info_of

__all__ = ["compare", "read_comparison"]

TIMED_STEPS = 3  # of each training, for the estimate
LONGEST_STEP = 60.0  # seconds


def compare(asked: ComparisonRequest) -> Result | None:
    """Train and measure everything that a comparison's config names; return the summary.

    Says first how many images each training sees and, from a few timed steps of each, how long all of it takes on this
    machine; a dry run stops there. Started again, it goes on where it stopped: trainings from their checkpoints,
    evaluations that have a result are kept. To do one anew, remove its folder. Collective under torchrun. With `only`,
    names of the tokenizers to train and measure, there is no summary, so that several machines or processes share the
    work.

    Writes into the comparison's work folder a folder an arm and seed, the ``references/``, ``comparison.json`` with the
    tables, ``convergence.png``, ``samples.png`` and ``report.html``. Raises what training and evaluation raise,
    ConfigError for budgets that differ and for names in `only` that the config does not have.
    """
    only = asked.only
    own = {} if asked.work_dir is None else {"work_dir": str(asked.work_dir)}
    comparison = read_comparison(Path(asked.config), {**asked.cfg_options, **own})
    arms = chosen(comparison, only)
    start_processes()
    check_out(comparison.work_dir)
    state_budget(comparison)
    if asked.dry_run:
        return None
    references = make_references(comparison)
    images = comparison.work_dir / REAL_IMAGES
    if missing(images / "generation.json"):
        measure_real_images(comparison, references, images)
    for arm in arms:
        say(f"Arm '{arm.name}', seed {arm.seed}: {arm.folder}")
        run_arm(comparison, arm, references)
    if only is not None:
        say(f"Finished: {', '.join(only)}. When all are, the same command without --only makes the summary.")
        return None
    compare_latents(comparison)
    result = summarise(comparison) if is_first() else None
    barrier()
    return result


def chosen(comparison: Comparison, only: Sequence[str] | None) -> list[Arm]:
    """Return the arms of the tokenizers that are asked for; raise ConfigError for names that there are not."""
    names = list(dict.fromkeys(arm.name for arm in comparison.arms))
    for name in only or ():
        if name not in names:
            raise ConfigError(f"{comparison.source}: {unknown('tokenizer', name, names)}")
    return [arm for arm in comparison.arms if only is None or arm.name in only]


def state_budget(comparison: Comparison) -> None:
    """Print what each training sees, and how long it takes here; the estimate is made once and kept."""
    if not is_first():
        return
    hours, seeds = estimate_hours(comparison), comparison.settings.seeds
    budgets = {arm.name: comparison.tokenizer_budget(arm) for arm in comparison.arms if arm.seed == seeds[0]}
    rows = []
    for name, budget in {**budgets, "generator": comparison.generator_budget()}.items():
        words, time = name if name in budgets else "generator, on each", hours[name]
        steps = " + ".join(f"{count:,}" for count in budget.steps)
        rows.append([words, steps, f"{budget.images:,}", "not timed" if time is None else f"{time:.2f}"])
    title = f"{comparison.source.stem}: every training, for each of {len(seeds)} seeds"
    console.print_table(
        title, ["training", "steps", "images seen", "hours here"], rows, ["training"], title_at="center"
    )
    if None not in hours.values():
        each = sum(hours[name] or 0 for name in budgets) + len(budgets) * (hours["generator"] or 0)
        console.print_line(f"Training takes about {len(seeds) * each:.1f} hours here; evaluations come on top of it.")


def estimate_hours(comparison: Comparison) -> dict[str, float | None]:
    """Return hours by training on this machine, from a few timed steps of each; None for what was too slow to time."""
    folder = comparison.work_dir / "budget"
    configs = {arm.name: arm.config for arm in comparison.arms} | {"generator": comparison.generator}
    if not (folder / "cost.json").is_file():
        request = CostRequest(
            configs=tuple(dict.fromkeys(configs.values())),
            repeats=TIMED_STEPS,
            max_seconds=LONGEST_STEP,
            resolutions=(max(parse_image_size(comparison.settings.image_size)),),
            inference=False,
            out=folder,
            cfg_options={"data_root": None, "work_dir": str(folder)},
        )
        measure_cost(request)
    rows = read_result(folder / "cost.json").tables["Training steps"]
    found: dict[str, float | None] = {}
    for name, config in configs.items():
        own = [row["device_hours"] for row in rows if row["config"] == config.stem]
        found[name] = None if None in own or not own else float(sum(own))
    return found


def make_references(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the configs of the metrics that samples are measured by, their references made of training images.

    Raises DataError when those changed since the first was made.
    """
    metrics = []
    images = comparison.images("train", num_images=comparison.settings.num_reference)
    if is_first():
        must_not_change(comparison.work_dir / "references", open_source(images["data"], images["split"]))
    for extractor in comparison.settings.extractors:
        built = build_extractor(extractor)
        path = comparison.work_dir / "references" / f"{built.title}.safetensors"
        if missing(path):
            say(f"Reference on {built.title}: {path}")
            batch_size = comparison.settings.samples.batch_size
            make_reference(ReferenceSettings(out=path, extractor=extractor, batch_size=batch_size, **images))
        metrics.append({"type": "generation", "reference": str(path), "extractor": extractor})
    return metrics


def run_arm(comparison: Comparison, arm: Arm, references: list[dict[str, Any]]) -> None:
    """Train an arm's tokenizer, measure it, encode the training images, train the generator on them."""
    run(comparison.tokenizer_config(arm), run_info=run_info_of(arm.config, {"seed": arm.seed}))
    tokenizer, evaluation = arm.tokenizer, arm.folder / "evaluation"
    held_out = comparison.images("val", num_images=comparison.settings.num_val)
    for extractor in comparison.settings.extractors:
        name = extractor["type"] if isinstance(extractor, Mapping) else str(extractor)
        folder = evaluation / ("reconstruction_" + re.sub(r"\W", "_", name))
        if missing(folder / "reconstruction.json"):
            perceptual = comparison.settings.perceptual if extractor == comparison.settings.extractors[0] else ()
            how = dict(out=folder, perceptual=perceptual, extractor=extractor, **held_out)
            evaluate_reconstruction(ReconstructionSettings(tokenizer=tokenizer, **how))
    if missing(evaluation / "linear_probe" / "linear_probe.json"):
        own = ("image_size", "train_split", "val_split", "num_val", "workers")
        more = {**asdict(comparison.settings.probe), **{key: getattr(comparison.settings, key) for key in own}}
        linear_probe(
            ProbeSettings(tokenizer=tokenizer, data=comparison.data_root, out=evaluation / "linear_probe", **more)
        )
    if missing(evaluation / "against_references" / "generation.json"):
        reconstruct = frozen(load_tokenizer(tokenizer), "fp32")
        measure_real_images(comparison, references, evaluation / "against_references", reconstruct)
    cache_latents(CacheRequest(tokenizer=tokenizer, out=arm.folder / "latents", **comparison.images("train")))
    generator = comparison.generator_config(arm, references)
    run(generator, run_info=run_info_of(comparison.generator, {"seed": arm.seed}))


def measure_real_images(
    comparison: Comparison,
    references: Sequence[Mapping[str, Any]],
    folder: Path,
    made_of: Callable[[Tensor], Tensor] = lambda images: images,
) -> None:
    """Write how far held-out images, or what is `made_of` them, are from the references.

    No generator can be expected nearer than the images themselves, none on a tokenizer than its reconstructions.
    """
    samples = comparison.settings.samples
    wanted = comparison.images("val", num_images=samples.num_samples, batch_size=samples.batch_size)
    images = EvaluationImages(ImageSettings(**wanted))
    metrics = [
        GenerationMetric(each["reference"], each["extractor"], (RECONSTRUCTIONS,), features=False)
        for each in references
    ]
    for batch in images:
        pixels = to_pixels(made_of(batch.images))
        for metric in metrics:
            metric.add(pixels, batch.indices.tolist())
    found = {name: value for metric in metrics for name, value in metric.evaluate(len(images)).items()}
    if is_first():
        settings = {"split": comparison.settings.val_split, "images": len(images) - images.skipped}
        Result("generation", RECONSTRUCTIONS, found, settings).write(folder)
    barrier()


def compare_latents(comparison: Comparison) -> None:
    """Measure and show the latent spaces of all arms of each seed beside one another."""
    for seed in comparison.settings.seeds:
        folder = comparison.work_dir / "latent_space" / f"seed_{seed}"
        if missing(folder / "latent_space.json"):
            arms = [arm for arm in comparison.arms if arm.seed == seed]
            analysis = LatentAnalysis(
                tokenizers=tuple(str(arm.tokenizer) for arm in arms),
                out=folder,
                encoder=comparison.settings.reference_encoder,
                names=tuple(arm.name for arm in arms),
                **comparison.images("val", num_images=comparison.settings.num_val),
            )
            analyze_latents(analysis)


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
