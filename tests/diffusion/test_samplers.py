"""Samplers, against known solutions and published samples."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from aligntok.diffusion.guidance import classifier_free
from aligntok.diffusion.samplers import (
    DIFFUSIONS,
    LAST_STEPS,
    SAMPLERS,
    ddim,
    dopri5,
    euler,
    euler_maruyama,
    generators_from_seeds,
    options_of,
    sample,
)
from aligntok.diffusion.times import length_shift, time_grid
from aligntok.errors import ConfigError
from aligntok.rng import batch_noise

MEAN, DEVIATION = 0.7, 0.4


def decay(x, t):
    """dx/dt = -2 x, whose solution is x(0) exp(-2 t)."""
    return -2 * x


def hasten(x, t):
    """dx/dt = -(1 + 2 t) x, whose solution is x(0) exp(-t - t^2)."""
    return -(1 + 2 * t)[:, None] * x


def to_gaussian(x, t):
    """The exact velocity from N(0, 1) to N(MEAN, DEVIATION^2)."""
    t = t.reshape(-1, *[1] * (x.ndim - 1))
    variance = (t * DEVIATION) ** 2 + (1 - t) ** 2
    return MEAN + (t * DEVIATION**2 - (1 - t)) / variance * (x - t * MEAN)


def curved(x, t):
    """A field of mixed channels, that treats each sample and position alone."""
    return 0.5 * torch.sin(x) + (t - 0.3).view(-1, 1, 1, 1) + 0.2 * x.roll(1, dims=1)


def starts(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def error(sampler, points, velocity=hasten):
    x = starts(4, 3)
    return (SAMPLERS[sampler](velocity, x, time_grid(points)) - math.exp(-2) * x).abs().max().item()


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2), ("ddim", 1)])
def test_halving_the_step_shrinks_the_error_as_the_order_says(sampler, order):
    for points in (17, 33, 65):
        ratio = error(sampler, points) / error(sampler, 2 * points - 1)
        assert math.log2(ratio) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("sampler", "bound"), [("euler", 2e-2), ("heun", 1e-4), ("dopri5", 2e-3), ("ddim", 2e-2)])
def test_the_known_solution_is_reached(sampler, bound):
    assert error(sampler, 101, decay) < bound
    assert error(sampler, 101, hasten) < bound


def test_tighter_tolerances_come_nearer():
    x, times = starts(4, 3), time_grid(2)
    loose, tight = (dopri5(decay, x, times, rtol=r, atol=r) for r in (1e-2, 1e-9))
    assert (tight - math.exp(-2) * x).abs().max() < 1e-8 < (loose - math.exp(-2) * x).abs().max()


def test_each_tolerance_bounds_its_own_kind_of_error():
    def evaluations(size, **options):
        asked = []
        dopri5(lambda x, t: asked.append(t) or hasten(x, t), size * starts(4, 3).abs(), time_grid(2), **options)
        return len(asked)

    relative, absolute = dict(rtol=1e-2, atol=1e-9), dict(rtol=1e-9, atol=1e-2)
    assert evaluations(1e5, **relative) < evaluations(1e5, **absolute) / 2  # where x is large, the relative one counts
    assert evaluations(1e-4, **absolute) < evaluations(1e-4, rtol=1e-9, atol=1e-9) / 2


@pytest.mark.parametrize("slope", [0.0, 1e-4, 1.0])
def test_the_adaptive_sampler_asks_for_no_time_outside_its_own(slope):
    asked = []

    def velocity(x, t):
        asked.extend(t.tolist())
        return torch.full_like(x, slope)

    x = dopri5(velocity, torch.ones(2, 3), time_grid(5, start=0.1, end=0.9))
    torch.testing.assert_close(x, torch.full((2, 3), 1 + 0.8 * slope))
    assert min(asked) >= 0.1 - 1e-6
    assert max(asked) <= 0.9 + 1e-6


def test_the_adaptive_samplers_last_step_ends_at_the_last_time():
    asked = []

    def velocity(x, t):
        asked.append(x)
        return hasten(x, t)

    found = dopri5(velocity, starts(4, 3), time_grid(2))
    torch.testing.assert_close(found, asked[-1], rtol=0, atol=1e-12)  # not interpolated from a longer step


@pytest.mark.parametrize("sampler", ["euler", "heun", "dopri5", "ddim"])
def test_a_straight_path_needs_one_step(sampler):
    noise, data = starts(2, 3, 4, 4), starts(2, 3, 4, 4, seed=1)
    torch.testing.assert_close(sample(lambda x, t: data - noise, noise, time_grid(2), sampler), data)


@pytest.mark.parametrize(("sampler", "calls"), [("euler", 9), ("heun", 18), ("euler_maruyama", 9), ("ddim", 9)])
def test_evaluations_are_as_many_as_said(sampler, calls):
    asked = []

    def velocity(x, t):
        asked.append(t)
        return decay(x, t)

    options = {"randomness": generators_from_seeds(range(2))} if sampler == "euler_maruyama" else {}
    sample(velocity, starts(2, 3), time_grid(10), sampler, **options)
    assert len(asked) == calls
    assert all(t.shape == (2,) for t in asked)


@settings(max_examples=20, deadline=None)
@given(points=st.integers(2, 12), shift=st.floats(0.1, 5), seed=st.integers(0, 100))
def test_ddim_without_noise_is_euler(points, shift, seed):
    x, times = starts(2, 3, 2, 4, seed=seed), time_grid(points, shift)
    torch.testing.assert_close(ddim(curved, x, times), euler(curved, x, times))


@pytest.mark.parametrize("sampler", ["euler", "heun", "euler_maruyama", "ddim"])
def test_everything_happens_on_the_device_of_the_noise(sampler):
    # The meta device refuses, as a GPU would, to meet tensors that were left on the CPU.
    options = {"eta": 0.5} if sampler == "ddim" else {}
    if sampler in ("euler_maruyama", "ddim"):
        options["randomness"] = generators_from_seeds([0, 1])
    noise = torch.empty(2, 3, 4, 4, device="meta")
    found = sample(lambda x, t: x * t.view(-1, 1, 1, 1), noise, time_grid(4), sampler, **options)
    assert found.is_meta
    assert found.shape == noise.shape


# Random numbers


def moments(x):
    return x.mean().item(), x.std().item()


#: w(t) with norm c at (t, c) = (1/4, 2) and (2/3, 1), worked out by hand from SiT's choices (Ma et al. 2024).
BY_HAND = {
    "constant": (2.0, 1.0),
    "sigma": (1.5, 1 / 3),  # c (1 - t)
    "sbdm": (6.0, 0.5),  # c (sigma^2 alpha'/alpha - sigma sigma') = c (1 - t) / t
    "decreasing": (0.25 * (3 + 2 * math.sqrt(2)), 1 / 16),  # (c cos(pi t) + 1)^2 / 4; cosines 1/sqrt(2) and -1/2
    "increasing_decreasing": (1.0, 0.75),  # c sin(pi t)^2; sines 1/sqrt(2) and sqrt(3)/2
}


@pytest.mark.parametrize("diffusion", sorted(DIFFUSIONS))
def test_the_sdes_diffusion_is_sits(diffusion):
    """Whatever w is, the SDE reaches the data: only its numbers tell one from another."""
    found = DIFFUSIONS[diffusion](0.25, 2.0), DIFFUSIONS[diffusion](2 / 3, 1.0)
    assert found == pytest.approx(BY_HAND[diffusion], rel=1e-12)


def test_a_step_of_the_sde_is_the_one_by_hand():
    """Of the defaults (w = 1 - t, the drift's mean at the end) and, with norm 4 and constant w, of all that scales."""

    def run(**options):
        numbers = torch.tensor([[[0.5]]], dtype=torch.float64)
        x, times = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
        return euler_maruyama(lambda x, t: 2 + 0 * x, x, times, randomness=numbers, **options).item()

    # t = 1/4: s = (2/4 - 1) / (3/4) = -2/3, w = 3/4, drift 3/2; t = 1/2: s = 2 - 2x, w = 1/2, drift 3 - x
    first = 1 + 1.5 / 4 + math.sqrt(2 * 0.75 * 0.25) * 0.5
    assert run() == pytest.approx(first + 0.5 * (3 - first), rel=1e-12)
    # w = 4: drift 2 - 8/3, and then 2 + 4 (2 - 2x)
    first = 1 - 1 / 6 + math.sqrt(2 * 4 * 0.25) * 0.5
    found = run(diffusion="constant", diffusion_norm=4.0)
    assert found == pytest.approx(first + 0.5 * (10 - 8 * first), rel=1e-12)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_a_step_of_ddim_is_equation_12_by_hand(eta):
    """Whatever the spread is, the data are reached; it is that of DDIM's Eq. 16, whose path has alpha^2 + sigma^2 = 1.

    From t = 0.2 (signal 0.2, noise 0.8) to 0.6 (0.6, 0.4): alpha-bar is 0.04 / 0.68 and 0.36 / 0.52.
    """
    now, later = 0.04 / 0.68, 0.36 / 0.52
    spread = eta * math.sqrt((1 - later) / (1 - now) * (1 - now / later)) * math.sqrt(0.52)
    assert spread == pytest.approx(eta * 0.3944053, rel=1e-6)
    x, times = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0.2, 0.6], dtype=torch.float64)
    number = torch.full((1, 1, 1), -1.0, dtype=torch.float64)
    found = ddim(lambda x, t: 2 + 0 * x, x, times, eta=eta, randomness=number).item()
    data, noise = 1 + 0.8 * 2, 1 - 0.2 * 2
    expected = 0.6 * data + math.sqrt(0.4**2 - spread**2) * noise - spread
    assert found == pytest.approx(expected, rel=1e-9)
    assert found == pytest.approx({0.5: 1.5716034, 1.0: 1.2055947}[eta], rel=1e-6)


