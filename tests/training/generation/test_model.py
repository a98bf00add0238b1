"""What a generator's training computes in a step: draws, dropped labels, losses, on latents or images."""

from __future__ import annotations

import copy
import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from aligntok.caching.encoder import posterior_noise
from aligntok.data.latents import LatentDataset
from aligntok.diffusion.flow import flow_matching_loss
from aligntok.engine.compile import blocks_of
from aligntok.engine.runner import StepBatch
from aligntok.errors import ConfigError, DataError, DivergenceError
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.rng import rng
from aligntok.settings import read
from aligntok.tokenizer import Tokenizer
from aligntok.training.generation.model import Draws, GenerationModel
from aligntok.training.generator_settings import GeneratorSettings
from aligntok.training.stages import MicroBatch

SMALL = dict(type="lightning_dit", hidden_size=32, depth=1, num_heads=2, input_size=4, in_channels=4, num_classes=3)


@pytest.fixture
def make(tiny_tokenizer, tiny_cache):
    """Make a model of that tokenizer, with a generator whose weights are all in use."""

    def model(transport=None, generator=None, seed=0, time_bins=10, posterior="mean", **options):
        statistics = LatentDataset(tiny_cache).statistics
        tokenizer = Tokenizer.from_pretrained(tiny_tokenizer)
        diffusion = LatentDiffusion({**SMALL, **(generator or {})}, tokenizer, statistics, (4, 4, 4))
        for parameter in diffusion.generator.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        data = dict(train=dict(type="images"), posterior=posterior)
        settings = dict(steps=1, generator=SMALL, transport=transport or {}, log=dict(time_bins=time_bins), data=data)
        return GenerationModel(diffusion, read(GeneratorSettings, {**settings, **options}, "test"), seed)

    return model


def at(step, number=0, of=1):
    return MicroBatch(step, number, of)


def batch(number=6):
    return dict(latents=torch.randn(number, 4, 4, 4), label=torch.arange(number) % 3)


@pytest.mark.parametrize(("processes", "micro"), [(1, 4), (2, 2), (4, 1)])
def test_a_samples_draws_do_not_depend_on_how_the_batch_is_split(make, monkeypatch, processes, micro):
    model, whole = make(seed=3), torch.zeros(8, 4, 4, 4)
    expected, found = model.draws(at(5), whole), []
    for m in range(micro):
        for rank in range(processes):
            monkeypatch.setattr("aligntok.training.stages.world", lambda rank=rank: (rank, processes))
            found.append(model.draws(at(5, m, micro), whole[: 8 // processes // micro]))
    for name in Draws._fields:
        assert torch.equal(torch.cat([getattr(draws, name) for draws in found]), getattr(expected, name))
    assert not torch.equal(model.draws(at(6), whole).noise, expected.noise)
    assert not torch.equal(make(seed=4).draws(at(5), whole).noise, expected.noise)


def test_the_loss_is_that_of_the_straight_path_with_dropped_labels_as_null_class(make):
    model, data = make(transport=dict(times="uniform", direction_weight=0.5)), batch()
    draws = Draws(torch.linspace(0.1, 0.9, 6), torch.tensor([0.05, 0.5, 0.09, 0.99, 0.1, 0.2]), torch.randn(6, 4, 4, 4))
    labels = torch.tensor([3, 1, 3, 0, 1, 2])  # 3 is the null class; dropped with probability 0.1
    losses, t = model.losses(data["latents"], data["label"], draws)
    assert torch.equal(t, draws.times)
    x = t.view(-1, 1, 1, 1) * data["latents"] + (1 - t.view(-1, 1, 1, 1)) * draws.noise
    expected = flow_matching_loss(model.generator(x, t, labels), data["latents"] - draws.noise, 0.5)
    torch.testing.assert_close(losses["total"], expected)
    torch.testing.assert_close(losses["total"], losses["velocity"] + 0.5 * losses["direction"])


@pytest.mark.parametrize(
    ("patch_size", "mu"), [(1, 0.5 + 0.65 * (16 - 256) / 3840), (2, 0.5 + 0.65 * (4 - 256) / 3840)]
)
def test_times_may_be_shifted_by_the_length_of_what_is_trained_on(make, patch_size, mu):
    """4 x 4 latents of 16 tokens, or of 4 in patches: s t / (1 + (s - 1) t) with s = exp(-mu)."""
    model, data = make(dict(times="uniform", shift="length"), dict(patch_size=patch_size)), batch()
    even, shift = torch.linspace(0.1, 0.9, 6), math.exp(-mu)
    _, t = model.losses(data["latents"], data["label"], Draws(even, torch.ones(6), torch.randn(6, 4, 4, 4)))
    torch.testing.assert_close(t, shift * even / (1 + (shift - 1) * even))


def test_without_a_weight_there_is_no_direction_loss(make):
    losses, _ = make(transport=dict(direction_weight=0.0)).losses(
        torch.randn(2, 4, 4, 4), torch.zeros(2, dtype=torch.long), Draws(*torch.rand(2, 2), torch.randn(2, 4, 4, 4))
    )
    assert set(losses) == {"total", "velocity"}


def test_images_are_encoded_and_normalised_as_a_cache_is(make, classes, tiny_cache, tiny_tokenizer):
    from aligntok.data.images import ImageDataset

    images = ImageDataset(classes, image_size=32, train=False, split="train")
    cached = LatentDataset(tiny_cache, train=False)
    model, items = make(), [images[i] for i in range(4)]
    encoded = model.latents(dict(images=torch.stack([item["images"] for item in items])))
    torch.testing.assert_close(encoded, torch.stack([cached[i]["latents"] for i in range(4)]), rtol=1e-4, atol=1e-4)
    assert not encoded.requires_grad


def test_labels_are_in_range_or_an_error_and_ignored_without_classes(make):
    model = make()
    for wrong in ([0, 3], [-1, 2]):
        with pytest.raises(
            DataError,
            match=rf"labels from {min(wrong)} to {max(wrong)}, but with num_classes=3 .* allowed are 0 to 2; set",
        ):
            model.diffusion.condition.of(dict(label=torch.tensor(wrong)), model.device())
    free = make(generator=dict(num_classes=1, class_dropout_prob=0.0))
    assert free.diffusion.condition.of(dict(label=torch.tensor([-1, 7])), free.device()).tolist() == [0, 0]


def test_what_layers_drop_follows_the_samples(make):
    """So that two halves of a batch are the batch."""
    model, whole = make(seed=3), batch(4)
    model.generator.x_embedder = torch.nn.Sequential(model.generator.x_embedder, torch.nn.Dropout(0.5))
    model.train()
    halves = [{key: value[2 * i :][:2] for key, value in whole.items()} for i in range(2)]
    losses = [float(model.backward(own, at(5, i, 2))["loss/total"]) for i, own in enumerate(halves)]
    assert sum(losses) / 2 == pytest.approx(float(model.backward(whole, at(5))["loss/total"]), rel=1e-5)


def test_what_layers_draw_themselves_is_of_the_step_and_the_seed(make):
    """And not of what was drawn before, of which a run that goes on knows nothing."""

    class Optimizers:
        loss_scale = staticmethod(lambda device: torch.ones(()))
        step_parts = staticmethod(lambda parts, losses: {})

    model, drawn = make(seed=3), []
    model.generator.register_forward_hook(lambda module, given, output: drawn.append(float(torch.rand(()))))
    for step in (5, 6, 5):
        model.train_step(StepBatch(step, [batch(4)]), Optimizers())
    assert drawn[0] == drawn[2] != drawn[1]


def test_losses_are_told_apart_by_time(make):
    bins = make(time_bins=4)._binned(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0.0, 0.3, 0.26, 1.0]))
    assert bins.tolist() == [[1.0, 6.0, 0.0, 8.0], [1.0, 2.0, 0.0, 1.0]]


def test_only_the_generator_is_trained(make):
    model = make()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"diffusion.generator.{name}" for name, _ in model.generator.named_parameters()
    }
    model.train()
    assert model.generator.training
    assert not model.diffusion.tokenizer.training


