"""Stable Diffusion's and FLUX's autoencoders, through diffusers, are tokenizers: the same latents, the same images."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import aligntok
from aligntok.caching import cache_latents
from aligntok.caching.settings import CacheRequest
from aligntok.cli import evaluate
from aligntok.data.latents import LatentDataset
from aligntok.errors import ConfigError, WeightsError
from aligntok.evaluation.cost.count import count_config
from aligntok.evaluation.latent_analysis import analyze_latents
from aligntok.evaluation.settings import LatentAnalysis
from aligntok.plugins.testing import check_decoder, check_encoder
from aligntok.tokenizer import Tokenizer
from aligntok.training.alignment import expand_stages
from aligntok.training.config import load_config
from aligntok.training.run import run

AutoencoderKL = pytest.importorskip("diffusers", reason="diffusers is not installed").AutoencoderKL

TINY = dict(
    down_block_types=["DownEncoderBlock2D"] * 3,
    up_block_types=["UpDecoderBlock2D"] * 3,
    block_out_channels=[16, 32, 32],
    norm_num_groups=8,
    layers_per_block=1,
)
KINDS = {
    "stable_diffusion": dict(TINY, latent_channels=4, scaling_factor=0.18215),
    "flux": dict(
        TINY,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ),
    "with_statistics": dict(
        TINY,
        latent_channels=4,
        scaling_factor=0.5,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 2.0, 0.5, 3.0],
    ),
}
SD, FLUX = "stable_diffusion", "flux"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Tiny autoencoders of both kinds with random weights, and the folders that diffusers saved them in."""
    root, made = tmp_path_factory.mktemp("diffusers"), {}
    for kind, config in KINDS.items():
        torch.manual_seed(0)
        vae = AutoencoderKL(**config).eval()
        vae.save_pretrained(root / kind)
        made[kind] = vae, root / kind
    return made


def their_shift_and_scale(vae):
    config = vae.config
    if config.latents_mean is not None:
        mean, std = (torch.tensor(x).view(1, -1, 1, 1) for x in (config.latents_mean, config.latents_std))
        return mean, config.scaling_factor / std
    return config.shift_factor or 0.0, config.scaling_factor


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_latents_draws_and_images_are_those_of_diffusers(published, kind):
    vae, folder = published[kind]
    tokenizer = aligntok.load_tokenizer(folder)
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    shift, scale = their_shift_and_scale(vae)
    posterior = vae.encode(images).latent_dist
    means, noise = (posterior.mode() - shift) * scale, torch.randn_like(posterior.mean)
    torch.testing.assert_close(tokenizer.encode(images), means, rtol=0, atol=1e-5)
    drawn = (posterior.mean + posterior.std * noise - shift) * scale
    torch.testing.assert_close(tokenizer.encode(images, noise=noise), drawn, rtol=0, atol=1e-5)
    decoded = vae.decode(means / scale + shift).sample
    torch.testing.assert_close(tokenizer.decode(means), decoded, rtol=0, atol=1e-5)
    torch.testing.assert_close(tokenizer.reconstruct(images), vae(images).sample, rtol=0, atol=1e-5)
    assert tokenizer.variational
    assert not tokenizer.training
    assert (tokenizer.latent_dim, tokenizer.downsample_factor) == (KINDS[kind]["latent_channels"], 4)


@pytest.mark.parametrize("kind", [SD, FLUX])
def test_it_is_saved_shared_and_recognised_as_any_tokenizer(published, kind, tmp_path):
    tokenizer = aligntok.load_tokenizer(published[kind][1])
    tokenizer.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.identity == tokenizer.identity == aligntok.load_tokenizer(published[kind][1]).identity
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(again.reconstruct(images), tokenizer.reconstruct(images))
    with torch.device("meta"):
        built = Tokenizer(**{k: v for k, v in tokenizer.config.items() if k != "aligntok_version"})
    assert {name: t.shape for name, t in built.state_dict().items()} == {
        name: t.shape for name, t in tokenizer.state_dict().items()
    }


def test_another_scaling_is_another_tokenizer(published, tmp_path):
    vae, folder = published[SD]
    vae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.13025}))
    assert aligntok.load_tokenizer(tmp_path).identity != aligntok.load_tokenizer(folder).identity


def test_a_pipelines_folder_gives_its_autoencoder(published, tmp_path):
    vae, folder = published[FLUX]
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    assert aligntok.load_tokenizer(tmp_path).identity == aligntok.load_tokenizer(folder).identity


def test_weights_under_the_names_of_older_files_load(published, tmp_path):
    vae, folder = published[SD]
    vae.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(path).items():
        for new, old in older.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[name] = tensor
    assert any("proj_attn" in name for name in renamed)
    save_file(renamed, path, metadata={"format": "pt"})
    assert aligntok.load_tokenizer(tmp_path).identity == aligntok.load_tokenizer(folder).identity


@pytest.mark.parametrize("kind", [SD, FLUX])
def test_the_parts_keep_their_contracts(kind):
    config = KINDS[kind]
    check_encoder("diffusers_kl", image_size=(32, 48), config=config)
    check_decoder("diffusers_kl", config=config)


# What can be done with one


