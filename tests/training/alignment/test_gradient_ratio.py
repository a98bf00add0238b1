"""The adaptive weights: their formula, and gradients that are those of the plain, expensive way."""

from __future__ import annotations

import copy
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from aligntok.caching.encoder import posterior_noise
from aligntok.engine.runner import StepBatch
from aligntok.errors import ConfigError
from aligntok.losses import Loss
from aligntok.registry import LOSSES
from aligntok.training.alignment.gradient_ratio import (
    AdaptiveWeight,
    LastLayer,
    gradient_at,
    gradient_ratio,
    last_layers_of,
    ratio_at,
)
from aligntok.training.alignment.model import AlignmentModel
from aligntok.training.settings import StageSettings

LPIPS = dict(type="lpips", pretrained=False, weight=1.0)
CNN = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=32)


class Gradients:
    """Stands where the optimisers do: keeps the gradients of a step, by parameter name, and clears them."""

    def loss_scale(self, device):
        return torch.ones((), device=device)

    def step_parts(self, parts, losses):
        self.found = {}
        for part, module in parts.items():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    self.found[f"{part}.{name}"] = parameter.grad
                    parameter.grad = None
        return {}


def gradients_of_step(model, batches, step=0):
    """Gradients and logs of one training step."""
    keeper = Gradients()
    logs = model.train_step(StepBatch(step, [{"images": images} for images in batches]), keeper)
    return keeper.found, logs


def build(tiny, **changes):
    """A model in mid-training of stage 2: the student is no longer its teacher."""
    settings = dict(
        steps=1,
        model=tiny["model"],
        losses={**tiny["losses"], "semantic": tiny["semantic"]},
        trainable=("encoder", "adapter", "decoder"),
        discriminator=tiny["discriminator"],
        teacher="start",
    )
    model = AlignmentModel(StageSettings(**{**settings, **changes}))
    model.load_start(None)
    with torch.no_grad():
        for parameter in model.tokenizer.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def last(parameter):
    """A last layer that has this weight."""
    return LastLayer(parameter)


def norm_ratio(reference, other, parameter):
    """How much harder one loss pulls at a parameter than another, by two walks of the whole graph."""
    pulls = [torch.autograd.grad(loss, parameter, retain_graph=True)[0].norm() for loss in (reference, other)]
    return (pulls[0] / (pulls[1] + 1e-8)).clamp(0, 1e4).detach()


def peers_way(model, images, gan_weight, semantic_weight, on="latents", distance="l2"):
    """One joined graph: four extra autograd.grad calls for the ratios, then one backward of the total."""
    tokenizer, discriminator = model.tokenizer, model.discriminator
    features = tokenizer.encoder(images)
    latents = tokenizer.adapter(features)
    reconstruction = tokenizer.decoder(latents)
    loss = (images - reconstruction).abs().mean()
    if "lpips" in model.objective.losses:
        loss = loss + model.objective.losses["lpips"](images, reconstruction)
    adversarial = -discriminator(reconstruction).mean()
    gan_ratio = norm_ratio(loss, adversarial, tokenizer.decoder.last_layer)
    loss = loss + gan_weight * gan_ratio * adversarial
    with torch.no_grad():
        target = model.teacher.encoder(images)
        target = model.teacher.adapter(target) if on == "latents" else target
    student = latents if on == "latents" else features
    if distance == "l2":
        semantic = (student - target).square().mean()
    else:
        semantic = (1 - F.cosine_similarity(student, target, dim=1)).mean()
    semantic_ratio = norm_ratio(loss, semantic, tokenizer.encoder.last_layer)
    total = loss + semantic_weight * semantic_ratio * semantic
    parts = {name: getattr(tokenizer, name) for name in ("encoder", "adapter", "decoder")}
    named = {f"{part}.{n}": p for part, module in parts.items() for n, p in module.named_parameters()}
    gradients = dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))
    real, fake = discriminator(images), discriminator(reconstruction.detach())
    value = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    own = {f"discriminator.{n}": p for n, p in discriminator.named_parameters()}
    gradients |= dict(zip(own, torch.autograd.grad(value, list(own.values())), strict=True))
    return gradients, {"ratio/gan": gan_ratio, "ratio/semantic": semantic_ratio}


