"""Moments do not depend on how images are dealt out, and the Fréchet distance is the one of closed forms and peers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance

from aligntok.errors import DataError
from aligntok.evaluation.metrics import fid
from aligntok.evaluation.metrics.fid import Gaussian, RunningMoments, frechet_distance


def draw(n, d, seed=0, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + mean


def gaussian_of(features):
    """The Gaussian of all of them at once, by numpy."""
    mean, covariance = features.double().numpy().mean(axis=0), np.cov(features.double().numpy(), rowvar=False)
    return Gaussian(torch.from_numpy(mean), torch.from_numpy(covariance), len(features))


def moments(features, batch_size):
    gathered = RunningMoments()
    for batch in features.split(batch_size):
        gathered.add(batch)
    return gathered


def close(a, b, tolerance=1e-12):
    return torch.allclose(a.mean, b.mean, rtol=tolerance, atol=tolerance) and torch.allclose(
        a.covariance, b.covariance, rtol=tolerance, atol=tolerance * b.covariance.abs().max()
    )


@pytest.mark.parametrize("batch_size", [1, 7, 64, 300])
@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_moments_are_numpys_whatever_the_batch_size_and_the_mean(batch_size, mean):
    features = draw(300, 12, mean=mean)
    found = moments(features, batch_size).combine()
    expected = np.cov((features - mean).numpy(), rowvar=False)  # N - 1
    np.testing.assert_allclose(found.covariance.numpy(), expected, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(found.mean.numpy(), features.numpy().mean(axis=0), rtol=1e-12)
    assert found.count == 300
    assert found.mean.dtype == found.covariance.dtype == torch.float64


def test_float32_features_are_summed_in_float64():
    features = (draw(2000, 4) + 1000).float()
    assert close(moments(features, 9).combine(), gaussian_of(features.double()))


@pytest.mark.parametrize("shares", [1, 2, 3, 4])
def test_neither_order_nor_shares_matter(shares):
    features = draw(211, 9)
    order = torch.randperm(211, generator=torch.Generator().manual_seed(5))
    whole = RunningMoments()
    for part in [features[:0], *[features[order][i::shares] for i in range(shares)], features[:1], features[:0]]:
        whole.add(part)  # as unequal as 211 and 1
    assert close(whole.combine(), gaussian_of(torch.cat([features, features[:1]])))


def test_empty_batches_are_allowed_and_a_single_image_is_too_few():
    gathered = moments(draw(5, 3), 2)
    gathered.add(torch.zeros(0, 3))
    assert gathered.combine().count == 5
    for few in (torch.zeros(0, 3), torch.zeros(1, 3)):
        with pytest.raises(DataError, match="at least 2 images, there are"):
            moments(few, 1).combine()


def test_a_process_without_images_takes_part(monkeypatch):
    """Of three processes: two have images, whose sums come in by the exchanges, and this one has none."""
    sides = draw(30, 5), draw(20, 5, seed=1) + 1
    both = torch.cat(sides)
    deltas = [x.mean(dim=0) - both.mean(dim=0) for x in sides]
    scatters = [(x - x.mean(dim=0)).T @ (x - x.mean(dim=0)) for x in sides]
    scatter = sum(s + len(x) * d.outer(d) for s, x, d in zip(scatters, sides, deltas, strict=True))
    of_others = iter([torch.tensor([50, 2, 10]), both.sum(dim=0), scatter])
    monkeypatch.setattr(fid, "total", lambda own: own + next(of_others))
    assert close(RunningMoments().combine(), gaussian_of(both))


def normal(mean, covariance):
    return Gaussian(torch.as_tensor(mean).double(), torch.as_tensor(covariance).double(), 100)


def test_a_shifted_mean_counts_squared():
    covariance = gaussian_of(draw(100, 6)).covariance
    shift = torch.arange(6).double()
    found = frechet_distance(normal(torch.zeros(6), covariance), normal(shift, covariance))
    assert found == pytest.approx(55.0, rel=1e-10)


@pytest.mark.parametrize("scale", [0.0, 0.25, 4.0, 1e6])
def test_a_scaled_covariance_has_its_closed_form(scale):
    covariance = gaussian_of(draw(100, 6)).covariance
    mean = torch.zeros(6)
    expected = float(covariance.trace()) * (1 - math.sqrt(scale)) ** 2
    found = frechet_distance(normal(mean, covariance), normal(mean, scale * covariance))
    assert found == pytest.approx(expected, rel=1e-9)


def test_commuting_covariances_have_their_closed_form():
    basis = torch.linalg.qr(draw(8, 8)).Q
    a, b = torch.rand(8).double(), torch.rand(8).double()
    a[0] = b[1] = 0  # singular, each in another direction
    sides = [normal(torch.zeros(8), basis @ values.diag() @ basis.T) for values in (a, b)]
    assert frechet_distance(*sides) == pytest.approx(float((a.sqrt() - b.sqrt()).square().sum()), rel=1e-9)


def test_it_is_symmetric_and_zero_for_equal_ones():
    a, b = gaussian_of(draw(100, 20)), gaussian_of(draw(90, 20, seed=1) * 2 + 1)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    assert frechet_distance(a, a) < 1e-11 * float(a.covariance.trace())


def test_it_is_never_below_zero_by_rounding():
    """Of equal ones the sum is zero but for rounding, which goes to either side: none of many comes out negative."""
    found = [frechet_distance(a, a) for a in (gaussian_of(draw(30, 12, seed=seed)) for seed in range(40))]
    assert min(found) == 0.0
    assert 0 < max(found) < 1e-10


@pytest.mark.parametrize("n", [2, 10, 60])
def test_fewer_images_than_features_leave_no_noise(n):
    """A square root of what rounding leaves of a zero, 1e-16, would be 1e-8, and there are many of them."""
    a = gaussian_of(draw(n, 200))
    assert frechet_distance(a, a) < 1e-11 * float(a.covariance.trace())
    # Sets in two subspaces that share no direction: nothing overlaps.
    one, other = draw(n, 200), draw(n, 200, seed=1)
    one[:, 100:] = 0
    other[:, :100] = 0
    a, b = gaussian_of(one), gaussian_of(other)
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)


def test_a_singular_covariance_beside_a_full_one_gets_no_overlap_from_noise():
    """With the centred features as exact roots of both covariances, the trace is the sum of singular values."""
    few, many = draw(10, 200), draw(400, 200, seed=1)
    roots = [(x - x.mean(dim=0)) / (len(x) - 1) ** 0.5 for x in (few, many)]
    overlap = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    a, b = gaussian_of(few), gaussian_of(many)
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-11)


def test_a_product_that_has_no_square_root_is_no_case_for_it():
    """S_a S_b is what sqrtm is commonly given. It is not symmetric, and for constant features it is singular."""
    constant = draw(50, 30)
    constant[:, 10:] = 0.3
    a, b = gaussian_of(constant), gaussian_of(draw(50, 30, seed=2))
    rows = constant[:, :10], b.covariance[:10, :10]
    part = frechet_distance(gaussian_of(rows[0]), Gaussian(b.mean[:10], rows[1], 50))
    rest = (a.mean - b.mean)[10:].square().sum() + b.covariance.diagonal()[10:].sum()
    assert frechet_distance(a, b) == pytest.approx(part + float(rest), rel=1e-9)
    scaled = Gaussian(a.mean * 1e-4, a.covariance * 1e-8, 50)
    assert frechet_distance(scaled, Gaussian(b.mean * 1e-4, b.covariance * 1e-8, 50)) == pytest.approx(
        frechet_distance(a, b) * 1e-8, rel=1e-9
    )


class Given(nn.Module):
    """Stands in for the network of torchmetrics: what it is given are the features."""

    num_features = 32

    def forward(self, features):
        return features


@pytest.fixture(scope="module")
def pair():
    return draw(300, 32).float().double(), (draw(250, 32, seed=1) * 1.2 + 0.1).float().double()


def test_it_agrees_with_torchmetrics(pair):
    theirs = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    theirs.update(pair[0], real=True)
    theirs.update(pair[1], real=False)
    assert frechet_distance(*map(gaussian_of, pair)) == pytest.approx(float(theirs.compute()), rel=1e-4)


def test_it_agrees_with_torch_fidelity(pair):
    sides = [fid_features_to_statistics(features) for features in pair]
    theirs = fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(*map(gaussian_of, pair)) == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("sizes", [(30, 20), (30, 0), (1, 29), (1, 1)])
def test_two_processes_together_are_one_and_one_may_have_none(sizes, as_processes):
    sides = [draw(size, 5, seed=i) + i for i, size in enumerate(sizes)]
    expected = gaussian_of(torch.cat(sides))
    for found in as_processes(lambda rank: moments(sides[rank], 7).combine()):
        assert close(found, expected)
        assert found.count == sum(sizes)


def test_two_processes_with_one_image_together_are_told_so_both(as_processes):
    def told(rank):
        with pytest.raises(DataError, match="at least 2 images, there are 1"):
            moments(draw(rank, 3), 2).combine()
        return True

    assert as_processes(told) == [True, True]
