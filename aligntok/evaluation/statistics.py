"""Mean and covariance of features, gathered batch by batch, and the Fréchet distance between two such pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aligntok.distributed import total
from aligntok.errors import DataError


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
        self._merge(len(x), mean, centred.T @ centred)

    def merge(self, other: RunningMoments) -> None:
        """Take in what another has gathered."""
        if other.count:
            self._merge(other.count, other.mean, other.scatter)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if not self.count:
            self.count, self.mean, self.scatter = count, mean.clone(), scatter.clone()
            return
        mean, scatter = mean.to(self.mean.device), scatter.to(self.mean.device)
        both, delta = self.count + count, mean - self.mean
        self.scatter += scatter
        self.scatter.addr_(delta, delta, alpha=self.count * count / both)
        self.mean = self.mean + delta * (count / both)
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


def gaussian_of(features: Tensor) -> Gaussian:
    """Return the Gaussian of features (N, D) of this process alone. Raises DataError for fewer than two."""
    if len(features) < 2:
        raise DataError(
            f"a covariance of features needs at least 2 images, there are {len(features)}; give more images"
        )
    x = features.detach().double().cpu()
    mean = x.mean(dim=0)
    return Gaussian(mean, (x - mean).T @ (x - mean) / (len(x) - 1), len(x))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Return |m_a - m_b|² + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2) (Dowson and Landau 1982; FID, Heusel 2017).

    Symmetric and never negative; 0 for equal ones to about 1e-12 of tr(S_a + S_b). The trace of the root is the sum
    of the singular values of S_a^1/2 S_b^1/2, with each root by eigen-decomposition: no root is taken of what rounding
    left of a zero, so covariances may be singular (fewer images than features).
    """
    root_a, root_b = _root(a.covariance), _root(b.covariance)  # (D, r), r the rank
    overlap = torch.linalg.svdvals(root_a.T @ root_b).sum()  # tr (S_a^1/2 S_b S_a^1/2)^1/2
    spread = a.covariance.double().trace() + b.covariance.double().trace()
    shift = (a.mean.double() - b.mean.double()).square().sum()
    return max(0.0, float(shift + spread - 2 * overlap))


def _root(covariance: Tensor) -> Tensor:
    """Return R (D, r) with R R^T = covariance, up to eigenvalues that rounding cannot tell from zero."""
    symmetric = covariance.double()
    values, vectors = torch.linalg.eigh((symmetric + symmetric.T) / 2)
    noise = values.abs().max() * len(values) * torch.finfo(torch.float64).eps
    kept = values > noise
    return vectors[:, kept] * values[kept].sqrt()