def assert_same_gradients(found, expected):
    """Each parameter's to 1e-5 of its part's largest: some, such as a bias before a norm, are 0 but for rounding."""
    assert found.keys() == expected.keys()
    for part in {name.split(".")[0] for name in expected}:
        names = [name for name in expected if name.split(".")[0] == part]
        largest = max(float(expected[name].abs().max()) for name in names)
        assert largest > 0, part
        for name in names:
            difference = float((found[name] - expected[name]).abs().max())
            assert difference <= 1e-5 * largest, f"{name}: {difference} of {largest}"


@pytest.mark.parametrize("encoder", ["vit", "cnn"])
@pytest.mark.parametrize("perceptual", [False, True])
def test_one_walk_gives_the_gradients_of_the_peers_way(tiny, encoder, perceptual):
    if encoder == "cnn":
        tiny["model"]["encoder"] = CNN
    losses = {**tiny["losses"], "semantic": {**tiny["semantic"], "weight": 2.0}}
    if perceptual:
        losses["lpips"] = LPIPS
    model = build(tiny, losses=losses)
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    expected, ratios = peers_way(model, images, gan_weight=0.5, semantic_weight=2.0)
    found, logs = gradients_of_step(model, [images])
    for name, ratio in ratios.items():
        torch.testing.assert_close(logs[name], ratio, rtol=1e-5, atol=0)
    assert_same_gradients(found, expected)


@pytest.mark.parametrize(("on", "distance"), [("features", "l2"), ("latents", "cosine")])
def test_the_ablations_of_the_semantic_loss_agree_too(tiny, on, distance):
    semantic = {**tiny["semantic"], "on": on, "distance": distance}
    model = build(tiny, losses={**tiny["losses"], "semantic": semantic})
    images = torch.rand(3, 3, 32, 48) * 2 - 1
    expected, _ = peers_way(model, images, gan_weight=0.5, semantic_weight=1.0, on=on, distance=distance)
    found, _ = gradients_of_step(model, [images])
    assert_same_gradients(found, expected)


AGAINST = {
    "everything from the image, the default": (None, ("l1", "lpips", "gan")),
    "VA-VAE's, without the adversarial loss": (["l1", "lpips"], ("l1", "lpips")),
    "one loss": (["lpips"], ("lpips",)),
    "the balanced loss with its weight": (["gan"], ("gan",)),
    "all by name": (["l1", "lpips", "gan"], ("l1", "lpips", "gan")),
}


@pytest.mark.parametrize(("against", "meant"), AGAINST.values(), ids=AGAINST)
def test_a_loss_is_weighed_against_the_losses_that_its_balance_names(tiny, against, meant):
    balance = dict(at="encoder", max=1e8, reference=against)
    losses = {
        **tiny["losses"],
        "lpips": LPIPS,
        "semantic": {**tiny["semantic"], "weight": 0.1, "adaptive_weight": balance},
    }
    model = build(tiny, losses=losses)
    images = torch.rand(3, 3, 32, 32) * 2 - 1

    tokenizer = model.tokenizer
    latents = tokenizer.encode(images)
    reconstruction = tokenizer.decode(latents)
    values = {
        "l1": (images - reconstruction).abs().mean(),
        "lpips": model.objective.losses["lpips"](images, reconstruction),
        "gan": -model.discriminator(reconstruction).mean(),
    }
    gan_ratio = norm_ratio(values["l1"] + values["lpips"], values["gan"], tokenizer.decoder.last_layer)
    values["gan"] = 0.5 * gan_ratio * values["gan"]
    with torch.no_grad():
        target = model.teacher.adapter(model.teacher.encoder(images))
    semantic = (latents - target).square().mean()
    ratio = norm_ratio(sum(values[name] for name in meant), semantic, tokenizer.encoder.last_layer)
    total = sum(values.values()) + 0.1 * ratio * semantic
    named = {
        f"{part}.{n}": p for part in ("encoder", "decoder") for n, p in getattr(tokenizer, part).named_parameters()
    }
    expected = dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))

    found, logs = gradients_of_step(model, [images])
    torch.testing.assert_close(logs["ratio/semantic"], ratio, rtol=1e-5, atol=0)
    assert_same_gradients({name: found[name] for name in named}, expected)


