"""Comparisons: several tokenizers at one budget, a generator on each, and what all of them are measured to be.

What the distances of samples are read against are those of real images themselves, and of their reconstructions. All
are measured against the same reference and on as many images as there are samples, so that a finite set's bias is in
each of them: what a generator adds is its distance less that of its tokenizer's reconstructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from aligntok.distributed import barrier, is_first, start_processes
from aligntok.errors import ConfigError, unknown
from aligntok.evaluation.comparison.budget import state_budget, state_criterion
from aligntok.evaluation.comparison.grid import choose
from aligntok.evaluation.comparison.kept import find, finish, keep
from aligntok.evaluation.comparison.plan import Arm, Comparison, check_budgets, read_comparison
from aligntok.evaluation.comparison.records import Record, made_with
from aligntok.evaluation.comparison.running import (
    REAL_IMAGES,
    begin,
    make_references,
    measure_real_images,
    missing,
    say,
)
from aligntok.evaluation.comparison.summary import summarise
from aligntok.evaluation.results import Result, check_out
from aligntok.evaluation.settings import ComparisonRequest

__all__ = ["compare", "read_comparison"]


def compare(asked: ComparisonRequest) -> Result | None:
    """Train and measure everything that a comparison's config names; return the summary.

    Says first what is to be shown, how many images each training sees and, from a few timed steps of each, how long all
    of it takes on this machine; a dry run stops there. A grid's short trainings come before the others, which take
    the options that it finds best. Started again, it goes on where it stopped: trainings from their checkpoints,
    evaluations that have a result are kept, and arms whose results are kept as files are not asked again. To do one
    anew, remove its folder, and that file. Collective under torchrun. With `only`, names of the tokenizers to train and
    measure, there is no summary, so that several machines or processes share the work.

    Writes into the comparison's work folder a folder an arm and seed, the ``references/``, ``comparison.json`` with the
    tables, ``convergence.png``, ``samples.png`` and ``report.html``. Raises what training and evaluation raise,
    ConfigError for budgets that differ and for names in `only` that the config does not have.
    """
    only = asked.only
    own = {} if asked.work_dir is None else {"work_dir": str(asked.work_dir)}
    comparison = read_comparison(Path(asked.config), {**asked.cfg_options, **own})
    chosen(comparison, only)
    start_processes()
    check_out(comparison.work_dir)
    state_criterion(comparison)
    if asked.dry_run or is_anything_left(comparison, only):
        if comparison.results is not None:
            check_out(comparison.results)
        state_budget(comparison)
    if asked.dry_run:
        return None
    references = cache(lambda: make_references(comparison))
    real = of_real_images(comparison, references)
    tried = finish(comparison, of_tokenizers(comparison, comparison.grid_arms(), only), references)
    comparison = comparison.with_options(choose(comparison, tried))
    check_budgets(comparison, comparison.arms, str(comparison.source))
    records = finish(comparison, chosen(comparison, only), references)
    if only is not None:
        say(f"Finished: {', '.join(only)}. When all are, the same command without --only makes the summary.")
        return None
    result = summarise(comparison, records, real, tried) if is_first() else None
    barrier()
    return result


def chosen(comparison: Comparison, only: Sequence[str] | None) -> list[Arm]:
    """Return the arms of the tokenizers that are asked for; raise ConfigError for names that there are not."""
    names = list(dict.fromkeys(arm.name for arm in comparison.arms))
    for name in only or ():
        if name not in names:
            raise ConfigError(f"{comparison.source}: {unknown('tokenizer', name, names)}")
    return [arm for arm in comparison.arms if only is None or arm.name in only]


def of_tokenizers(comparison: Comparison, arms: Sequence[Arm], only: Sequence[str] | None) -> list[Arm]:
    """Return those arms of the grid that decide for the tokenizers that are asked for."""
    grid = comparison.settings.grid
    if grid is None or only is None:
        return [*arms]
    deciding = {grid.tokenizers[name].like or name for name in only}
    return [arm for arm in arms if arm.name in deciding]


def is_anything_left(comparison: Comparison, only: Sequence[str] | None) -> bool:
    """Tell whether anything is to be trained."""
    grid = {arm: find(comparison, arm) for arm in of_tokenizers(comparison, comparison.grid_arms(), only)}
    tried = {arm: record for arm, record in grid.items() if record is not None}
    if len(tried) < len(grid):
        return True
    settled = comparison.with_options(choose(comparison, tried))
    return any(find(settled, arm) is None for arm in chosen(settled, only))


def of_real_images(comparison: Comparison, references: Any) -> Record:
    """Return what real images are measured to be; measure them if they are not. Collective."""
    record = find(comparison, None, say)
    if record is None:
        folder, made = comparison.work_dir / REAL_IMAGES, made_with(comparison, None)
        begin(folder, made, lambda _: [folder / "generation.json", comparison.work_dir / "references"])
        if missing(folder / "generation.json"):
            measure_real_images(comparison, [*references().values()], folder)
        record = keep(comparison, None)
    return record
