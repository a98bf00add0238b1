"""What a training step touches, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from aligntok.engine.compile import blocks_of
from aligntok.engine.optim import PartOptimizersConstructor
from aligntok.engine.runner import StepBatch
from aligntok.errors import ConfigError, DivergenceError
from aligntok.tokenizer import Tokenizer
from aligntok.training.alignment import expand_stages
from aligntok.training.alignment import model as model_module
from aligntok.training.alignment.graph import run_forward
from aligntok.training.alignment.model import AlignmentModel
from aligntok.weights.lora import LoRASettings

PARTS = ("encoder", "adapter", "decoder")
KINDS = {0: "latent_alignment", 1: "perceptual_alignment", 2: "decoder_refinement"}


class Visits:
    """Counts the forward passes of modules, and keeps their mode and whether they left a graph behind."""

    def __init__(self, **modules):
        self.count = dict.fromkeys(modules, 0)
        self.training, self.graph = {}, {}
        for name, module in modules.items():
            module.register_forward_hook(lambda m, given, out, name=name: self._see(name, m, out))

    def _see(self, name, module, out):
        self.count[name] += 1
        self.training[name] = module.training
        self.graph[name] = out.requires_grad


@pytest.fixture
def stage_model(tiny):
    """Build the model of one of the three stages, by index, as its config says; keywords replace those of the model."""

    def build(index, **changes):
        config = dict(
            work_dir="x", seed=0, data_root=None, **{k: tiny[k] for k in ("model", "discriminator", "losses")}
        )
        stages = [{**stage, "steps": 4} for stage in tiny["stages"]]
        model = AlignmentModel(replace(expand_stages({**config, "stages": stages})[index].settings, **changes))
        model.load_start(None)
        return model

    return build


def optimizers(model, **changes):
    adam = dict(type="Adam", lr=1e-2, betas=(0.5, 0.9))
    config = dict(autoencoder=adam, discriminator=adam, clip_grad_norm=None, max_skipped=2, spike_factor=None)
    return PartOptimizersConstructor({**config, **changes})(model)


def train(model, steps, first=0, size=(32, 32), optim=None):
    """Real steps on noise; returns what the last one logged."""
    optim = optim or optimizers(model)
    model.train()
    for step in range(first, first + steps):
        images = torch.rand(2, 3, *size) * 2 - 1
        logs = model.train_step(StepBatch(step, [{"images": images}]), optim)
    return logs


def copied(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(state, other):
    return all(torch.equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize("index", KINDS, ids=KINDS.values())
def test_what_a_stage_does_not_train_does_not_change_by_one_bit(stage_model, index):
    model = stage_model(index)
    parts = {**{name: getattr(model.tokenizer, name) for name in PARTS}, "discriminator": model.discriminator}
    before = {name: copied(part) for name, part in parts.items()}
    frozen_before = {name: copied(part) for name, part in model.frozen_parts().items()}
    train(model, 4)
    trained = (*model.trainable, "discriminator")
    for name, part in parts.items():
        assert same(before[name], part.state_dict()) == (name not in trained), name
    for name, part in model.frozen_parts().items():
        assert same(frozen_before[name], part.state_dict()), name
    assert set(model.frozen_parts()) >= set(PARTS) - set(model.trainable)


@pytest.mark.parametrize("index", KINDS, ids=KINDS.values())
def test_frozen_parts_run_in_eval_mode_and_without_a_graph(stage_model, index):
    model = stage_model(index)
    parts = {name: getattr(model.tokenizer, name) for name in PARTS}
    if model.teacher is not None:
        parts.update(teacher_encoder=model.teacher.encoder, teacher_adapter=model.teacher.adapter)
    visits = Visits(**parts)
    train(model, 1, first=3)
    for name in parts:
        trained = name in model.trainable
        assert (visits.training[name], visits.graph[name]) == (trained, trained), name
    for part in model.frozen_parts().values():
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())


@pytest.mark.parametrize("index", KINDS, ids=KINDS.values())
def test_a_step_is_one_forward_of_encoder_and_decoder_and_two_of_the_discriminator(stage_model, index):
    model = stage_model(index)
    visits = Visits(**{name: getattr(model.tokenizer, name) for name in PARTS}, discriminator=model.discriminator)
    train(model, 3, first=2)
    assert visits.count == {"encoder": 3, "adapter": 3, "decoder": 3, "discriminator": 6}


def test_the_gan_is_absent_before_its_start_step(stage_model):
    model = stage_model(0)
    before = copied(model.discriminator)
    visits = Visits(discriminator=model.discriminator)
    optim = optimizers(model)
    logs = train(model, 2, optim=optim)
    assert visits.count["discriminator"] == 0
    assert same(before, model.discriminator.state_dict())
    assert optim["discriminator"].optimizer.state_dict()["state"] == {}
    assert not any("gan" in name or name.startswith("logits") or name == "loss/discriminator" for name in logs)
    logs = train(model, 1, first=2, optim=optim)
    assert visits.count["discriminator"] == 2
    assert {"loss/gan", "ratio/gan", "loss/discriminator", "logits/real", "logits/fake"} <= set(logs)
    assert not same(before, model.discriminator.state_dict())


def test_the_teacher_is_what_the_stage_starts_from(stage_model):
    model = stage_model(1)
    with torch.no_grad():  # as loading the start's weights would
        for parameter in model.tokenizer.parameters():
            parameter.add_(0.1)
    model.load_start(None)
    for name, part in model.teacher.named_children():
        assert same(part.state_dict(), getattr(model.tokenizer, name).state_dict())
    images = torch.rand(2, 3, 32, 32)
    model.eval()
    assert torch.equal(model.teacher(images)["teacher_latents"], model.tokenizer.encode(images))
    logs = train(model, 1)
    assert float(logs["loss/semantic"]) == 0
    assert float(train(model, 2, first=1)["loss/semantic"]) > 0


def test_a_semantic_loss_on_features_keeps_no_second_adapter(stage_model, tiny):
    losses = dict(l1=dict(type="l1"), semantic={**tiny["semantic"], "on": "features"})
    model = stage_model(1, losses=losses)
    assert model.teacher.adapter is None
    assert set(model.frozen_parts()) == {"teacher_encoder"}
    assert "loss/semantic" in train(model, 1)


def test_without_a_loss_that_needs_them_there_is_neither_teacher_nor_discriminator(stage_model):
    model = stage_model(1, losses=dict(l1=dict(type="l1")))
    assert model.teacher is None
    assert model.discriminator is None
    assert set(train(model, 1)) == {"loss/l1", "skipped_steps", *(f"grad_norm/{part}" for part in PARTS)}


def test_what_a_component_froze_stays_frozen(stage_model, monkeypatch):
    class Half(Tokenizer):
        """Some of its weights are fixed, as positions in sines are."""

        frozen = "proj.weight"

        def __init__(self, **given):
            super().__init__(**given)
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(not name.endswith(self.frozen))

    monkeypatch.setattr(model_module, "Tokenizer", Half)
    model = stage_model(1)
    before = {part: copied(getattr(model.tokenizer, part)) for part in PARTS}
    train(model, 3)
    changed = {
        f"{part}.{name}"
        for part, state in before.items()
        for name, tensor in state.items()
        if not torch.equal(tensor, getattr(model.tokenizer, part).state_dict()[name])
    }
    assert changed
    assert not [name for name in changed if name.endswith("proj.weight")]
    assert any(name.endswith("proj.bias") for name in changed)
    monkeypatch.setattr(Half, "frozen", "conv_out.weight")
    with pytest.raises(ConfigError, match="the decoder's last layer is frozen, .* where loss 'gan' is weighed"):
        stage_model(1)


def test_a_gan_without_a_discriminator_is_a_config_error(stage_model):
    with pytest.raises(ConfigError, match="takes the discriminator's logits, but discriminator is None"):
        stage_model(1, discriminator=None)


def test_loss_weights_are_trained_and_the_teacher_may_be_another_encoder(stage_model, tiny):
    """VA-VAE's loss: a projection of its own, learned, towards the features of a frozen encoder."""
    losses = dict(
        l1=dict(type="l1"),
        vf=dict(type="vf", latent_dim=4, feature_dim=48, weight=0.1, adaptive_weight=dict(at="encoder")),
    )
    teacher = {**tiny["model"]["encoder"], "downsample_factor": 8}
    model = stage_model(1, losses=losses, teacher=teacher, discriminator=None)
    projection, target = copied(model.objective.losses["vf"]), copied(model.teacher)
    logs = train(model, 2)
    assert {"loss/vf", "ratio/vf", "grad_norm/loss_vf"} <= set(logs)
    assert not same(projection, model.objective.losses["vf"].state_dict())
    assert same(target, model.teacher.state_dict())