def in_groups(tiny, each, **changes):
    """A model whose ratios, and the discriminator's norms, are those of groups of so many images."""
    losses = {**tiny["losses"], "semantic": tiny["semantic"], "lpips": LPIPS}
    losses["gan"]["adaptive_weight"] = dict(at="decoder", images=each)
    losses["semantic"] = {**tiny["semantic"], "adaptive_weight": dict(at="encoder", images=each)}
    return build(tiny, losses=losses, discriminator={**tiny["discriminator"], "group_images": each}, **changes)


@pytest.mark.parametrize("encoder", ["vit", "cnn"])
@pytest.mark.parametrize("changes", [{}, dict(grad_checkpointing=True)], ids=["", "checkpointing"])
def test_groups_are_processes_with_these_images_alone(tiny, encoder, changes):
    """The published code has one group a process, its ratios and norms, and averages the processes' gradients."""
    if encoder == "cnn":
        tiny["model"]["encoder"] = CNN
    model = in_groups(tiny, 2, **changes)
    images = torch.rand(6, 3, 32, 32) * 2 - 1
    alone = [peers_way(copy.deepcopy(model), own, 0.5, 1.0) for own in images.split(2)]
    found, logs = gradients_of_step(model, [images])
    for name in ("ratio/gan", "ratio/semantic"):
        each = torch.stack([ratios[name] for _, ratios in alone])
        assert float(each.max() / each.min()) > 1.001, "groups alike show nothing"
        torch.testing.assert_close(logs[name], each.mean(), rtol=1e-5, atol=0)
    assert_same_gradients(found, {name: sum(each[name] for each, _ in alone) / 3 for name in found})


def test_a_ratio_of_groups_is_the_same_however_the_batch_is_split(tiny, as_processes):
    model = in_groups(tiny, 2)
    images = torch.rand(8, 3, 32, 32) * 2 - 1
    copies = [copy.deepcopy(model) for _ in range(4)]
    whole, logs = gradients_of_step(copies[0], [images])
    halves, in_halves = gradients_of_step(copies[1], [images[:4], images[4:]])
    both = as_processes(lambda rank: gradients_of_step(copies[2 + rank], [images[4 * rank :][:4]]))
    for own in (in_halves, *(each for _, each in both)):
        for name in ("ratio/gan", "ratio/semantic"):
            torch.testing.assert_close(own[name], logs[name], rtol=1e-5, atol=0)
    (first, _), (second, _) = both
    for found in (halves, {name: (first[name] + second[name]) / 2 for name in first}):
        assert_same_gradients(found, whole)
    for name, buffer in copies[0].discriminator.named_buffers():
        torch.testing.assert_close(copies[2].discriminator.get_buffer(name), buffer)


def test_the_whole_batch_as_one_group_is_the_whole_batch(tiny):
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    (whole, logs), (one, same) = (gradients_of_step(in_groups(seeded(tiny), each), [images]) for each in (None, 4))
    assert_same_gradients(one, whole)
    torch.testing.assert_close(same, logs, rtol=1e-5, atol=1e-7)


def seeded(tiny):
    torch.manual_seed(3)
    return copy.deepcopy(tiny)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler looks at all that it meets
def test_a_compiled_encoder_leaves_the_layer_of_its_ratio_as_it_is(tiny):
    """A compiled block does not say what a layer inside it gives."""
    images, runs = torch.rand(4, 3, 32, 32) * 2 - 1, []
    for compile in (False, dict(backend="aot_eager")):
        runs.append(gradients_of_step(in_groups(seeded(tiny), 2, compile=compile), [images]))
    assert_same_gradients(runs[1][0], runs[0][0])


def test_a_last_layer_that_says_nothing_of_images_has_no_ratio_of_groups():
    class Functional(nn.Linear):
        last_layer = property(lambda self: self.weight)

    part, x = Functional(3, 2), torch.randn(4, 3)
    weight = AdaptiveWeight(at="decoder", images=2)
    with last_layers_of(dict(decoder=part), ["decoder"]) as found:
        out = F.linear(x, part.weight)
    with pytest.raises(ConfigError, match=r"last layer of shape \(2, 3\) that gives nothing by a call of its own"):
        ratio_at(found["decoder"], ([out], [out]), ([out], [out]), weight)
    with last_layers_of(dict(decoder=part), ["decoder"]) as found:
        out = part(x[:3]).sum() + torch.zeros(4, 2)
    with pytest.raises(ConfigError, match="gives rows that are not those of images"):
        ratio_at(found["decoder"], ([out], [out]), ([out], [out]), weight)


