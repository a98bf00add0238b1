"""Which steps are left out, and when too many were."""

from __future__ import annotations

import pytest

from aligntok.engine.optim import WINDOW, SkippedSteps
from aligntok.errors import DivergenceError


def settled(max_skipped=3, spike_factor=10.0):
    """A guard that has seen enough of a part whose gradient norm is 1 or 2."""
    guard = SkippedSteps(max_skipped, spike_factor)
    for i in range(WINDOW):
        assert guard.passes({"decoder": 1.0 + i % 2, "discriminator": 0.0}, True)
    return guard


def test_a_gradient_far_above_the_usual_is_a_spike_and_said_so(caplog):
    guard = settled()
    assert not guard.passes({"decoder": 16.0}, True)
    assert "step left out (1 in a row): a gradient norm of 16 in decoder, 11 times the usual 1.5" in caplog.text
    assert (guard.skipped, guard.skipped_in_a_row) == (1, 1)
    assert guard.passes({"decoder": 14.0}, True)
    assert (guard.skipped, guard.skipped_in_a_row) == (1, 0)


def test_a_spike_does_not_change_what_is_usual():
    guard = settled(max_skipped=1000)
    for _ in range(2 * WINDOW):
        assert not guard.passes({"decoder": 1e6}, True)


def test_a_few_large_norms_below_the_limit_do_not_widen_it():
    """Of 90 ones and 10 nines the median is 1, the mean 1.8: of 12, twelve times the usual one."""
    guard = SkippedSteps(3, 10.0)
    for i in range(WINDOW):
        assert guard.passes({"decoder": 9.0 if i % 10 == 9 else 1.0}, True)
    assert not guard.passes({"decoder": 12.0}, True)
    assert guard.passes({"decoder": 10.0}, True)  # ten times is not more than ten times


def test_a_part_is_judged_from_its_hundredth_step_on_as_the_words_say():
    assert WINDOW == 100
    guard = SkippedSteps(3, 10.0)
    for _ in range(99):
        assert guard.passes({"decoder": 1.0}, True)
    other = SkippedSteps(3, 10.0)
    other.load_state_dict(guard.state_dict())
    assert other.passes({"decoder": 99.0}, True)  # the hundredth
    assert not other.passes({"decoder": 99.0}, True)


def test_what_is_usual_follows_training():
    guard = settled()
    for i in range(600):
        assert guard.passes({"decoder": 2.0 * 1.01**i}, True)


def test_a_part_is_not_judged_before_it_is_known():
    """A GAN that begins late, whose discriminator has had no gradients so far."""
    guard = settled()
    assert guard.passes({"decoder": 1.0, "discriminator": 500.0}, True)
    assert SkippedSteps(3, 10.0).passes({"decoder": 1e9}, True)


def test_without_a_factor_only_what_is_not_finite_is_left_out(caplog):
    guard = settled(spike_factor=None)
    assert guard.passes({"decoder": 1e9}, True)
    assert not guard.passes({"decoder": float("nan"), "encoder": 1.0, "adapter": float("inf")}, True)
    assert "gradients that are not finite (parts: decoder, adapter)" in caplog.text
    assert not guard.passes({"decoder": 1.0}, False)
    assert "a loss that is not finite" in caplog.text


def test_a_norm_above_a_fixed_one_is_left_out_after_the_first_steps_of_a_training(caplog):
    """minFM's: above 2, after the first 1,000, which those before an interruption count among."""
    guard, other = (SkippedSteps(3, None, (2.0, 1000)) for _ in range(2))
    for _ in range(998):
        assert guard.passes({"generator": 2.5}, True)
    assert not guard.passes({"generator": 2.5}, False)  # for its loss; the 999th
    other.load_state_dict(guard.state_dict())
    assert other.passes({"generator": 2.5}, True)
    assert not other.passes({"generator": 2.001}, True)
    assert "step left out (1 in a row): a gradient norm of 2.001 in generator, which is over skip_norm=2" in caplog.text
    assert other.passes({"generator": 2.0}, True)


def test_a_state_from_before_steps_were_counted_goes_on():
    state = settled().state_dict()
    del state["judged"]
    guard = SkippedSteps(3, 10.0)
    guard.load_state_dict(state)
    assert guard.passes({"decoder": 1.0}, True)


def test_too_many_in_a_row_stop_the_training():
    guard = settled(max_skipped=2)
    for _ in range(2):
        assert not guard.passes({"decoder": 99.0}, True)
    assert guard.passes({"decoder": 1.0}, True)
    for _ in range(2):
        assert not guard.passes({"decoder": 99.0}, True)
    with pytest.raises(DivergenceError, match=r"3 steps in a row .* of 99 in decoder.* raise spike_factor"):
        guard.passes({"decoder": 99.0}, True)


def test_a_saved_state_goes_on():
    guard, other = settled(), SkippedSteps(3, 10.0)
    guard.passes({"decoder": 99.0}, True)
    other.load_state_dict(guard.state_dict())
    assert other.state_dict() == guard.state_dict()
    assert not other.passes({"decoder": 16.0}, True)
    assert other.skipped_in_a_row == 2
    assert other.passes({"decoder": 2.0}, True)
    assert not other.passes({"decoder": 99.0}, True)  # the window of the last 100 is still one of 100
    for i in range(2 * WINDOW):
        assert other.passes({"decoder": 3.0 + i % 2}, True)
    assert other.passes({"decoder": 34.0}, True)  # it has moved on
    assert not other.passes({"decoder": 41.0}, True)


def test_it_is_off_without_a_factor_and_a_zero_limit_stops_at_the_first():
    guard = settled(max_skipped=0)
    with pytest.raises(DivergenceError, match="1 steps in a row"):
        guard.passes({"decoder": 99.0}, True)
