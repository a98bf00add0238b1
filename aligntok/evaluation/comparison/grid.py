"""A comparison's grid: options that are tried for every tokenizer alike, in short trainings, and the best of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aligntok.errors import ConfigError, DataError, unknown
from aligntok.evaluation.comparison.criterion import of_samples
from aligntok.evaluation.comparison.settings import ComparisonSettings

if TYPE_CHECKING:
    from aligntok.evaluation.comparison.plan import Arm, Comparison
    from aligntok.evaluation.comparison.records import Record


def check_grid(settings: ComparisonSettings, where: str) -> None:
    """Raise ConfigError for a grid that is not alike for every tokenizer, or names what there is not."""
    grid = settings.grid
    if grid is None:
        return
    where = f"{where}, grid"
    for name in grid.tokenizers:
        if name not in settings.tokenizers:
            raise ConfigError(f"{where}: {unknown('tokenizer', name, settings.tokenizers)}")
    if missing := [name for name in settings.tokenizers if name not in grid.tokenizers]:
        raise ConfigError(
            f"{where}: nothing is tried of {', '.join(missing)}; give each tokenizer options, a control like='...'"
        )
    for name, own in grid.tokenizers.items():
        if own.whole and own.like is None:
            raise ConfigError(f"{where}: '{name}' takes the whole of no other; give like='...' beside whole=True")
        if own.like is not None and (own.options or own.shorter):
            raise ConfigError(f"{where}: '{name}' has options or a shorter training and like='{own.like}'; give one")
        if own.like is not None and not (own.like in grid.tokenizers and grid.tokenizers[own.like].options):
            tried = [each for each, its in grid.tokenizers.items() if its.options]
            raise ConfigError(
                f"{where}: '{name}' is like one that is not tried: {unknown('tokenizer', own.like, tried)}"
            )
    for name, own in grid.tokenizers.items():
        sets = [set(own.shorter), set().union(*own.options), set().union(*grid.shared)]
        if twice := sorted(sets[0] & (sets[1] | sets[2]) | sets[1] & sets[2]):
            raise ConfigError(
                f"{where}: {', '.join(twice)} of '{name}' is in two of shorter, options and shared, of which one "
                "overrides the other; leave it in one"
            )
    counts = {name: len(own.options) for name, own in grid.tokenizers.items() if own.like is None}
    if len(set(counts.values())) != 1 or not min(counts.values()):
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ConfigError(f"{where}: sets of options are not as many for each ({told or 'none'}); give the same number")
    if grid.metric not in of_samples(settings):
        raise ConfigError(f"{where}.metric: {unknown('metric', grid.metric, of_samples(settings))}")
    if grid.seed in settings.seeds:
        raise ConfigError(
            f"{where}: seed {grid.seed} is one of seeds={settings.seeds}, which are reported; choose by another"
        )


def tried(comparison: Comparison, arm: Arm) -> dict[str, Any]:
    """Return the config overrides that a set of the grid tries, without those that shorten the training."""
    assert comparison.settings.grid is not None
    shorter = comparison.settings.grid.tokenizers[arm.name].shorter
    return {key: value for key, value in arm.options.items() if key not in shorter}


def choose(comparison: Comparison, records: Mapping[Arm, Record]) -> dict[str, dict[str, Any]]:
    """Return the config overrides for each tokenizer that the grid decides, as far as its sets are all measured.

    Of sets with the same number the first is taken, and none that has none; a control takes what is shared in the best
    set of another. Raises DataError where all sets of a tokenizer diverged.
    """
    grid = comparison.settings.grid
    if grid is None:
        return {}
    best: dict[str, dict[str, Any]] = {}
    number: dict[str, int] = {}
    for name in grid.tokenizers:
        own = [arm for arm in comparison.grid_arms() if arm.name == name]
        if own and all(arm in records for arm in own):
            values = {arm: records[arm].value(grid.metric) for arm in own}
            if not (sound := [arm for arm in own if math.isfinite(values[arm])]):
                raise DataError(
                    f"the grid found nothing for '{name}': all of its {len(own)} sets diverged; give other options, "
                    "such as lower learning rates"
                )
            least = min(sound, key=values.__getitem__)
            best[name], number[name] = tried(comparison, least), least.number or 0
    for name, its in grid.tokenizers.items():
        if its.like in number:
            shared = grid.shared[number[its.like] % len(grid.shared)]
            best[name] = dict(best[its.like] if its.whole else shared)
    return best


def grid_table(comparison: Comparison, records: Mapping[Arm, Record]) -> list[dict[str, str]]:
    """Return a row a set: what it changes, what it came to, and whether it was chosen."""
    grid, chosen, rows = comparison.settings.grid, choose(comparison, records), []
    assert grid is not None  # whose records these are
    for arm in records:
        options, found = tried(comparison, arm), records[arm]
        row = {"tokenizer": arm.name, "set": str(arm.number), "options": in_words(options)}
        numbers = {"PSNR": f"{found.value('psnr'):.4g}", grid.metric: f"{found.value(grid.metric):.5g}"}
        row |= dict.fromkeys(numbers, "diverged") if found.diverged else numbers
        is_best = options == chosen.get(arm.name)
        rows.append({**row, "chosen": "yes" if is_best else ""})
    return rows


def in_words(options: Mapping[str, Any]) -> str:
    """Return config overrides as a table has them."""
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "as the config says"