def test_images_need_not_be_square(stage_model):
    assert float(train(stage_model(1), 1, size=(32, 56))["loss/l1"]) > 0


def test_a_variational_tokenizer_trains_on_samples_that_follow_from_the_step(stage_model, tiny):
    losses = dict(l1=dict(type="l1"), kl=dict(type="kl", weight=1e-3))
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = stage_model(1, model={**tiny["model"], "variational": True}, losses=losses)
        torch.manual_seed(1)
        logs = train(model, 2)
        runs.append(copied(model.tokenizer))
    assert same(*runs)
    assert float(logs["loss/kl"]) > 0


def test_a_steps_noise_is_its_own_in_every_seed_and_step(stage_model):
    """And the same again: a resumed run goes on with the same."""
    model, drawn = stage_model(0), {}
    model.backward = lambda batch, place: {"loss/x": torch.rand(4)}
    optim = SimpleNamespace(loss_scale=lambda device: torch.ones(()), step_parts=lambda parts, losses: {})
    places = [(seed, step) for seed in (0, 1, 2) for step in (0, 1, 2)]
    for model.seed, step in [*places, *places]:
        noise = model.train_step(StepBatch(step, [{}]), optim)["loss/x"]
        drawn.setdefault(tuple(noise.tolist()), set()).add((model.seed, step))
    assert sorted(map(sorted, drawn.values())) == [[place] for place in places]


