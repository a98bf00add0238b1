"""A tokenizer as two ONNX files, which onnxruntime computes as torch does, at any size."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import aligntok
from aligntok.check import CheckRequest, check_folder
from aligntok.cli import export
from aligntok.data.latent_shards import LatentStatistics
from aligntok.encoders import Encoder
from aligntok.errors import ConfigError
from aligntok.onnx import write_onnx
from aligntok.tokenizer import Tokenizer

CNN = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=32)
SMALL = {**CNN, "ch_mult": (1, 1)}
FULL = {**CNN, "attn_resolutions": (16,), "linear_path": True}
VIT = dict(type="timm", model_name="vit_tiny_patch16_224", pretrained=False)
VIT["model_args"] = dict(depth=1, embed_dim=48, num_heads=3)
EFFICIENT = dict(type="timm", model_name="efficientnet_lite0", pretrained=False)  # as the demo's


class Patches(Encoder):
    """Pixels as features; with a table of 8 x 12 pixels, of images of that size alone."""

    def __init__(self, table=None):
        super().__init__(downsample_factor=2, stride=2, out_dim=12)
        self.table = table

    def backbone_features(self, pixels):
        features = torch.nn.functional.pixel_unshuffle(pixels, 2)
        return features if self.table is None else features + self.table


@pytest.fixture
def extra():
    """What the extra has; without it a test is skipped."""
    return pytest.importorskip("onnxscript", reason="the extra onnx is not installed")


def test_without_its_packages_onnx_says_what_installs_them(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r'pip install "aligntok\[onnx\]"'):
        write_onnx(tmp_path / "out", Tokenizer(Patches(), None, SMALL, 4, downsample_factor=2))
    assert not (tmp_path / "out").exists()


def of_any_size(tokenizer, path, sizes):
    """Hold what onnxruntime makes of an export against the tokenizer, at each size."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    sessions = [runtime.InferenceSession(path / f"{half}.onnx") for half in ("encoder", "decoder")]
    for number, height, width in sizes:
        images = torch.rand(number, 3, height, width) * 2 - 1
        with torch.no_grad():
            latents, again = tokenizer.encode(images), tokenizer(images)
        found = sessions[0].run(["latents"], {"images": images.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), latents, rtol=0, atol=1e-4)
        found = sessions[1].run(["images"], {"latents": latents.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), again, rtol=0, atol=1e-4)
    return sessions


@pytest.mark.parametrize("encoder", [VIT, pytest.param(EFFICIENT, marks=pytest.mark.nightly)])
def test_onnxruntime_computes_a_tokenizer_at_any_size(extra, tmp_path, capsys, encoder):
    tokenizer = Tokenizer(encoder, None, SMALL, 4, downsample_factor=2).eval()
    tokenizer.save_pretrained(tmp_path / "ours")
    assert export([str(tmp_path / "ours"), str(tmp_path / "out"), "--format", "onnx"]) == 0
    assert "encoder.onnx" in capsys.readouterr().out
    for session in of_any_size(tokenizer, tmp_path / "out", [(1, 16, 16), (3, 20, 34)]):
        said = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
        assert said == {"downsample_factor": 2, "latent_dim": 4, "aligntok_version": aligntok.__version__}
    assert not check_folder(CheckRequest(folder=tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("checksums.json", "decoder.onnx", "encoder.onnx")
    ]
    for path in (tmp_path / "out").glob("*.onnx"):
        assert b".py" not in path.read_bytes()  # nor where on this machine each operation was called


@pytest.mark.nightly
@pytest.mark.parametrize(
    "make",
    [
        lambda: Tokenizer(FULL, dict(type="identity"), FULL, 4, downsample_factor=4, variational=True),
        lambda: Tokenizer({**VIT, "model_name": "vit_small_patch14_dinov2"}, None, CNN, 4, downsample_factor=4),
        lambda: Tokenizer({**VIT, "model_name": "vit_small_patch16_dinov3"}, None, CNN, 4, downsample_factor=4),
    ],
    ids=["convolutional", "patch 14", "rotary"],
)
def test_every_kind_of_tokenizer_is_two_onnx_files(extra, tmp_path, make):
    tokenizer = make().eval()
    write_onnx(tmp_path, tokenizer, LatentStatistics((0.0,) * 4, (0.5, 2.0, 1.0, 1.5)))
    session = of_any_size(tokenizer, tmp_path, [(2, 16, 24), (1, 64, 32)])[0]
    assert json.loads(session.get_modelmeta().custom_metadata_map["latents_std"]) == [0.5, 2.0, 1.0, 1.5]


def test_an_encoder_of_one_size_is_refused_by_its_name(extra, tmp_path):
    tokenizer = Tokenizer(Patches(torch.zeros(12, 4, 6)), None, SMALL, 4, downsample_factor=2)
    with pytest.raises(
        ConfigError, match=r"Patches cannot be exported for images of any size \(.*\); .*ldm_cnn"
    ) as told:
        write_onnx(tmp_path / "out", tokenizer)
    assert len(str(told.value)) < 500
    assert not [*(tmp_path / "out").glob("*")]


def test_what_onnxruntime_computes_otherwise_is_not_written(extra, tmp_path, monkeypatch):
    tokenizer = Tokenizer(Patches(), dict(type="linear"), SMALL, 4, downsample_factor=2)
    monkeypatch.setattr("aligntok.onnx.TOLERANCE", 0.0)
    with pytest.raises(ConfigError, match=r"computes Patches otherwise than torch, by "):
        write_onnx(tmp_path / "out", tokenizer)
    assert not [*(tmp_path / "out").glob("*")]
