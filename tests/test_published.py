"""Published VA-VAE checkpoints load, with their widths read off the shapes; nothing in them is run."""

from __future__ import annotations

import ast
import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import aligntok
from aligntok.caching import cache_latents
from aligntok.caching.settings import CacheRequest
from aligntok.data.latents import LatentDataset
from aligntok.errors import WeightsError
from aligntok.evaluation.reconstruction import evaluate_reconstruction
from aligntok.evaluation.settings import ReconstructionSettings
from aligntok.published import _our_name, _widths, load_ldm_autoencoder
from aligntok.tokenizer import Tokenizer
from aligntok.training.config import load_config
from aligntok.training.run import run


@pytest.fixture
def parity(shared_dir):
    """Tensors of a tiny autoencoder in the published layout: its weights, and outputs of the code that published it."""
    return load_file(shared_dir / "reference/parity/ldm_autoencoder_tiny.safetensors")


@pytest.fixture
def published(parity):
    return {key.removeprefix("weights."): value for key, value in parity.items() if key.startswith("weights.")}


@pytest.fixture
def layout(shared_dir):
    """Shapes of every tensor of the published VA-VAE f16d32, on the meta device."""
    lines = (shared_dir / "reference/checkpoint_layouts/vavae_f16d32.tsv").read_text().splitlines()
    pairs = (line.split("\t") for line in lines)
    return {name: torch.empty(ast.literal_eval(shape), device="meta") for name, shape in pairs}


def extras():
    """What published checkpoints hold besides: losses, and the foundation model they were aligned with."""
    return {
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4),
        "foundation_model.model.cls_token": torch.zeros(1, 1, 8),
        "linear_proj.weight": torch.zeros(8, 4, 1, 1),
    }


def write(folder, weights, kind):
    path = folder / f"vavae.{kind.split('-')[0]}"
    if kind == "safetensors":
        save_file({**weights, **extras()}, path)
    elif kind == "pt-flat":
        torch.save(weights, path)
    else:
        given = {"state_dict": {**weights, **extras()}, "epoch": 5, "global_step": 7, "hyper": {"lr": 1e-4}}
        torch.save(given, path)
    return path


