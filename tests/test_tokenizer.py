"""A tokenizer encodes, decodes, and is saved and shared as one folder."""

from __future__ import annotations

import json
import math
import os
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import aligntok
from aligntok import tokenizer as tokenizer_module
from aligntok.device import device_named
from aligntok.errors import ConfigError, PluginError, UnknownComponentError, WeightsError, WriteError
from aligntok.registry import DECODERS, ENCODERS
from aligntok.tokenizer import Tokenizer

ENCODER = dict(
    type="timm",
    model_name="vit_tiny_patch16_224",
    pretrained=False,
    model_args=dict(depth=1, embed_dim=48, num_heads=3),
)
DECODER = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=32)


def build(**changes):
    torch.manual_seed(0)
    settings = dict(encoder=ENCODER, adapter=dict(type="mlp"), decoder=DECODER, latent_dim=5, downsample_factor=4)
    return Tokenizer(**{**settings, **changes}).eval()


def same(a, b):
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def saved(tmp_path):
    """A saved tokenizer: (folder, the tokenizer)."""
    tokenizer = build()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer", tokenizer


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# Encoding and decoding


@pytest.mark.parametrize("size", [(32, 32), (16, 40), (44, 20)])
def test_images_become_latents_of_their_grid_and_images_again(size):
    tokenizer, images = build(), torch.rand(2, 3, *size) * 2 - 1
    with torch.no_grad():
        latents = tokenizer.encode(images)
        assert latents.shape == (2, 5, size[0] // 4, size[1] // 4)
        assert tokenizer.decode(latents).shape == images.shape
        assert torch.equal(tokenizer.reconstruct(images), tokenizer.decode(latents))
        assert torch.equal(tokenizer(images), tokenizer.reconstruct(images))


def test_the_adapters_width_follows_the_encoder():
    tokenizer = build(adapter=dict(type="linear"))
    assert tokenizer.encoder.out_dim == 48
    assert sum(p.numel() for p in tokenizer.adapter.parameters()) == 48 * 5 + 5


def test_a_variational_tokenizer_takes_the_mean_or_a_sample():
    tokenizer, images = build(variational=True), torch.rand(4, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        moments = tokenizer.moments(images)
        mean, log_variance = moments.chunk(2, dim=1)
        assert moments.shape == (4, 10, 8, 8)
        assert torch.equal(tokenizer.encode(images), mean)
        samples = torch.stack([tokenizer.encode(images, sample=True) for _ in range(200)])
    deviation = torch.exp(0.5 * log_variance)
    assert ((samples.mean(0) - mean).abs() < 6 * deviation / 200**0.5).all()
    torch.testing.assert_close(samples.std(0).mean(), deviation.mean(), rtol=0.02, atol=0)


def test_a_tokenizer_that_is_not_variational_has_nothing_to_sample():
    tokenizer, images = build(), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(tokenizer.encode(images, sample=True), tokenizer.encode(images))


@pytest.mark.parametrize(("log_variance", "deviation"), [(1e4, math.exp(10)), (-1e4, math.exp(-15)), (2.0, math.e)])
def test_a_wild_posterior_is_bounded_on_both_sides(log_variance, deviation):
    """Log-variances are clamped to [-30, 20], as the KL loss clamps them; the mean is left as it is."""
    tokenizer = build(variational=True)
    moments = torch.cat([torch.full((1, 5, 2, 3), 7.0), torch.full((1, 5, 2, 3), log_variance)], dim=1)
    noise = torch.tensor([1.0, -2.0, 0.0, 1.0, 3.0]).view(1, 5, 1, 1).expand(1, 5, 2, 3)
    torch.testing.assert_close(tokenizer.latents_from(moments, noise=noise), 7 + deviation * noise)
    assert torch.equal(tokenizer.latents_from(moments), moments[:, :5])
    moments[:, :5] = 0  # beside which a deviation of 3e-7 can be seen
    torch.testing.assert_close(tokenizer.latents_from(moments, noise=noise), deviation * noise, rtol=1e-5, atol=0)


# Which tokenizer it is


def test_the_identity_changes_with_every_weight_and_setting_that_a_latent_depends_on(tmp_path):
    tokenizer = build()
    identity = tokenizer.identity
    assert len(identity) == 64
    assert build().identity == identity
    for part in ("encoder", "adapter", "decoder"):
        changed = build()
        with torch.no_grad():
            next(getattr(changed, part).parameters()).view(-1)[0] += 1e-3  # one number of one weight
        assert (changed.identity == identity) is (part == "decoder"), part
    assert build(decoder={**DECODER, "num_res_blocks": 2}).identity == identity
    assert build(variational=True).identity != identity
    assert build(adapter=dict(type="linear")).identity != identity
    tokenizer.double().float().save_pretrained(tmp_path / "copy")
    assert Tokenizer.from_pretrained(tmp_path / "copy").identity == identity


# Saving and loading


def test_a_saved_tokenizer_comes_back_bit_for_bit(saved):
    folder, tokenizer = saved
    assert sorted(os.listdir(folder)) == ["README.md", "checksums.json", "config.json", "model.safetensors"]
    for loaded in (Tokenizer.from_pretrained(folder), aligntok.load_tokenizer(str(folder))):
        assert same(loaded, tokenizer)
        assert not loaded.training
        assert loaded.config == tokenizer.config
        images = torch.rand(1, 3, 16, 24)
        with torch.no_grad():
            assert torch.equal(loaded(images), tokenizer(images))


def test_linear_paths_are_saved_exported_and_change_no_identity_where_there_are_none(tmp_path):
    cnn = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), linear_path=True)
    tokenizer = build(encoder=cnn, decoder=cnn, adapter=dict(type="identity"), variational=True, downsample_factor=2)
    tokenizer.save_pretrained(tmp_path / "t")
    assert same(Tokenizer.from_pretrained(tmp_path / "t"), tokenizer)
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        exported = torch.export.export(tokenizer, (images,)).module()(images)
        torch.testing.assert_close(exported, tokenizer(images), rtol=0, atol=1e-6)
    assert "linear_path" not in json.dumps(build().config)


