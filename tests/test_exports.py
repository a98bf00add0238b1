"""Exports overwrite nothing but an earlier export of their kind, whole or begun, and change nothing that is given."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import aligntok
from aligntok import Tokenizer, onnx
from aligntok.cli import commands
from aligntok.diffusers.export import write_autoencoder
from aligntok.errors import ConfigError
from aligntok.exporting import export_for_diffusers, export_onnx
from aligntok.io.checksums import CHECKSUMS
from aligntok.loading import export_tokenizer
from aligntok.training.config import load_config
from aligntok.weights.load import weights_hash

PART = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), resolution=8)


def small(variational=False, seed=0):
    torch.manual_seed(seed)
    adapter = dict(type="identity") if variational else None
    return Tokenizer({**PART, "pretrained": False}, adapter, PART, 4, 2, variational=variational).eval()


@pytest.fixture
def saved(tmp_path):
    small().save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


@pytest.fixture
def convert(monkeypatch):
    """Stand-ins for torch's exporter and onnxruntime: files with a digest of the weights."""
    monkeypatch.setattr(onnx, "_needed", lambda: None)
    monkeypatch.setattr(onnx, "_convert", lambda path, half, *_: path.write_bytes(weights_hash("", half).encode()))


EXPORTS = {"aligntok": export_tokenizer, "diffusers": export_for_diffusers, "onnx": export_onnx}
#: Folders of others: transformers', diffusers' models and pipelines, and the halves of some speech model.
OTHERS = {
    ("aligntok", "model.safetensors"): {"config.json": {"model_type": "dinov2"}},
    ("diffusers", "diffusion_pytorch_model.safetensors"): {"config.json": {"_class_name": "AutoencoderKL"}},
    ("diffusers", "unet.safetensors"): {"model_index.json": {"_class_name": "StableDiffusionPipeline"}},
    ("onnx", "encoder.onnx"): {"config.json": {"model_type": "whisper"}},
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_models_folder_stays_as_it_is(saved, convert, tmp_path, case):
    (format, weights), theirs = case, tmp_path / "theirs"
    theirs.mkdir()
    (theirs / weights).write_bytes(b"theirs")
    for name, content in OTHERS[case].items():
        (theirs / name).write_text(json.dumps(content))
    before = {path.name: path.read_bytes() for path in theirs.iterdir()}
    with pytest.raises(ConfigError, match="is a folder with other things in it"):
        EXPORTS[format](saved, theirs)
    assert {path.name: path.read_bytes() for path in theirs.iterdir()} == before


class Killed(BaseException):
    pass


@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("format", EXPORTS)
def test_a_killed_export_goes_on_by_the_same_call(convert, tmp_path, monkeypatch, format, variational):
    small(variational).save_pretrained(tmp_path / "ours")
    replace, left = os.replace, [0]

    def until_killed(source, target):
        left[0] -= 1
        if not left[0]:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", until_killed)
    for after in range(1, 20):
        left[0], out = after, tmp_path / f"{after}"
        try:
            EXPORTS[format](tmp_path / "ours", out)
            break
        except Killed:
            left[0] = 0
            EXPORTS[format](tmp_path / "ours", out)
            assert (out / CHECKSUMS).is_file()
    assert after > 3


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("format", EXPORTS)
def test_an_export_of_before_is_overwritten(saved, convert, tmp_path, format):
    out = tmp_path / "out"
    EXPORTS[format](saved, out)
    shutil.copytree(out, tmp_path / "before")
    config = out / "config.json"
    if config.exists():  # which said nothing of ours but for ourselves
        config.write_text(config.read_text().replace('"_aligntok_version"', '"_other"'))
    small(seed=1).save_pretrained(tmp_path / "later")
    EXPORTS[format](tmp_path / "later", out)
    EXPORTS[format](tmp_path / "later", tmp_path / "new")
    found, expected, before = (bytes_of(tmp_path / each) for each in ("out", "new", "before"))
    assert found == expected
    assert {name for name in found if found[name] != before[name]} > {CHECKSUMS}
    for other in {*EXPORTS} - {format}:
        with pytest.raises(ConfigError, match="is a folder with other things in it"):
            EXPORTS[other](saved, out)


def test_the_card_is_its_owners(saved):
    card = saved / "README.md"
    assert "An image tokenizer" in card.read_text()
    card.write_text("mine")
    small().save_pretrained(saved)
    assert card.read_text() == "mine"
    small().save_pretrained(saved, model_card_kwargs={"license": "mit"})
    assert "An image tokenizer" in card.read_text()


def test_onnx_leaves_the_tokenizer_as_it_is(convert, tmp_path):
    tokenizer = small().double().train()
    onnx.write_onnx(tmp_path, tokenizer)
    assert tokenizer.dtype == torch.float64
    assert tokenizer.training


def test_home_is_written_with_a_tilde(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert export_tokenizer("~/ours", "~/out") == tmp_path / "out"
    identity = small().identity
    assert aligntok.load_tokenizer(Path("~/out")).identity == Tokenizer.from_pretrained("~/out").identity == identity
    small().save_pretrained("~/again")
    assert write_autoencoder(export_for_diffusers("~/ours", "~/vae")[0], small()) == "AutoencoderAlignTok"
    (tmp_path / "c.py").write_text("generator = dict(type='lightning_dit')\nsteps = 1\nwork_dir = '~/run'\n")
    assert load_config(tmp_path / "c.py")["work_dir"] == f"{tmp_path}/run"
    assert not (tmp_path / "~").exists()


def test_a_resolution_is_of_a_file_alone(saved):
    with pytest.raises(ConfigError, match="resolution=32 is of a checkpoint file alone, and .*ours is none"):
        aligntok.load_tokenizer(saved, resolution=32)


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "latin-1", "ascii"])
def test_json_is_what_every_program_reads(monkeypatch, encoding):
    found = {"psnr": float("nan"), "all": [1.5, float("inf"), -float("inf")], "path": Path("Bäume/木"), "n": 3}
    stream = io.TextIOWrapper(io.BytesIO(), encoding, "backslashreplace")
    monkeypatch.setattr("sys.stdout", stream)
    print(commands._as_json(found))
    stream.flush()
    written = stream.buffer.getvalue().decode("utf-8")
    assert json.loads(written) == {"psnr": None, "all": [1.5, None, None], "path": "Bäume/木", "n": 3}
    assert ("木" in written) == encoding.lower().startswith("utf")
