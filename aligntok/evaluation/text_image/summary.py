"""What the numbers of pictures come to: means with their standard errors, categories, two folders side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aligntok.evaluation.text_image.scorers import Sample

Numbers = npt.NDArray[np.float64]


class Mean(NamedTuple):
    """A mean and its standard error, NaN of a single prompt."""

    value: float
    error: float


def mean_of(values: Numbers, prompts: Sequence[str]) -> Mean:
    """Return the mean of numbers (N,) of pictures, and how far it would move with other prompts.

    Pictures of one prompt go together: the error is that of the prompts' sums of deviations, sqrt(P / (P - 1) sum_p
    (sum_i d_pi)^2) / N, which for one picture a prompt is the deviation over the root of N.
    """
    mean = float(values.mean())
    number = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    sums = np.bincount([number[prompt] for prompt in prompts], values - mean)
    error = math.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(values) if len(sums) > 1 else math.nan
    return Mean(mean, error)


def categories_of(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Return the places of the samples of each category, in the order of the names; those without one are left out."""
    found: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        if sample.category:
            found.setdefault(sample.category, []).append(place)
    return dict(sorted(found.items()))


def score(values: Numbers, samples: Sequence[Sample], by_category: bool) -> Mean:
    """Return the mean of numbers (N,); of some metrics that of their categories' means, whose errors add in squares."""
    prompts, groups = [each.prompt for each in samples], categories_of(samples)
    if not by_category or not groups:
        return mean_of(values, prompts)
    means = [mean_of(values[places], [prompts[place] for place in places]) for places in groups.values()]
    error = math.sqrt(sum(each.error**2 for each in means)) / len(means)
    return Mean(sum(each.value for each in means) / len(means), error)


def by_category(values: Numbers, columns: Sequence[str], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return a row for each category, of its means by column; values (N, K). Nothing where there is one at most."""
    groups = categories_of(samples)
    return [
        {"category": name, "images": len(places), **dict(zip(columns, values[places].mean(0).tolist(), strict=True))}
        for name, places in groups.items()
        if len(groups) > 1
    ]


def side_by_side(
    a: Numbers, b: Numbers, columns: Sequence[str], names: Sequence[str], prompts: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a row for each metric of two folders' matched pictures (N, K): wins, ties, and the mean difference."""
    rows = []
    for place, column in enumerate(columns):
        x, y = a[:, place], b[:, place]
        difference = mean_of(x - y, prompts)
        row = {"metric": column, f"{names[0]} wins": int((x > y).sum()), "ties": int((x == y).sum())}
        row |= {f"{names[1]} wins": int((x < y).sum()), "difference": difference.value, "error": difference.error}
        rows.append(row)
    return rows


def preferred(x: Numbers, y: Numbers) -> Numbers:
    """Return the chance (N,) that the first of two pictures is preferred: softmax over their PickScores."""
    return np.exp(-np.logaddexp(0, y - x))