@pytest.mark.parametrize("poison", ["images", "loss"])
def test_a_step_that_is_not_finite_is_left_out_and_too_many_stop_the_run(stage_model, poison):
    model = stage_model(1)
    optim = optimizers(model)
    train(model, 1, optim=optim)
    before = copied(model)
    images = torch.full((2, 3, 32, 32), float("nan")) if poison == "images" else torch.rand(2, 3, 32, 32)
    if poison == "loss":
        model.objective.losses["l1"].forward = lambda images, reconstruction: reconstruction.sum() * float("inf")
    for step in (1, 2):
        logs = model.train_step(StepBatch(step, [{"images": images}]), optim)
        assert float(logs["skipped_steps"]) == step
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    weights = {name: tensor for name, tensor in before.items() if not name.endswith(statistics)}
    assert same(weights, model.state_dict())
    with pytest.raises(DivergenceError, match=r"3 steps in a row had to be left out, .* not finite \(parts: encoder"):
        model.train_step(StepBatch(3, [{"images": images}]), optim)


@pytest.mark.parametrize("index", range(3))
def test_every_gradient_lies_in_memory_as_its_parameter_does(stage_model, index):
    """torch's fused Adam on CPU reads both in the order of memory, and would mix up weights that lie otherwise."""
    model = stage_model(index)
    optim = optimizers(model)
    seen = []
    optim.step_parts = lambda parts, losses: seen.extend(p for part in parts.values() for p in part.parameters()) or {}
    train(model, 1, first=3, optim=optim)
    with_gradients = [p for p in seen if p.grad is not None]
    assert len(with_gradients) > 10
    assert all(p.grad.stride() == p.stride() for p in with_gradients)


