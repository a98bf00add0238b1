"""A comparison's criterion: stated before anything is trained, and judged by what was measured in the end."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from aligntok.errors import ConfigError, unknown
from aligntok.evaluation.comparison.settings import ComparisonSettings, Criterion, ReconstructionLimit
from aligntok.evaluation.metrics.features import INCEPTION, extractor_config
from aligntok.registry import EXTRACTORS, without_weights

if TYPE_CHECKING:
    from aligntok.evaluation.comparison.records import Record

RECONSTRUCTIONS = "reconstructions"  # begins the names of both: images are what a perfect tokenizer makes of them
MET, NOT_MET, WORSE = "met", "not met", "learns faster, ends worse"
Curve = Mapping[int, float]  # a quantity's values by step


@dataclass(frozen=True)
class Found:
    """What was measured of every tokenizer with every seed, and of real images."""

    records: Sequence[Record]
    real: Record

    def values(self, name: str, metric: str) -> dict[int | None, float]:
        """Return a metric of a tokenizer by seed. Raises DataError where it was not measured."""
        return {record.seed: record.value(metric) for record in self.records if record.name == name}

    def mean_curve(self, name: str, metric: str) -> dict[int, float]:
        """Return a metric of a tokenizer over steps, the mean over seeds."""
        own = [record.curves[metric] for record in self.records if record.name == name]
        return {step: statistics.fmean(each[step] for each in own) for step in own[0] if all(step in e for e in own)}


@dataclass(frozen=True)
class Judged:
    """What became of a criterion: a row a comparison of two numbers, and the verdict in a line."""

    rows: list[dict[str, str]]
    verdict: str


def distance_names(settings: ComparisonSettings) -> list[str]:
    """Return what the distances of any set of images are called: Fréchet's and the kernel's on each extractor.

    No weights are read.
    """
    names = []
    for given in settings.extractors:
        registry, config = extractor_config(given)
        with torch.device("meta"):
            built = registry.build(without_weights(registry, config))
        names += names_on(built.title if registry is EXTRACTORS else config["type"])
    return names


def names_on(title: str) -> list[str]:
    """Return what the distances of any set of images are called on the extractor of a title."""
    return ["FID", "KID"] if title == INCEPTION else [f"FD-{title}", f"KD-{title}"]


def of_samples(settings: ComparisonSettings) -> list[str]:
    """Return what the distances of samples are called."""
    names = distance_names(settings)
    return [f"{variant}/{name}" for variant in settings.samples.variants or ["generation"] for name in names]


def check_criterion(settings: ComparisonSettings, where: str) -> None:
    """Raise ConfigError for a criterion that names a tokenizer or a metric that there is not."""
    criterion = settings.criterion
    if criterion is None:
        return
    limit = criterion.reconstruction
    named = [criterion.arm, *(criterion.below or ()), *([limit.against] if limit else ())]
    for name in named:
        if name not in settings.tokenizers:
            raise ConfigError(f"{where}, criterion: {unknown('tokenizer', name, settings.tokenizers)}")
    if criterion.arm in named[1:] or not others(settings, criterion):
        raise ConfigError(f"{where}, criterion: '{criterion.arm}' is compared with itself; name other tokenizers")
    asked = {"metrics": (criterion.metrics, of_samples(settings))}
    if limit is not None:
        names = [f"{RECONSTRUCTIONS}/{name}" for name in distance_names(settings)]
        asked["reconstruction.metrics"] = (limit.metrics, names)
    for key, (metrics, known) in asked.items():
        for metric in metrics:
            if metric not in known:
                raise ConfigError(f"{where}, criterion.{key}: {unknown('metric', metric, known)}")


def others(settings: ComparisonSettings, criterion: Criterion) -> list[str]:
    """Return the tokenizers that the criterion's is to be below."""
    return (
        [name for name in settings.tokenizers if name != criterion.arm] if criterion.below is None else criterion.below
    )


def statement(settings: ComparisonSettings, criterion: Criterion) -> str:
    """Return the criterion in words."""
    seeds = len(settings.seeds)
    spread = f"more than {criterion.spreads:g} x the larger spread over seeds of the two" if seeds > 1 else "any amount"
    told = (
        f"after the last step, {criterion.arm} is below {', '.join(others(settings, criterion))} on "
        f"{', '.join(criterion.metrics)}, in {'every seed' if seeds > 1 else 'the only seed'}, by {spread}"
    )
    limit = criterion.reconstruction
    if limit is not None:
        told += (
            f"; and on {', '.join(limit.metrics)} it is above real images by at most {limit.times:g} x as much as "
            f"{limit.against}"
        )
    return told


