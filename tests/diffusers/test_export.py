"""Tokenizers and generators as diffusers loads them: autoencoders, pipelines."""

from __future__ import annotations

import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import aligntok
from aligntok.check import CheckRequest, check_folder
from aligntok.cli import export
from aligntok.data.latent_shards import LatentStatistics
from aligntok.diffusion.samplers import generators_from_seeds
from aligntok.diffusion.settings import Sampling
from aligntok.errors import ConfigError, DataError, WeightsError
from aligntok.exporting import export_for_diffusers
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.rng import batch_noise
from aligntok.tokenizer import Tokenizer

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
CNN = dict(type="ldm_cnn", ch=32, ch_mult=(1, 2, 2), num_res_blocks=2, attn_resolutions=(), resolution=32)
VIT = dict(type="timm", model_name="vit_tiny_patch16_224", pretrained=False, model_args=dict(depth=1, embed_dim=48))
VIT["model_args"]["num_heads"] = 3
DIT = dict(type="lightning_dit", hidden_size=32, depth=2, num_heads=2, input_size=4, in_channels=4, num_classes=3)
STATISTICS = LatentStatistics((0.1, -0.2, 0.0, 0.3), (0.5, 2.0, 1.0, 1.5))


def cnn(**changes):
    """A tokenizer of the convolutional kind, whose weights make a mistake in any layer show."""
    part = {**CNN, **changes}
    return shaken(Tokenizer(part, dict(type="identity"), part, 4, downsample_factor=4, variational=True))


def vit(**decoder):
    return shaken(Tokenizer(VIT, None, {**CNN, **decoder}, latent_dim=4, downsample_factor=4))