def test_clipping_bounds_each_side_as_a_whole(stage_model):
    model = stage_model(1)
    sgd = dict(type="SGD", lr=1.0)
    before = copied(model.tokenizer)
    logs = train(model, 1, optim=optimizers(model, autoencoder=sgd, discriminator=sgd, clip_grad_norm=1e-3))
    assert max(float(logs[f"grad_norm/{part}"]) for part in PARTS) > 1e-3
    moved = torch.stack([(t - before[n]).double().square().sum() for n, t in model.tokenizer.state_dict().items()])
    assert float(moved.sum().sqrt()) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_keeps_weights_ratios_and_losses_in_float32(stage_model, precision, dtype):
    model = stage_model(1, precision=precision)
    seen = []
    model.tokenizer.decoder.conv_in.register_forward_hook(lambda m, given, out: seen.append(out.dtype))
    logs = train(model, 2)
    assert set(seen) == {dtype}
    assert {logs[name].dtype for name in ("ratio/gan", "ratio/semantic", "loss/l1")} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_under_autocast_losses_and_gradients_meet_in_float32(stage_model):
    model = stage_model(1)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        graph = run_forward(model.tokenizer, images, PARTS)
    assert {graph.tensors[name].dtype for name in ("latents", "reconstruction")} == {torch.bfloat16}
    assert {leaf.dtype for leaf in graph.leaves.values()} == {torch.float32}
    assert {name for name, leaf in graph.leaves.items() if leaf.requires_grad} == set(graph.leaves)
    graph.add("reconstruction", torch.full_like(graph.leaves["reconstruction"], 1e-3))
    graph.add("reconstruction", torch.full_like(graph.leaves["reconstruction"], 1e-6))  # lost in bfloat16
    torch.testing.assert_close(
        graph.arriving["reconstruction"], torch.full((2, 3, 32, 32), 1.001e-3), rtol=1e-6, atol=0
    )
    graph.backward_decoder()
    assert graph.arriving["latents"].dtype == torch.float32


def seeded(stage_model, **changes):
    """A stage-2 model of the same weights each time, and the same images after it."""
    torch.manual_seed(5)
    return stage_model(1, **changes)


def test_fp16_gradients_are_those_of_fp32_but_for_rounding(stage_model):
    """The loss scale multiplies every gradient, those that ratios are taken of too, and is divided out again."""
    logs = [train(seeded(stage_model, precision=precision), 1) for precision in ("fp32", "fp16")]
    assert float(logs[1]["loss_scale"]) == 2**16
    for name in logs[0]:
        if name.startswith(("grad_norm", "ratio/gan", "loss")):
            assert float(logs[1][name]) == pytest.approx(float(logs[0][name]), rel=0.05, abs=1e-4), name


def test_an_fp16_overflow_leaves_the_step_out_lowers_the_scale_and_both_are_saved(stage_model):
    model = stage_model(1, precision="fp16")
    optim = optimizers(model)
    optim.loss_scale(torch.device("cpu"))
    optim.scaler.update(2.0**31)
    before = copied(model.tokenizer)
    logs = train(model, 1, optim=optim)
    assert same(before, model.tokenizer.state_dict())
    assert (float(logs["skipped_steps"]), float(logs["loss_scale"])) == (1, 2.0**30)
    other = optimizers(model)
    other.load_state_dict(optim.state_dict())
    assert float(other.loss_scale(torch.device("cpu"))) == 2.0**30


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile looks at it
@pytest.mark.parametrize("options", [dict(), dict(grad_checkpointing=True)], ids=["plain", "checkpointing"])
def test_a_compiled_model_takes_the_same_steps(stage_model, options):
    """All of torch.compile but its last stage, code generation, which takes a minute."""
    plain = seeded(stage_model)
    logs = [train(plain, 2)]
    compiled = seeded(stage_model, compile=dict(backend="aot_eager"), **options)
    logs.append(train(compiled, 2))
    for name in logs[0]:
        assert float(logs[1][name]) == pytest.approx(float(logs[0][name]), rel=1e-4, abs=1e-6), name
    state, other = plain.state_dict(), compiled.state_dict()
    assert list(state) == list(other)
    torch.testing.assert_close(other, state, rtol=0, atol=1e-5)


def test_a_loss_that_is_not_finite_without_a_gradient_leaves_the_step_out_too(stage_model):
    model = stage_model(2)
    model.objective.losses["l1"].forward = lambda images, reconstruction: (
        reconstruction.mean() + (reconstruction.detach() * float("inf")).sum()
    )
    before = copied(model.tokenizer)
    assert float(train(model, 1)["skipped_steps"]) == 1
    assert same(before, model.tokenizer.state_dict())


def test_validation_gives_each_image_with_its_reconstruction(stage_model):
    model = stage_model(1).eval()
    images = torch.rand(3, 3, 32, 40) * 2 - 1
    pairs = model.val_step({"images": images})
    assert len(pairs) == 3
    assert torch.equal(torch.stack([pair["images"] for pair in pairs]), images)
    with torch.no_grad():
        assert torch.equal(torch.stack([pair["reconstruction"] for pair in pairs]), model(images))


