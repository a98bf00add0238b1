"""What a comparison takes, said before it begins: images that each training sees, hours here, what is to be shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aligntok.data.transforms import parse_image_size
from aligntok.distributed import alone, is_first
from aligntok.errors import DataError
from aligntok.evaluation.comparison.criterion import statement
from aligntok.evaluation.comparison.plan import Comparison
from aligntok.evaluation.comparison.records import made_with
from aligntok.evaluation.comparison.running import NOTE
from aligntok.evaluation.cost import measure_cost, names_of
from aligntok.evaluation.cost_settings import CostRequest
from aligntok.evaluation.results import read_result
from aligntok.io import console
from aligntok.io.files import read_json, write_json

TIMED_STEPS = 3  # of each training, for the estimate
LONGEST_STEP = 60.0  # seconds


def state_criterion(comparison: Comparison) -> None:
    """Print the criterion, where there is one."""
    criterion = comparison.settings.criterion
    if criterion is not None and is_first():
        console.print_line(f"Criterion: {statement(comparison.settings, criterion)}.")


def state_budget(comparison: Comparison) -> None:
    """Print what each training sees, and how long it takes here; the estimate is kept, as long as it is of the same."""
    if not is_first():
        return
    hours, seeds = estimate_hours(comparison), comparison.settings.seeds
    arms, generator = [arm for arm in comparison.arms if arm.seed == seeds[0]], comparison.generator
    trainings = [(arm.name, arm.config, comparison.tokenizer_budget(arm)) for arm in arms]
    trainings += [] if generator is None else [("generator, on each", generator, comparison.generator_budget())]
    rows = []
    for words, config, budget in trainings:
        time = hours[config]
        steps = " + ".join(f"{count:,}" for count in budget.steps)
        rows.append([words, steps, f"{budget.images:,}", "not timed" if time is None else f"{time:.2f}"])
    title = f"{comparison.source.stem}: every training, for each of {len(seeds)} seeds"
    console.print_table(
        title, ["training", "steps", "images seen", "hours here"], rows, ["training"], title_at="center"
    )
    grid = state_grid(comparison, hours)
    if None not in hours.values():
        on_each = 0.0 if generator is None else hours[generator] or 0.0
        each = sum((hours[arm.config] or 0) + on_each for arm in arms)
        console.print_line(f"Training takes about {len(seeds) * each + grid:.1f} hours here, all together.")
    console.print_line(not_counted(comparison))


def state_grid(comparison: Comparison, hours: Mapping[Path, float | None]) -> float:
    """Print what the grid trains, and return how many hours that takes here, each step as long as in the main ones."""
    arms = comparison.grid_arms()
    if not arms or comparison.generator is None:
        return 0.0
    shorter, whole = comparison.generator_budget(arms[0]), comparison.generator_budget()
    took = 0.0
    for arm in arms:
        main = next(each for each in comparison.arms if each.name == arm.name)
        parts = comparison.tokenizer_budget(arm).images / comparison.tokenizer_budget(main).images
        took += parts * (hours[arm.config] or 0)
        took += shorter.images / whole.images * (hours[comparison.generator] or 0)
    images = comparison.tokenizer_budget(arms[0]).images
    told = f"Grid: {len(arms)} trainings before, of {images:,} images a tokenizer and {shorter.images:,} a generator"
    console.print_line(f"{told}, about {took:.1f} hours here.")
    return took


def not_counted(comparison: Comparison) -> str:
    """Return what the estimate leaves out, in words: all that is measured."""
    if comparison.generator is None:
        return "Evaluations come on top of it: for each tokenizer and seed its reconstructions, probe and latents."
    samples, steps = comparison.settings.samples, comparison.generator_budget().steps[0]
    marks, variants = 1 if samples.every is None else -(-steps // samples.every), len(samples.variants) or 1
    fewer = variants if samples.between is None else len(samples.between.variants or ()) or variants
    drawn = f"{variants + (marks - 1) * fewer} x {samples.num_samples:,} samples drawn and measured"
    told = f"Evaluations come on top of it: for each tokenizer and seed {drawn}, its reconstructions, probe and latents"
    return (
        f"{told}; for each set of the grid {samples.num_samples:,} samples." if comparison.grid_arms() else f"{told}."
    )


def estimate_hours(comparison: Comparison) -> dict[Path, float | None]:
    """Return hours by config on this machine, from a few timed steps of each; None for what was too slow to time.

    They are timed again when what determines an arm's numbers has changed since.
    """
    folder = comparison.work_dir / "budget"
    note, first = folder / NOTE, [arm for arm in comparison.arms if arm.seed == comparison.settings.seeds[0]]
    made = {arm.name: made_with(comparison, arm).hash for arm in first}
    own = [] if comparison.generator is None else [comparison.generator]
    configs = list(dict.fromkeys([*(arm.config for arm in first), *own]))
    timed = read_json(note, DataError, f"remove {folder} to time the trainings anew") if note.is_file() else None
    if timed != made or not (folder / "cost.json").is_file():
        request = CostRequest(
            configs=tuple(configs),
            repeats=TIMED_STEPS,
            max_seconds=LONGEST_STEP,
            resolutions=(max(parse_image_size(comparison.settings.image_size)),),
            inference=False,
            out=folder,
            cfg_options={"data_root": None, "work_dir": str(folder)},
        )
        with alone():  # the others go on, and wait
            measure_cost(request)
        write_json(note, made)
    rows = read_result(folder / "cost.json").tables["Training steps"]
    found: dict[Path, float | None] = {}
    for name, config in zip(names_of(configs), configs, strict=True):
        hours = [row["device_hours"] for row in rows if row["config"] == name]
        found[config] = None if None in hours or not hours else float(sum(hours))
    return found