@pytest.mark.parametrize("kind", ["pt", "ckpt", "pt-flat", "safetensors"])
def test_latents_and_reconstructions_are_those_of_the_published_code(tmp_path, parity, published, kind):
    tokenizer = aligntok.load_tokenizer(write(tmp_path, published, kind), resolution=32)
    mean = parity["moments"].chunk(2, dim=1)[0]
    with torch.no_grad():
        moments, latents = tokenizer.moments(parity["x"]), tokenizer.encode(parity["x"])
        decoded, reconstruction = tokenizer.decode(mean), tokenizer.reconstruct(parity["x"])
    torch.testing.assert_close(moments, parity["moments"], rtol=0, atol=1e-5)
    torch.testing.assert_close(latents, mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(decoded, parity["reconstruction_from_mean"], rtol=0, atol=1e-5)
    torch.testing.assert_close(reconstruction, decoded, rtol=0, atol=3e-5)  # the rounding of both halves
    assert tokenizer.variational
    assert not tokenizer.training


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_half_precision_files_load_into_float32(tmp_path, parity, published, kind):
    half = {name: tensor.half() for name, tensor in published.items()}
    tokenizer = load_ldm_autoencoder(write(tmp_path, half, kind), resolution=32)
    assert {p.dtype for p in tokenizer.parameters()} == {torch.float32}
    assert torch.equal(tokenizer.encoder.conv_in.weight, half["encoder.conv_in.weight"].float())
    with torch.no_grad():
        torch.testing.assert_close(tokenizer.moments(parity["x"]), parity["moments"], rtol=0.05, atol=0.02)


def test_widths_are_read_off_the_shapes(shared_dir, published):
    index = json.loads((shared_dir / "reference/parity/index.json").read_text())
    config = index["ldm_autoencoder_tiny"]["config"]
    found = _widths(published, resolution=32)
    for key in ("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "resolution"):
        assert found[key] == config[key]
    assert found["latent_dim"] == config["z_channels"]


def test_every_tensor_of_the_published_f16d32_has_its_place(layout):
    widths = _widths(layout, resolution=256)
    assert widths["ch_mult"] == [1, 1, 2, 2, 4]
    assert (widths["ch"], widths["num_res_blocks"], widths["attn_resolutions"], widths["latent_dim"]) == (
        128,
        2,
        [16],
        32,
    )
    with torch.device("meta"):
        tokenizer = Tokenizer(
            encoder={"type": "ldm_cnn", **widths},
            adapter={"type": "identity"},
            decoder={"type": "ldm_cnn", **widths},
            latent_dim=32,
            variational=True,
        )
    own = {name: tuple(tensor.shape) for name, tensor in tokenizer.state_dict().items()}
    ours = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    assert own == {_our_name(name): tuple(t.shape) for name, t in layout.items() if name.startswith(ours)}


def test_what_is_loaded_can_be_saved_and_shared(tmp_path, parity, published):
    tokenizer = load_ldm_autoencoder(write(tmp_path, published, "safetensors"), resolution=32)
    tokenizer.save_pretrained(tmp_path / "ours")
    again = aligntok.load_tokenizer(tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(again.reconstruct(parity["x"]), tokenizer.reconstruct(parity["x"]))


class Bomb:
    """Makes a folder if it is ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_it_is_cached_trained_on_sampled_and_evaluated_like_any_other(tmp_path, published, classes, write_generation):
    path = write(tmp_path, published, "ckpt")
    cache = cache_latents(
        CacheRequest(tokenizer=path, data=classes, out=tmp_path / "latents", image_size=32, split="train", workers=0)
    )
    channels, *side = LatentDataset(cache, train=False).latent_shape
    generator = dict(type="lightning_dit", hidden_size=32, depth=1, num_heads=2, num_classes=3)
    generator |= dict(in_channels=channels, input_size=side[0])
    given = dict(generator=generator, data_root=str(cache), steps=1, work_dir=str(tmp_path / "run"))
    drawn = aligntok.load_latent_diffusion(run(load_config(write_generation(**given)))).sample([0, 2], [0, 1])
    assert drawn.shape == (2, 3, 32, 32)
    options = dict(image_size=32, split="train", perceptual=(), extractor=None, workers=0)
    found = evaluate_reconstruction(
        ReconstructionSettings(tokenizer=path, data=classes, out=tmp_path / "out", **options)
    )
    assert np.isfinite(found.metrics["psnr"])


@pytest.mark.parametrize("suffix", ["pt", "ckpt", "pth", "bin"])
@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, published, suffix, old_format):
    path = tmp_path / f"evil.{suffix}"
    given = {"state_dict": published, "callbacks": Bomb(tmp_path / "ran")}
    if old_format:
        path.write_bytes(pickle.dumps(given))
    else:
        torch.save(given, path)
    with pytest.raises(WeightsError, match="cannot be read as weights .*(\n.*)?nothing in it is ever executed"):
        aligntok.load_tokenizer(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_damaged_file_is_one_clear_error(tmp_path, published, kind):
    path = write(tmp_path, published, kind)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(WeightsError, match=r"vavae\.\w+ cannot be read as weights"):
        load_ldm_autoencoder(path)


def test_a_checkpoint_of_something_else_says_what_it_lacks(tmp_path):
    save_file({"blocks.0.weight": torch.zeros(2), "head.bias": torch.zeros(2)}, tmp_path / "vit.safetensors")
    with pytest.raises(
        WeightsError, match=r"is no LDM-style autoencoder: it lacks .* its keys begin with blocks, head"
    ):
        load_ldm_autoencoder(tmp_path / "vit.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="holds a list, not a state dict"):
        load_ldm_autoencoder(tmp_path / "list.pt")
    with pytest.raises(WeightsError, match=r"no weights at .*nowhere\.pt"):
        load_ldm_autoencoder(tmp_path / "nowhere.pt")


def test_missing_and_misshapen_tensors_are_one_clear_error(tmp_path, published):
    spoilt = dict(published)
    del spoilt["decoder.mid.block_1.conv1.weight"]
    save_file(spoilt, tmp_path / "a.safetensors")
    spoilt = {**published, "decoder.norm_out.weight": torch.zeros(7)}
    save_file(spoilt, tmp_path / "b.safetensors")
    for name in ("a", "b"):
        with pytest.raises(WeightsError, match=r"does not fit \((missing )?decoder\.(mid|norm_out)"):
            load_ldm_autoencoder(tmp_path / f"{name}.safetensors", resolution=32)


SPOILT = {
    "a level is missing": {"encoder.down.2.x": torch.zeros(1)},
    "a level without number": {"encoder.down.foo.w": torch.zeros(1)},
    "a name that ends": {"encoder.down.": torch.zeros(1)},
    "no channels": {"encoder.conv_in.weight": torch.zeros(0, 3, 3, 3)},
    "no shape": {"encoder.conv_in.weight": torch.zeros(())},
    "too short a shape": {"post_quant_conv.weight": torch.zeros(4)},
}


@pytest.mark.parametrize("kind", SPOILT)
def test_names_and_shapes_of_no_such_autoencoder_are_one_clear_error(tmp_path, published, kind):
    save_file({**published, **SPOILT[kind]}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"a\.safetensors cannot be read \(.*; give a whole checkpoint of LDM's"):
        load_ldm_autoencoder(tmp_path / "a.safetensors", resolution=32)


def test_an_encoder_without_its_levels_is_one_clear_error(tmp_path, published):
    spoilt = {name: t for name, t in published.items() if not name.startswith("encoder.down.")}
    save_file(spoilt, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="is no LDM-style autoencoder"):
        load_ldm_autoencoder(tmp_path / "a.safetensors")