@pytest.mark.parametrize("index", KINDS, ids=KINDS.values())
def test_a_model_is_built_in_training_mode_but_for_what_it_does_not_train(stage_model, index):
    model = stage_model(index)

    def modes():
        parts = {name: getattr(model.tokenizer, name) for name in PARTS} | {"discriminator": model.discriminator}
        assert model.teacher is None or not model.teacher.training
        return {name: {module.training for module in part.modules()} for name, part in parts.items()}

    trained = (*model.trainable, "discriminator")
    assert modes() == {name: {name in trained} for name in (*PARTS, "discriminator")}
    model.eval()
    assert modes() == {name: {False} for name in (*PARTS, "discriminator")}
    model.train()
    assert modes() == {name: {name in trained} for name in (*PARTS, "discriminator")}


def test_values_and_logs_are_the_losses_of_the_step_computed_by_hand(stage_model, tiny):
    tiny["losses"]["gan"]["start_step"] = 2
    model = stage_model(1, losses={**tiny["losses"], "semantic": tiny["semantic"]})
    with torch.no_grad():  # the student is no longer its teacher
        for parameter in model.tokenizer.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.discriminator.eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = model.tokenizer.encode(images)
        reconstruction = model.tokenizer.decode(latents)
        target = model.teacher.adapter(model.teacher.encoder(images))
        real, fake = model.discriminator(images), model.discriminator(reconstruction)
    expected = {"l1": (images - reconstruction).abs().mean(), "semantic": (latents - target).square().mean()}
    torch.testing.assert_close(model.values(images, 1), expected)
    expected["gan"] = -fake.mean()
    torch.testing.assert_close(model.values(images, 2), expected)
    expected["discriminator"] = 0.5 * ((1 - real).relu().mean() + (1 + fake).relu().mean())
    optim = SimpleNamespace(loss_scale=lambda device: torch.ones(()), step_parts=lambda parts, losses: {})
    logs = model.train_step(StepBatch(2, [{"images": images}]), optim)
    wanted = {f"loss/{name}": value for name, value in expected.items()}
    wanted |= {"logits/real": real.mean(), "logits/fake": fake.mean()}
    torch.testing.assert_close({name: logs[name] for name in wanted}, wanted)
    assert set(logs) == {*wanted, "ratio/gan", "ratio/semantic"}


def test_a_teacher_runs_only_at_steps_that_have_a_loss_of_it(stage_model, tiny):
    losses = dict(l1=dict(type="l1"), semantic={**tiny["semantic"], "start_step": 2})
    model = stage_model(1, losses=losses)
    visits = Visits(teacher=model.teacher.encoder)
    assert "loss/semantic" not in train(model, 2)
    assert visits.count["teacher"] == 0
    assert "loss/semantic" in train(model, 1, first=2)
    assert visits.count["teacher"] == 1


@pytest.mark.parametrize("wanted", [False, True])
def test_blocks_are_computed_twice_where_their_results_are_not_kept(stage_model, wanted):
    """Gradients are the same with and without: only this tells whether memory is saved at all."""
    model, begun = stage_model(1, grad_checkpointing=wanted), []
    for part, kind in (("encoder", "Block"), ("decoder", "ResnetBlock")):
        kinds = {type(module).__name__: module for module in getattr(model.tokenizer, part).modules()}
        kinds[kind].register_forward_pre_hook(lambda module, given, part=part: begun.append(part))
    train(model, 1)
    assert [begun.count(part) > 1 for part in ("encoder", "decoder")] == [wanted, wanted]


def test_each_reconstruction_has_the_index_of_its_image(stage_model):
    pairs = stage_model(0).eval().val_step({"images": torch.zeros(2, 3, 32, 32), "index": torch.tensor([7, 4])})
    assert [int(pair["index"]) for pair in pairs] == [7, 4]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(trainable=()), r"trainable=\[\]; it must name one or more of encoder, adapter, decoder"),
        (dict(model=dict(latent_dim=4)), "model has no encoder"),
        (dict(teacher=None), "compares with a teacher's latents, but teacher is None; set teacher='start'"),
        (dict(teacher=dict(type="timm")), "compares with a teacher's latents, but teacher is {'type': 'timm'}"),
        (
            dict(lora=dict(targets=r".*attn\.qkv")),
            "the encoder's last layer is frozen, by lora or .* where loss 'semantic' is weighed",
        ),
    ],
)
def test_settings_that_do_not_fit_one_another_are_a_config_error(stage_model, change, said):
    with pytest.raises(ConfigError, match=said):
        stage_model(1, **change)