@pytest.mark.parametrize("kind", [SD, FLUX])
def test_it_can_be_cached_and_a_generator_trained_on_it(published, kind, classes, write_generation, tmp_path):
    folder = published[kind][1]
    encoding = dict(image_size=32, hflip=False, posterior="sample")
    cache = cache_latents(
        CacheRequest(
            tokenizer=folder, data=classes, out=tmp_path / "latents", **encoding, split="train", batch_size=4, workers=0
        )
    )
    data = LatentDataset(cache, train=False)
    assert data.latent_shape == (KINDS[kind]["latent_channels"], 8, 8)
    assert data.identity == aligntok.load_tokenizer(folder).identity
    generator = dict(type="lightning_dit", hidden_size=32, depth=1, num_heads=2, input_size=8, num_classes=3)
    generator["in_channels"] = KINDS[kind]["latent_channels"]
    config = load_config(
        write_generation(generator=generator, data_root=str(cache), steps=1, work_dir=str(tmp_path / "run"))
    )
    trained = aligntok.load_latent_diffusion(run(config))
    assert trained.sample([0, 2], [0, 1]).shape == (2, 3, 32, 32)


def test_its_reconstructions_are_evaluated_by_the_command(published, photographs, tmp_path):
    given = ["reconstruction", str(published[FLUX][1]), str(photographs), "--split", "val", "--image-size", "32"]
    given += ["--out", str(tmp_path), "--perceptual", "none", "--extractor", "none", "--workers", "0"]
    assert evaluate(given) == 0
    (file,) = tmp_path.rglob("*.json")
    assert np.isfinite(json.loads(file.read_text())["metrics"]["psnr"])


def test_latent_spaces_of_both_kinds_are_analysed_beside_one_another(published, photographs, tmp_path):
    encoder = dict(type="timm", model_name="vit_tiny_patch16_224", pretrained=False)
    encoder["model_args"] = dict(depth=1, embed_dim=24, num_heads=2)
    analysis = LatentAnalysis(
        tokenizers=[str(published[kind][1]) for kind in (SD, FLUX)],
        data=photographs,
        out=tmp_path / "out",
        encoder=encoder,
        image_size=32,
        split="train",
        topk=4,
        tsne_points=20,
        seeds=(0,),
        workers=0,
    )
    found = analyze_latents(analysis).metrics
    for kind in (SD, FLUX):
        own = [value for name, value in found.items() if name.startswith(f"{kind}/")]
        assert len(own) >= 4
        assert np.isfinite(own).all()


def test_it_can_be_fine_tuned_and_costed_as_a_part_of_a_config(published, write_config, photographs, tmp_path):
    part = dict(type="diffusers_kl", config=KINDS[FLUX], pretrained=str(published[FLUX][1]))
    model = dict(encoder=part, adapter=dict(type="identity"), decoder=part)
    model |= dict(latent_dim=16, downsample_factor=4, variational=True)
    stage = dict(name="fine_tuning", steps=1, trainable=["encoder", "decoder"])
    path = write_config(model=model, stages=[stage], work_dir=str(tmp_path / "run"))
    config = load_config(path)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(Tokenizer(**model).reconstruct(images), published[FLUX][0](images).sample)
    counted = count_config("tiny", expand_stages(config), None, [32])
    assert counted.parts["encoder"] > 0
    tokenizer = Tokenizer.from_pretrained(run(load_config(path)))
    assert all(parameter.isfinite().all() for parameter in tokenizer.parameters())


# What is wrong


@pytest.mark.parametrize("damage", [b"[" * 200_000, b'{"_class_name": "\xff"}', b"5", None])
def test_a_damaged_config_is_one_clear_error(tmp_path, damage):
    file = tmp_path / "config.json"
    os.mkfifo(file) if damage is None else file.write_bytes(damage)
    with pytest.raises(WeightsError, match="cannot be read|no config.json|neither a saved tokenizer"):
        aligntok.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        dict(block_out_channels=5),
        dict(scaling_factor="x"),
        dict(latents_mean=3),
        dict(latents_std=[0]),
        dict(latents_std=["a"]),
        dict(latents_mean=["a"] * 4),
    ],
)
def test_values_that_cannot_be_are_one_clear_error(tmp_path, changes):
    (tmp_path / "config.json").write_text(json.dumps({**KINDS[SD], "_class_name": "AutoencoderKL", **changes}))
    with pytest.raises(ConfigError, match="diffusers cannot build an AutoencoderKL of this config"):
        aligntok.load_tokenizer(tmp_path)


def test_what_is_no_such_autoencoder_is_one_clear_error(published, tmp_path, monkeypatch):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    with pytest.raises(
        WeightsError, match="is a diffusers AutoencoderTiny; of diffusers' models only an AutoencoderKL"
    ):
        aligntok.load_tokenizer(folder)
    published[SD][0].save_pretrained(tmp_path / "short")
    path = tmp_path / "short" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["decoder.conv_out.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks 1 of its weights, such as decoder\.conv_out\.weight"):
        aligntok.load_tokenizer(tmp_path / "short")
    path.unlink()
    with pytest.raises(WeightsError, match="cannot be loaded"):
        aligntok.load_tokenizer(tmp_path / "short")
    with pytest.raises(ConfigError, match="diffusers cannot build an AutoencoderKL of this config"):
        check_decoder("diffusers_kl", config=dict(TINY, channels=4))
    with pytest.raises(WeightsError, match="is no diffusers autoencoder; give the folder or hub id"):
        check_encoder("diffusers_kl", config=KINDS[SD], pretrained=True)
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"pip install \"aligntok\[diffusers\]\""):
        aligntok.load_tokenizer(published[SD][1])
