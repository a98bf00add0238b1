"""Times to train at and to sample on, and their shift."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aligntok.diffusion.times import SAMPLINGS, length_shift, sample_times, shift_of, shift_times, time_grid
from aligntok.errors import ConfigError

shifts = st.floats(0.05, 20)


@settings(max_examples=50, deadline=None)
@given(shift=shifts)
def test_a_shift_keeps_both_ends_exactly_and_the_order(shift):
    grid = time_grid(33, shift)
    assert grid[0] == 0
    assert grid[-1] == 1
    assert (grid.diff() > 0).all()


@settings(max_examples=50, deadline=None)
@given(shift=shifts, t=st.floats(0, 1))
def test_the_inverse_shift_undoes_a_shift(shift, t):
    t = torch.tensor(t, dtype=torch.float64)
    torch.testing.assert_close(shift_times(shift_times(t, shift), 1 / shift), t)


def test_a_shift_is_the_published_formula_and_below_1_it_goes_towards_noise():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shift_times(t, 0.3), 0.3 * t / (1 + (0.3 - 1) * t))
    assert (shift_times(t, 0.3)[1:-1] < t[1:-1]).all()
    assert (shift_times(t, 3.0)[1:-1] > t[1:-1]).all()


def test_the_shift_of_a_length_is_the_published_line_through_256_and_4096_tokens():
    assert [round(length_shift(tokens), 4) for tokens in (256, 1024, 4096)] == [0.6065, 0.5326, 0.3166]
    assert length_shift(4096) == pytest.approx(math.exp(-1.15), rel=1e-12)
    for tokens in (256, 1024, 4096):  # published, of noise levels: e^mu / (e^mu + 1/T - 1)
        mu, level = 0.5 + 0.65 * (tokens - 256) / 3840, torch.linspace(1, 0, 51, dtype=torch.float64)[1:-1]
        warped = math.exp(mu) / (math.exp(mu) + 1 / level - 1)
        torch.testing.assert_close(shift_times(1 - level, length_shift(tokens)), 1 - warped)


def test_a_length_is_of_patches():
    class Patches:
        patch_size = 2

    assert shift_of("length", (16, 24), None) == length_shift(384)
    assert shift_of("length", (16, 24), Patches()) == length_shift(96)
    assert shift_of(0.3, (16, 24), Patches()) == 0.3


@pytest.mark.parametrize("shift", [0, 0.0, 1, 1.0])
def test_shifts_that_are_none_leave_the_even_grid(shift):
    assert torch.equal(time_grid(10, shift), torch.linspace(0, 1, 10))


def test_two_points_are_a_grid_and_a_shift_of_0_or_1_changes_no_bit():
    assert time_grid(2).tolist() == [0.0, 1.0]
    t = torch.rand(99)
    assert shift_times(t, 1) is shift_times(t, 0) is t


def test_a_grid_may_start_late_and_end_early():
    torch.testing.assert_close(time_grid(3, start=0.2, end=0.8), torch.tensor([0.2, 0.5, 0.8]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 1}, "points=1 makes 0 steps; at least 1 step"),
        ({"points": 0}, "points=0 makes -1 steps"),
        ({"points": 5, "shift": -0.3}, "timestep shift -0.3; it must be positive"),
        ({"points": 5, "shift": math.nan}, "it must be positive"),
        ({"points": 5, "shift": math.inf}, "it must be positive"),
        ({"points": 5, "start": 0.5, "end": 0.5}, "0 <= start < end <= 1"),
        ({"points": 5, "end": 1.5}, "start=0.0, end=1.5"),
        ({"points": 5, "start": -0.1}, "start=-0.1, end=1.0"),
    ],
)
def test_grids_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        time_grid(**options)


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (-0.8, 0.5), (1.2, 2.0)])
def test_logit_normal_times_have_the_moments_asked_for(mean, scale):
    numbers = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    times = sample_times(numbers, mean=mean, scale=scale)
    assert times.dtype == torch.float32
    assert 0 <= times.min() <= times.max() <= 1
    logits = torch.logit(times.double().clamp(1e-7, 1 - 1e-7))
    assert logits.mean().item() == pytest.approx(mean, abs=4 * scale / math.sqrt(100_000))
    assert logits.std().item() == pytest.approx(scale, rel=0.01)
    assert times.median().item() == pytest.approx(1 / (1 + math.exp(-mean)), abs=0.01)


def test_a_logit_normal_time_is_the_one_by_hand():
    """Numbers Phi(1), 1/2 and Phi(-1), whose normal numbers are 1, 0 and -1; a mirrored one has the same moments."""
    numbers = torch.tensor([0.8413447460685429, 0.5, 0.15865525393145707], dtype=torch.float64)
    by_hand = [1 / (1 + math.exp(-logit)) for logit in (0.3 + 2, 0.3, 0.3 - 2)]
    assert sample_times(numbers, mean=0.3, scale=2.0).tolist() == pytest.approx(by_hand, rel=1e-6)
    assert sample_times(numbers).tolist() == pytest.approx([0.7310586, 0.5, 0.2689414], rel=1e-6)
    shifted = [2 * t / (1 + t) for t in by_hand]
    assert sample_times(numbers, mean=0.3, scale=2.0, shift=2.0).tolist() == pytest.approx(shifted, rel=1e-6)


def test_uniform_times_are_the_numbers_themselves():
    numbers = torch.rand(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample_times(numbers, "uniform"), numbers)


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_the_shift_comes_last(sampling):
    numbers = torch.rand(100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        sample_times(numbers, sampling, shift=0.3), shift_times(sample_times(numbers, sampling), 0.3)
    )


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_a_samples_time_does_not_depend_on_its_batch(sampling):
    numbers = torch.rand(64, generator=torch.Generator().manual_seed(0))
    whole = sample_times(numbers, sampling, mean=0.3, scale=0.8, shift=0.5)
    ranks = [sample_times(numbers[rank::4], sampling, mean=0.3, scale=0.8, shift=0.5) for rank in range(4)]
    assert torch.equal(torch.stack(ranks, dim=1).flatten(), whole)


def test_the_numbers_alone_decide():
    numbers = torch.rand(8, generator=torch.Generator().manual_seed(0))
    first, again, other = (sample_times(given) for given in (numbers, numbers, numbers.flip(0)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_the_ends_of_the_random_numbers_are_times(sampling):
    times = sample_times(torch.tensor([0.0, 0.5, 1 - 2**-24]), sampling)
    assert times.isfinite().all()
    assert 0 <= times.min() <= times.max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "logitnormal"}, "no sampling named 'logitnormal'; did you mean 'logit_normal'.*known: uniform"),
        ({"scale": 0.0}, "scale=0.0; both must be finite, the scale above 0"),
        ({"scale": math.inf}, "scale=inf"),
        ({"scale": -1.0}, "scale=-1.0"),
        ({"mean": math.inf}, "mean=inf"),
    ],
)
def test_samplings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        sample_times(torch.rand(3), **options)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_times_are_float32_of_whatever_numbers(sampling):
    numbers = torch.tensor([0.25, 0.5], dtype=torch.float64)
    found = sample_times(numbers, sampling)
    assert found.dtype == torch.float32
    assert torch.equal(found, sample_times(numbers.float(), sampling))