@pytest.mark.parametrize(("noise", "fresh"), [("flow", (0.195, 0.161)), ("posterior", (0.980, 0.281))])
def test_one_eta_of_two_noises_is_not_the_same(noise, fresh):
    """From noise levels of 1 to .98 and of .7 to .68. Of no data and no old noise nothing is left but what is fresh.

    minFM's: .98 (1 - .02) = .9604 of the old noise stays, and .98^2 - .9604^2 = .195^2; .68 (1 - .02 / .7) = .6606.
    """
    for (t, t_next), expected in zip(((0.0, 0.02), (0.3, 0.32)), fresh, strict=True):
        x, times = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([t, t_next], dtype=torch.float64)
        number = torch.ones(1, 1, 1, dtype=torch.float64)
        found = ddim(lambda x, t: 0 * x, x, times, eta=1.0, noise=noise, randomness=number).item()
        assert found == pytest.approx(expected, abs=6e-4)


def test_half_of_flows_noise_by_hand():
    """From t = 0.5 to 0.75 with eta 0.5: .25 (1 - .25) of the old noise stays, .1875, and 0.1653595 comes anew."""
    x, times = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([0.5, 0.75], dtype=torch.float64)
    number = torch.ones(1, 1, 1, dtype=torch.float64)
    found = ddim(lambda x, t: 2 + 0 * x, x, times, eta=0.5, noise="flow", randomness=number).item()
    data, old_noise = 0 + 0.5 * 2, 0 - 0.5 * 2
    assert found == pytest.approx(0.75 * data + 0.1875 * old_noise + 0.1653595, abs=1e-7)


