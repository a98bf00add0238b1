"""A comparison's criterion: stated before anything is trained, and judged by what was measured in the end."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from aligntok.errors import ConfigError, unknown
from aligntok.evaluation.comparison.settings import ComparisonSettings, Criterion, Multiple, ReconstructionLimit
from aligntok.evaluation.metrics.features import INCEPTION, extractor_config, title_of_encoder, title_with_weights
from aligntok.registry import ENCODERS, without_weights

if TYPE_CHECKING:
    from aligntok.evaluation.comparison.records import Record

RECONSTRUCTIONS = "reconstructions"  # begins the names of both: images are what a perfect tokenizer makes of them
MET, NOT_MET, WORSE = "met", "not met", "learns faster, ends worse; not crossed by the last mark"
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
        return mean_curve([record.curves[metric] for record in self.records if record.name == name])


@dataclass(frozen=True)
class Judged:
    """What became of a criterion: a row a comparison of two numbers, and the verdict in a line."""

    rows: list[dict[str, str]]
    verdict: str


def mean_curve(curves: Sequence[Curve]) -> dict[int, float]:
    """Return the mean of curves at the steps that all of them have."""
    return {
        step: statistics.fmean(each[step] for each in curves) for step in curves[0] if all(step in c for c in curves)
    }


def distance_names(settings: ComparisonSettings) -> list[str]:
    """Return what the distances of any set of images are called: Fréchet's and the kernel's on each extractor.

    No weights are read.
    """
    names = []
    for given in settings.extractors:
        registry, config = extractor_config(given)
        with torch.device("meta"):
            built = registry.build(without_weights(registry, config))
        weights = config.get("pretrained")
        title = title_of_encoder(config) if registry is ENCODERS else built.title
        title = title if weights is False else title.removesuffix("-random")
        names += names_on(title_with_weights(title, weights))
    return names


def names_on(title: str) -> list[str]:
    """Return what the distances of any set of images are called on the extractor of a title."""
    return ["FID", "KID"] if title == INCEPTION else [f"FD-{title}", f"KD-{title}"]


def of_samples(settings: ComparisonSettings) -> list[str]:
    """Return what the distances of samples are called; there are none without a generator."""
    names = [] if settings.generator is None else distance_names(settings)
    return [f"{variant}/{name}" for variant in settings.samples.variants or ["generation"] for name in names]


def check_criterion(settings: ComparisonSettings, where: str) -> None:
    """Raise ConfigError for a criterion that asks for nothing, or names a tokenizer or a metric that there is not."""
    criterion = settings.criterion
    if criterion is None:
        return
    limit = criterion.reconstruction
    if not (criterion.metrics or limit or criterion.at_least):
        raise ConfigError(f"{where}, criterion asks for nothing; give metrics, reconstruction or at_least")
    if criterion.metrics and settings.generator is None:
        raise ConfigError(f"{where}, criterion.metrics are of samples, and no generator draws any; give a generator")
    if limit is not None and limit.against is None and limit.at_most is None:
        raise ConfigError(f"{where}, criterion.reconstruction has no limit; give against='...' or at_most=...")
    named = [criterion.arm, *(criterion.below or ()), *(each.against for each in criterion.at_least)]
    named += [limit.against] if limit is not None and limit.against is not None else []
    for name in named:
        if name not in settings.tokenizers:
            raise ConfigError(f"{where}, criterion: {unknown('tokenizer', name, settings.tokenizers)}")
    if criterion.arm in named[1:] or (criterion.metrics and not others(settings, criterion)):
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
    told, limit = [], criterion.reconstruction
    if criterion.metrics:
        told.append(
            f"after the last step, {criterion.arm} is below {', '.join(others(settings, criterion))} on "
            f"{', '.join(criterion.metrics)}, in {'every seed' if seeds > 1 else 'the only seed'}, by {spread}"
        )
    for each in criterion.at_least:
        told.append(f"{criterion.arm} has at least {each.times:g} x the {each.metric} of {each.against}")
    if limit is not None:
        most = [] if limit.at_most is None else [f"{limit.at_most:g}"]
        most += [] if limit.against is None else [f"{limit.times:g} x as much as {limit.against}"]
        told.append(
            f"on {', '.join(limit.metrics)} {criterion.arm} is above real images by at most {' and '.join(most)}"
        )
    return "; and ".join(told)


def judge(settings: ComparisonSettings, criterion: Criterion, found: Found) -> Judged:
    """Compare what was found with what the criterion asks for."""
    below, limit = others(settings, criterion), criterion.reconstruction
    samples = [row for metric in criterion.metrics for name in below for row in _leads(criterion, metric, name, found)]
    more = [row for multiple in criterion.at_least for row in _multiples(criterion, multiple, found)]
    own = [] if limit is None else [row for metric in limit.metrics for row in _behind(criterion, limit, metric, found)]
    kinds = {"samples": samples, "tokenizers": more, "reconstructions": own}
    failed = {kind: sum(not met for _, met in rows) for kind, rows in kinds.items()}
    wrong = [kind for kind, number in failed.items() if number]
    verdict = MET if not wrong else WORSE if samples and wrong == ["reconstructions"] else NOT_MET
    if verdict == NOT_MET:
        first, *rest = [(kind, failed[kind], len(rows)) for kind, rows in kinds.items() if rows]
        verdict += f": {first[1]} of {first[2]} comparisons of {first[0]} fail"
        verdict += "".join(f", and {number} of {count} of {kind}" for kind, number, count in rest)
    return Judged([row for rows in kinds.values() for row, _ in rows], verdict)


def _multiples(criterion: Criterion, multiple: Multiple, found: Found) -> list[tuple[dict[str, str], bool]]:
    """Return a row a seed: how many times as much as another the arm has of something."""
    own, theirs = (found.values(name, multiple.metric) for name in (criterion.arm, multiple.against))
    rows = []
    for seed, value in own.items():
        met = value >= multiple.times * theirs[seed]
        row = _row(multiple.metric, multiple.against, seed, value, theirs[seed], met)
        times = f"{value / theirs[seed]:.3g} x" if theirs[seed] > 0 else "-"
        rows.append((row | {"times": times, "wanted": f">= {multiple.times:g} x"}, met))
    return rows


def _leads(criterion: Criterion, metric: str, other: str, found: Found) -> list[tuple[dict[str, str], bool]]:
    """Return a row a seed: by how much the arm is below another, and by how much it is to be."""
    own, theirs = (found.values(name, metric) for name in (criterion.arm, other))
    wanted = criterion.spreads * max(max(each.values()) - min(each.values()) for each in (own, theirs))
    curves = [found.mean_curve(name, metric) for name in (criterion.arm, other)]
    crossed = in_words(crossing(*curves)) if len(set.intersection(*map(set, curves))) > 1 else "one mark only"
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
    """Return rows for each seed: how far above real images the arm is, and how many times as far as another."""
    own, floor = found.values(criterion.arm, metric), found.real.value(metric)
    theirs = {} if limit.against is None else found.values(limit.against, metric)
    rows = []
    for seed, value in own.items():
        far = value - floor
        if limit.at_most is not None:
            met = far <= limit.at_most
            row = _row(metric, "real images", seed, value, floor, met) | {"real images": f"{floor:.4g}"}
            rows.append((row | {"above by": f"{far:.4g}", "wanted": f"<= {limit.at_most:g}"}, met))
        if limit.against is not None:
            near = theirs[seed] - floor
            met = far <= limit.times * near
            row = _row(metric, limit.against, seed, value, theirs[seed], met) | {"real images": f"{floor:.4g}"}
            times = f"{far / near:.3g} x" if near > 0 else "-"
            rows.append((row | {"above by": times, "wanted": f"<= {limit.times:g} x"}, met))
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
