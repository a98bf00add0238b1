"""The settings of sampling, and drawing with them: every sample for itself, whatever it is drawn with."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from aligntok.diffusion.samplers import SAMPLERS, dopri5, euler, generators_from_seeds
from aligntok.diffusion.sampling import draw_samples, guided_velocity, times
from aligntok.diffusion.settings import Sampling
from aligntok.errors import ConfigError
from aligntok.rng import batch_noise

SHAPE, LABELS, SEEDS, NULL = (4, 3, 5), [0, 3, 1, 3, 2], [7, 0, 12345, 1, 2**31], 5
OPTIONS = {"euler_maruyama": {"diffusion_norm": 0.5}, "ddim": {"eta": 0.7}, "dopri5": {"rtol": 1e-2}}


def model(x, t, y):
    """A smooth field in which all channels of a position, and the label, count."""
    level = ((t - 0.3) * (1 + 0.3 * y)).view(-1, 1, 1, 1)
    return 0.5 * torch.sin(2 * x) + level + x.mean(dim=1, keepdim=True) - x.roll(1, 2)


def weak(x, t, y):
    return 0.8 * model(x, t, y) + 0.1


def draw(which, sampling, **options):
    labels, seeds = [LABELS[i] for i in which], [SEEDS[i] for i in which]
    return draw_samples(
        model, torch.tensor(labels), seeds, SHAPE, sampling, torch.full((len(labels),), NULL), **options
    )


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("guidance", ["none", "null class", "weaker model"])
def test_a_sample_depends_on_its_own_label_and_seed_alone(sampler, guidance):
    scale = 1.0 if guidance == "none" else 3.0
    sampling = Sampling(
        steps=6, sampler=sampler, cfg_scale=scale, cfg_interval=(0.1, 0.9), options=OPTIONS.get(sampler, {})
    )
    options = dict(weak_model=weak) if guidance == "weaker model" else {}
    together = draw(range(5), sampling, **options)
    for i in range(5):
        torch.testing.assert_close(draw([i], sampling, **options), together[i : i + 1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(draw([4, 1, 3], sampling, **options), together[[4, 1, 3]], rtol=1e-5, atol=1e-5)
    assert torch.equal(draw(range(5), sampling, **options), together)
    assert not torch.allclose(together[1], together[3], atol=0.1)
    other = draw_samples(model, torch.tensor([1]), [SEEDS[0]], SHAPE, sampling, torch.tensor([NULL]), **options)
    assert not torch.allclose(other, together[:1], atol=1e-3)


@pytest.mark.parametrize(("size", "shift"), [((16, 16), 0.6065307), ((32, 32), 0.5325871), ((16, 64), 0.5325871)])
def test_a_samples_shift_may_follow_from_its_size(size, shift):
    several = [Sampling(steps=4, shift=each) for each in ("length", shift, 0.9 * shift)]
    draw = [draw_samples(model, torch.tensor([1]), [3], (4, *size), each, NULL) for each in several]
    torch.testing.assert_close(draw[0], draw[1])
    assert not torch.allclose(draw[0], draw[2], atol=1e-3)


def test_a_shift_is_a_number_or_of_the_length():
    with pytest.raises(ConfigError, match="shift"):
        Sampling(shift="lenght")


def test_the_adaptive_sampler_would_mix_the_samples_of_a_batch():
    """If this fails, dopri5 need no longer be drawn one by one."""
    sampling = Sampling(steps=2, sampler="dopri5", options={"rtol": 1e-1, "atol": 1e-1})
    noise = batch_noise(generators_from_seeds(SEEDS), SHAPE)
    velocity = guided_velocity(sampling, model, torch.tensor(LABELS), None)
    coupled = SAMPLERS["dopri5"](velocity, noise, times(sampling), **sampling.options)
    assert not torch.allclose(coupled, draw(range(5), sampling), rtol=1e-6, atol=1e-6)


def test_the_noise_is_that_of_the_seeds_and_the_rest_the_samplers():
    sampling = Sampling(steps=8, shift=0.3)
    noise = batch_noise(generators_from_seeds(SEEDS), SHAPE)
    expected = euler(lambda x, t: model(x, t, torch.tensor(LABELS)), noise, times(sampling))
    assert torch.equal(draw(range(5), sampling), expected)
    assert (len(times(sampling)), times(sampling)[0], times(sampling)[-1]) == (9, 0, 1)


def test_settings_survive_json():
    sampling = Sampling(
        steps=50,
        sampler="ddim",
        shift=0.3,
        cfg_scale=6.7,
        cfg_interval=(0.1, 0.8),
        cfg_channels=3,
        preserve_energy=True,
        options={"eta": 0.5},
    )
    assert Sampling(**json.loads(json.dumps(asdict(sampling)))) == sampling


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(steps=0), "Sampling: steps=0; it must be int of at least 1"),
        (dict(sampler="eular"), "no sampler named 'eular'; did you mean 'euler'"),
        (dict(options={"eta": 1}), "sampler 'euler' has no option named 'eta'; known: none"),
        (dict(sampler="ddim", options={"randomness": 1}), "'ddim' has no option named 'randomness'; known: eta"),
        (dict(shift=-1), "Sampling: shift=-1; it must be int or float above 0"),
        (dict(cfg_scale=-1), "Sampling: cfg_scale=-1; it must be int or float of at least 0"),
        (dict(cfg_scale=float("nan")), "Sampling: cfg_scale=nan; it must be finite"),
        (dict(cfg_interval=(0.9, 0.1), cfg_scale=2), r"interval=\(0.9, 0.1\); it is \(lo, hi\)"),
        (dict(cfg_channels=0, cfg_scale=2), "Sampling: cfg_channels=0; it must be int of at least 1 or None"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**settings)


def test_guidance_without_anything_to_lead_away_from_is_refused():
    with pytest.raises(ConfigError, match=r"scale=2.0 needs the null label"):
        draw_samples(model, torch.tensor([0]), [0], SHAPE, Sampling(steps=2, cfg_scale=2.0))
    with pytest.raises(ConfigError, match="guidance on channels=5, but x has 4"):
        draw([0], Sampling(steps=2, cfg_scale=2.0, cfg_channels=5))
    assert draw_samples(model, torch.tensor([0]), [0], SHAPE, Sampling(steps=2)).shape == (1, *SHAPE)


def test_times_that_float32_cannot_tell_apart_are_refused_by_what_makes_them():
    with pytest.raises(ConfigError, match=r"steps=100000 with shift=1000\.0: neighbouring times are the same"):
        Sampling(steps=100_000, shift=1000.0)
    Sampling(steps=1000, shift=1000.0)


def test_a_solver_whose_time_has_64_bits_is_refused_where_there_are_none():
    noise = SimpleNamespace(device=torch.device("mps"))
    with pytest.raises(ConfigError, match="dopri5 keeps its time in float64, which mps does not have; take"):
        dopri5(lambda x, t: x, noise, torch.tensor([0.0, 1.0]))
