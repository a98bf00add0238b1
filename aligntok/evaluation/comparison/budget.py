"""What a comparison takes, said before it begins: images that each training sees, hours here, what is to be shown."""

from __future__ import annotations

from aligntok.data.transforms import parse_image_size
from aligntok.distributed import alone, is_first
from aligntok.evaluation.comparison.criterion import statement
from aligntok.evaluation.comparison.plan import Comparison
from aligntok.evaluation.cost import measure_cost
from aligntok.evaluation.cost_settings import CostRequest
from aligntok.evaluation.results import read_result
from aligntok.io import console

TIMED_STEPS = 3  # of each training, for the estimate
LONGEST_STEP = 60.0  # seconds


def state_criterion(comparison: Comparison) -> None:
    """Print the criterion, where there is one."""
    criterion = comparison.settings.criterion
    if criterion is not None and is_first():
        console.print_line(f"Criterion: {statement(comparison.settings, criterion)}.")


def state_budget(comparison: Comparison) -> None:
    """Print what each training sees, and how long it takes here; the estimate is made once and kept."""
    if not is_first():
        return
    hours, seeds = estimate_hours(comparison), comparison.settings.seeds
    budgets = {arm.name: comparison.tokenizer_budget(arm) for arm in comparison.arms if arm.seed == seeds[0]}
    rows = []
    generator = {} if comparison.generator is None else {"generator": comparison.generator_budget()}
    for name, budget in {**budgets, **generator}.items():
        words, time = name if name in budgets else "generator, on each", hours[name]
        steps = " + ".join(f"{count:,}" for count in budget.steps)
        rows.append([words, steps, f"{budget.images:,}", "not timed" if time is None else f"{time:.2f}"])
    title = f"{comparison.source.stem}: every training, for each of {len(seeds)} seeds"
    console.print_table(
        title, ["training", "steps", "images seen", "hours here"], rows, ["training"], title_at="center"
    )
    grid = state_grid(comparison, hours)
    if None not in hours.values():
        each = sum(hours[name] or 0 for name in budgets) + len(budgets) * (hours.get("generator") or 0)
        console.print_line(f"Training takes about {len(seeds) * each + grid:.1f} hours here, all together.")
    console.print_line(not_counted(comparison))


def state_grid(comparison: Comparison, hours: dict[str, float | None]) -> float:
    """Print what the grid trains, and return how many hours that takes here, each step as long as in the main ones."""
    arms = comparison.grid_arms()
    if not arms:
        return 0.0
    shorter, whole = comparison.generator_budget(arms[0]), comparison.generator_budget()
    took = 0.0
    for arm in arms:
        main = next(each for each in comparison.arms if each.name == arm.name)
        parts = comparison.tokenizer_budget(arm).images / comparison.tokenizer_budget(main).images
        took += parts * (hours[arm.name] or 0) + shorter.images / whole.images * (hours["generator"] or 0)
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


def estimate_hours(comparison: Comparison) -> dict[str, float | None]:
    """Return hours by training on this machine, from a few timed steps of each; None for what was too slow to time."""
    folder = comparison.work_dir / "budget"
    configs = {arm.name: arm.config for arm in comparison.arms}
    if comparison.generator is not None:
        configs["generator"] = comparison.generator
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
        with alone():  # the others go on, and wait
            measure_cost(request)
    rows = read_result(folder / "cost.json").tables["Training steps"]
    found: dict[str, float | None] = {}
    for name, config in configs.items():
        own = [row["device_hours"] for row in rows if row["config"] == config.stem]
        found[name] = None if None in own or not own else float(sum(own))
    return found
