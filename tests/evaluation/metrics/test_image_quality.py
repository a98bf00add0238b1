"""PSNR and SSIM: of 8-bit pixels, and the numbers that others compute."""

from __future__ import annotations

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from aligntok.evaluation.metrics.image_quality import psnr, ssim, to_8bit, to_pixels


@pytest.fixture
def pair():
    image = torch.rand(3, 24, 40) * 2 - 1
    return image, (image + 0.2 * torch.randn_like(image)).clamp(-1, 1)


def test_psnr_is_that_of_the_8_bit_pictures(pair):
    saved = [to_pixels(image).numpy() for image in pair]
    assert psnr(*pair) == pytest.approx(peak_signal_noise_ratio(*saved), rel=1e-9)


def test_a_change_below_half_a_grey_level_is_none():
    image = to_8bit(torch.rand(3, 16, 16) * 2 - 1) / 127.5 - 1
    assert psnr(image, image + 0.9 / 255) == 100.0
    assert psnr(image, image + 1.1 / 255) < 100.0


def test_what_is_not_finite_is_not_taken_for_identical(pair):
    assert math.isnan(psnr(pair[0], torch.full_like(pair[0], math.nan)))


def test_ssim_is_that_of_scikit_image_where_the_window_fits(pair):
    x, y = (to_8bit(image).numpy() for image in pair)
    options = dict(channel_axis=0, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    assert ssim(*pair) == pytest.approx(structural_similarity(x, y, **options), abs=1e-10)


def test_torchmetrics_ssim_differs_only_by_the_mirrored_border(pair):
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, y = (to_8bit(image)[None] for image in pair)
    theirs = structural_similarity_index_measure(y, x, data_range=255.0)
    assert ssim(*pair) == pytest.approx(float(theirs), abs=5e-3)


def test_identical_images_have_ssim_1_and_small_ones_none():
    image = torch.rand(3, 16, 16) * 2 - 1
    assert ssim(image, image) == pytest.approx(1, abs=1e-12)
    assert math.isnan(ssim(image[:, :10], image[:, :10]))