def shaken(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def diffusion(tokenizer, **sampling):
    sampling = dict(steps=4, shift=0.3, cfg_scale=3.0, cfg_interval=(0.1, 0.9), **sampling)
    return shaken(LatentDiffusion(DIT, tokenizer, STATISTICS, (4, 4, 4), ("a", "b", "c"), sampling))


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


# diffusers: autoencoders


LEVELS = {"none": (), "two of three": (32, 16), "lowest": (8,)}


@pytest.mark.parametrize("resolutions", LEVELS.values(), ids=LEVELS)
@torch.no_grad()
def test_a_convolutional_tokenizer_is_an_autoencoder_kl(tmp_path, images, resolutions):
    tokenizer = cnn(attn_resolutions=resolutions, norm_groups=8 if resolutions else 32)
    tokenizer.save_pretrained(tmp_path / "ours")
    assert export_for_diffusers(tmp_path / "ours", tmp_path / "vae") == (tmp_path / "vae", "diffusers.AutoencoderKL")
    vae, found = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae", output_loading_info=True)
    assert not [name for kind in found.values() for name in kind]
    latents = tokenizer.encode(images)
    torch.testing.assert_close(vae.encode(images).latent_dist.parameters, tokenizer.moments(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(vae.decode(latents).sample, tokenizer.decode(latents), rtol=0, atol=1e-5)
    again = aligntok.load_tokenizer(tmp_path / "vae")
    torch.testing.assert_close(again.encode(images), latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(again.decode(latents), tokenizer.decode(latents), rtol=0, atol=1e-5)


OTHERS = {
    "a linear path": lambda: cnn(linear_path=True),
    "a first level of another width": lambda: cnn(ch_mult=(2, 2, 2)),
    "a decoder that ends in tanh": lambda: shaken(
        Tokenizer(CNN, dict(type="identity"), {**CNN, "tanh_out": True}, 4, downsample_factor=4, variational=True)
    ),
    "a decoder of another shape": lambda: shaken(
        Tokenizer(CNN, dict(type="identity"), {**CNN, "num_res_blocks": 1}, 4, downsample_factor=4, variational=True)
    ),
    "a ViT": vit,
}


@pytest.mark.parametrize("kind", OTHERS)
@torch.no_grad()
def test_any_other_is_an_autoencoder_of_ours_to_the_bit(tmp_path, images, kind):
    from aligntok.diffusers import AutoencoderAlignTok

    tokenizer = OTHERS[kind]()
    tokenizer.save_pretrained(tmp_path / "ours")
    _, loaded_by = export_for_diffusers(tmp_path / "ours", tmp_path / "vae")
    assert loaded_by == "aligntok.diffusers.AutoencoderAlignTok"
    vae = AutoencoderAlignTok.from_pretrained(tmp_path / "vae")
    latents = tokenizer.encode(images)
    posterior = vae.encode(images).latent_dist
    assert torch.equal(posterior.mode(), latents)
    assert bool((posterior.std == 0).all()) is not tokenizer.variational
    assert torch.equal(vae.decode(latents).sample, tokenizer.decode(latents))
    assert torch.equal(vae(images).sample, tokenizer(images))
    assert (vae.config.latent_channels, len(vae.config.block_out_channels)) == (4, 3)
    assert vae.config.scaling_factor == 1
    again = aligntok.load_tokenizer(tmp_path / "vae")
    assert torch.equal(again(images), tokenizer(images))
    assert not again.training
    assert again.identity == tokenizer.identity


@torch.no_grad()
def test_our_autoencoder_in_half_precision_has_the_tables_of_the_whole_one(tmp_path, images):
    from aligntok.diffusers import AutoencoderAlignTok

    tokenizer = vit()
    tokenizer.save_pretrained(tmp_path / "ours")
    export_for_diffusers(tmp_path / "ours", tmp_path / "vae")
    vae = AutoencoderAlignTok.from_pretrained(tmp_path / "vae", torch_dtype=torch.bfloat16)
    assert vae.dtype == torch.bfloat16
    assert torch.equal(vae.encode(images.bfloat16()).latent_dist.mode(), tokenizer.bfloat16().encode(images.bfloat16()))
    for dtype in ("bf16", "torch.bfloat16"):
        assert AutoencoderAlignTok.from_pretrained(tmp_path / "vae", torch_dtype=dtype).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="AutoencoderAlignTok: no dtype named 'bflot16'; did you mean 'bfloat16'"):
        AutoencoderAlignTok.from_pretrained(tmp_path / "vae", torch_dtype="bflot16")
    vae.save_pretrained(tmp_path / "again")
    saved = load_file(tmp_path / "again/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}


@pytest.mark.filterwarnings("ignore")  # diffusers': a vae of another class than its pipeline was written for
def test_our_autoencoder_is_the_vae_of_a_pipeline_of_diffusers(tmp_path):
    from aligntok.diffusers import AutoencoderAlignTok

    vit().save_pretrained(tmp_path / "ours")
    export_for_diffusers(tmp_path / "ours", tmp_path / "vae")
    vae = AutoencoderAlignTok.from_pretrained(tmp_path / "vae")
    shape = dict(sample_size=4, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2)
    dit = diffusers.DiTTransformer2DModel(**shape, out_channels=8, num_embeds_ada_norm=1000)
    pipeline = diffusers.DiTPipeline(dit.eval(), vae, diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    drawn = lambda of: of([1, 2], generator=torch.manual_seed(0), num_inference_steps=2, output_type="np").images  # noqa: E731
    images = drawn(pipeline)
    assert images.shape == (2, 16, 16, 3)
    pipeline.save_pretrained(tmp_path / "pipeline")
    loaded = diffusers.DiTPipeline.from_pretrained(tmp_path / "pipeline")
    loaded.set_progress_bar_config(disable=True)
    assert np.array_equal(drawn(loaded), images)


def test_a_cache_gives_an_autoencoder_mean_and_deviation(tmp_path, monkeypatch):
    tokenizer = cnn()
    tokenizer.save_pretrained(tmp_path / "ours")

    def manifest(identity):
        return SimpleNamespace(encoding=dict(tokenizer=dict(identity=identity)), statistics=STATISTICS)

    monkeypatch.setattr("aligntok.exporting.read_manifest", lambda folder: manifest(tokenizer.identity))
    export_for_diffusers(tmp_path / "ours", tmp_path / "vae", latents="cache")
    config = json.loads((tmp_path / "vae/config.json").read_text())
    assert (config["latents_mean"], config["latents_std"]) == (list(STATISTICS.mean), list(STATISTICS.std))
    monkeypatch.setattr("aligntok.exporting.read_manifest", lambda folder: manifest("another"))
    with pytest.raises(DataError, match="holds latents of another tokenizer"):
        export_for_diffusers(tmp_path / "ours", tmp_path / "vae", latents="cache")


def test_a_factor_that_diffusers_has_not_is_refused(tmp_path):
    from aligntok.diffusers.export import write_autoencoder

    tokenizer = vit()
    tokenizer.downsample_factor = 14
    with pytest.raises(ConfigError, match="factors 2, 4, 8, 16 and so on, and this tokenizer's is 14"):
        write_autoencoder(tmp_path, tokenizer)


# diffusers: the pipeline


@pytest.mark.parametrize(("tokenizer", "vae"), [(vit, "AutoencoderAlignTok"), (cnn, "AutoencoderKL")])
def test_a_generator_of_classes_is_a_pipeline_that_draws_what_ours_does(tmp_path, tokenizer, vae):
    from aligntok.diffusers import LightningDiTPipeline

    model = diffusion(tokenizer())
    model.save_pretrained(tmp_path / "ours")
    _, loaded_by = export_for_diffusers(tmp_path / "ours", tmp_path / "pipeline")
    assert loaded_by == "aligntok.diffusers.LightningDiTPipeline"
    pipeline = LightningDiTPipeline.from_pretrained(tmp_path / "pipeline")
    assert type(pipeline.vae).__name__ == vae
    seeds, words = [5, 6, 7], ["b", 0, "C"]
    noise = batch_noise(generators_from_seeds(seeds), (4, 4, 4))
    draw = lambda of, **how: of(words, latents=noise, output_type="pt", **how).images * 2 - 1  # noqa: E731
    pipeline.set_progress_bar_config(disable=True)
    found = draw(pipeline)
    torch.testing.assert_close(found, model.sample(words, seeds), rtol=0, atol=1e-5)
    assert not torch.allclose(found, draw(pipeline, guidance_scale=1.0), atol=1e-3)
    plain = dataclasses.replace(model.sampling, cfg_scale=1.0, steps=3)
    unguided = draw(pipeline, guidance_scale=1.0, num_inference_steps=3)
    torch.testing.assert_close(unguided, model.sample(words, seeds, sampling=plain), rtol=0, atol=1e-5)
    pipeline.save_pretrained(tmp_path / "again")
    again = LightningDiTPipeline.from_pretrained(tmp_path / "again")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again), found)
    (picture,) = again("a", generator=torch.manual_seed(0)).images
    assert picture.size == (16, 16)
    with pytest.raises(ConfigError, match="no class named 'd'"):
        again("d")
    with pytest.raises(ConfigError, match="class_labels is empty"):
        again([])
    for steps in (0, -1):
        with pytest.raises(ConfigError, match=f"steps={steps}"):
            again("a", num_inference_steps=steps)


def test_the_transformer_of_a_pipeline_goes_against_the_velocity(tmp_path):
    from aligntok.diffusers import LightningDiTModel

    model = diffusion(vit())
    model.save_pretrained(tmp_path / "ours")
    export_for_diffusers(tmp_path / "ours", tmp_path / "pipeline")
    transformer = LightningDiTModel.from_pretrained(tmp_path / "pipeline", subfolder="transformer")
    x, y = torch.randn(2, 4, 4, 4), torch.tensor([0, 3])
    with torch.no_grad():
        found = transformer(x, torch.tensor([1000.0, 250.0]), y).sample
        torch.testing.assert_close(found, -model.generator(x, torch.tensor([0.0, 0.75]), y), rtol=0, atol=1e-6)


def test_a_cache_beside_a_generator_is_refused(tmp_path):
    diffusion(vit()).save_pretrained(tmp_path / "ours")
    with pytest.raises(ConfigError, match="written, into vae/config.json; leave --latents out"):
        export_for_diffusers(tmp_path / "ours", tmp_path / "out", latents="cache")
    assert not (tmp_path / "out").exists()


# every format


@pytest.fixture
def saved(tmp_path):
    vit().save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


def test_an_export_is_whole_by_its_checksums_and_overwrites_only_its_like(saved, tmp_path, capsys):
    assert export([str(saved), str(tmp_path / "vae"), "--format", "diffusers"]) == 0
    assert 'aligntok.diffusers.AutoencoderAlignTok.from_pretrained("' in capsys.readouterr().out
    assert not check_folder(CheckRequest(folder=tmp_path / "vae"))
    assert "3 of 3 files are as they were written" in capsys.readouterr().out
    later, weights = vit(), tmp_path / "vae/diffusion_pytorch_model.safetensors"
    with torch.no_grad():
        later.decoder.last_layer.fill_(0.25)
    later.save_pretrained(tmp_path / "later")
    before = weights.read_bytes()
    assert export([str(tmp_path / "later"), str(tmp_path / "vae"), "--format", "diffusers"]) == 0
    capsys.readouterr()
    assert weights.read_bytes() != before
    assert not check_folder(CheckRequest(folder=tmp_path / "vae"))
    assert "3 of 3 files are as they were written" in capsys.readouterr().out
    for format in ("aligntok", "onnx"):
        assert export([str(saved), str(tmp_path / "vae"), "--format", format]) == 2
        assert "is a folder with other things in it" in capsys.readouterr().err
    with weights.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\1\2\3\4")
    assert check_folder(CheckRequest(folder=tmp_path / "vae"))


def test_a_pipeline_is_whole_by_its_checksums(tmp_path, capsys):
    diffusion(cnn()).save_pretrained(tmp_path / "ours")
    export_for_diffusers(tmp_path / "ours", tmp_path / "out")
    assert not check_folder(CheckRequest(folder=tmp_path / "out"))
    assert "10 of 10 files are as they were written" in capsys.readouterr().out


def test_latents_without_a_format_are_refused(saved, tmp_path, capsys):
    assert export([str(saved), str(tmp_path / "out"), "--latents", "cache"]) == 2
    assert "--latents is of --format diffusers and onnx" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["AutoencoderAlignTok", "LightningDiTPipeline"])
def test_without_diffusers_its_classes_say_what_installs_it_and_folders_are_written_all_the_same(
    saved, tmp_path, monkeypatch, name
):
    for module in [each for each in sys.modules if each.split(".")[0] == "diffusers"]:
        monkeypatch.setitem(sys.modules, module, None)
    for module in ("models", "pipeline"):
        monkeypatch.delitem(sys.modules, f"aligntok.diffusers.{module}", raising=False)
    export_for_diffusers(saved, tmp_path / "vae")
    with pytest.raises(ConfigError, match=r'needs diffusers: .*pip install "aligntok\[diffusers\]"'):
        getattr(aligntok.diffusers, name)


def test_a_damaged_autoencoder_of_ours_is_one_clear_error(saved, tmp_path):
    export_for_diffusers(saved, tmp_path / "vae")
    config = tmp_path / "vae/config.json"
    said = json.loads(config.read_text())
    for wrong in ({**said, "tokenizer": 3}, {**said, "tokenizer": {}}, {**said, "latent_channels": None, "extra": 1}):
        config.write_text(json.dumps(wrong))
        if wrong["tokenizer"] == said["tokenizer"]:
            assert aligntok.load_tokenizer(tmp_path / "vae").latent_dim == 4  # what the tokenizer says holds
        else:
            with pytest.raises(ConfigError, match="describes none; export the tokenizer anew"):
                aligntok.load_tokenizer(tmp_path / "vae")
    config.write_text(json.dumps(said))
    (tmp_path / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        aligntok.load_tokenizer(tmp_path / "vae")


@pytest.mark.parametrize(("steps", "interval"), [(5, (0.2, 1.0)), (10, (0.0, 0.1)), (10, (0.4, 1.0))])
def test_guidance_begins_and_ends_at_the_same_step_as_ours(tmp_path, steps, interval):
    """1 - t of these ends is another float32 than t."""
    from aligntok.diffusers import LightningDiTPipeline

    model = diffusion(vit())
    model.sampling = Sampling(steps=steps, cfg_scale=3.0, cfg_interval=interval)
    model.save_pretrained(tmp_path / "ours")
    export_for_diffusers(tmp_path / "ours", tmp_path / "pipeline")
    pipeline = LightningDiTPipeline.from_pretrained(tmp_path / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    noise = batch_noise(generators_from_seeds([5]), (4, 4, 4))
    found = pipeline(["b"], latents=noise, output_type="pt").images * 2 - 1
    torch.testing.assert_close(found, model.sample(["b"], [5]), rtol=0, atol=1e-5)


def test_times_are_whole_numbers_of_float32_in_half_precision_too(tmp_path, monkeypatch):
    from aligntok.diffusers import LightningDiTModel

    model = LightningDiTModel(DIT, 4, (4, 4)).bfloat16()
    seen = []
    monkeypatch.setattr(model.model, "forward", lambda x, t, y: seen.append(t) or x)
    model(torch.zeros(1, 4, 4, 4), torch.tensor([996.0]), torch.tensor([0]))
    assert seen[0].dtype == torch.float32
    assert float(seen[0]) == pytest.approx(0.004, abs=1e-7)


def test_an_export_that_was_cut_off_is_no_pipeline_and_is_made_by_the_same_command(tmp_path, monkeypatch):
    from aligntok.diffusers import LightningDiTPipeline
    from aligntok.diffusers import export as module

    diffusion(vit()).save_pretrained(tmp_path / "ours")
    other = diffusion(cnn())
    export_for_diffusers(tmp_path / "ours", tmp_path / "pipeline")
    other.save_pretrained(tmp_path / "other")
    with monkeypatch.context() as patched:
        patched.setattr(module, "shift_of", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export_for_diffusers(tmp_path / "other", tmp_path / "pipeline")
    with pytest.raises(WeightsError, match=r"vae/checksums.json .*; export the generator again, or copy the folder"):
        LightningDiTPipeline.from_pretrained(tmp_path / "pipeline")
    export_for_diffusers(tmp_path / "other", tmp_path / "pipeline")
    LightningDiTPipeline.from_pretrained(tmp_path / "pipeline")
