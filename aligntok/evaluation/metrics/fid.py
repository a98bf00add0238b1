"""Mean and covariance of features, gathered batch by batch, and the Fréchet distance between two such pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from aligntok.distributed import total
from aligntok.distributed.job import batched
from aligntok.errors import DataError
from aligntok.rng import rng


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution fitted to features: mean (D,), covariance (D, D), float64, and how many they were.

    The covariance divides by count - 1. A count of 0 is one that nobody wrote down.
    """

    mean: Tensor
    covariance: Tensor
    count: int


class RunningMoments:
    """Mean and covariance of features that come in batches, in float64, where the features lie.

    Batches are merged as by Chan, Golub and LeVeque (1983): each is centred on its own mean, so that nothing cancels
    however large the mean is, and neither the size nor the order of the batches matters beyond rounding.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)  # (D,), once there are features
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)  # (D, D), the sum of (x - mean)(x - mean)^T

    def add(self, features: Tensor) -> None:
        """Take in features (N, D) of any floating type; N may be 0."""
        if not len(features):
            return
        x = features.detach().double()
        mean = x.mean(dim=0)
        centred = x - mean
        scatter = centred.T @ centred
        if not self.count:
            self.count, self.mean, self.scatter = len(x), mean, scatter
            return
        both, delta = self.count + len(x), mean - self.mean
        self.scatter += scatter
        self.scatter.addr_(delta, delta, alpha=self.count * len(x) / both)
        self.mean = self.mean + delta * (len(x) / both)
        self.count = both

    def combine(self) -> Gaussian:
        """Return the Gaussian of the features of all processes, on the CPU; collective, and a process may have none.

        Raises DataError, in every process, for fewer than two images.
        """
        counts = total(torch.tensor([self.count, 1 if self.count else 0, len(self.mean)]))
        count, processes, dims = counts.tolist()
        if count < 2:
            raise DataError(f"a covariance of features needs at least 2 images, there are {count}; give more images")
        dim = dims // processes
        own_mean = self.mean.cpu() if self.count else torch.zeros(dim, dtype=torch.float64)
        own_scatter = self.scatter.cpu() if self.count else torch.zeros(dim, dim, dtype=torch.float64)
        mean = total(own_mean * self.count) / count
        delta = own_mean - mean
        scatter = own_scatter.addr(delta, delta, alpha=self.count)
        return Gaussian(mean, total(scatter) / (count - 1), count)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Return |m_a - m_b|² + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2) (Dowson and Landau 1982; FID, Heusel 2017).

    Symmetric and never negative; 0 for equal ones to about 1e-12 of tr(S_a + S_b). The trace of the root is the sum
    of the singular values of S_a^1/2 S_b^1/2, with each root by eigen-decomposition: no root is taken of what rounding
    left of a zero, so covariances may be singular (fewer images than features).
    """

    def root(covariance: Tensor) -> Tensor:  # R (D, r) with R R^T = covariance, up to what rounding cannot tell from 0
        symmetric = covariance.double()
        values, vectors = torch.linalg.eigh((symmetric + symmetric.T) / 2)
        noise = values.abs().max() * len(values) * torch.finfo(torch.float64).eps
        kept = values > noise
        return vectors[:, kept] * values[kept].sqrt()

    overlap = torch.linalg.svdvals(root(a.covariance).T @ root(b.covariance)).sum()  # tr (S_a^1/2 S_b S_a^1/2)^1/2
    spread = a.covariance.double().trace() + b.covariance.double().trace()
    shift = (a.mean.double() - b.mean.double()).square().sum()
    return max(0.0, float(shift + spread - 2 * overlap))


BLOCK = 2**23  # distances held at once, 64 MB
SAME = 1e-12  # of |a|² + |b|²: what rounding may make of the squared distance of equal features
TIE = 1e-9  # of a radius: within it a distance counts as equal


def kernel_distance(
    features: Tensor, reference: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the kernel distance (KID, Binkowski et al. 2018) of features (N, D) and (M, D), and its standard error.

    The unbiased MMD² with k(x, y) = (x·y / D + 1)³, mean over `subsets` pairs of subsets, each drawn without
    replacement. `subset_size` is cut to half the smaller set, so that subsets differ; the mean is unbiased at any.

    The standard error is how far the mean would move with other images of the same two distributions, and other
    subsets of them: subsets of size m out of n images share images, so their values correlate by up to m / n, which
    the deviation over subsets alone, divided by the root of their number, leaves out. Where one set is larger than the
    other, it errs on the large side.
    Raises DataError for fewer than four images on a side.
    """
    n = min(len(features), len(reference))
    _check_enough(n, 4, "a kernel distance")
    size = min(subset_size, n // 2)
    generator = rng("subsets", seed)

    def subset(of: Tensor) -> Tensor:
        return of[torch.randperm(len(of), generator=generator)[:size].to(of.device)].double()

    values = [_mmd(subset(features), subset(reference)) for _ in range(subsets)]
    mean = sum(values) / subsets
    variance = sum((value - mean) ** 2 for value in values) / max(subsets - 1, 1)
    shared = size / n  # at most 1/2
    return mean, math.sqrt(variance / (1 - shared) * (1 / subsets + (1 - 1 / subsets) * shared))


def _mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of MMD² between as many x as y (m, D)."""
    m, d = x.shape

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / d + 1) ** 3

    within = [k.sum() - k.trace() for k in (kernel(x, x), kernel(y, y))]
    return float((within[0] + within[1]) / (m * (m - 1)) - 2 * kernel(x, y).mean())


