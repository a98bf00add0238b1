"""The velocity losses, a number a sample."""

from __future__ import annotations

import pytest
import torch

from aligntok.diffusion.flow import direction_loss, flow_matching_loss, velocity_mse
from aligntok.errors import ConfigError


def test_both_terms_are_the_reference_ones(reference):
    predicted, target = reference["pred"], reference["velocity"]
    torch.testing.assert_close(velocity_mse(predicted, target), reference["mse_per_sample"], rtol=0, atol=1e-5)
    torch.testing.assert_close(direction_loss(predicted, target), reference["cosine_per_sample"], rtol=0, atol=1e-5)
    both = reference["mse_per_sample"] + reference["cosine_per_sample"]
    torch.testing.assert_close(flow_matching_loss(predicted, target), both, rtol=0, atol=1e-5)


def test_a_samples_loss_is_its_own():
    predicted, target = torch.zeros(3, 2, 4, 4), torch.zeros(3, 2, 4, 4)
    predicted[1] = 2.0
    torch.testing.assert_close(velocity_mse(predicted, target), torch.tensor([0.0, 4.0, 0.0]))


def test_direction_is_averaged_over_positions_and_blind_to_length():
    target = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]]).T.reshape(1, 2, 1, 3)  # three positions
    predicted = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]).T.reshape(1, 2, 1, 3)  # along, across, against
    torch.testing.assert_close(direction_loss(predicted, target), torch.tensor([(0 + 1 + 2) / 3]))


def test_the_weight_is_the_direction_terms():
    predicted, target = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    mse, direction = velocity_mse(predicted, target), direction_loss(predicted, target)
    torch.testing.assert_close(flow_matching_loss(predicted, target, 0.5), mse + 0.5 * direction)
    assert torch.equal(flow_matching_loss(predicted, target, 0.0), mse)


def test_half_precision_is_compared_in_float32_and_a_zero_velocity_has_a_gradient():
    predicted = torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    loss = flow_matching_loss(predicted, torch.ones(2, 3, 4, 4, dtype=torch.bfloat16))
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert predicted.grad.isfinite().all()


def test_mistakes_are_refused():
    with pytest.raises(ConfigError, match=r"direction_loss: predicted is \(2, 4, 1\), target is \(2, 4, 3\)"):
        direction_loss(torch.zeros(2, 4, 1), torch.zeros(2, 4, 3))
    with pytest.raises(ConfigError, match=r"velocity_mse: predicted is"):
        flow_matching_loss(torch.zeros(2, 4, 1), torch.zeros(2, 4, 3))
    with pytest.raises(ConfigError, match=r"direction_weight=-1; it must be 0 \(none\) or above"):
        flow_matching_loss(torch.zeros(2, 4), torch.zeros(2, 4), -1)


def test_a_prediction_of_zero_has_a_gradient_that_an_optimiser_can_take():
    predicted = torch.zeros(2, 4, 3, 3, requires_grad=True)
    direction_loss(predicted, torch.randn(2, 4, 3, 3)).sum().backward()
    assert 0 < predicted.grad.abs().max() < 100


@pytest.mark.parametrize(("length", "expected"), [(0.005, 0.5), (0.01, 0.0), (0.02, 0.0), (0.0, 1.0)])
def test_a_prediction_shorter_than_a_hundredth_counts_as_that_long(length, expected):
    predicted, target = (torch.tensor([first, 0.0]).view(1, 2, 1) for first in (length, 3.0))
    torch.testing.assert_close(direction_loss(predicted, target), torch.tensor([expected]))