def test_the_config_records_where_each_part_came_from(saved):
    config = json.loads((saved[0] / "config.json").read_text())
    here = {"distribution": "aligntok", "version": aligntok.__version__}
    assert config["plugins"] == {"encoder": here, "adapter": here, "decoder": here}
    assert config["aligntok_version"] == aligntok.__version__
    assert config["encoder"] == {**ENCODER, "downsample_factor": 4}
    assert (config["latent_dim"], config["downsample_factor"], config["variational"]) == (5, 4, False)


def test_loading_never_asks_for_pretrained_weights(tmp_path):
    """The encoder's own weights are in the folder: a machine without them, or a network, can load it."""
    source = build().encoder.backbone.state_dict()
    torch.save(source, tmp_path / "vit.pth")
    tokenizer = build(encoder={**ENCODER, "pretrained": str(tmp_path / "vit.pth")})
    tokenizer.save_pretrained(tmp_path / "saved")
    (tmp_path / "vit.pth").unlink()
    assert tokenizer.config["encoder"]["pretrained"] is False
    assert same(Tokenizer.from_pretrained(tmp_path / "saved"), tokenizer)


def test_saving_again_replaces_and_leaves_other_files(saved):
    folder, tokenizer = saved
    (folder / "notes.txt").write_text("mine")
    with torch.no_grad():
        tokenizer.decoder.last_layer.add_(1)
    tokenizer.save_pretrained(folder)
    assert same(Tokenizer.from_pretrained(folder), tokenizer)
    assert sorted(os.listdir(folder)) == [
        "README.md",
        "checksums.json",
        "config.json",
        "model.safetensors",
        "notes.txt",
    ]