def test_samples_are_of_their_seed_and_leave_it_in_training(make):
    model = make()
    together = model.sample([0, 2], [7, 8])
    assert together.shape == (2, 3, 32, 32)
    assert together.abs().max() <= 1
    torch.testing.assert_close(model.sample([2], [8]), together[1:], atol=1e-4, rtol=0)
    assert model.generator.training


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(precision="fp8"), "precision='fp8'.*it must be"),
        (dict(transport=dict(times="normal")), "times='normal'; did you mean 'logit_normal'. it must be"),
        (dict(transport=dict(scale=0.0)), "scale=0.0; it must be int or float above 0"),
        (dict(generator=dict(in_channels=5)), "generator, latents and tokenizer do not fit"),
        (dict(compile=dict(fulgraph=True)), "did you mean 'fullgraph'"),
    ],
)
def test_settings_that_do_not_fit_are_one_clear_error(make, options, said):
    with pytest.raises(ConfigError, match=said):
        make(**options)


def step(model, optim, parts, number=2):
    """One training step without an optimiser: what it logs, and the gradients that it leaves."""
    logs = model.train_step(StepBatch(number, parts), optim)
    return logs, [p.grad for p in model.generator.parameters()]


NO_OPTIMISER = SimpleNamespace(loss_scale=lambda device: torch.ones(()), step_parts=lambda parts, losses: {})


def test_a_steps_gradient_is_that_of_its_mean_loss(make):
    model, data = make(seed=1, time_bins=3), batch()
    losses, t = model.losses(data["latents"], data["label"], model.draws(at(2), data["latents"]))
    expected = torch.autograd.grad(losses["total"].mean(), list(model.generator.parameters()))
    assert all(gradient.any() for gradient in expected)
    doubled = SimpleNamespace(loss_scale=lambda device: torch.tensor(2.0), step_parts=lambda parts, losses: {})
    logs, found = step(copy.deepcopy(model), NO_OPTIMISER, [data])
    torch.testing.assert_close(found, list(expected))
    torch.testing.assert_close(step(copy.deepcopy(model), doubled, [data])[1], [2 * each for each in expected])
    for name, each in losses.items():
        torch.testing.assert_close(logs[f"loss/{name}"], each.detach().mean())
    inside = [(i / 3 <= t) & (t < (i + 1) / 3) for i in range(3)]
    bins = [[float(losses["total"].detach()[each].sum()), float(each.sum())] for each in inside]
    torch.testing.assert_close(logs["time_bins"].T, torch.tensor(bins))