@pytest.mark.parametrize(("eps", "told"), [(1e-8, False), (1e4, True)])
def test_a_small_gradient_that_eps_swallows_is_told(tiny, caplog, eps, told):
    semantic = {**tiny["semantic"], "adaptive_weight": dict(at="encoder", eps=min(eps, 1.0))}
    model = build(tiny, losses={**tiny["losses"], "semantic": semantic})
    with caplog.at_level("WARNING", logger="aligntok"):
        for step in (0, 1):
            gradients_of_step(model, [torch.rand(2, 3, 32, 32)], step)
    text = "loss 'semantic': its gradient is so small at the last layer that adaptive_weight.eps leaves"
    assert caplog.text.count(text) == int(told)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (64, None),
        (16, None),
        (
            12,
            r"here: a micro-batch of 12 .* 8 \(loss 'gan', adaptive_weight.images\); .* 1, 2, 3, 4, 6, 12 or None",
        ),
        (4, "or take groups of 1, 2, 4 or None"),
    ],
)
def test_a_micro_batch_goes_in_groups(tiny, images, said):
    model = in_groups(tiny, 8)
    if said is None:
        model.check_batch(images, "here")
        return
    with pytest.raises(ConfigError, match=said):
        model.check_batch(images, "here")


def test_so_do_the_norms_of_a_discriminator(tiny):
    model = build(tiny, discriminator={**tiny["discriminator"], "group_images": 8})
    with pytest.raises(ConfigError, match=r"here: a micro-batch of 4 images .* \(discriminator.group_images\)"):
        model.check_batch(4, "here")


def test_before_the_adversarial_loss_begins_leaving_it_out_changes_nothing(tiny):
    images, runs = torch.rand(2, 3, 32, 32) * 2 - 1, []
    for against in (None, ["l1"]):
        torch.manual_seed(3)
        tiny["losses"]["gan"]["start_step"] = 5
        semantic = {**tiny["semantic"], "adaptive_weight": dict(at="encoder", reference=against)}
        runs.append(gradients_of_step(build(tiny, losses={**tiny["losses"], "semantic": semantic}), [images])[0])
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0] if runs[0][name] is not None)


def test_a_loss_on_the_image_is_weighed_against_what_it_names(tiny):
    losses = {**tiny["losses"], "lpips": LPIPS}
    losses["gan"]["adaptive_weight"] = dict(at="decoder", reference=["l1"])
    model = build(tiny, losses=losses, teacher=None)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    reconstruction = model.tokenizer.reconstruct(images)
    reference, adversarial = (images - reconstruction).abs().mean(), -model.discriminator(reconstruction).mean()
    expected = norm_ratio(reference, adversarial, model.tokenizer.decoder.last_layer)
    _, logs = gradients_of_step(model, [images])
    torch.testing.assert_close(logs["ratio/gan"], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("name", "against", "said"),
    [
        ("semantic", ["l2"], r"reference=\['l2'\]; name one or more of the losses on the image: l1, gan"),
        ("semantic", ["semantic"], "name one or more of the losses on the image: l1, gan"),
        ("semantic", [], "name one or more"),
        ("semantic", "l1", "reference='l1' is str; it must be list of str or None"),
        ("gan", ["gan"], "on the image without an adaptive weight: l1$"),
    ],
)
def test_a_balance_against_what_is_not_there_is_an_error(tiny, name, against, said):
    losses = {**tiny["losses"], "semantic": tiny["semantic"]}
    losses[name]["adaptive_weight"]["reference"] = against
    with pytest.raises(ConfigError, match=said):
        build(tiny, losses=losses)


def test_gradient_checkpointing_changes_no_gradient(tiny):
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    runs = []
    for enable in (False, True):
        torch.manual_seed(3)
        runs.append(gradients_of_step(build(tiny, grad_checkpointing=enable), [images])[0])
    assert_same_gradients(runs[1], runs[0])


def test_two_micro_batches_of_four_are_one_of_eight_when_weights_are_fixed(tiny):
    losses = {**tiny["losses"], "semantic": tiny["semantic"], "lpips": LPIPS}
    for loss in losses.values():
        loss["adaptive_weight"] = None
    # Group norm sees one image at a time; batch norm would see micro-batches.
    discriminator = dict(type="patchgan", base_channels=32, num_layers=2, norm="group")
    model = build(tiny, losses=losses, discriminator=discriminator)
    images = torch.rand(8, 3, 32, 32) * 2 - 1
    whole, whole_logs = gradients_of_step(model, [images])
    halves, logs = gradients_of_step(model, [images[:4], images[4:]])
    assert_same_gradients(halves, whole)
    assert logs.keys() == whole_logs.keys()
    for name in whole_logs:
        torch.testing.assert_close(logs[name], whole_logs[name], rtol=1e-5, atol=1e-6)