def test_a_failure_while_saving_leaves_the_old_tokenizer(saved, monkeypatch):
    folder, tokenizer = saved
    before = load_file(folder / "model.safetensors")
    with torch.no_grad():
        tokenizer.decoder.last_layer.add_(1)
    monkeypatch.setattr(tokenizer_module.os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(WriteError, match="disk full"):
        tokenizer.save_pretrained(folder)
    after = load_file(folder / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sorted(os.listdir(folder)) == ["README.md", "checksums.json", "config.json", "model.safetensors"]


def test_a_part_given_as_a_module_works_but_cannot_be_saved(tmp_path):
    tokenizer = build(adapter=nn.Conv2d(48, 5, 1))
    assert tokenizer(torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16)
    with pytest.raises(ConfigError, match="register the class in a plugin"):
        tokenizer.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Mistakes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(downsample_factor=8), "decoder LDMDecoder scales by 4, but the tokenizer's downsample_factor is 8"),
        (dict(decoder={**DECODER, "ch_mult": (1, 1)}), "decoder LDMDecoder scales by 2"),
        (dict(encoder="timm"), "Tokenizer: encoder='timm' is str; it must be Mapping or Module"),
        (
            dict(encoder=nn.Identity()),
            "encoder must be dict(type=name, ...), or a module that has out_dim, downsample_",
        ),
        (dict(latent_dim="4"), "Tokenizer: latent_dim='4' is str; it must be int of at least 1"),
        (dict(encoder=dict(model_name="vit")), "encoder must be dict(type=name, ...)"),
        (dict(decoder={**DECODER, "latent_dim": 6}), "has latent_dim 6, but the tokenizer's latent_dim 5 asks for 5"),
        (dict(adapter=dict(type="mlp", latent_dim=5), variational=True), "latent_dim 5 asks for 10; leave it out"),
        (dict(adapter=dict(type="mlp", width=3)), "adapter 'mlp' takes no keyword named 'width'"),
        (dict(encoder=dict(type=["timm"])), "no encoder named '['timm']'"),
        (dict(decoder=dict(type="ldm_cn")), "no decoder named 'ldm_cn'; did you mean 'ldm_cnn'?"),
    ],
)
def test_parts_that_do_not_fit_are_one_clear_error(changes, said):
    with pytest.raises((ConfigError, UnknownComponentError)) as caught:
        build(**changes)
    assert said in str(caught.value)


def test_a_component_that_is_not_installed_names_the_package_that_has_it(saved):
    folder, _ = saved
    plugins = {"decoder": {"distribution": "aligntok-franca", "version": "0.3"}}
    edit_config(folder, decoder={**DECODER, "type": "franca"}, plugins=plugins)
    with pytest.raises(UnknownComponentError) as caught:
        aligntok.load_tokenizer(folder)
    assert "no decoder named 'franca'" in str(caught.value)
    assert "this tokenizer was saved with: aligntok-franca==0.3; install it" in str(caught.value)


def test_a_plugins_component_is_recorded_with_its_version(tmp_path, monkeypatch):
    from aligntok.plugin_record import PluginRecord

    monkeypatch.setitem(DECODERS.module_dict, "mine", DECODERS.get("ldm_cnn"))
    monkeypatch.setitem(DECODERS.origins, "mine", PluginRecord("mine", "aligntok-mine", "1.2"))
    tokenizer = build(decoder={**DECODER, "type": "mine"})
    assert tokenizer.config["plugins"]["decoder"] == {"distribution": "aligntok-mine", "version": "1.2"}