def test_two_processes_have_the_gradient_of_one_with_all_samples(make, as_processes):
    model, data = make(seed=1), batch(8)
    _, expected = step(copy.deepcopy(model), NO_OPTIMISER, [data])
    models = [copy.deepcopy(model) for _ in range(2)]
    quarters = [{key: value[i : i + 2] for key, value in data.items()} for i in range(0, 8, 2)]
    (_, one), (_, other) = as_processes(lambda rank: step(models[rank], NO_OPTIMISER, quarters[rank::2]))
    mean = [(a + b) / 2 for a, b in zip(one, other, strict=True)]  # as DDP takes it
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-6)


def test_a_samples_posterior_noise_is_of_its_number_in_the_run(make, as_processes):
    model = make(seed=4)
    images = torch.zeros(3, 3, 32, 64)
    assert model.posterior_noise({"images": images}, at(0)) is None
    model.settings = dataclasses.replace(
        model.settings, data=dataclasses.replace(model.settings.data, posterior="sample")
    )
    assert model.posterior_noise({"images": images, "latents": images}, at(0)) is None
    # Step 5 of 2 processes x 2 micro-batches x 3 samples; of the second process the second micro-batch.
    _, found = as_processes(lambda rank: model.posterior_noise({"images": images}, at(5, 1, 2)))
    assert torch.equal(found, posterior_noise(4, [5 * 12 + 9, 5 * 12 + 10, 5 * 12 + 11], 0, (4, 4, 8)))


def test_samples_are_drawn_in_eval_mode(make):
    model, seen = make(), []
    model.generator.register_forward_pre_hook(lambda module, given: seen.append(module.training))
    model.sample([0], [7])
    assert seen
    assert not any(seen)


def test_validations_samples_are_the_pictures_of_their_seeds(make):
    model = make()
    asked = dict(
        numbers=[5, 9], words=[2, 0], seeds=[5, 9], sampling=dataclasses.replace(model.diffusion.sampling, steps=3)
    )
    found = model.val_step({**asked, "variant": "raw"})
    assert [(each["index"], each["variant"]) for each in found] == [(5, "raw"), (9, "raw")]
    expected = model.diffusion.sample([2, 0], [5, 9], sampling=asked["sampling"])
    pixels = ((expected.double() + 1) * 127.5).round().to(torch.uint8)
    assert (torch.stack([each["pixels"] for each in found]).int() - pixels.int()).abs().max() <= 1
    with torch.no_grad():
        model.generator.final_layer.linear.bias.fill_(float("nan"))
    with pytest.raises(DivergenceError, match=r"samples 5 to 9 of the validation \(variant 'raw'\) are not finite"):
        model.val_step({**asked, "variant": "raw"})


@pytest.mark.parametrize("wanted", [False, True])
def test_the_memory_of_blocks_is_saved_where_the_settings_say_so(make, wanted):
    model, begun = make(grad_checkpointing=wanted), []
    blocks_of(model.generator)[-1].register_forward_pre_hook(lambda module, given: begun.append(module))
    step(model, NO_OPTIMISER, [batch()])
    assert len(begun) == 1 + wanted


def test_a_step_of_micro_batches_is_a_step_of_one_batch(make):
    data, steps = batch(8), []
    for micro in (1, 4):
        torch.manual_seed(0)
        model = make(seed=1)
        parts = [{key: value[i : i + 8 // micro] for key, value in data.items()} for i in range(0, 8, 8 // micro)]
        steps.append(step(model, NO_OPTIMISER, parts))
    (one, gradients), (many, others) = steps
    assert set(one) == {"loss/total", "loss/velocity", "loss/direction", "time_bins"}
    torch.testing.assert_close(many["loss/total"], one["loss/total"])
    torch.testing.assert_close(others, gradients, rtol=1e-4, atol=1e-6)


def test_what_a_step_makes_anew_lies_where_the_model_does(make, monkeypatch):
    model, latents, asked = make(), torch.zeros(2, 4, 4, 4), []

    def spied(draw):
        return lambda *given, **named: asked.append(named["device"]) or draw(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr("aligntok.training.generation.model.rng", spied(rng))
        for name in ("rand", "randn"):
            patch.setattr(torch, name, spied(getattr(torch, name)))
        model.draws(at(0), latents)
    assert asked == [latents.device] * 3
    assert model._binned(torch.empty(3, device="meta"), torch.empty(3, device="meta")).is_meta
    free = make(generator=dict(num_classes=1, class_dropout_prob=0.0)).to("meta")
    assert free.diffusion.condition.of(dict(label=torch.tensor([-1, 7])), free.device()).is_meta
    assert free.latents(dict(latents=latents)).is_meta
