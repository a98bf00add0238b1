"""The measures of a latent space: published values, closed forms, and what they must not depend on."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from aligntok.errors import ConfigError
from aligntok.evaluation.metrics import latent_space
from aligntok.evaluation.metrics.latent_space import (
    cknna,
    density_measures,
    gini,
    normalised_entropy,
    spatial_variance,
    total_variation,
)


@pytest.fixture
def features():
    """Two related sets of L2-normalised features of 50 images."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(50, 6, generator=generator)
    b = a @ torch.randn(6, 9, generator=generator) + torch.randn(50, 9, generator=generator)
    return F.normalize(a, dim=1), F.normalize(b, dim=1)


def dense_cknna(a, b, topk):
    """The same by whole N x N matrices, straight from the definition."""
    kernels = [x.double() @ x.double().T for x in (a, b)]
    masks = []
    for kernel in kernels:
        nearest = kernel.clone().fill_diagonal_(-torch.inf).topk(topk, dim=1).indices
        masks.append(torch.zeros_like(kernel).scatter_(1, nearest, 1.0))

    def hsic(k, other, mask):
        k, other = k * mask, other * mask
        m = len(k)
        total = (k * other.T).sum() + k.sum() * other.sum() / ((m - 1) * (m - 2)) - 2 * (k @ other).sum() / (m - 2)
        return total / (m * (m - 3))

    (k, other), (mask, other_mask) = kernels, masks
    own = hsic(k, k, mask) * hsic(other, other, other_mask)
    return float(hsic(k, other, mask * other_mask) / (own.sqrt() + 1e-6))


# CKNNA


def test_cknna_is_that_of_the_published_code(shared_dir):
    tensors = load_file(shared_dir / "reference/parity/cknna.safetensors")
    expected = json.loads((shared_dir / "reference/parity/index.json").read_text())["cknna"]["topk"]
    assert len(expected) == 3
    for topk, value in expected.items():
        assert cknna(tensors["a"], tensors["b"], int(topk)) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("topk", [1, 4, 10, 49])
def test_cknna_is_its_definition_however_many_rows_are_taken_at_once(features, monkeypatch, topk):
    a, b = features
    assert cknna(a, b, topk) == pytest.approx(dense_cknna(a, b, topk), abs=1e-9)
    monkeypatch.setattr(latent_space, "_ROWS_AT_ONCE", 7)
    assert cknna(a, b, topk) == pytest.approx(dense_cknna(a, b, topk), abs=1e-9)


def test_cknna_is_one_with_itself_and_blind_to_rotations(features):
    a, b = features
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    assert cknna(a, a) == pytest.approx(1, abs=1e-3)
    assert cknna(a, a @ rotation) == pytest.approx(1, abs=1e-3)
    shuffled = b[torch.randperm(50, generator=torch.Generator().manual_seed(2))]
    assert 1 > cknna(a, b) > 2 * abs(cknna(a, shuffled))


@pytest.mark.parametrize(("a", "b", "topk"), [(50, 49, 10), (50, 50, 50), (3, 3, 1), (50, 50, 0)])
def test_features_that_have_no_cknna_are_refused(a, b, topk):
    with pytest.raises(ConfigError, match=f"CKNNA of {a} and {b} features with topk={topk}"):
        cknna(torch.randn(a, 4), torch.randn(b, 4), topk)


# Variance and total variation


def test_spatial_variance_is_over_positions_and_a_mean_over_channels():
    latents = torch.zeros(2, 2, 2, 4)
    latents[0, 0, 0] = 2.0  # half of the positions: variance 1; the other channel has none
    latents[1] += torch.tensor([3.0, -7.0]).view(2, 1, 1)  # levels of channels are no variance over positions
    assert spatial_variance(latents).tolist() == [0.5, 0.0]


def test_total_variation_sums_the_steps_between_neighbours_and_is_a_mean_over_channels():
    latents = torch.zeros(1, 2, 3, 4)
    latents[0, 0] = torch.arange(4.0)  # 3 steps of 1 in each of 3 rows; the other channel has none
    assert total_variation(latents).tolist() == [9 / 2]
    latents[0, 1, 1, 1] = -5.0  # and one with a point: four steps of 5
    assert total_variation(latents).tolist() == [(9 + 20) / 2]


def test_white_noise_on_the_papers_grid_has_the_values_that_follow():
    """E|x - y| = 2 s / sqrt(pi) for 480 pairs of neighbours."""
    latents = 3 * torch.randn(40, 32, 16, 16, generator=torch.Generator().manual_seed(0))
    assert spatial_variance(latents).mean() == pytest.approx(9, rel=0.02)
    assert total_variation(latents).mean() == pytest.approx(480 * 6 / math.sqrt(math.pi), rel=0.01)


def test_an_images_values_do_not_depend_on_the_other_images():
    latents = torch.randn(5, 3, 4, 6)
    for measure in (spatial_variance, total_variation):
        assert torch.equal(measure(latents)[3:4], measure(latents[3:4]))


# Density


def test_gini_and_entropy_have_their_closed_forms():
    assert gini(np.full(7, 3.0)) == pytest.approx(0)
    assert normalised_entropy(np.full(7, 3.0)) == pytest.approx(1)
    alone = np.array([0.0, 0.0, 0.0, 5.0])
    assert gini(alone) == pytest.approx(3 / 4)
    assert normalised_entropy(alone) == pytest.approx(0)
    assert gini(np.array([1.0, 3.0])) == pytest.approx(1 / 4)
    assert normalised_entropy(np.array([1.0, 3.0])) == pytest.approx(-(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75)))
    uneven = np.random.default_rng(0).exponential(size=400)
    pairs = np.abs(uneven[:, None] - uneven[None]).mean() / (2 * uneven.mean())  # the Gini coefficient's definition
    assert gini(uneven) == pytest.approx(pairs)


def test_points_that_lie_evenly_have_a_lower_cv_and_gini_and_a_higher_entropy_than_clusters():
    rng = np.random.default_rng(0)
    radius, angle = np.sqrt(rng.random(1500)), rng.uniform(0, 2 * np.pi, 1500)
    even = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    clusters = 0.05 * rng.normal(size=(1500, 2)) + rng.normal(size=(6, 2))[rng.choice(6, 1500, p=(0.5, *[0.1] * 5))]
    level, uneven = density_measures(even), density_measures(clusters)
    assert 0.1 < level.cv < 0.4  # the rim alone, as on the t-SNE of the paper's tokenizers
    assert 0.05 < level.gini < 0.25
    assert level.entropy > 0.985
    assert uneven.cv > 2 * level.cv
    assert uneven.gini > 2 * level.gini
    assert uneven.entropy < level.entropy


def test_density_does_not_depend_on_scale_place_and_order():
    points = np.random.default_rng(0).normal(size=(200, 2))
    moved = (1000 * points + 5)[::-1]
    assert density_measures(points) == pytest.approx(density_measures(moved))


@pytest.mark.parametrize("points", [np.zeros((3, 2)), np.ones((50, 2)), np.linspace(0, 1, 20)[:, None].repeat(2, 1)])
def test_points_without_a_density_are_refused(points):
    with pytest.raises(ConfigError, match=f"no density can be estimated from {len(points)} points"):
        density_measures(points)