@pytest.mark.parametrize("damage", ["missing", "truncated", "other shape", "no config", "bad config"])
def test_a_folder_that_is_not_whole_is_one_clear_error(saved, damage):
    folder, tokenizer = saved
    weights = folder / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        os.truncate(weights, weights.stat().st_size // 2)
    elif damage == "other shape":
        edit_config(folder, decoder={**tokenizer.config["decoder"], "ch": 64})
    elif damage == "no config":
        (folder / "config.json").unlink()
    else:
        (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError) as caught:
        Tokenizer.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_one_clear_error_at_once(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    began = time.monotonic()
    with pytest.raises(WeightsError, match="cannot load a tokenizer from 'someone/aligntok-f16d32'") as caught:
        aligntok.load_tokenizer("someone/aligntok-f16d32")
    assert "or the id of a hub repository that you can reach" in str(caught.value)
    assert time.monotonic() - began < 5


# The hub


class FakeHub:
    """Stands in for huggingface_hub's client, and remembers what was uploaded."""

    uploads = []

    def __init__(self, *args, **kwargs):
        pass

    def create_repo(self, repo_id, **kwargs):
        return type("Created", (), {"repo_id": f"someone/{repo_id}"})()

    def upload_folder(self, repo_id, folder_path, **kwargs):
        files = {path.name: path.read_bytes() for path in type(self).path(folder_path).iterdir() if path.is_file()}
        self.uploads.append((repo_id, files))
        return f"https://hub/{repo_id}/commit/1"

    @staticmethod
    def path(folder):
        from pathlib import Path

        return Path(folder)


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "uploads", [])
    return FakeHub


def test_pushing_uploads_weights_config_and_card(hub, tmp_path):
    tokenizer = build()
    assert tokenizer.push_to_hub("mine") == "https://hub/someone/mine/commit/1"
    ((repo_id, files),) = hub.uploads
    assert repo_id == "someone/mine"
    assert set(files) == {"README.md", "checksums.json", "config.json", "model.safetensors"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert same(Tokenizer.from_pretrained(tmp_path), tokenizer)
    assert b"aligntok" in files["README.md"]


def test_saving_can_push_as_well(hub, tmp_path):
    assert build().save_pretrained(tmp_path / "mine", push_to_hub=True) == "https://hub/someone/mine/commit/1"
    assert (tmp_path / "mine" / "config.json").is_file()
    assert len(hub.uploads) == 1


@pytest.mark.parametrize("part", ["encoder", "adapter", "decoder"])
def test_all_parts_of_a_file_are_looked_up_before_the_first_is_built(saved, monkeypatch, part):
    monkeypatch.setattr(ENCODERS, "build", lambda *given, **named: pytest.fail("a part was built"))
    edit_config(saved[0], **{part: dict(type="os.system")})
    with pytest.raises(UnknownComponentError, match=rf"{part} 'os.system' stands in a file, of which only registered"):
        aligntok.load_tokenizer(saved[0])


def test_packages_that_a_tokenizer_was_saved_with_are_named_once_in_order_and_ours_is_not(saved):
    other, ours = {"distribution": "zebra", "version": "2"}, {"distribution": "aligntok", "version": "9"}
    plugins = {"encoder": other, "adapter": ours, "decoder": {"distribution": "ant", "version": "1"}, "more": other}
    edit_config(saved[0], decoder=dict(type="franca"), plugins=plugins)
    with pytest.raises(UnknownComponentError, match="was saved with: ant==1, zebra==2; install it$"):
        aligntok.load_tokenizer(saved[0])
    edit_config(saved[0], plugins={"encoder": ours})
    with pytest.raises(UnknownComponentError) as caught:
        aligntok.load_tokenizer(saved[0])
    assert "saved with" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], "nothing"),
        (["b", "a"], "a, b"),
        ([f"{i:02d}" for i in range(12)], ", ".join(f"{i:02d}" for i in range(10))),
    ],
)
def test_a_folder_without_a_config_says_what_it_has_instead(tmp_path, names, told):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=f"has no config.json, so it is no saved tokenizer; found: {told}$"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_pushed_tokenizer_is_called_as_its_folder_unless_it_is_named(hub, tmp_path):
    tokenizer = build()
    assert tokenizer.save_pretrained(tmp_path / "mine") is None
    assert not hub.uploads
    pushed = tokenizer.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="yours")
    assert pushed == "https://hub/someone/yours/commit/1"


def test_a_pushed_card_shows_how_to_load_it(hub, tmp_path):
    build().save_pretrained(tmp_path / "mine", push_to_hub=True, model_card_kwargs=dict())
    card = hub.uploads[0][1]["README.md"].decode()
    assert "aligntok.load_tokenizer(" in card
    assert "library_name: aligntok" in card
    assert (tmp_path / "mine" / "README.md").read_text() == card


# In people's hands


@pytest.mark.parametrize("dtype", ["bfloat16", "fp16", torch.bfloat16, "torch.float16"])
def test_floats_of_any_type_are_encoded_in_the_tokenizers(saved, dtype):
    tokenizer = aligntok.load_tokenizer(saved[0], dtype=dtype)
    wanted = torch.bfloat16 if "bf" in str(dtype) else torch.float16
    assert (tokenizer.dtype, tokenizer.device) == (wanted, torch.device("cpu"))
    images = torch.rand(1, 3, 16, 24)
    for given in (images, images.double(), images.half(), (images * 255).to(torch.uint8)):
        assert tokenizer.encode(given).dtype == wanted
    assert tokenizer.decode(torch.rand(1, 5, 4, 6)).dtype == wanted
    assert tokenizer.reconstruct([np.zeros((16, 24, 3), np.uint8)])[0].size == (24, 16)


