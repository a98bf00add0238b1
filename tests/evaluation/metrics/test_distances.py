"""KID, IS, precision, recall, density, coverage: by brute force, in closed form, and as other libraries have them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from aligntok.errors import DataError
from aligntok.evaluation.metrics import fid
from aligntok.evaluation.metrics.fid import density_coverage, inception_score, kernel_distance, precision_recall


def draw(n, d=16, seed=0, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(fid, "BLOCK", 700)


def kernel(a, b):
    return (a.double() @ b.double().T / a.shape[1] + 1) ** 3


def test_the_kernel_distance_is_the_unbiased_estimate_of_its_definition(monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda count, generator: torch.arange(count))
    x, y = draw(20), draw(30, seed=1, shift=0.3)
    found, error = kernel_distance(x, y, subsets=3)
    x, y = x[:10], y[:10]  # half the smaller set
    total = 0.0
    for i in range(10):
        for j in range(10):
            if i != j:
                total += float(kernel(x[i : i + 1], x[j : j + 1]) + kernel(y[i : i + 1], y[j : j + 1])) / 90
            total -= 2 * float(kernel(x[i : i + 1], y[j : j + 1])) / 100
    assert found == pytest.approx(total, rel=1e-10)
    assert error == pytest.approx(0, abs=1e-12)  # the same subset each time


def test_the_kernel_distance_agrees_with_torch_fidelity(monkeypatch):
    rng = np.random.RandomState(7)
    chosen = lambda count, generator: torch.from_numpy(rng.choice(count, 100, replace=False))  # noqa: E731
    monkeypatch.setattr(torch, "randperm", chosen)
    x, y = draw(300), draw(250, seed=1, shift=0.2)
    theirs = kid_features_to_metric(x, y, kid_subsets=20, kid_subset_size=100, rng_seed=7, verbose=False)
    found, _ = kernel_distance(x, y, subsets=20, subset_size=100)
    assert found == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)


class Given(nn.Module):
    num_features = 16

    def forward(self, features):
        return features


def test_the_kernel_distance_agrees_with_torchmetrics(monkeypatch):
    x, y = draw(300), draw(250, seed=1, shift=0.2)
    with pytest.warns(UserWarning, match="memory footprint"):
        theirs = KernelInceptionDistance(feature=Given(), subsets=20, subset_size=100)
    theirs.update(x, real=True)
    theirs.update(y, real=False)
    torch.manual_seed(3)
    expected = theirs.compute()[0]
    monkeypatch.setattr(fid, "rng", lambda stream, seed: torch.Generator().manual_seed(3))
    assert kernel_distance(x, y, subsets=20, subset_size=100)[0] == pytest.approx(float(expected), rel=1e-4)


def test_the_kernel_distance_follows_its_seed_and_is_about_zero_for_equal_distributions():
    x, y = draw(400), draw(400, seed=1)
    first = kernel_distance(x, y, subsets=30, subset_size=100)
    assert kernel_distance(x, y, subsets=30, subset_size=100) == first
    assert kernel_distance(x, y, subsets=30, subset_size=100, seed=1) != first
    assert abs(first[0]) < 3 * first[1]
    far = kernel_distance(x, y + 1, subsets=30, subset_size=100)
    assert far[0] > 20 * far[1]


def test_the_standard_error_is_how_far_other_images_move_the_value():
    """And the deviation over subsets by the root of their number is not: it leaves out what the subsets share."""
    found = [
        kernel_distance(draw(200, 4, seed=i), draw(200, 4, seed=1000 + i, shift=0.5), subsets=50, subset_size=50)
        for i in range(150)
    ]
    values, errors = (np.array(column) for column in zip(*found, strict=True))
    assert 0.85 < errors.mean() / values.std() < 1.25
    over_subsets = errors.mean() / math.sqrt((1 + 49 * 0.25) / 0.75)
    assert over_subsets < 0.3 * values.std()


def test_uniform_logits_score_one_and_sure_balanced_ones_the_number_of_classes():
    assert inception_score(torch.zeros(100, 10)) == pytest.approx((1.0, 0.0), abs=1e-12)
    sure = 1e4 * torch.eye(10).repeat(50, 1)  # probabilities that underflow to zero
    mean, deviation = inception_score(sure, splits=1)
    assert (mean, deviation) == pytest.approx((10.0, 0.0))
    one_class = torch.zeros(100, 10)
    one_class[:, 3] = 1e4
    assert inception_score(one_class) == pytest.approx((1.0, 0.0))


def test_images_in_the_order_of_their_classes_are_shuffled_before_they_are_split():
    logits = 10 * torch.eye(10).repeat_interleave(100, dim=0)
    assert inception_score(logits, splits=10)[0] > 7
    assert inception_score(logits, splits=10, seed=1) != inception_score(logits, splits=10)
    assert inception_score(logits, splits=10) == inception_score(logits, splits=10)


def test_the_inception_score_agrees_with_torch_fidelity_and_torchmetrics(monkeypatch):
    logits = 3 * draw(503, 10)
    monkeypatch.setattr(torch, "randperm", lambda n, **options: torch.arange(n))
    found = inception_score(logits, splits=5)
    theirs = isc_features_to_metric(logits, splits=5, shuffle=False)
    assert found == pytest.approx(tuple(theirs.values()), rel=1e-6)
    with pytest.warns(UserWarning, match="memory footprint"):
        metric = InceptionScore(feature=Given(), splits=5)
    metric.update(logits[:500])
    mean, deviation = map(float, metric.compute())  # its deviation divides by splits - 1
    ours = inception_score(logits[:500], splits=5)
    assert ours == pytest.approx((mean, deviation * math.sqrt(4 / 5)), rel=1e-4)


def brute_force(generated, real, k):
    """Radii and distances as numpy has them, one pair after another."""

    def between(a, b):
        return np.array([[math.dist(x, y) for y in b.tolist()] for x in a.tolist()])

    def radii(a):
        return np.sort(between(a, a), axis=1)[:, k]  # the first is the point itself

    return between(real, generated), radii(real), radii(generated)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_they_are_what_brute_force_finds(k, small_blocks):
    generated, real = draw(60, 3, seed=1, shift=0.7), draw(45, 3)
    d, of_real, of_generated = brute_force(generated, real, k)  # (real, generated)
    precision = (d <= of_real[:, None]).any(axis=0).mean()
    recall = (d <= of_generated[None]).any(axis=1).mean()
    assert precision_recall(generated, real, k) == pytest.approx((precision, recall))
    density = (d < of_real[:, None]).sum(axis=0).mean() / k
    coverage = (d.min(axis=1) < of_real).mean()
    assert density_coverage(generated, real, k) == pytest.approx((density, coverage))
    assert 0.1 < precision < 1


def test_hand_made_points_have_the_values_that_one_can_see():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    generated = torch.tensor([[0.5], [0.6], [5.0]])
    # k = 1: radii of real 1, 1, 1, 8; of generated 0.1, 0.1, 4.4.
    precision, recall = precision_recall(generated, real, k=1)
    assert precision == 1  # 0.5 and 0.6 near 0 and 1; 5 within 8 of 10
    assert recall == 0.5  # 1 and 2, within 4.4 of 5
    # Balls with 0.5: of 0 and 1; with 0.6: of 0 and 1; with 5: of 10. 0.6 lies 1.4 from 2, and 9.4 from 10.
    assert density_coverage(generated, real, k=1) == pytest.approx((5 / 3, 3 / 4))


def test_a_distance_that_is_the_radius_but_for_rounding_is_the_radius():
    """Points a tenth apart, 3, 4, 5 times over: no two of their distances are rounded alike, and all are 0.5."""
    steps = torch.arange(60, dtype=torch.float64)[:, None] * torch.tensor([[0.3, 0.4]], dtype=torch.float64)
    real, generated = steps[:-1:2], steps[1:-1:2]  # each generated one halfway between two real ones: radii 1, d 0.5
    assert density_coverage(generated, real, k=1) == pytest.approx((58 / 29, 1))
    real, generated = steps[:30], steps[30:31]  # at 0.5 from the last real one, whose radius is 0.5
    for shift in range(40):
        moved = torch.tensor([[shift * 0.7, -shift * 1.3]], dtype=torch.float64)
        assert precision_recall(torch.cat([generated] * 2) + moved, real + moved, k=1)[0] == 1
        assert density_coverage(generated + moved, real + moved, k=1) == (0, 0)  # strictly inside is none


def test_the_kernel_distances_protocol_is_a_hundred_pairs_of_a_thousand(monkeypatch):
    sizes = []
    monkeypatch.setattr(fid, "_mmd", lambda x, y: sizes.append((len(x), len(y))) or 0.0)
    kernel_distance(draw(2100, 2), draw(2300, 2, seed=1))
    assert sizes == [(1000, 1000)] * 100
    sizes.clear()
    kernel_distance(draw(1500, 2), draw(2300, 2, seed=1))
    assert sizes == [(750, 750)] * 100


def test_a_set_beside_itself_has_all_and_one_far_away_has_nothing(small_blocks):
    x = draw(80)
    assert precision_recall(x, x) == (1, 1)
    assert density_coverage(x, x) == pytest.approx((1, 1))
    assert precision_recall(x + 100, x) == (0, 0)
    assert density_coverage(x + 100, x) == (0, 0)


def test_images_that_are_there_many_times_are_at_distance_zero():
    """Large features cost digits: the distance of equal ones must not become a small number of either sign."""
    x = (draw(30) + 1000).repeat_interleave(5, dim=0)
    assert precision_recall(x, x) == (1, 1)
    other = draw(30, seed=1) + 1000
    assert precision_recall(other, x)[0] == 0  # balls of radius zero hold nothing else


def test_blocks_change_nothing(monkeypatch):
    generated, real = draw(130, 8, seed=1, shift=0.3), draw(90, 8)
    whole = precision_recall(generated, real), density_coverage(generated, real)
    for block in (1, 90, 1000):
        monkeypatch.setattr(fid, "BLOCK", block)
        assert (precision_recall(generated, real), density_coverage(generated, real)) == whole


def test_order_does_not_matter():
    generated, real = draw(130, 8, seed=1, shift=0.3), draw(90, 8)
    turned = generated.flip(0), real.flip(0)
    assert precision_recall(generated, real) == precision_recall(*turned)
    assert density_coverage(generated, real) == density_coverage(*turned)


def test_precision_and_recall_agree_with_torch_fidelity():
    generated, real = draw(200, 8, seed=1, shift=0.5), draw(150, 8)
    theirs = prc_features_to_metric(
        generated.double(), real.double(), prc_neighborhood=3, prc_batch_size=50, save_cpu_ram=True, verbose=False
    )
    expected = (theirs["precision"], theirs["recall"])
    assert precision_recall(generated, real) == pytest.approx(expected, rel=1e-4)
    assert 0.2 < expected[0] < 0.95


@pytest.mark.parametrize(
    ("compute", "least"),
    [
        (kernel_distance, 4),
        (precision_recall, 4),
        (lambda x, y: density_coverage(y, x), 6),
        (lambda x, y: inception_score(x), 10),
    ],
)
def test_too_few_images_are_said_so(compute, least):
    enough = draw(20)
    compute(enough[:least], enough)
    with pytest.raises(DataError, match=f"at least {least} images"):
        compute(enough[: least - 1], enough)


@pytest.mark.parametrize(
    ("values", "options", "error"),
    [
        # Half of 12 images: m / n = 1/4, variance 1; 1 / (1 - 1/4) (1/3 + 2/3 1/4) = 2/3
        ([1.0, 2.0, 3.0], dict(subset_size=3), math.sqrt(2 / 3)),
        # m / n = 1/2, cut to it; variance 8; 8 / (1/2) (1/2 + 1/2 1/2) = 12
        ([1.0, 5.0], dict(subset_size=99), math.sqrt(12)),
        ([7.0], dict(subset_size=3), 0.0),
    ],
)
def test_the_standard_error_is_the_one_by_hand(monkeypatch, values, options, error):
    left = list(values)
    monkeypatch.setattr(fid, "_mmd", lambda x, y: left.pop(0))
    found = kernel_distance(draw(12), draw(30, seed=1), subsets=len(values), **options)
    assert found == pytest.approx((sum(values) / len(values), error), rel=1e-12)


@pytest.mark.parametrize(
    ("off", "within", "inside"), [(1.5e-9, 0, 0), (0.5e-9, 1, 0), (-0.5e-9, 1, 0), (-1.5e-9, 1, 1)]
)
def test_a_billionth_of_a_squared_radius_is_no_difference(off, within, inside):
    """Of real ones at 0 and 1, whose squared radii are 1; the generated one lies on the other side of 0."""
    real, generated = (torch.tensor(x, dtype=torch.float64)[:, None] for x in ([0, 1], [-math.sqrt(1 + off), -50]))
    assert precision_recall(generated, real, k=1)[0] == within / 2
    assert density_coverage(generated, real, k=1) == (inside / 2, inside / 2)


def test_what_rounding_may_leave_of_a_distance_is_none():
    """Up to 1e-12 of both squared lengths, here 2 in all."""
    near, ends = (torch.tensor(x, dtype=torch.float64)[:, None] for x in ([1 + 1.2e-6, 1 + 1.6e-6], [-1.0, 1.0]))
    ((start, found),) = fid._distances(near, ends)
    assert start == 0
    assert found[:, 1].tolist() == [0.0, pytest.approx(2.56e-12, rel=1e-3)]
    assert found[:, 0].tolist() == pytest.approx([4.0, 4.0], rel=1e-5)
