"""Weight averages of the power-function profile, and averages of any width afterwards."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from aligntok.engine.ema import (
    EMASettings,
    WeightAverages,
    gamma_from_sigma_rel,
    post_hoc_coefficients,
    power_function_beta,
    synthesise,
)
from aligntok.errors import ConfigError


@pytest.fixture
def reference(shared_dir):
    return json.loads((shared_dir / "reference/parity/index.json").read_text())["power_function_ema"]


@pytest.fixture
def parts():
    torch.manual_seed(0)
    return {"encoder": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), "decoder": nn.Linear(4, 2)}


def walk(parts, steps, *averages, seed=0):
    """Train on noise: parameters drift and tremble; every average is updated after each step."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        with torch.no_grad():
            for i, parameter in enumerate(p for part in parts.values() for p in part.parameters()):
                parameter.add_(0.01 * np.sin(i + step / 40) + 0.02 * torch.randn(parameter.shape, generator=generator))
        for average in averages:
            average.update()


def bits(parts):
    return {f"{n}.{k}": t.clone() for n, part in parts.items() for k, t in part.state_dict().items()}


def test_gammas_are_the_reference_ones(reference):
    found = [gamma_from_sigma_rel(s) for s in reference["sigma_rel"]]
    assert found == pytest.approx(reference["gamma"], rel=1e-9)


def test_betas_are_the_reference_ones(reference):
    steps = reference["beta_at_steps"]["t_next"]
    found = [[power_function_beta(s, step) for step in steps] for s in reference["sigma_rel"]]
    np.testing.assert_allclose(found, reference["beta_at_steps"]["beta"], rtol=1e-9)


def test_post_hoc_coefficients_are_the_reference_ones(reference):
    given = reference["post_hoc"]
    for i, (step, sigma_rel) in enumerate(zip(given["out_step"], given["out_sigma_rel"], strict=True)):
        found = post_hoc_coefficients(given["in_step"], given["in_sigma_rel"], step, sigma_rel)
        expected = np.array(given["coefficients"])
        expected = expected[i] if expected.shape[0] == len(given["out_step"]) else expected[:, i]
        np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-6, atol=1e-9)
        assert found.sum() == pytest.approx(1)


@settings(max_examples=50, deadline=None)
@given(sigma_rel=st.floats(0.005, 0.28))
def test_gamma_is_the_root_of_the_widths_equation(sigma_rel):
    gamma = gamma_from_sigma_rel(sigma_rel)
    assert gamma > 0
    assert (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) == pytest.approx(sigma_rel**2, rel=1e-6)


@pytest.mark.parametrize("sigma_rel", [0, -0.1, 0.3, 1.0])
def test_a_width_without_a_profile_is_an_error(sigma_rel):
    with pytest.raises(ConfigError, match=r"must lie in \(0, 0\.28\]"):
        gamma_from_sigma_rel(sigma_rel)


def test_the_first_update_forgets_where_it_began_and_a_constant_stays(parts):
    ema = WeightAverages(parts, [0.05, 0.2])
    with torch.no_grad():
        for parameter in parts["decoder"].parameters():
            parameter.fill_(3)
    for _ in range(5):
        ema.update()
        for sigma_rel in (0.05, 0.2):
            assert all((value == 3).all() for value in ema.state(sigma_rel)["decoder"].values())


def test_an_average_is_the_sum_with_power_function_weights(parts):
    """beta written out: after T steps value t weighs in proportion to (t^(g+1) - (t-1)^(g+1))."""
    ema, seen = WeightAverages(parts, [0.1]), []
    for seed in range(12):
        walk(parts, 1, ema, seed=seed)
        seen.append(parts["decoder"].weight.detach().double().clone())
    power = gamma_from_sigma_rel(0.1) + 1
    weights = np.diff((np.arange(13) / 12) ** power)
    expected = sum(float(w) * value for w, value in zip(weights, seen, strict=True))
    torch.testing.assert_close(ema.state(0.1)["decoder"]["weight"].double(), expected, rtol=0, atol=1e-6)


def test_several_widths_at_once_are_each_as_if_alone(parts):
    together, alone = WeightAverages(parts, [0.05, 0.1]), [WeightAverages(parts, [s]) for s in (0.05, 0.1)]
    walk(parts, 10, together, *alone)
    for ema in alone:
        (sigma_rel,) = ema.kept
        torch.testing.assert_close(together.state(sigma_rel), ema.state(sigma_rel), rtol=0, atol=0)
    assert not torch.equal(together.state(0.05)["decoder"]["weight"], together.state(0.1)["decoder"]["weight"])