def test_accumulation_keeps_the_ratio_of_each_micro_step(tiny):
    """The eps of the ratio must not weigh more because the gradients of a micro-step are scaled down."""
    model = build(tiny)
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    _, once = gradients_of_step(model, [images])
    _, twice = gradients_of_step(model, [images, images])
    for name in ("ratio/gan", "ratio/semantic"):
        torch.testing.assert_close(twice[name], once[name], rtol=1e-5, atol=0)


def test_ratio_is_the_quotient_of_the_norms():
    reference, other = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    assert float(gradient_ratio(reference, other)) == pytest.approx(5 / 2, rel=1e-6)
    assert float(gradient_ratio(reference, other, eps=1.0)) == pytest.approx(5 / 3, rel=1e-6)


def test_ratio_is_finite_when_a_norm_is_zero_and_stays_in_its_bounds():
    zero, one = torch.zeros(3), torch.ones(3)
    assert float(gradient_ratio(zero, one)) == 0
    assert float(gradient_ratio(zero, zero)) == 0
    assert float(gradient_ratio(one, zero)) == 1e4
    assert float(gradient_ratio(one, zero, max=2.5)) == 2.5
    assert float(gradient_ratio(one, zero, max=1e9)) == pytest.approx(3**0.5 / 1e-8, rel=1e-5)