def judge(settings: ComparisonSettings, criterion: Criterion, found: Found) -> Judged:
    """Compare what was found with what the criterion asks for."""
    below = others(settings, criterion)
    samples = [row for metric in criterion.metrics for name in below for row in _leads(criterion, metric, name, found)]
    limit = criterion.reconstruction
    own = [] if limit is None else [row for metric in limit.metrics for row in _behind(criterion, limit, metric, found)]
    failed = [sum(not met for _, met in rows) for rows in (samples, own)]
    verdict = MET if not any(failed) else WORSE if not failed[0] else NOT_MET
    if verdict == WORSE:
        verdict += f"; {_crossings(criterion, below, found)}"
    if verdict == NOT_MET:
        verdict += f": {failed[0]} of {len(samples)} comparisons of samples fail"
        verdict += f", and {failed[1]} of {len(own)} of reconstructions" if own else ""
    return Judged([row for row, _ in [*samples, *own]], verdict)


def _leads(criterion: Criterion, metric: str, other: str, found: Found) -> list[tuple[dict[str, str], bool]]:
    """Return a row a seed: by how much the arm is below another, and by how much it is to be."""
    own, theirs = (found.values(name, metric) for name in (criterion.arm, other))
    wanted = criterion.spreads * max(max(each.values()) - min(each.values()) for each in (own, theirs))
    crossed = in_words(crossing(*(found.mean_curve(name, metric) for name in (criterion.arm, other))))
    rows = []
    for seed, value in own.items():
        met = value < theirs[seed] - wanted
        row = _row(metric, other, seed, value, theirs[seed], met)
        row |= {"below by": f"{theirs[seed] - value:.4g}", "wanted": f"> {wanted:.4g}", "crossed at step": crossed}
        rows.append((row, met))
    return rows


def _behind(
    criterion: Criterion, limit: ReconstructionLimit, metric: str, found: Found
) -> list[tuple[dict[str, str], bool]]:
    """Return a row a seed: how many times as far above real images the arm is as another."""
    own, theirs, floor = (
        found.values(criterion.arm, metric),
        found.values(limit.against, metric),
        found.real.value(metric),
    )
    rows = []
    for seed, value in own.items():
        far, near = value - floor, theirs[seed] - floor
        met = far <= limit.times * near
        row = _row(metric, limit.against, seed, value, theirs[seed], met)
        times = f"{far / near:.3g} x" if near > 0 else "-"
        rows.append((row | {"real images": f"{floor:.4g}", "above by": times, "wanted": f"<= {limit.times:g} x"}, met))
    return rows


def _row(metric: str, other: str, seed: int | None, value: float, theirs: float, met: bool) -> dict[str, str]:
    numbers = {"seed": str(seed), "value": f"{value:.5g}", "other's": f"{theirs:.5g}"}
    return {"metric": metric, "other": other, **numbers, "met": "yes" if met else "no"}


def crossing(own: Curve, other: Curve) -> float | None:
    """Return the step at which the other curve comes to lie under the own one and stays there: linear between marks.

    None where it does not by the last mark; the first mark where it lies there from the beginning.
    """
    steps = [step for step in own if step in other]
    above = [own[step] - other[step] for step in steps]  # positive where the other is under it
    if above[-1] <= 0:
        return None
    last = max((i for i, each in enumerate(above) if each <= 0), default=None)
    if last is None:
        return float(steps[0])
    share = -above[last] / (above[last + 1] - above[last])
    return steps[last] + share * (steps[last + 1] - steps[last])


def in_words(step: float | None) -> str:
    """Return where two curves cross, as a table has it."""
    return "not by the last mark" if step is None else f"{step:,.0f}"


def _crossings(criterion: Criterion, below: Sequence[str], found: Found) -> str:
    """Return where others' curves cross under the arm's, in words."""
    curves = {
        f"{name} on {metric}": [found.mean_curve(each, metric) for each in (criterion.arm, name)]
        for metric in criterion.metrics
        for name in below
    }
    told = [f"{what} at step {at:,.0f}" for what, both in curves.items() if (at := crossing(*both)) is not None]
    return f"crossed by {', '.join(told)}" if told else "not crossed by the last mark"