def per_position(matrix, wave):
    """The velocity from noise to data of the published samplers' references: x A (1 - t) + sin(3 x) t, t of noise."""

    def velocity(x, t):
        level = (1 - t).view(-1, 1, 1, 1)
        return -(torch.einsum("nchw,cd->ndhw", x, matrix) * (1 - level) + wave(x) * level)

    return velocity


@pytest.mark.parametrize("name", ["minfm_ddim_eta1", "minfm_ddim_epcfg"])
def test_samples_are_those_of_minfm(shared_dir, name):
    folder = shared_dir / "reference/parity"
    if not (folder / f"{name}.safetensors").is_file():
        pytest.skip(f"the reference of {name} is not at {folder}: parity with published code is not checked")
    said = json.loads((folder / "index.json").read_text())[name]["config"]
    tensors = load_file(folder / f"{name}.safetensors")
    ours = per_position(tensors["A"], lambda x: (3 * x).sin()), per_position(tensors["B"], lambda x: (2 * x).cos())

    def model(x, t, y):
        return torch.where(y.view(-1, 1, 1, 1) == 0, ours[0](x, t), ours[1](x, t))

    scale, energy = said["cfg_scale"], said["preserve_energy"]
    label = torch.zeros(len(tensors["start"]), dtype=torch.long)
    velocity = classifier_free(model, label, 1, scale, preserve_energy=energy)
    grid = time_grid(said["steps"] + 1, length_shift(said["tokens_for_shift"]))
    options = dict(eta=said["eta"], noise="flow", randomness=tensors["noises"])
    found = sample(velocity, tensors["start"], grid, "ddim", **options)
    torch.testing.assert_close(found, tensors["end"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("diffusion", sorted(DIFFUSIONS))
@pytest.mark.parametrize("last_step", LAST_STEPS)
def test_the_sde_reaches_the_data_whatever_its_diffusion(diffusion, last_step):
    x, times = starts(1, 40_000), time_grid(201, start=0.004 if diffusion == "sbdm" else 0)
    generators = generators_from_seeds([5])
    found = euler_maruyama(to_gaussian, x, times, randomness=generators, diffusion=diffusion, last_step=last_step)
    mean, deviation = moments(found)
    assert mean == pytest.approx(MEAN, abs=0.012)
    assert deviation == pytest.approx(DEVIATION, abs=0.012)
    assert abs(torch.corrcoef(torch.stack([x[0], found[0]]))[0, 1]) < 0.95  # it was stirred: the ODE's is 1


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_reaches_the_data_whatever_its_noise(eta):
    x = starts(1, 40_000)
    mean, deviation = moments(ddim(to_gaussian, x, time_grid(201), eta=eta, randomness=generators_from_seeds([5])))
    assert mean == pytest.approx(MEAN, abs=0.012)
    assert deviation == pytest.approx(DEVIATION, abs=0.012)


def test_no_diffusion_leaves_the_ode():
    x, times = starts(2, 3, 4, 4), time_grid(9)
    found = euler_maruyama(curved, x, times, diffusion_norm=0.0, randomness=generators_from_seeds([0, 1]))
    torch.testing.assert_close(found, euler(curved, x, times))


def test_the_last_steps_are_three_rules():
    x, times, numbers = starts(2, 3, 4, 4), time_grid(9, end=0.8), starts(7, 2, 3, 4, 4, seed=1)
    found = {rule: euler_maruyama(curved, x, times, randomness=numbers, last_step=rule) for rule in LAST_STEPS}
    before = []

    def watch(x, t):
        before.append((x, curved(x, t), t))
        return before[-1][1]

    euler_maruyama(watch, x, times, randomness=numbers)
    last, v, t = before[-1]
    dt, score = 0.1, (t[0] * v - last) / (1 - t[0])
    torch.testing.assert_close(found["euler"], last + dt * v, rtol=0, atol=1e-6)
    torch.testing.assert_close(found["mean"], last + dt * (v + (1 - t[0]) * score), rtol=0, atol=1e-6)
    torch.testing.assert_close(found["tweedie"], last + (1 - t[0]) * v, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [("euler_maruyama", {}), ("euler_maruyama", {"diffusion": "constant"}), ("ddim", {"eta": 1.0})],
)
def test_a_sample_alone_and_in_a_batch_are_the_same_bits(sampler, options):
    seeds, shape = [3, 14, 15, 92], (4, 6, 6)

    def run(some):
        generators = generators_from_seeds(some)
        return sample(curved, batch_noise(generators, shape), time_grid(12), sampler, randomness=generators, **options)

    batch = run(seeds)
    assert torch.equal(torch.cat([run([seed]) for seed in seeds]), batch)
    assert torch.equal(run(seeds[::-1]).flip(0), batch)
    assert not torch.equal(batch[0], batch[1])


def test_numbers_given_are_those_that_generators_would_draw():
    shape, times = (4, 4, 4), time_grid(6)
    generators, others = generators_from_seeds([1, 2]), generators_from_seeds([1, 2])
    noise = batch_noise(generators, shape)
    batch_noise(others, shape)
    numbers = torch.stack([batch_noise(others, shape) for _ in range(4)])
    by_generators = euler_maruyama(curved, noise, times, randomness=generators)
    assert torch.equal(by_generators, euler_maruyama(curved, noise, times, randomness=numbers))


def test_the_global_random_state_is_neither_read_nor_moved():
    state = torch.get_rng_state()
    for sampler, options in (("euler_maruyama", {}), ("ddim", {"eta": 0.5})):
        sample(decay, starts(2, 3), time_grid(5), sampler, randomness=generators_from_seeds([0, 1]), **options)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_half_precision_models_leave_the_state_in_float32_and_no_graph(sampler):
    weight = torch.tensor(-1.0, requires_grad=True)

    def run(exact):
        options = {"randomness": generators_from_seeds([0, 1])} if sampler == "euler_maruyama" else {}
        field = {True: lambda x, t: (weight * x).bfloat16().float(), False: lambda x, t: (weight * x).bfloat16()}
        return sample(field[exact], starts(2, 3, dtype=torch.float32), time_grid(4), sampler, **options)

    found = run(exact=False)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(found, run(exact=True))  # only the model rounds, not the steps


@pytest.mark.parametrize(
    ("dtype", "times"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_times_are_never_rounded_to_half_precision(dtype, times):
    def velocity(x, t):
        assert t.dtype == times
        return -x

    assert sample(velocity, starts(2, 3, dtype=dtype), time_grid(4), "heun").dtype == dtype


# Mistakes


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize(
    ("times", "message"),
    [
        (torch.tensor([0.0]), "at least two times"),
        (torch.zeros(2, 2), "at least two times"),
        (torch.tensor([0.0, 0.5, 0.5, 1.0]), r"must increase within \[0, 1\]"),
        (torch.tensor([1.0, 0.0]), "times from 1 to 0"),
        (torch.tensor([0.0, 1.5]), "times from 0 to 1.5"),
        (torch.tensor([0.0, 0.5, 1.5]), "times from 0 to 1.5"),
        (torch.tensor([-0.5, 0.5, 1.0]), "times from -0.5 to 1"),
    ],
)
def test_times_that_do_not_increase_are_refused(sampler, times, message):
    with pytest.raises(ConfigError, match=message):
        sample(decay, starts(2, 3), times, sampler)


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        ("eular", {}, "no sampler named 'eular'; did you mean 'euler'.*known: euler, heun, dopri5"),
        ("euler", {"rtol": 1e-3}, "sampler 'euler' has no option named 'rtol'; known: none"),
        ("dopri5", {"steps": 3}, "no option named 'steps'; known: rtol, atol"),
        ("dopri5", {"rtol": 0}, "rtol=0, atol=1e-06; both must be above 0"),
        ("euler_maruyama", {}, r"randomness is None; give 2 generators, one a sample, or a tensor \(3, 2, 3\)"),
        ("euler_maruyama", {"randomness": generators_from_seeds([1])}, "randomness is 1 generators; give 2"),
        ("euler_maruyama", {"randomness": torch.zeros(4, 2, 3)}, r"a tensor \(4, 2, 3\); give 2 generators"),
        ("euler_maruyama", {"last_step": "heun"}, "no last_step named 'heun'; known: mean, tweedie, euler"),
        ("euler_maruyama", {"diffusion": "sigmas"}, "no diffusion named 'sigmas'; did you mean 'sigma'"),
        ("euler_maruyama", {"diffusion": "sbdm"}, r"infinite at t = 0.*start=0\.001"),
        ("euler_maruyama", {"diffusion_norm": -1.0}, "diffusion_norm=-1.0; it must be finite, 0 or above"),
        ("dopri5", {"atol": 0.0}, "rtol=0.001, atol=0.0; both must be above 0"),
        ("dopri5", {"rtol": -1.0}, "both must be above 0"),
        ("euler_maruyama", {"diffusion_norm": math.inf}, "diffusion_norm=inf; it must be finite, 0 or above"),
        ("euler_maruyama", {"randomness": torch.Generator()}, "randomness is 1 generators; give 2"),
        ("ddim", {"eta": -0.1}, r"eta=-0\.1; it must lie in \[0, 1\]"),
        ("ddim", {"noise": "flw"}, "ddim: no noise named 'flw'; did you mean 'flow'\\? known: posterior, flow"),
        ("ddim", {"eta": 1.5}, r"eta=1\.5; it must lie in \[0, 1\]"),
        ("ddim", {"eta": 1.0}, r"randomness is None; give 2 generators, one a sample, or a tensor \(4, 2, 3\)"),
    ],
)
def test_options_that_cannot_be_are_refused(sampler, options, message):
    with pytest.raises(ConfigError, match=message):
        sample(decay, starts(2, 3), time_grid(5), sampler, **options)


@pytest.mark.parametrize("sampler", ["euler", "heun", "ddim"])
def test_a_velocity_of_another_shape_is_not_broadcast(sampler):
    with pytest.raises(ConfigError, match=rf"{sampler}: velocity is \(2, 1\), x is \(2, 3\)"):
        sample(lambda x, t: x[:, :1], starts(2, 3), time_grid(5), sampler)


def test_a_samplers_options_are_its_keywords_but_for_one():
    assert options_of("euler") == []
    assert options_of("dopri5") == ["rtol", "atol"]
    assert options_of("ddim") == ["eta", "noise", "randomness"]
    assert options_of("ddim", ["eta"], without="randomness") == ["eta", "noise"]
    with pytest.raises(
        ConfigError, match="^sampling: sampler 'ddim' has no option named 'randomness'; known: eta, noise$"
    ):
        options_of("ddim", ["randomness", "eta"], without="randomness")


def test_a_single_step_of_the_sde_draws_nothing():
    x = starts(2, 3)
    one = euler_maruyama(decay, x, time_grid(2, start=0.5))
    score = (0.5 * -2 * x - x) / 0.5
    torch.testing.assert_close(one, x + 0.5 * (-2 * x + 0.5 * score), rtol=0, atol=1e-6)