def test_ratio_carries_no_gradient_and_is_float32():
    reference, other = (torch.ones(3, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    ratio = gradient_ratio(reference, other)
    assert not ratio.requires_grad
    assert ratio.dtype == torch.float32
    assert ratio.shape == ()
    long, short = torch.ones(1000), torch.ones(700)
    for dtypes in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):  # norms are not taken in halves
        found = float(gradient_ratio(long.to(dtypes[0]), short.to(dtypes[1])))
        assert found == pytest.approx(1000**0.5 / 700**0.5, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    pulls=st.tuples(st.floats(0, 1e6, width=32), st.floats(0, 1e6, width=32)),
    most=st.floats(1e-3, 1e6),
    eps=st.floats(1e-6, 1),
)
def test_ratio_is_bounded_and_evens_out_the_pulls(pulls, most, eps):
    reference, other = (torch.tensor([float(pull), 0.0]) for pull in pulls)
    ratio = float(gradient_ratio(reference, other, most, eps))
    assert 0 <= ratio <= most * (1 + 1e-6)
    assert ratio * pulls[1] <= pulls[0] * (1 + 1e-5)  # never harder than the reference


def test_gradient_at_is_autograds_and_keeps_the_graph():
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    out = layer(x)
    gradient = torch.randn(4, 2)
    found = gradient_at(layer.weight, [out], [gradient])
    torch.testing.assert_close(found, gradient.T @ x)
    assert torch.equal(found, gradient_at(layer.weight, [out], [gradient]))


def test_a_parameter_without_a_part_in_the_outputs_has_no_ratio():
    layer, other = nn.Linear(3, 2), nn.Linear(3, 2)
    x = torch.randn(4, 3)
    pull = ([layer(x)], [torch.ones(4, 2)])
    with pytest.raises(ConfigError, match=r"last layer of shape \(2, 3\) that has no part in what the losses pull on"):
        ratio_at(last(other.weight), pull, pull, AdaptiveWeight(at="decoder"))


def test_micro_batches_add_up_in_a_losss_own_weights_too(tiny):
    """Without ratios, which are of their micro-batch: the gradient of the batch is the mean of its parts'."""
    losses = dict(l1=dict(type="l1"), vf=dict(type="vf", latent_dim=4, feature_dim=48, weight=0.1))
    model = build(tiny, losses=losses, discriminator=None)
    parts = [torch.rand(1, 3, 32, 32) * 2 - 1 for _ in range(3)]
    whole, _ = gradients_of_step(model, [torch.cat(parts)])
    together, _ = gradients_of_step(model, parts)
    assert any(name.startswith("loss_vf.") for name in whole)
    assert_same_gradients(together, whole)
    # And twice the same one is it once, not the last alone.
    assert_same_gradients(gradients_of_step(model, [parts[0]] * 2)[0], gradients_of_step(model, parts[:1])[0])


def test_a_ratio_is_of_the_whole_batch_its_divisor_enlarged_by_eps_at_the_losses_scale(as_processes):
    """Means over two processes: (3, 4) of norm 5, and (2, 0) of norm 2."""
    pulls = [([6.0, 0.0], [0.0, 0.0]), ([0.0, 8.0], [4.0, 0.0])]

    def found(rank, scale, **options):
        parameter = nn.Parameter(torch.zeros(2))
        reference, other = (([parameter * 1.0], [torch.tensor(pull)]) for pull in pulls[rank])
        return float(ratio_at(last(parameter), reference, other, AdaptiveWeight(at="decoder", **options), scale).mean)

    assert as_processes(lambda rank: found(rank, 1.0, eps=0.5)) == [5 / 2.5] * 2
    assert as_processes(lambda rank: found(rank, 6.0, eps=0.5)) == [5 / 5] * 2
    assert as_processes(lambda rank: found(rank, 1.0, max=1.5)) == [1.5] * 2


def test_means_over_processes_are_not_rounded_to_half_precision(as_processes):
    """Of 1 and 1 + 2^-7, which bfloat16 has, and whose mean it has not."""

    def found(rank):
        parameter = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
        pulls = [([parameter * 1.0], [torch.tensor([pull]).bfloat16()]) for pull in (1 + rank / 128, 1.0)]
        return float(ratio_at(last(parameter), *pulls, AdaptiveWeight(at="decoder", eps=0.0)).mean)

    assert as_processes(found) == [1 + 1 / 256] * 2


def test_two_processes_of_two_images_have_the_gradients_of_one_with_four(tiny, as_processes):
    """Ratios, the discriminator's gradients, and those of a loss with weights among them."""
    vf = dict(type="vf", latent_dim=4, feature_dim=48, weight=0.1)
    losses = {**tiny["losses"], "semantic": tiny["semantic"], "vf": vf}
    model = build(
        tiny, losses=losses, discriminator=dict(type="patchgan", base_channels=16, num_layers=1, norm="group")
    )
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    copies = [copy.deepcopy(model) for _ in range(2)]
    # The distances that vf sums are between places of an image: the mean over images is that of its parts.
    whole, logs = gradients_of_step(model, [images], step=5)
    both = as_processes(lambda rank: gradients_of_step(copies[rank], [images[2 * rank :][:2]], step=5))
    for _, own in both:
        for name in ("ratio/gan", "ratio/semantic"):
            torch.testing.assert_close(own[name], logs[name], rtol=1e-4, atol=0)
    (first, _), (second, _) = both  # whose mean DDP takes
    assert_same_gradients({name: (first[name] + second[name]) / 2 for name in first}, whole)


class Logits(Loss):
    """An adversarial loss that trains no discriminator."""

    at = "reconstruction"
    inputs = ("fake_logits",)

    def forward(self, fake_logits):
        return -fake_logits.mean()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(l1="l1"), r"loss 'l1' must be dict\(type=..., ...\), not 'l1'"),
        (dict(l1=dict(weight=1.0)), r"loss 'l1' must be dict\(type=..., ...\)"),
        (dict(l1=dict(type="l1", wieght=1.0)), "loss 'l1' takes no keyword named 'wieght'; did you mean 'weight'"),
        (dict(l1=dict(type="l1", adaptive_weight=dict(at="encoder"))), "pulls on the image, .* not 'encoder'"),
        (dict(kl=dict(type="kl", adaptive_weight=dict(at="decoder"))), "pulls on the moments, .* at='encoder', not"),
        (dict(own=dict(type="gan", start_step=9)), "losses gan, own all take the discriminator's logits, and one"),
        (dict(gan=dict(type="logits")), "loss 'gan' takes the discriminator's logits but has no discriminator_loss"),
    ],
)
def test_a_loss_that_cannot_be_is_a_clear_error(tiny, change, said, monkeypatch):
    list(LOSSES)  # loads the plugins first
    monkeypatch.setitem(LOSSES.module_dict, "logits", Logits)
    with pytest.raises(ConfigError, match=said):
        build(tiny, losses={**tiny["losses"], **change})