def inception_score(logits: Tensor, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """Return exp E KL(p(y|x) || p(y)) (Salimans et al. 2016) of logits (N, K): mean and deviation over `splits` parts.

    Images are shuffled by `seed` first: in parts of consecutive images a set in the order of its classes would score
    too low. The deviation is the population's (divided by `splits`). Raises DataError for fewer images than parts.
    """
    _check_enough(len(logits), splits, f"an Inception Score with {splits} splits")
    order = torch.randperm(len(logits), generator=rng("shuffle", seed)).to(logits.device)
    scores = []
    for i in range(splits):
        part = order[i * len(order) // splits : (i + 1) * len(order) // splits]
        log_p = logits[part].double().log_softmax(dim=1)
        log_q = log_p.logsumexp(dim=0) - math.log(len(part))  # of the mean; finite where every p underflows
        scores.append((log_p.exp() * (log_p - log_q)).sum(dim=1).mean().exp())
    found = torch.stack(scores)
    return float(found.mean()), float(found.std(correction=0))


def precision_recall(features: Tensor, reference: Tensor, k: int = 3) -> tuple[float, float]:
    """Return improved precision and recall (Kynkäänniemi et al. 2019) of generated (N, D) against real (M, D) features.

    Precision: the share of generated features within the distance from some real one to its k-th nearest other real
    one; recall the same the other way round. A distance equal to the radius counts as within. Raises DataError unless
    both have more than k.
    """
    _check_enough(min(len(features), len(reference)), k + 1, f"precision and recall with k = {k}")
    return _share_within(features, reference, k), _share_within(reference, features, k)


def _share_within(points: Tensor, centres: Tensor, k: int) -> float:
    reach = _radii(centres, k) * (1 + TIE)
    within = [(d <= reach).any(dim=1) for _, d in _distances(points, centres)]
    return float(torch.cat(within).double().mean())


def density_coverage(features: Tensor, reference: Tensor, k: int = 5) -> tuple[float, float]:
    """Return density and coverage (Naeem et al. 2020) of generated (N, D) against real (M, D) features.

    Around every real feature lies a ball up to its k-th nearest other real one. Density: of how many balls a generated
    feature is inside, on average, divided by k; 1 is expected of equal distributions, and it may be above. Coverage:
    the share of balls with a generated feature inside. Inside means strictly, as in the authors' code. Raises DataError
    without a generated feature, or unless there are more than k real ones.
    """
    _check_enough(len(features), 1, "density and coverage")
    _check_enough(len(reference), k + 1, f"density and coverage with k = {k}")
    reach = _radii(reference, k) * (1 - TIE)
    balls, covered = 0, 0
    for start, d in _distances(reference, features):
        inside = d < reach[start : start + len(d), None]
        balls += int(inside.sum())
        covered += int(inside.any(dim=1).sum())
    return balls / (k * len(features)), covered / len(reference)


def _radii(points: Tensor, k: int) -> Tensor:
    """The squared distance from each of (N, D) to its k-th nearest other, (N,)."""
    found = []
    for start, d in _distances(points, points):
        rows = torch.arange(len(d), device=d.device)
        d[rows, rows + start] = math.inf  # not itself, however many are equal to it
        found.append(d.topk(k, dim=1, largest=False).values[:, -1])  # kthvalue has no repeatable form on some GPUs
    return torch.cat(found)


def _distances(a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, squared distances (rows, M)) of a (N, D) to all of b (M, D), a block of rows at a time."""
    middle = b.double().mean(dim=0)  # distances do not change, and their rounding becomes small
    b = b.double() - middle
    of_b = b.square().sum(dim=1)
    rows = max(1, BLOCK // len(b))
    for number, block in enumerate(batched(a, rows)):
        part = block.double() - middle
        size = part.square().sum(dim=1)[:, None] + of_b
        d = torch.addmm(size, part, b.T, alpha=-2)  # |a|² + |b|² - 2 a·b
        yield number * rows, d.masked_fill_(d <= SAME * size, 0)


def _check_enough(count: int, least: int, what: str) -> None:
    if count < least:
        raise DataError(f"{what} needs at least {least} images on each side, there are {count}; give more images")
