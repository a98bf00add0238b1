"""The open_clip encoder over its three kinds of tower."""

from __future__ import annotations

import pytest
import torch
from open_clip import factory
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from safetensors.torch import save_file

from aligntok.encoders.open_clip import OpenCLIPEncoder
from aligntok.errors import ConfigError, WeightsError
from aligntok.loading import load_tokenizer
from aligntok.plugins.testing import check_encoder
from aligntok.tokenizer import Tokenizer
from aligntok.training.alignment import expand_stages

TOWERS = {
    "tiny-vit": {"image_size": 64, "patch_size": 16, "width": 32, "head_width": 16, "layers": 3},
    "tiny-coca": {
        "image_size": 64,
        "patch_size": 16,
        "width": 32,
        "head_width": 16,
        "layers": 2,
        "attentional_pool": True,
    },
    "tiny-resnet": {"image_size": 64, "width": 8, "layers": [1, 1, 1, 1]},
    "tiny-trunk": {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token"},
}


@pytest.fixture(autouse=True)
def tiny_models(add_towers):
    add_towers(TOWERS)


@pytest.mark.parametrize("name", TOWERS)
def test_every_kind_of_tower_keeps_the_encoders_contract(name):
    check_encoder("open_clip", model_name=name)


@pytest.mark.parametrize("f", [4, 8, 16, 32])
def test_a_resnet_tower_gives_features_at_each_of_its_strides(f):
    encoder = OpenCLIPEncoder("tiny-resnet", pretrained=False, downsample_factor=f)
    assert encoder.stride == f
    assert encoder(torch.zeros(1, 3, 64, 96)).shape == (1, 8 * f, 64 // f, 96 // f)


def test_features_of_a_square_image_are_open_clips_own_patch_tokens():
    encoder = OpenCLIPEncoder("tiny-vit", pretrained=False).eval()
    visual = _build_vision_tower(24, CLIPVisionCfg(**TOWERS["tiny-vit"], output_tokens=True)).eval()
    visual.load_state_dict(encoder.backbone.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        tokens = visual(encoder.normalise(images))[1]
        torch.testing.assert_close(encoder(images), tokens.mT.reshape(2, 32, 4, 4))


@pytest.mark.parametrize(
    ("name", "millions", "mean"), [("ViT-L-16-SigLIP2-256", 303.4, 0.5), ("ViT-B-32", 87.46, 0.48145466)]
)
def test_published_towers_come_without_text_pooling_and_projection(name, millions, mean):
    with torch.device("meta"):
        encoder = OpenCLIPEncoder(name, pretrained=False, downsample_factor=32)
        assert encoder(torch.empty(1, 3, 64, 96)).shape == (1, encoder.out_dim, 2, 3)
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    assert OpenCLIPEncoder("tiny-vit", pretrained=False).mean.flatten()[0] == pytest.approx(0.48145466)


def test_the_mean_and_std_are_those_the_tower_was_published_with(monkeypatch):
    monkeypatch.setitem(
        __import__("open_clip").pretrained._PRETRAINED, "tiny-vit", {"a": {"mean": (0.1,) * 3, "std": (0.2,) * 3}}
    )
    encoder = OpenCLIPEncoder("tiny-vit", pretrained=False)
    assert encoder.mean.flatten().tolist() == pytest.approx([0.1] * 3)
    assert encoder.std.flatten().tolist() == pytest.approx([0.2] * 3)


SETS = {
    "plain": {"url": "https://a/plain.pt"},
    "quick": {"url": "https://a/quick.pt", "quick_gelu": True},
    "half": {"url": "https://a/half.pt", "mean": (0.5,) * 3, "std": (0.5,) * 3},
}


@pytest.fixture
def sets(monkeypatch, tmp_path):
    """Sets of published weights of tiny-vit, in torch hub's folder: their files."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(__import__("open_clip").pretrained._PRETRAINED, "tiny-vit", SETS)
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    tower = OpenCLIPEncoder("tiny-vit", pretrained=False).backbone
    files = {tag: folder / f"{tag}.pt" for tag in SETS}
    for file in files.values():
        torch.save({f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}, file)
    return files


def tokenizer_of(**encoder):
    parts = dict(adapter=dict(type="linear"), decoder=dict(type="ldm_cnn", ch=32, num_res_blocks=1), latent_dim=4)
    return Tokenizer(dict(type="open_clip", model_name="tiny-vit", **encoder), **parts).eval()


@pytest.mark.parametrize("tag", SETS)
def test_a_tokenizer_of_published_weights_comes_back_with_their_activation_mean_and_std(sets, tmp_path, tag):
    tokenizer, images = tokenizer_of(pretrained=tag), torch.rand(1, 3, 64, 64) * 2 - 1
    tokenizer.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        latents = tokenizer.encode(images)
        for copy in (load_tokenizer(tmp_path / "saved"), Tokenizer.from_config(tokenizer.config)):
            copy.load_state_dict(tokenizer.state_dict())
            assert torch.equal(copy.eval().encode(images), latents)
            assert (copy.config, copy.identity) == (tokenizer.config, tokenizer.identity)
    said = {"weights_of": tag} if tag != "plain" else {}  # what says nothing more changes no identity
    assert tokenizer.config["encoder"].items() >= {"pretrained": False, **said}.items()
    assert ("weights_of" in tokenizer.config["encoder"]) == bool(said)
    assert tokenizer.encoder.mean.flatten()[0] == pytest.approx(0.5 if tag == "half" else 0.48145466)
    is_quick = type(tokenizer.encoder.backbone.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert is_quick == (tag == "quick")


def test_a_file_is_of_the_set_that_is_named(sets, tmp_path):
    file, images = str(sets["quick"]), torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        of_tag, plain, named = (
            OpenCLIPEncoder("tiny-vit", **given).eval()(images)
            for given in (dict(pretrained="quick"), dict(pretrained=file), dict(pretrained=file, weights_of="quick"))
        )
    assert torch.equal(named, of_tag)
    assert not torch.equal(plain, of_tag)
    assert tokenizer_of(pretrained=file, weights_of="quick").config["encoder"]["weights_of"] == "quick"
    with pytest.raises(WeightsError, match="tiny-vit': weights_of: no pretrained tag named 'quik'; did you mean 'quic"):
        OpenCLIPEncoder("tiny-vit", pretrained=False, weights_of="quik")


def test_later_stages_have_the_network_of_the_first(sets):
    encoder = dict(type="open_clip", model_name="tiny-vit", pretrained="quick")
    start = dict(stage="a", weights="raw")
    stages = [dict(name="a", steps=1), dict(name="b", steps=1, init_from=start)]
    model = dict(encoder=encoder, decoder=dict(type="ldm_cnn", ch=32, num_res_blocks=1), latent_dim=4)
    config = dict(model=model, losses=dict(l1=dict(type="l1")), work_dir="run", seed=0, stages=stages)
    config |= dict(data=dict(train=dict(type="images"), val=None), trainable=["decoder"])
    second = expand_stages(config)[1].settings.model["encoder"]
    assert second == {**encoder, "pretrained": False, "weights_of": "quick"}


def test_block_and_norm_are_chosen():
    whole, short, bare = (
        OpenCLIPEncoder("tiny-vit", pretrained=False, **options)
        for options in ({}, {"out_index": 0}, {"final_norm": False})
    )
    assert [len(e.backbone.transformer.resblocks) for e in (whole, short, bare)] == [3, 1, 3]
    assert not [key for key in bare.state_dict() if "ln_post" in key]
    with pytest.raises(ConfigError, match="stride 8; allowed: 16"):
        OpenCLIPEncoder("tiny-vit", pretrained=False, stride=8)


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("prefix", ["visual.", ""])
def test_a_local_file_of_the_whole_model_or_of_its_tower_is_loaded(tmp_path, name, prefix):
    source = OpenCLIPEncoder(name, pretrained=False, downsample_factor=32).eval()
    tensors = {prefix + key: value.contiguous() for key, value in source.backbone.state_dict().items()}
    save_file({**tensors, "logit_scale": torch.zeros(1)}, tmp_path / "clip.safetensors")
    loaded = OpenCLIPEncoder(name, pretrained=str(tmp_path / "clip.safetensors"), downsample_factor=32).eval()
    images = torch.rand(1, 3, 32, 64)
    assert torch.equal(loaded(images), source(images))


def test_position_tables_of_another_grid_are_resampled(tmp_path, monkeypatch):
    source = OpenCLIPEncoder("tiny-vit", pretrained=False)
    torch.save(source.backbone.state_dict(), tmp_path / "clip.pt")
    monkeypatch.setitem(factory._MODEL_CONFIGS["tiny-vit"]["vision_cfg"], "image_size", 96)
    loaded = OpenCLIPEncoder("tiny-vit", pretrained=tmp_path / "clip.pt")
    assert loaded.backbone.positional_embedding.shape == (1 + 6 * 6, 32)
    assert torch.equal(loaded.backbone.positional_embedding[0], source.backbone.positional_embedding[0])


def test_a_file_of_another_tower_is_refused_with_both_sides(tmp_path):
    save_file(
        {"visual.conv1.weight": torch.zeros(4, 3, 16, 16), "visual.foo": torch.zeros(1)}, tmp_path / "x.safetensors"
    )
    with pytest.raises(
        WeightsError, match=r"\(missing class_embedding.*; unknown foo; conv1.weight is \(4, 3, 16, 16\), not"
    ):
        OpenCLIPEncoder("tiny-vit", pretrained=str(tmp_path / "x.safetensors"))


def test_unknown_models_and_tags_are_refused_with_the_nearest_ones():
    with pytest.raises(ConfigError, match="did you mean 'ViT-B-32'"):
        OpenCLIPEncoder("ViT-B-23", pretrained=False)
    with pytest.raises(WeightsError, match="did you mean 'laion2b_e16'"):
        OpenCLIPEncoder("ViT-B-32", pretrained="laion2b_e17")
    with pytest.raises(ConfigError, match="sets of pretrained weights; choose one"):
        OpenCLIPEncoder("ViT-B-32", pretrained=True)


@pytest.mark.parametrize(("name", "pretrained"), [("ViT-B-32", "openai"), ("ViT-L-16-SigLIP2-256", True)])
def test_published_weights_that_cannot_be_had_are_named(monkeypatch, tmp_path, name, pretrained):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=f"(?s){name}.*open_clip_model.safetensors.*place it at"):
        OpenCLIPEncoder(name, pretrained=pretrained)