def test_trained_parameters_and_running_statistics_are_averaged(parts):
    parts["encoder"][0].weight.requires_grad_(False)
    names = set(WeightAverages(parts, [0.1]).state(0.1)["encoder"])
    assert names == {"0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}


def test_running_statistics_are_averaged_as_the_weights_that_they_belong_to(parts):
    """A plain average of decay 0.9, by hand; what counts batches stays as it is."""
    ema, norm = WeightAverages(parts, [], [0.9]), parts["encoder"][1]
    expected = norm.running_mean.clone()
    for _ in range(5):
        parts["encoder"](torch.randn(8, 3) + 2)
        ema.update()
        expected = 0.9 * expected + 0.1 * norm.running_mean
    torch.testing.assert_close(ema.state(0.9)["encoder"]["1.running_mean"], expected)
    with ema.swapped(0.9):
        torch.testing.assert_close(norm.running_mean, expected)
        assert int(norm.num_batches_tracked) == 5
    assert not torch.allclose(norm.running_mean, expected)


def test_averages_of_before_running_statistics_were_averaged_go_on(parts):
    ema = WeightAverages(parts, [0.1])
    saved = ema.state_dict()
    saved["averages"]["0.1"]["encoder"] = {
        name: value for name, value in saved["averages"]["0.1"]["encoder"].items() if "running" not in name
    }
    parts["encoder"](torch.randn(8, 3))
    ema.load_state_dict(saved)
    assert torch.equal(ema.state(0.1)["encoder"]["1.running_var"], parts["encoder"][1].running_var)


def test_a_variance_made_of_snapshots_is_none_below_zero():
    def state(value):
        return {"decoder": {"n.running_var": torch.tensor([value, 1.0]), "w": torch.tensor([value])}}

    made = synthesise([(2.0, state(0.1)), (-1.0, state(0.5))])["decoder"]
    assert made["n.running_var"].tolist() == [0.0, 1.0]
    assert made["w"].tolist() == pytest.approx([-0.3])


@pytest.mark.parametrize("share", ["weight", "module", "across parts"])
def test_a_tied_weight_has_one_average_and_all_its_names(share):
    torch.manual_seed(0)
    first, second, other = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
    parts = {"encoder": nn.Sequential(first, first if share == "module" else second), "decoder": nn.Sequential(other)}
    tied = {"weight": ("encoder", "1.weight"), "module": ("encoder", "1.weight")}.get(share, ("decoder", "0.weight"))
    if share == "weight":
        second.weight = first.weight
    elif share == "across parts":
        other.weight = first.weight
    ema = WeightAverages(parts, [0.1])
    walk(parts, 4, ema)
    state = ema.state(0.1)
    assert {part: set(names) for part, names in state.items()} == {p: set(m.state_dict()) for p, m in parts.items()}
    assert torch.equal(state["encoder"]["0.weight"], state[tied[0]][tied[1]])
    assert not torch.equal(state["encoder"]["0.weight"], first.weight)
    before, average = bits(parts), state["encoder"]["0.weight"].clone()
    with ema.swapped(0.1):
        assert torch.equal(first.weight, average)
    assert all(torch.equal(value, before[name]) for name, value in bits(parts).items())


def test_exchanging_twice_changes_no_bit(parts):
    ema = WeightAverages(parts, [0.05, 0.1])
    walk(parts, 5, ema)
    before, averages = bits(parts), {k: t.clone() for k, t in ema.state(0.05)["encoder"].items()}
    ema.swap(0.05)
    now = parts["encoder"].state_dict()
    assert all(torch.equal(now[name], value) for name, value in averages.items())
    assert not torch.equal(now["0.weight"], before["encoder.0.weight"])
    ema.swap(0.05)
    assert all(torch.equal(value, before[name]) for name, value in bits(parts).items())
    assert all(torch.equal(ema.state(0.05)["encoder"][name], value) for name, value in averages.items())


def test_a_saved_state_goes_on_bit_for_bit(parts):
    first = WeightAverages(parts, [0.05, 0.1])
    walk(parts, 4, first)
    second = WeightAverages(parts, [0.05, 0.1])
    second.load_state_dict(first.state_dict())
    walk(parts, 3, first, second, seed=1)
    assert second.step == first.step == 7
    for sigma_rel in (0.05, 0.1):
        torch.testing.assert_close(second.state(sigma_rel), first.state(sigma_rel), rtol=0, atol=0)


def test_a_state_of_other_widths_is_refused(parts):
    saved = WeightAverages(parts, [0.05]).state_dict()
    with pytest.raises(ConfigError, match=r"holds EMA widths or decays 0\.05, but"):
        WeightAverages(parts, [0.1]).load_state_dict(saved)
    with pytest.raises(ConfigError, match=r"no EMA of width or decay 0\.2 is kept; kept: 0\.1"):
        WeightAverages(parts, [0.1]).state(0.2)


def test_a_plain_average_has_one_decay_and_begins_as_the_weights(parts):
    ema = WeightAverages(parts, [0.1], decays=[0.9])
    expected = {n: p.detach().clone() for n, p in parts["encoder"].named_parameters() if p.requires_grad}
    for step in range(3):
        walk(parts, 1, ema, seed=step)
        now = dict(parts["encoder"].named_parameters())
        expected = {n: 0.9 * mean + 0.1 * now[n].detach() for n, mean in expected.items()}
    assert ema.kept == (0.1, 0.9)
    for name, mean in expected.items():
        torch.testing.assert_close(ema.state(0.9)["encoder"][name], mean)


@pytest.mark.parametrize(("decay", "widths"), [(0.5, ()), (0.99999, (0.28, 0.001))])
def test_the_last_allowed_ones_are_allowed(parts, decay, widths):
    ema, start = WeightAverages(parts, widths, decays=[decay]), parts["decoder"].bias.detach().clone()
    assert ema.kept == (*widths, decay)
    with torch.no_grad():
        parts["decoder"].bias.add_(1000)
    ema.update()
    torch.testing.assert_close(ema.state(decay)["decoder"]["bias"], start + 1000 * (1 - decay))


@pytest.mark.parametrize("decay", [0.3, 1.0])
def test_a_decay_that_is_none_is_refused(parts, decay):
    with pytest.raises(ConfigError, match=rf"EMA decay {decay}; it must lie in \[0.5, 1\)"):
        WeightAverages(parts, [], decays=[decay])


@pytest.mark.parametrize("sigma_rel", [0.04, 0.075, 0.13])
def test_snapshots_give_any_width_as_if_it_had_been_tracked(parts, sigma_rel):
    kept, direct = WeightAverages(parts, [0.05, 0.10]), WeightAverages(parts, [sigma_rel])
    steps, widths, snapshots = [], [], []
    for number in range(8):
        walk(parts, 100, kept, direct, seed=number)
        for width in kept.kept:
            state = {part: {k: t.clone() for k, t in s.items()} for part, s in kept.state(width).items()}
            steps.append(kept.step)
            widths.append(width)
            snapshots.append(state)
    coefficients = post_hoc_coefficients(steps, widths, 800, sigma_rel)
    made = synthesise((float(c), state) for c, state in zip(coefficients, snapshots, strict=True))
    tracked = direct.state(sigma_rel)
    raw = {name: part.state_dict() for name, part in parts.items()}

    def distance(other):
        return sum(float((other[p][n] - t).square().sum()) for p, s in tracked.items() for n, t in s.items()) ** 0.5

    assert distance(made) < 0.03 * distance(raw)
    assert made["decoder"]["weight"].dtype == torch.float32


def test_coefficients_of_a_width_that_was_kept_pick_its_snapshot():
    found = post_hoc_coefficients([500, 1000, 500, 1000], [0.05, 0.05, 0.1, 0.1], 1000, 0.1)
    np.testing.assert_allclose(found, [0, 0, 0, 1], atol=1e-8)


def test_the_average_that_is_used_is_one_that_is_kept():
    assert EMASettings(sigma_rel=[], decays=[0.9], inference=0.9).inference == 0.9
    assert EMASettings(sigma_rel=[0.1], decays=[0.9], inference=0.1).inference == 0.1
    for wrong in (dict(sigma_rel=[0.1]), dict(sigma_rel=[], decays=[0.9], inference=0.1)):
        with pytest.raises(ConfigError, match="is not among the averages kept"):
            EMASettings(**wrong)
    for wrong in (dict(sigma_rel=[0.05, 0.3]), dict(decays=[0.4])):
        with pytest.raises(ConfigError, match="must lie in"):
            EMASettings(**wrong)


@pytest.mark.parametrize("before", ["shares", "whole"])
def test_averages_of_shares_go_on_from_those_of_shares_and_of_whole_weights(shares, before):
    made = [nn.Linear(3, 5), nn.Linear(3, 5)]
    first = WeightAverages({"net": made[0] if before == "whole" else shares(made[0])}, [0.1])
    first.update()
    saved = first.state_dict()
    averages = WeightAverages({"net": shares(made[1])}, [0.1])
    averages.load_state_dict(saved)
    for name, expected in saved["averages"]["0.1"]["net"].items():
        found = averages.state(0.1)["net"][name]
        assert torch.equal(found.full_tensor(), getattr(expected, "full_tensor", lambda e=expected: e)())
    assert averages.step == 1
