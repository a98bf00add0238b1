"""The baselines are what the paper compares with, by their numbers and by their arithmetic, and they train."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from aligntok.caching.encoder import posterior_noise
from aligntok.diffusion.times import shift_times
from aligntok.engine.runner import StepBatch
from aligntok.tokenizer import Tokenizer
from aligntok.training.alignment import expand_stages
from aligntok.training.alignment.model import AlignmentModel
from aligntok.training.config import load_config
from aligntok.training.generation import expand_generation
from aligntok.training.plan import make_plan
from aligntok.training.run import run
from aligntok.training.settings import InitFrom

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs" / "baselines"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
MILLION = 1e6
VAES = [name for name in NAMES if "vae" in name]
ALIGNED = [name for name in NAMES if name.startswith("vavae")]


def stages_of(name):
    return expand_stages(load_config(FOLDER / f"{name}.py"))


def planned(stage):
    """Its plan, but for what test_configs.py asks of each config: that its images pass through."""
    return make_plan(stage, stage.build_model(), processes=1)


# What they are


def test_there_are_the_baselines_of_the_paper_and_a_frozen_encoder():
    assert {f"vanilla_vae_f16d{d}" for d in (32, 64)} <= {*NAMES}
    assert {f"vavae_f16d{d}" for d in (32, 64)} | {f"vavae_vit_f16d{d}" for d in (32, 64)} <= {*NAMES}
    assert {"vavae_f16d32_three_part", "rae_dinov2"} <= {*NAMES}


def test_the_readmes_tables_list_every_baseline():
    readme = (ROOT / "README.md").read_text()
    assert [name for name in NAMES if f"(configs/baselines/{name}.py)" not in readme] == []
    assert [name for name in NAMES if f"`{name}`" not in (ROOT / "docs/baselines.md").read_text()] == []


@pytest.mark.parametrize(
    ("name", "trainable", "frozen"), [("vanilla_vae_f16d32", 72.60, 14.71), ("vavae_f16d32", 72.63, 319.0)]
)
def test_they_train_and_freeze_what_the_papers_cost_table_says(name, trainable, frozen):
    plan = planned(stages_of(name)[0])
    assert plan.trainable / MILLION == pytest.approx(trainable, abs=0.005)
    # The table's 14.71 and 319.0 are 14.716 and 319.084, cut off.
    assert plan.frozen / MILLION == pytest.approx(frozen, abs=0.1 if frozen > 100 else 0.01)
    encoder = sum(plan.parameters["encoder"]) - (64 + 1) * 64  # the table leaves the 1x1 convolution out
    assert encoder / MILLION == pytest.approx(28.41, abs=0.005)


#: Batch, steps of each stage, and learning rate.
SCHEDULES = {
    **{f"vanilla_vae_f16d{d}": (256, [250_000]) for d in (32, 64)},
    **{f"vavae_f16d{d}": (256, [250_000]) for d in (32, 64)},
    "vavae_f16d32_three_part": (256, [500_000, 75_000, 75_000]),
    "vavae_vit_f16d32": (64, [440_000]),
    "vavae_vit_f16d64": (64, [680_000]),
}


@pytest.mark.parametrize("name", VAES)
def test_schedules_are_the_papers_and_the_published_models(name):
    batch, steps = SCHEDULES[name]
    stages = stages_of(name)
    assert [stage.settings.steps for stage in stages] == steps
    for i, stage in enumerate(stages):
        assert stage.settings.global_batch_size == batch
        assert (
            stage.settings.optimizer
            == stage.settings.discriminator_optimizer
            == dict(type="Adam", lr=1e-4, betas=(0.5, 0.9))
        )
        assert stage.settings.trainable == ["encoder", "adapter", "decoder"]
        assert stage.settings.init_from == (InitFrom(stage=stages[i - 1].name, weights="raw") if i else None)
        assert (stage.settings.ema is None) == ("vit" not in name)


@pytest.mark.parametrize("name", ["vavae_vit_f16d32", "vavae_vit_f16d64"])
def test_the_vit_is_aligntoks_with_random_weights_and_trains_for_as_many_steps(name):
    ours = expand_stages(load_config(ROOT / f"configs/aligntok_dinov2_{name[-6:]}.py"))
    (stage,) = stages_of(name)
    assert stage.settings.model["encoder"] == {**ours[0].settings.model["encoder"], "pretrained": False}
    assert stage.settings.steps == sum(other.settings.steps for other in ours)
    assert stage.settings.ema == ours[0].settings.ema
    plan = planned(stage)
    assert sum(plan.parameters["encoder"]) == sum(planned(ours[0]).parameters["encoder"])
    width = stage.settings.model["adapter"]["hidden_dim"]
    assert width == 2 * stage.settings.model["latent_dim"], "as AlignTok's"


@pytest.mark.parametrize("name", VAES)
def test_losses_are_the_published_ones_in_their_units(name):
    for stage in stages_of(name):
        losses, side = stage.settings.losses, stage.settings.data.train["image_size"]
        assert stage.settings.model["variational"]
        assert losses["l1"]["weight"] == losses["lpips"]["weight"] == 3 * side**2, "sums over an image's numbers"
        assert losses["kl"] == dict(type="kl", weight=1e-6)
        assert (losses["gan"]["weight"], losses["gan"]["adaptive_weight"]["max"]) == (0.5, 1e4)
        assert losses["gan"]["start_step"] == (5_000 if stage.index == 0 else 0)
        assert ("vf" in losses) == (name in ALIGNED)
        if "vf" in losses:
            assert stage.settings.teacher == dict(type="dinov2")
            assert losses["vf"]["adaptive_weight"] == dict(at="encoder", images=8, max=1e8, reference=["l1", "lpips"])
            assert losses["vf"]["latent_dim"] == stage.settings.model["latent_dim"]


@pytest.mark.parametrize("name", ALIGNED)
def test_the_alignments_weight_and_margins(name):
    vf = [stage.settings.losses["vf"] for stage in stages_of(name)]
    found = [(loss["weight"], loss["distance_margin"], loss["cosine_margin"]) for loss in vf]
    parts = [(0.5, 0, 0), (0.1, 0, 0), (0.1, 0.25, 0.5)]
    assert found == (parts if "three_part" in name else parts[-1:])


# RAE's manner


def test_the_frozen_encoder_is_the_latent_space_and_only_a_decoder_trains():
    (stage,) = stages_of("rae_dinov2")
    plan = planned(stage)
    assert plan.parameters["encoder"][0] == 0
    assert "adapter" not in plan.parameters, "the identity has none"
    assert plan.trainable == sum(plan.parameters[part][0] for part in ("decoder", "discriminator"))
    generation = expand_generation(load_config(ROOT / "configs/generator/lightningdit_xl_rae_dinov2.py"))
    assert generation.settings.generator["in_channels"] == stage.settings.model["latent_dim"] == 768
    assert Path(generation.settings.tokenizer).name == "rae_dinov2"


def test_the_time_shift_depends_on_the_latents_size_and_goes_towards_noise():
    generation = expand_generation(load_config(ROOT / "configs/generator/lightningdit_xl_rae_dinov2.py"))
    shift, generator = generation.settings.transport.shift, generation.settings.generator
    assert generation.settings.sampling.shift == shift
    size = generator["in_channels"] * generator["input_size"] ** 2
    alpha = math.sqrt(size / 4096)
    # RAE, Sec. 4: with time 1 at noise, t' = alpha t / (1 + (alpha - 1) t). Ours is 1 at data.
    theirs = torch.linspace(0, 1, 101, dtype=torch.float64)
    expected = 1 - alpha * theirs / (1 + (alpha - 1) * theirs)
    torch.testing.assert_close(shift_times(1 - theirs, shift), expected)
    assert float(shift_times(torch.tensor(0.5), shift)) == pytest.approx(1 / (1 + alpha)), "noisier than the middle"


# That they train

CNN = dict(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=32)
VIT = dict(type="timm", model_name="vit_tiny_patch16_224", pretrained=False)
VIT["model_args"] = dict(depth=2, embed_dim=48, num_heads=3)
SHORT = {
    "model.downsample_factor": 8,
    "discriminator.base_channels": 16,
    "discriminator.num_layers": 2,
    "losses.lpips.pretrained": False,
    "losses.gan.start_step": 1,
    "data.train.image_size": 32,
    "data.val.image_size": 32,
    "data.workers": 0,
    "global_batch_size": 2,
    "validation.perceptual": None,
    "validation.num_images": 2,
    "log.every": 1,
    "log.pictures": 0,
}


def options(name):
    """What makes a baseline small: f8 on 32 pixels, the parts and the teacher narrow."""
    small = dict(SHORT)
    if name == "rae_dinov2":
        small |= {"model.decoder": dict(width=48, depth=1, num_heads=2, **CNN), "model.latent_dim": 48}
    else:
        small |= {"model.decoder": CNN, "losses.l1.weight": 3 * 32**2, "losses.lpips.weight": 3 * 32**2}
    small["model.encoder"] = CNN if "vit" not in name and "rae" not in name else {**VIT, "_delete_": True}
    small |= {"discriminator.group_images": 2, "losses.gan.adaptive_weight.images": 2}
    if name in ALIGNED:
        small["losses.vf.adaptive_weight.images"] = 2
        small |= {"teacher": {**VIT, "downsample_factor": 8, "_delete_": True}, "losses.vf.feature_dim": 48}
    return small


def shrunken(name, **more):
    config = load_config(FOLDER / f"{name}.py", {**options(name), **more})
    for stage in config["stages"]:
        stage["steps"] = 2
    return config


@pytest.mark.parametrize("name", NAMES)
def test_a_small_copy_trains(name, photographs, tmp_path):
    config = shrunken(name, data_root=str(photographs), work_dir=str(tmp_path))
    folder = run(config)
    tokenizer = Tokenizer.from_pretrained(folder)
    assert tokenizer.variational == (name in VAES)
    assert all(parameter.isfinite().all() for parameter in tokenizer.parameters())
    last = sorted(tmp_path.glob("[0-9]_*"))[-1]
    assert json.loads((last / "result.json").read_text())["metrics"]


def test_a_teacher_of_its_own_keeps_its_weights_when_a_stage_begins():
    (stage,) = expand_stages(shrunken("vavae_vit_f16d32"))
    model = AlignmentModel(stage.settings, stage.seed)
    before = {name: tensor.clone() for name, tensor in model.teacher.encoder.state_dict().items()}
    model.load_start(None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.teacher.encoder.state_dict().items())
    student = dict(model.tokenizer.encoder.named_parameters())
    assert not torch.equal(student["backbone.blocks.0.attn.qkv.weight"], before["backbone.blocks.0.attn.qkv.weight"])


class Gradients:
    """Stands where the optimisers do: keeps the gradients of a step."""

    def loss_scale(self, device):
        return torch.ones((), device=device)

    def step_parts(self, parts, losses):
        named = {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}
        self.found = {name: p.grad for name, p in named.items() if p.requires_grad}
        return {}


def published_total(model, images):
    """The total that VA-VAE's code minimises, one joined graph, sums over an image's numbers, mean over images."""
    tokenizer, losses = model.tokenizer, model.objective.losses
    moments = tokenizer.moments(images)
    mean, logvar = moments.chunk(2, dim=1)
    numbers = range(3 * len(images), 4 * len(images))  # of the samples of step 3
    z = mean + (0.5 * logvar).exp() * posterior_noise(model.seed, numbers, 0, mean.shape[1:])
    reconstruction = tokenizer.decode(z)
    nll = ((images - reconstruction).abs() + losses["lpips"](images, reconstruction)).sum() / len(images)
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum() / len(images)
    adversarial = -model.discriminator(reconstruction).mean()
    with torch.no_grad():
        features = model.teacher.encoder(images)
    alignment = losses["vf"](z, features)

    def ratio(other, parameter, most):
        norms = [torch.autograd.grad(loss, parameter, retain_graph=True)[0].norm() for loss in (nll, other)]
        return (norms[0] / (norms[1] + 1e-4)).clamp(0, most).detach()

    d_weight = 0.5 * ratio(adversarial, tokenizer.decoder.conv_out.weight, 1e4)
    vf_weight = 0.1 * ratio(alignment, tokenizer.encoder.conv_out.weight, 1e8)
    return nll + 1e-6 * kl + d_weight * adversarial + vf_weight * alignment


def test_a_step_of_va_vae_has_the_gradients_of_the_published_total():
    torch.manual_seed(0)
    one = {f"losses.{name}.adaptive_weight": dict(images=3, eps=1e-4) for name in ("gan", "vf")}
    changes = {"losses.gan.start_step": 0, "discriminator.group_images": 3, **one}
    (stage,) = expand_stages(shrunken("vavae_f16d32", **changes))
    model = AlignmentModel(stage.settings, stage.seed)
    model.load_start(None)
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    named = {
        f"{part}.{name}": p
        for part in ("encoder", "decoder")
        for name, p in getattr(model.tokenizer, part).named_parameters()
    }
    named["loss_vf.linear_proj.weight"] = model.objective.losses["vf"].linear_proj.weight
    expected = dict(zip(named, torch.autograd.grad(published_total(model, images), list(named.values())), strict=True))
    keeper = Gradients()
    model.train_step(StepBatch(3, [{"images": images}]), keeper)
    for part in ("encoder", "decoder", "loss_vf"):
        names = [name for name in named if name.startswith(part)]
        largest = max(float(expected[name].abs().max()) for name in names)
        for name in names:
            torch.testing.assert_close(keeper.found[name], expected[name], rtol=0, atol=2e-5 * largest)
