"""The linear path, and what its velocity says of data, noise and score."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aligntok.diffusion.flow import (
    data_from_velocity,
    interpolate,
    noise_from_velocity,
    path_velocity,
    score_from_velocity,
)
from aligntok.errors import ConfigError


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_path_and_its_velocity_are_the_reference_ones(reference):
    x = interpolate(reference["x0"], reference["x1"], reference["t"])
    torch.testing.assert_close(x, reference["xt"], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        path_velocity(reference["x0"], reference["x1"]), reference["velocity"], rtol=0, atol=1e-5
    )


def test_noise_is_at_0_and_data_at_1():
    noise, data = numbers(2, 3, 4, 5), numbers(2, 3, 4, 5, seed=1)
    x = interpolate(noise, data, torch.tensor([0.0, 1.0]))
    assert torch.equal(x[0], noise[0])
    assert torch.equal(x[1], data[1])


@settings(max_examples=30, deadline=None)
@given(t=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
def test_a_point_and_its_velocity_give_back_both_ends(t, seed):
    noise, data, t = numbers(2, 3, 2, 5, seed=seed), numbers(2, 3, 2, 5, seed=seed + 1), torch.tensor([t, 1 - t])
    x, v = interpolate(noise, data, t), path_velocity(noise, data)
    torch.testing.assert_close(data_from_velocity(x, v, t), data)
    torch.testing.assert_close(noise_from_velocity(x, v, t), noise)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_the_score_of_gaussian_data_is_the_gradient_of_its_log_density(t):
    mean, deviation = 0.7, 0.4
    x = numbers(6, 1).requires_grad_()
    variance = (t * deviation) ** 2 + (1 - t) ** 2
    (gradient,) = torch.autograd.grad((-((x - t * mean) ** 2) / (2 * variance)).sum(), x)
    v = mean + (t * deviation**2 - (1 - t)) / variance * (x - t * mean)  # E[x_1 - x_0 | x_t]
    torch.testing.assert_close(score_from_velocity(x, v, torch.tensor(t, dtype=x.dtype)), gradient)


def test_a_scalar_time_serves_all_samples():
    x, v = numbers(3, 2, 4, 4), numbers(3, 2, 4, 4, seed=1)
    every = torch.full((3,), 0.25)
    assert torch.equal(data_from_velocity(x, v, torch.tensor(0.25)), data_from_velocity(x, v, every))


def test_the_time_does_not_decide_the_type():
    x, v = numbers(3, 2).float(), numbers(3, 2, seed=1).float()
    for function in (data_from_velocity, noise_from_velocity, score_from_velocity):
        assert function(x, v, torch.full((3,), 0.25, dtype=torch.float64)).dtype == torch.float32


def test_ends_of_unlike_shape_are_not_broadcast():
    for function, rest in ((interpolate, [torch.tensor(0.5)]), (path_velocity, [])):
        with pytest.raises(ConfigError, match=r"noise is \(2, 1, 4\), data is \(2, 3, 4\); shapes must agree"):
            function(torch.zeros(2, 1, 4), torch.zeros(2, 3, 4), *rest)
