"""The KL loss is the divergence from a standard normal."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from aligntok.losses.reconstruction import KLLoss


def test_it_is_the_divergence_summed_over_an_image_and_averaged_over_the_batch():
    moments = torch.randn(3, 8, 2, 5)
    mean, logvar = moments.chunk(2, dim=1)
    divergence = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(KLLoss()(moments), divergence.sum() / 3)


@pytest.mark.parametrize(("logvar", "clamped"), [(1e4, 20.0), (-1e4, -30.0)])
def test_log_variances_are_clamped(logvar, clamped):
    moments = torch.tensor([0.0, logvar]).view(1, 2, 1, 1)
    assert KLLoss()(moments).item() == pytest.approx(0.5 * (math.exp(clamped) - 1 - clamped))


def test_its_gradient_enters_at_the_moments():
    loss = KLLoss()
    assert (loss.at, loss.inputs) == ("moments", ("moments",))
    assert loss(torch.zeros(1, 4, 2, 2, dtype=torch.bfloat16)).dtype == torch.float32
