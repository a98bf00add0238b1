"""Guidance, its arithmetic and what it pays for."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from aligntok.diffusion.guidance import autoguidance, classifier_free, guide, rescale_energy
from aligntok.diffusion.samplers import SAMPLERS, generators_from_seeds, sample
from aligntok.diffusion.times import time_grid
from aligntok.errors import ConfigError

NULL = 9
LABELS = torch.tensor([1, 2, 3, 4])


def toy(x, t, y):
    """The field of the reference samples: all channels of a position count for each."""
    return 0.5 * torch.sin(x) + ((t - 0.3) * (1 + 0.1 * y)).view(-1, 1, 1, 1) + x.mean(dim=1, keepdim=True)


class Counting:
    """A model that remembers the size and labels of each batch it was given."""

    def __init__(self, model=toy):
        self.model, self.sizes, self.labels = model, [], []

    def __call__(self, x, t, y):
        assert len(x) == len(t) == len(y)
        self.sizes.append(len(x))
        self.labels.append(y.tolist())
        return self.model(x, t, y)


def latents(seed=0, n=4):
    return torch.randn(n, 6, 4, 4, generator=torch.Generator().manual_seed(seed))


def at(t, n=4):
    return torch.full((n,), t)


@pytest.mark.parametrize("name", ["plain_10", "shift_10", "cfg_12", "cfg_nointerval_8"])
def test_samples_are_the_published_ones(shared_dir, name):
    folder = shared_dir / "reference/parity"
    settings_of = json.loads((folder / "index.json").read_text())[f"sample_{name}"]
    tensors = load_file(folder / "flow_matching.safetensors")
    velocity = classifier_free(
        toy,
        tensors["y"],
        tensors["null"],
        settings_of["cfg_scale"],
        interval=(settings_of["cfg_interval_start"], 1.0),
        channels=settings_of["guided_channels"],
    )
    times = time_grid(settings_of["num_sampling_steps"], settings_of["timestep_shift"])
    torch.testing.assert_close(sample(velocity, tensors["z"], times), tensors[f"samples_{name}"], rtol=0, atol=1e-5)


# What is paid for


def test_inside_the_interval_both_passes_are_one_batch_conditional_first():
    model = Counting()
    classifier_free(model, LABELS, NULL, 3.0, interval=(0.125, 0.8))(latents(), at(0.125))
    assert model.sizes == [8]
    assert model.labels == [[1, 2, 3, 4, 9, 9, 9, 9]]


@pytest.mark.parametrize(
    ("scale", "interval", "t"), [(3.0, (0.125, 0.8), 0.1), (3.0, (0.125, 0.8), 0.81), (1.0, None, 0.5)]
)
def test_outside_the_interval_or_with_scale_1_only_the_conditional_pass_runs(scale, interval, t):
    model, weak = Counting(), Counting()
    x = latents()
    for velocity in (
        classifier_free(model, LABELS, NULL, scale, interval=interval, channels=3, preserve_energy=True),
        autoguidance(model, weak, LABELS, scale, interval=interval),
    ):
        assert torch.equal(velocity(x, at(t)), toy(x, at(t), LABELS))
    assert model.sizes == [4, 4]
    assert weak.sizes == []


def test_scale_0_runs_the_null_pass_alone_and_with_an_interval_both():
    model, x = Counting(), latents()
    assert torch.equal(classifier_free(model, LABELS, NULL, 0.0)(x, at(0.5)), toy(x, at(0.5), LABELS * 0 + NULL))
    assert (model.sizes, model.labels) == ([4], [[9, 9, 9, 9]])
    within = classifier_free(model, LABELS, NULL, 0.0, interval=(0.25, 0.75))
    torch.testing.assert_close(within(x, at(0.5)), toy(x, at(0.5), LABELS * 0 + NULL))
    assert torch.equal(within(x, at(0.1)), toy(x, at(0.1), LABELS))
    assert model.sizes == [4, 8, 4]


def test_scale_1_needs_no_null_label():
    assert torch.equal(classifier_free(toy, LABELS)(latents(), at(0.5)), toy(latents(), at(0.5), LABELS))


@pytest.mark.parametrize("points", [31, 250])
def test_the_recipes_interval_saves_a_sixth_of_the_work(points):
    model = Counting()
    sample(classifier_free(model, LABELS, NULL, 10.0, interval=(0.125, 1.0)), latents(), time_grid(points, 0.3))
    saved = 1 - sum(model.sizes) / (8 * (points - 1))
    assert saved == pytest.approx(0.16, abs=0.01)
    assert set(model.sizes) == {4, 8}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_solver_pays_for_guidance_outside_the_interval(sampler):
    passes = []

    def model(x, t, y):
        passes.append((float(t[0]), len(x)))
        return toy(x, t, y)

    options = {"randomness": generators_from_seeds(range(4))} if sampler == "euler_maruyama" else {}
    sample(
        classifier_free(model, LABELS, NULL, 3.0, interval=(0.25, 0.65)), latents(), time_grid(11), sampler, **options
    )
    assert [rows for _, rows in passes] == [8 if 0.25 < t < 0.65 else 4 for t, _ in passes]
    assert {rows for _, rows in passes} == {4, 8}


def test_rows_of_different_times_are_guided_each_by_its_own():
    t, x, model = torch.tensor([0.05, 0.5, 0.9, 0.3]), latents(), Counting()
    options = {"interval": (0.1, 0.6), "channels": 3, "preserve_energy": True}
    found = classifier_free(model, LABELS, NULL, 3.0, **options)(x, t)
    assert model.sizes == [6]
    assert model.labels == [[1, 2, 3, 4, 9, 9]]
    weak = Counting()
    led = autoguidance(toy, weak, LABELS, 3.0, **options)(x, t)
    assert weak.labels == [[2, 4]]
    for i in range(4):
        one = classifier_free(toy, LABELS[i : i + 1], NULL, 3.0, **options)(x[i : i + 1], t[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], one)
    assert torch.equal(led, toy(x, t, LABELS))


def test_without_an_interval_there_is_guidance_everywhere():
    model = Counting()
    sample(classifier_free(model, LABELS, NULL, 2.0), latents(), time_grid(6))
    assert model.sizes == [8] * 5


# What it computes


def test_guidance_extrapolates_on_the_first_channels_only():
    x, t = latents(), at(0.5)
    own, none = toy(x, t, LABELS), toy(x, t, torch.full_like(LABELS, NULL))
    found = classifier_free(toy, LABELS, NULL, 4.0, channels=2)(x, t)
    torch.testing.assert_close(found[:, :2], (none + 4 * (own - none))[:, :2])
    assert torch.equal(found[:, 2:], own[:, 2:])
    every = classifier_free(toy, LABELS, NULL, 4.0)(x, t)
    torch.testing.assert_close(every, own + 3 * (own - none))
    assert torch.equal(classifier_free(toy, LABELS, NULL, 4.0, channels=6)(x, t), every)


def test_autoguidance_leads_away_from_the_weaker_model():
    def weak(x, t, y):
        return 0.8 * toy(x, t, y) + 0.1

    x, t = latents(), at(0.5)
    strong = toy(x, t, LABELS)
    found = autoguidance(toy, weak, LABELS, 2.0, channels=5)(x, t)
    torch.testing.assert_close(found[:, :5], (2 * strong - weak(x, t, LABELS))[:, :5])
    assert torch.equal(found[:, 5:], strong[:, 5:])


def energy(x):
    return x.double().square().flatten(1).sum(dim=1)


@settings(max_examples=40, deadline=None)
@given(scale=st.floats(1.01, 20), channels=st.sampled_from([None, 1, 3, 6]), seed=st.integers(0, 1000))
def test_ep_cfg_keeps_the_energy_of_the_conditional_prediction(scale, channels, seed):
    own, none = latents(seed), latents(seed + 1)
    kept = guide(own, none, scale, channels, preserve_energy=True)
    plain = guide(own, none, scale, channels)
    torch.testing.assert_close(energy(kept), energy(own), rtol=1e-5, atol=0)
    cosine = torch.cosine_similarity(kept[:, :channels].flatten(1), plain[:, :channels].flatten(1))
    torch.testing.assert_close(cosine, torch.ones(4))
    if channels is not None:
        assert torch.equal(kept[:, channels:], own[:, channels:])


def test_energy_is_kept_sample_by_sample_and_zeros_stay_zeros():
    guided, reference = latents(), latents(1) * torch.tensor([1.0, 10.0, 0.0, 1e3]).view(4, 1, 1, 1)
    guided[0] = 0
    found = rescale_energy(guided, reference)
    assert found.isfinite().all()
    torch.testing.assert_close(energy(found)[1:], energy(reference)[1:], rtol=1e-5, atol=0)
    assert torch.equal(found[0], torch.zeros(6, 4, 4))


def test_a_half_precision_model_is_guided_in_the_type_of_x():
    def half(x, t, y):
        return toy(x, t, y).to(torch.bfloat16)

    x, t = latents(), at(0.5)
    own, none = half(x, t, LABELS).float(), half(x, t, torch.full_like(LABELS, NULL)).float()
    found = classifier_free(half, LABELS, NULL, 10.0, preserve_energy=True)(x, t)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, guide(own, none, 10.0, preserve_energy=True))


# Conditions other than labels


def test_a_condition_may_be_states_or_tensors_by_name():
    def model(x, t, y):
        states = y if isinstance(y, torch.Tensor) else y["states"] * y["mask"][..., None]
        return x + states.mean(dim=(1, 2)).view(-1, 1, 1, 1)

    x, t, states = latents(), at(0.5), torch.randn(4, 5, 8)
    masks = torch.ones(4, 5)
    expected = guide(model(x, t, states), model(x, t, torch.zeros(4, 5, 8)), 3.0)
    for null in (torch.zeros(4, 5, 8), torch.zeros(1, 5, 8)):
        torch.testing.assert_close(classifier_free(model, states, null, 3.0)(x, t), expected)
    named = {"states": states, "mask": masks}
    null = {"states": torch.zeros(1, 5, 8), "mask": masks[:1]}
    torch.testing.assert_close(classifier_free(model, named, null, 3.0)(x, t), expected)
    torch.testing.assert_close(autoguidance(model, model, named, 3.0)(x, t), model(x, t, states))


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -1.0}, "scale=-1.0; it must be finite and not negative"),
        ({"scale": math.nan}, "scale=nan"),
        ({"interval": (0.8, 0.2)}, r"interval=\(0\.8, 0\.2\); it is \(lo, hi\) with 0 <= lo <= hi <= 1"),
        ({"interval": (-0.1, 0.5)}, "0 <= lo <= hi <= 1"),
        ({"interval": (0.1, 1.5)}, "0 <= lo <= hi <= 1"),
        ({"channels": 0}, "channels=0; give 1 or more, or None for all"),
    ],
)
def test_options_that_cannot_be_are_refused_before_any_pass(options, message):
    options = {"scale": 2.0, **options}
    with pytest.raises(ConfigError, match=f"classifier_free: .*{message}"):
        classifier_free(toy, LABELS, NULL, **options)
    with pytest.raises(ConfigError, match=f"autoguidance: .*{message}"):
        autoguidance(toy, toy, LABELS, **options)


def test_a_scale_without_a_null_label_is_refused():
    with pytest.raises(ConfigError, match=r"scale=2\.0 needs the null label \(null=\.\.\.\); scale=1 does without"):
        classifier_free(toy, LABELS, scale=2.0)


def test_more_channels_than_there_are_are_refused_at_the_first_step():
    model = Counting()
    velocity = classifier_free(model, LABELS, NULL, 2.0, interval=(0.5, 1.0), channels=7)
    with pytest.raises(ConfigError, match="channels=7, but x has 6; give at most that, or None for all"):
        velocity(latents(), at(0.0))
    assert model.sizes == []


@pytest.mark.parametrize(
    ("y", "null", "message"),
    [
        (LABELS, torch.tensor([9, 9]), r"y is \(4,\), null is \(2,\); give null y's shape, or one row of it, \(1,\)"),
        (torch.zeros(4, 5, 8), 9, r"null=9 is a label, y is \(4, 5, 8\); give a null condition like y"),
        ({"states": torch.zeros(4, 2)}, 9, r"null=9 is a label, y is states \(4, 2\)"),
        ({"states": torch.zeros(4, 2)}, torch.zeros(4, 2), r"y is states \(4, 2\), null is \(4, 2\); give null the"),
    ],
)
def test_a_null_condition_unlike_y_is_refused(y, null, message):
    with pytest.raises(ConfigError, match=message):
        classifier_free(toy, y, null, 2.0)


@pytest.mark.parametrize(
    ("interval", "t", "guided"),
    [
        ((0.25, 0.75), 0.75, True),
        ((0.25, 0.75), 0.25, True),
        ((0.5, 0.5), 0.5, True),
        ((0.5, 0.5), 0.51, False),
        ((0.0, 1.0), 0.0, True),
        ((0.0, 1.0), 1.0, True),
    ],
)
def test_both_ends_of_an_interval_belong_to_it(interval, t, guided):
    model = Counting()
    classifier_free(model, LABELS, NULL, 2.0, interval=interval)(latents(), at(t))
    assert model.sizes == [8 if guided else 4]


@pytest.mark.parametrize("channels", [1, 5, 6, None])
def test_any_number_of_channels_may_be_guided_to_any_scale(channels):
    strong, weak = torch.tensor([[3.0, 1.0, 2.0, 4.0, 8.0, 5.0]]), torch.tensor([[1.0, 1.0, 4.0, 0.0, 2.0, 6.0]])
    for scale, led in ((0.0, [1, 1, 4, 0, 2, 6]), (0.5, [2, 1, 3, 2, 5, 5.5]), (3.0, [7, 1, -2, 12, 20, 3])):
        expected = led[:channels] + (strong[0, channels:].tolist() if channels else [])
        assert guide(strong, weak, scale, channels)[0].tolist() == expected
        velocity = autoguidance(lambda x, t, y: strong, lambda x, t, y: weak, LABELS[:1], scale, channels=channels)
        assert velocity(torch.zeros(1, 6), at(0.5)[:1])[0].tolist() == expected