def test_autocast_sees_to_types_itself():
    tokenizer, latents = build(), torch.rand(1, 5, 4, 6).bfloat16()
    seen = []
    tokenizer.decoder.register_forward_pre_hook(lambda module, given: seen.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        tokenizer.decode(latents)
    tokenizer.decode(latents)
    assert seen == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(torch_dtype=torch.bfloat16), "load_tokenizer takes no torch_dtype=; say dtype='bfloat16'"),
        (dict(dtyp="bf16"), "load_tokenizer takes no keyword named 'dtyp'; did you mean 'dtype'"),
        (
            dict(dtype="bfloat17"),
            "no dtype named 'bfloat17'; did you mean 'bfloat16'? known: fp32, bf16, fp16, float32",
        ),
        (dict(dtype=torch.int8), "no dtype named 'torch.int8'"),
        (dict(dtype=16), "load_tokenizer: dtype=16 is int; it must be str or dtype or None"),
        (dict(device="gpu"), "load_tokenizer: device='gpu' is not here; PyTorch finds cpu"),
        (dict(device="mps:9"), "device='mps:9' is not here; PyTorch finds cpu"),
        (dict(device="cuda:99"), "device='cuda:99' is not here; PyTorch finds cpu"),
        (dict(device="meta"), "device='meta' is not here"),
        (dict(weights="emma"), "load_tokenizer: weights='emma'; did you mean 'ema'? it must be 'raw' or 'ema' or None"),
        (dict(local_files_only="yes"), "local_files_only='yes' is str; it must be bool"),
    ],
)
def test_a_keyword_that_cannot_be_is_refused_before_anything_is_loaded(options, said):
    with pytest.raises(ConfigError) as caught:
        aligntok.load_tokenizer("/nowhere", **options)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_device_is_one_that_torch_finds(saved, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    assert [str(device_named(name, "who")) for name in ("mps", "mps:0", "cpu")] == ["mps", "mps:0", "cpu"]
    for name in ("mps:1", "cuda"):
        with pytest.raises(ConfigError, match=rf"^who: device='{name}' is not here; PyTorch finds cpu, mps:0 on this"):
            device_named(name, "who")
    assert aligntok.load_tokenizer(saved[0], device=torch.device("cpu")).device == torch.device("cpu")


def test_a_config_builds_the_same_parts_and_only_registered_ones():
    tokenizer = build(variational=True)
    made = Tokenizer.from_config(tokenizer.config)
    assert made.config == tokenizer.config
    assert not same(made, tokenizer)
    with pytest.raises(UnknownComponentError, match="stands in a file, of which only registered"):
        Tokenizer.from_config({**tokenizer.config, "encoder": dict(type="torch.nn.Identity")})
    with pytest.raises(ConfigError, match="no keyword named 'latent_dims'; did you mean 'latent_dim'"):
        Tokenizer.from_config({**tokenizer.config, "latent_dims": 3})
    for nothing, said in (
        (None, "config=None"),
        ({}, "missing a required argument: 'encoder'"),
        ("tokenizer", "is str"),
    ):
        with pytest.raises(ConfigError, match=said):
            Tokenizer.from_config(nothing)


def test_a_line_shows_it_and_the_whole_tree_is_there_too():
    tokenizer = build(adapter=nn.Conv2d(48, 5, 1), decoder={**DECODER, "ch": 64})
    count = sum(weight.numel() for weight in tokenizer.parameters())
    assert repr(tokenizer) == f"Tokenizer(encoder=TimmEncoder, f4d5, {count / 1e6:.1f}M, float32, cpu)"
    tokenizer.decoder.half()
    assert "float16+float32" in str(tokenizer)
    assert len(nn.Module.__repr__(tokenizer).splitlines()) > 50


def test_the_numbers_of_images_are_looked_at_in_each_call_and_on_an_accelerator_in_the_first(monkeypatch):
    looked = []
    monkeypatch.setattr(tokenizer_module, "check_reach", looked.append)
    cpu, other = build(), build().to("meta")  # which computes nothing, and is no CPU
    for _ in range(3):
        cpu.encode(torch.rand(1, 3, 16, 16))
    assert len(looked) == 3
    for _ in range(3):
        other.encode(torch.rand(1, 3, 16, 16, device="meta"))
    assert len(looked) == 4


@pytest.mark.filterwarnings("ignore")  # of torch.jit.trace, which is deprecated, and of sizes that it keeps
def test_a_training_and_a_trace_look_at_nothing(monkeypatch):
    tokenizer, far = build().requires_grad_(False), torch.full((1, 3, 16, 16), 9.0)
    monkeypatch.setattr(tokenizer_module, "check_reach", lambda images: pytest.fail("looked at"))
    assert tokenizer(far).shape == far.shape
    traced = torch.jit.trace(lambda images: tokenizer.encode(images), far, check_trace=False)
    compiled = torch.compile(tokenizer.encode, backend="eager", fullgraph=True)
    with torch.no_grad():
        wanted = tokenizer.latents_from(tokenizer.moments(far))
        torch.testing.assert_close(traced(far), wanted)
        torch.testing.assert_close(compiled(far), wanted)


def test_refused_images_are_no_first_call():
    tokenizer = build()
    with pytest.raises(ConfigError, match="images reach from"):
        tokenizer.encode(torch.full((1, 3, 16, 16), 255.0))
    assert not tokenizer._has_looked
    with pytest.raises(ConfigError, match=r"sides must be multiples of f = 4, such as \(16, 20\)"):
        tokenizer.encode(torch.zeros(1, 3, 15, 20))


def test_gradients_reach_the_images_that_are_encoded():
    images = torch.zeros(1, 3, 16, 16, requires_grad=True)
    build().encode(images).sum().backward()
    assert images.grad.abs().sum() > 0


def test_a_part_that_gives_no_tensor_is_one_clear_error():
    class Tuple(nn.Module):
        downsample_factor, out_dim = 4, 3

        def forward(self, images):
            return (images[..., ::4, ::4],)

    tokenizer = build(encoder=Tuple(), adapter=dict(type="linear"))
    with pytest.raises(PluginError, match="encoder Tuple gives tuple; it must return a tensor"):
        tokenizer.encode(torch.zeros(1, 3, 8, 8))


def test_what_a_part_raises_when_it_is_built_is_not_called_damage(saved, monkeypatch):
    class Raises(nn.Module):
        def __init__(self, latent_dim):
            raise RuntimeError("no licence file")

    monkeypatch.setitem(DECODERS._module_dict, "raises", Raises)
    edit_config(saved[0], decoder={"type": "raises"})
    with pytest.raises(WeightsError, match=r"the tokenizer in '.*' can't be built here: no licence file"):
        Tokenizer.from_pretrained(saved[0])


def test_tensors_without_numbers_are_refused_unless_the_weights_have_none_either():
    tokenizer = build(variational=True)
    images, latents = torch.zeros(1, 3, 8, 8), torch.zeros(1, 5, 2, 2)
    calls = {
        "images": [lambda: tokenizer.encode(images.to("meta")), lambda: tokenizer.encode(images.byte().to("meta"))],
        "latents": [lambda: tokenizer.decode(latents.to("meta"))],
        "noise": [lambda: tokenizer.encode(images, noise=latents.to("meta"))],
    }
    calls["images"].append(lambda: tokenizer.processor.to_pil(images.to("meta")))
    for what, each in [(what, each) for what, some in calls.items() for each in some]:
        with pytest.raises(ConfigError, match=f"{what} are on the meta device, where no numbers are"):
            each()
    with pytest.raises(ConfigError, match=r"latents are a tensor of torch.sparse_coo; give latents.to_dense\(\)"):
        tokenizer.decode(latents.to_sparse())
    shadow = build().to("meta")
    assert shadow.decode(shadow.encode(images.to("meta"))).shape == images.shape