def test_lora_may_leave_the_last_layer_frozen_where_nothing_is_weighed_there(stage_model, tiny):
    semantic = {**tiny["semantic"], "adaptive_weight": None}
    lora = LoRASettings(targets=r".*attn\.qkv")
    stage_model(1, lora=lora, losses=dict(l1=dict(type="l1"), semantic=semantic))
    with pytest.raises(ConfigError, match="the encoder's last layer is frozen, by lora"):
        stage_model(1, lora=lora)
    assert stage_model(1, lora=LoRASettings()).tokenizer.encoder.last_layer.requires_grad  # and here all is well


def test_blocks_are_compiled_where_the_settings_say_so(stage_model):
    for options in (False, dict(backend="aot_eager")):
        model = stage_model(1, compile=options)
        for part in (model.tokenizer, model.teacher):
            made = {block._compiled_call_impl is not None for block in blocks_of(part)}
            assert made == {bool(options)}


def test_a_stage_begins_from_the_parts_that_it_is_given_and_keeps_the_others(stage_model):
    model, other = stage_model(1), stage_model(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    before, given = copied(model.tokenizer.adapter), {**other.trained_parts(), **other.frozen_parts()}
    states = {name: copied(part) for name, part in given.items() if name not in ("adapter", "discriminator")}
    model.load_start(states)
    assert same(states["encoder"], model.tokenizer.encoder.state_dict())
    assert same(states["decoder"], model.tokenizer.decoder.state_dict())
    assert same(before, model.tokenizer.adapter.state_dict())
    assert same(states["encoder"], model.teacher.encoder.state_dict())  # the stage's start, not the other's teacher
    assert same(before, model.teacher.adapter.state_dict())


def test_parts_by_what_becomes_of_them(stage_model, tiny):
    losses = dict(l1=dict(type="l1"), lpips=dict(type="lpips", net="alex", pretrained=False))
    losses["vf"] = dict(type="vf", latent_dim=4, feature_dim=48)
    losses["semantic"] = {**tiny["semantic"], "adaptive_weight": None, "on": "features"}
    model = stage_model(0, losses=losses, discriminator=None, teacher="start")
    of_losses = {f"loss: {name}" for name in losses}
    assert set(model.parts()) == {"encoder", "adapter", "decoder", "teacher", *of_losses}
    assert set(model.trained_parts()) == {"adapter", "decoder", "loss_vf"}
    assert set(model.averaged_parts()) == {"adapter", "decoder"}
    assert set(model.frozen_parts()) == {"encoder", "teacher_encoder"}
    model = stage_model(2)
    assert set(model.parts()) == {"encoder", "adapter", "decoder", "discriminator", "loss: l1", "loss: gan"}
    assert set(model.trained_parts()) == {"decoder", "discriminator"}
    assert set(model.averaged_parts()) == {"decoder"}
    assert set(model.frozen_parts()) == {"encoder", "adapter"}


def test_a_teachers_targets_are_float32_without_a_graph(stage_model):
    teacher = stage_model(1).teacher
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        targets = teacher(images)
    assert {name: (each.dtype, each.requires_grad) for name, each in targets.items()} == {
        "teacher_features": (torch.float32, False),
        "teacher_latents": (torch.float32, False),
    }
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_teacher_with_a_config_of_its_own_keeps_its_weights_and_is_of_features_alone(stage_model, tiny):
    losses = dict(l1=dict(type="l1"), semantic={**tiny["semantic"], "on": "features"})
    model = stage_model(1, losses=losses, teacher={**tiny["model"]["encoder"], "downsample_factor": 8})
    before = copied(model.teacher)
    assert set(before) == {f"encoder.{name}" for name in model.tokenizer.encoder.state_dict()}  # it would fit
    with torch.no_grad():
        for parameter in model.tokenizer.parameters():
            parameter.add_(0.1)
    model.load_start(None)
    model_states = {"encoder": copied(model.tokenizer.encoder)}
    model.load_start({**model_states, "teacher_encoder": model_states["encoder"]})  # of the stage that it begins from
    assert same(before, model.teacher.state_dict())
    assert not same({f"encoder.{name}": t for name, t in model_states["encoder"].items()}, before)