def test_an_adaptive_weight_needs_a_part_that_is_trained(tiny):
    with pytest.raises(ConfigError, match="loss 'gan' has an adaptive_weight at the decoder's .* trains only encoder"):
        build(tiny, trainable=("encoder",))


def test_losses_begin_at_their_step_and_weigh_what_they_say(tiny):
    losses = dict(l1=dict(type="l1", weight=2.0), late=dict(type="l1", weight=6.0, start_step=2))
    model = build(tiny, losses=losses, discriminator=None, teacher=None)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    plain, _ = gradients_of_step(build_with(tiny, model, dict(l1=dict(type="l1"))), [images])
    for step, weight, names in ((1, 2.0, {"loss/l1"}), (2, 8.0, {"loss/l1", "loss/late"})):
        found, logs = gradients_of_step(model, [images], step)
        assert set(logs) == names
        assert_same_gradients(found, {name: weight * gradient for name, gradient in plain.items()})


def build_with(tiny, other, losses):
    """A model with the weights of another, and other losses."""
    model = build(tiny, losses=losses, discriminator=None, teacher=None)
    model.tokenizer.load_state_dict(other.tokenizer.state_dict())
    return model


@pytest.mark.parametrize(
    "trainable",
    [c for n in (1, 2, 3) for c in combinations(("encoder", "adapter", "decoder"), n)],
    ids="+".join,
)
def test_any_choice_of_parts_gets_the_gradients_of_one_joined_graph(tiny, trainable):
    """Of losses on the image, on moments and on latents; those on what is not trained are logged and pull nothing."""
    losses = dict(
        l1=dict(type="l1"),
        kl=dict(type="kl", weight=0.01),
        semantic={**tiny["semantic"], "adaptive_weight": None, "on": "features", "weight": 0.1},
    )
    tiny["model"]["variational"] = True
    model = build(tiny, losses=losses, discriminator=None, trainable=trainable)
    images, tokenizer = torch.rand(2, 3, 32, 32) * 2 - 1, model.tokenizer
    found, logs = gradients_of_step(model, [images], step=3)
    features = tokenizer.encoder(images)
    moments = tokenizer.adapter(features)
    mean, logvar = moments.chunk(2, dim=1)
    noise = posterior_noise(0, [6, 7], 0, mean.shape[1:])  # of the two samples of step 3
    latents = mean + (0.5 * logvar).exp() * noise
    with torch.no_grad():
        target = model.teacher.encoder(images)
    values = {
        "l1": (images - tokenizer.decoder(latents)).abs().mean(),
        "kl": 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1).mean(),
        "semantic": (features - target).square().mean(),
    }
    for name, value in values.items():
        torch.testing.assert_close(logs[f"loss/{name}"], value.detach(), rtol=1e-5, atol=1e-6)
    total = values["l1"] + 0.01 * values["kl"] + 0.1 * values["semantic"]
    named = {f"{part}.{n}": p for part in trainable for n, p in getattr(tokenizer, part).named_parameters()}
    assert_same_gradients(found, dict(zip(named, torch.autograd.grad(total, [*named.values()]), strict=True)))
    frozen = [
        p for part in {"encoder", "adapter", "decoder"} - {*trainable} for p in getattr(tokenizer, part).parameters()
    ]
    assert all(p.grad is None for p in frozen)


def test_without_a_loss_on_the_image_nothing_is_there_to_be_weighed_against(tiny):
    """A balanced loss then weighs nothing, and one without a balance what it says."""
    plain = {**tiny["semantic"], "adaptive_weight": None, "weight": 0.5}
    model = build(tiny, losses=dict(semantic=tiny["semantic"], plain=plain), discriminator=None)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    found, logs = gradients_of_step(model, [images])
    assert float(logs["ratio/semantic"]) == 0
    with torch.no_grad():
        target = model.teacher.adapter(model.teacher.encoder(images))
    value = 0.5 * (model.tokenizer.encode(images) - target).square().mean()
    named = {
        f"{part}.{n}": p
        for part in ("encoder", "adapter")
        for n, p in getattr(model.tokenizer, part).named_parameters()
    }
    expected = dict(zip(named, torch.autograd.grad(value, [*named.values()]), strict=True))
    assert_same_gradients({name: found[name] for name in named}, expected)
    assert not any(found[name].any() for name in found.keys() - named.keys())  # the decoder's
