"""What a latent space is like, in numbers (paper, Table 16): formulas without models, files or random numbers.

The paper names the measures and leaves their definitions open; docs/latent_space.md says what was chosen, and why.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aligntok.distributed.job import batched
from aligntok.errors import ConfigError

_ROWS_AT_ONCE = 1024  # of the N x N similarities


class DensityMeasures(NamedTuple):
    """How evenly points lie: 0, 0 and 1 when the density is the same everywhere.

    cv: standard deviation over mean. gini: Gini coefficient, in [0, 1). entropy: normalised, in [0, 1].
    """

    cv: float
    gini: float
    entropy: float


def cknna(features_a: Tensor, features_b: Tensor, topk: int = 10) -> float:
    """Centred kernel nearest-neighbour alignment of two sets of features (Huh et al. 2024, App. A).

    (N, Da) and (N, Db), row by row of the same N images; L2-normalise them first. Linear CKA with unbiased HSIC, of the
    pairs that are among the `topk` nearest neighbours, by inner product, of both; not quite symmetric, since
    neighbourhood is not. 1 for the same features; for unrelated ones about topk / N, as chance has it. Computed in
    float64, in N * topk numbers of memory, not N * N.

    Raises ConfigError unless N is the same, at least 4, and above `topk`.
    """
    num = len(features_a)
    if num != len(features_b) or num < 4 or not 1 <= topk < num:
        raise ConfigError(
            f"CKNNA of {num} and {len(features_b)} features with topk={topk}: both must be of the same images, at "
            "least 4, and topk from 1 to one less than their number; take more images or a smaller topk"
        )
    a, b = features_a.double(), features_b.double()
    near_a, near_b = _near(a, topk), _near(b, topk)
    both = near_a[torch.isin(near_a, near_b)]
    across = _masked_hsic(a, b, both)
    own = _masked_hsic(a, a, near_a) * _masked_hsic(b, b, near_b)
    return across / (math.sqrt(max(own, 0.0)) + 1e-6)


def _near(features: Tensor, topk: int) -> Tensor:
    """Return i N + j, in order, for every row i and each of its `topk` nearest others j, (N topk,)."""
    num, found = len(features), []
    for rows in batched(torch.arange(num, device=features.device), _ROWS_AT_ONCE):
        similar = features[rows] @ features.T
        similar[torch.arange(len(similar)), rows] = -torch.inf  # no neighbour of itself
        found.append(rows[:, None] * num + similar.topk(topk, dim=1).indices)
    return torch.cat(found).flatten().sort().values


def _masked_hsic(a: Tensor, b: Tensor, pairs: Tensor) -> float:
    """Unbiased HSIC (Song et al. 2012, Eq. 5) of the inner products K and L, both zero but at `pairs` = i N + j."""
    num = len(a)
    i, j = pairs // num, pairs % num
    k, l_ = (a[i] * a[j]).sum(1), (b[i] * b[j]).sum(1)
    mutual = torch.isin(j * num + i, pairs)  # L^T is not zero where both are neighbours of each other
    trace = (k * l_)[mutual].sum()  # sum of K o L^T; inner products are symmetric
    empty = k.new_zeros(num)
    columns, rows = empty.index_add(0, j, k), empty.index_add(0, i, l_)
    total = trace + k.sum() * l_.sum() / ((num - 1) * (num - 2)) - 2 * (columns @ rows) / (num - 2)
    return float(total / (num * (num - 3)))


def spatial_variance(latents: Tensor) -> Tensor:
    """Variance over the positions of each channel, mean over channels: latents (N, C, h, w) to (N,), one an image."""
    return latents.double().flatten(2).var(dim=2, correction=0).mean(dim=1)


def total_variation(latents: Tensor) -> Tensor:
    """Absolute differences of horizontal and vertical neighbours, summed over positions, mean over channels.

    Anisotropic total variation: latents (N, C, h, w) to (N,), one an image. It grows with the number of positions, so
    only grids of one size can be compared.
    """
    latents = latents.double()
    down = (latents[..., 1:, :] - latents[..., :-1, :]).abs().sum(dim=(2, 3))
    across = (latents[..., 1:] - latents[..., :-1]).abs().sum(dim=(2, 3))
    return (down + across).mean(dim=1)


def density_measures(points: npt.NDArray[Any]) -> DensityMeasures:
    """Measure how evenly points (N, 2) lie: a Gaussian kernel density estimate, Scott's bandwidth, at the points.

    Raises ConfigError for fewer than 4 points, or points that all lie on one line.
    """
    from scipy.stats import gaussian_kde

    try:
        if len(points) < 4 or not (np.ptp(points, axis=0) > 0).all():
            raise ValueError("too few")
        density = gaussian_kde(points.T.astype(np.float64))(points.T)
    except (ValueError, np.linalg.LinAlgError) as error:
        raise ConfigError(
            f"no density can be estimated from {len(points)} points; take at least 4, from latents that differ"
        ) from error
    return DensityMeasures(float(density.std() / density.mean()), gini(density), normalised_entropy(density))


def gini(values: npt.NDArray[Any]) -> float:
    """Return the Gini coefficient of values (N,) >= 0: 0 when all are alike, (N - 1) / N when one has everything."""
    ordered, num = np.sort(values), len(values)
    places = np.arange(1, num + 1)
    return float((2 * places - num - 1) @ ordered / (num * ordered.sum()))


def normalised_entropy(values: npt.NDArray[Any]) -> float:
    """Return the entropy of values (N,) >= 0, made to sum to 1, over its largest value, log N."""
    shares = values[values > 0] / values.sum()
    return float(-(shares @ np.log(shares)) / np.log(len(values)))
