"""What makes the project comfortable, each promise as a user would type it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import aligntok
from aligntok import LatentDiffusion, Tokenizer, load_tokenizer
from aligntok.cli import main
from aligntok.data.images import ImageDataset
from aligntok.data.latent_shards import LatentStatistics
from aligntok.errors import ConfigError

F, D = 4, 4  # of the tokenizer below
PART = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=32)
VIT = dict(type="timm", model_name="vit_tiny_patch16_224", model_args=dict(depth=1, embed_dim=48, num_heads=3))
GENERATOR = dict(type="lightning_dit", hidden_size=32, depth=1, num_heads=2, input_size=8, in_channels=D, num_classes=5)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """The folder of a saved tokenizer, a tiny ViT with a CNN decoder, f4d4."""
    folder = tmp_path_factory.mktemp("people") / "tokenizer"
    torch.manual_seed(0)
    Tokenizer({**VIT, "pretrained": False}, None, PART, latent_dim=D, downsample_factor=F).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """The path of a picture whose sides, 46 high and 70 wide, are no multiples of f."""
    path = tmp_path_factory.mktemp("pictures") / "cat.png"
    pixels = np.random.default_rng(0).integers(0, 256, (46, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def tok(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)


def test_1_a_tokenizer_is_loaded_in_the_type_that_is_asked_for(tokenizer_folder):
    assert load_tokenizer(tokenizer_folder, dtype="bfloat16").dtype == torch.bfloat16


def test_2_a_picture_is_encoded_as_pillow_opens_it(tok, picture):
    assert tok.encode(Image.open(picture)).shape == (1, D, 46 // F, 70 // F)


def test_3_a_pictures_reconstruction_is_a_picture(tok, picture):
    made = tok.reconstruct(Image.open(picture))
    assert isinstance(made, Image.Image)
    assert made.size == (68, 44)


def test_4_images_from_0_to_255_are_refused_with_both_bounds(tok):
    images = torch.rand(1, 3, 64, 64) * 255
    images[0, 0, 0, :2] = torch.tensor([0.1, 255.0])
    images.clamp_(min=0.1)
    with pytest.raises(ConfigError, match=r"reach from 0\.1 to 255\.0, .*give uint8, or x/127\.5 - 1"):
        tok.encode(images)


def test_5_uint8_gives_what_the_scaled_floats_give_to_the_bit(tok):
    x = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    assert torch.equal(tok.encode(x), tok.encode(x / 127.5 - 1))


def test_6_a_tokenizer_is_shown_in_one_line(tok):
    count = sum(each.numel() for each in tok.parameters()) / 1e6
    assert repr(tok) == f"Tokenizer(encoder=timm:vit_tiny_patch16_224, f4d4, {count:.1f}M, float32, cpu)"


def test_7_the_package_shows_what_is_for_users():
    assert {"Tokenizer", "LatentDiffusion", "ImageProcessor", "list_components", "load_tokenizer"} <= {*dir(aligntok)}
    assert not {"Any", "pluggy", "importlib", "TYPE_CHECKING"} & {*dir(aligntok)}
    assert all(hasattr(aligntok, name) for name in dir(aligntok))


@pytest.mark.slow
def test_8_loading_prints_nothing_on_stdout(tokenizer_folder):
    code = f"import aligntok; aligntok.load_tokenizer({str(tokenizer_folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


class Half(nn.Module):
    """One way of a tokenizer, as torch.export wants it: a module."""

    def __init__(self, tokenizer, way):
        super().__init__()
        self.tokenizer, self.way = tokenizer, way

    def forward(self, x):
        return getattr(self.tokenizer, self.way)(x)


@pytest.mark.parametrize(("way", "shape"), [("encode", (1, 3, 32, 48)), ("decode", (1, D, 8, 12))])
def test_9_both_ways_of_a_tokenizer_are_exported(tok, way, shape):
    x = torch.rand(shape)
    exported = torch.export.export(Half(tok, way), (torch.zeros(shape),)).module()
    torch.testing.assert_close(exported(x), getattr(tok, way)(x), rtol=0, atol=1e-5)


def test_10_a_generator_draws_the_same_once_saved_and_loaded(tok, tmp_path):
    statistics = LatentStatistics((0.1, -0.2, 0.3, 0.0), (1.5, 0.5, 1.0, 2.0))
    model = LatentDiffusion(GENERATOR, tok, statistics, (D, 8, 8), sampling=dict(steps=2)).eval()
    for parameter in model.generator.parameters():
        nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    assert torch.equal(aligntok.load_latent_diffusion(tmp_path).sample([0, 4], [7, 8]), model.sample([0, 4], [7, 8]))


@torch.no_grad()
@pytest.mark.parametrize("number", [11, 12])
def test_11_12_a_tokenizer_is_an_autoencoder_of_diffusers(number, tmp_path):
    AutoencoderKL = pytest.importorskip("diffusers").AutoencoderKL
    from aligntok.diffusers import AutoencoderAlignTok
    from aligntok.exporting import export_for_diffusers
    from aligntok.tokenizer import Tokenizer

    cnn = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=())
    vit = dict(type="timm", model_name="vit_tiny_patch16_224", pretrained=False, model_args=dict(depth=1))
    parts = (cnn, dict(type="identity"), cnn) if number == 11 else (vit, None, cnn)
    tokenizer = Tokenizer(*parts, latent_dim=4, downsample_factor=2, variational=number == 11).eval()
    tokenizer.save_pretrained(tmp_path / "t")
    export_for_diffusers(tmp_path / "t", tmp_path / "vae")
    vae = (AutoencoderKL if number == 11 else AutoencoderAlignTok).from_pretrained(tmp_path / "vae")
    images = torch.rand(1, 3, 16, 24) * 2 - 1
    latents, atol = tokenizer.encode(images), 1e-5 if number == 11 else 0.0
    torch.testing.assert_close(vae.encode(images).latent_dist.mode(), latents, rtol=0, atol=atol)
    torch.testing.assert_close(vae.decode(latents).sample, tokenizer.decode(latents), rtol=0, atol=atol)


def test_13_a_picture_of_ones_own_is_reconstructed_by_a_command(tokenizer_folder, picture, tmp_path, capsys):
    assert main(["reconstruct", str(tokenizer_folder), str(picture), "--out", str(tmp_path / "o")]) == 0
    assert re.fullmatch(r"cat\.png \d+\.\d\d\nmean \d+\.\d\d\n", capsys.readouterr().out)
    with Image.open(tmp_path / "o/cat.png") as made:
        assert made.size == (68, 44)


def test_14_a_misspelt_verb_is_answered_with_the_nearest_on_stderr(capsys):
    assert main(["trian"]) == 2
    printed, told = capsys.readouterr()
    assert printed == ""
    assert "did you mean 'train'" in told


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of wandb's own libraries
def test_15_wandb_has_scalars_and_pictures_in_the_run_folder_offline(write_generation, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason='wandb is not installed: pip install "aligntok[wandb]"')
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere/netrc")
    config = write_generation(steps=1, log=dict(every=1, pictures=2, backends=["wandb"]))
    assert main(["train", config, "--work-dir", str(tmp_path / "run")]) == 0
    (written,) = tmp_path.glob("run/generation/wandb/offline-run-*/run-*.wandb")
    ends = time.monotonic() + 60  # wandb's own process writes it a moment after the end
    while b"loss/velocity" not in written.read_bytes() and time.monotonic() < ends:
        time.sleep(0.1)
    assert b"loss/velocity" in written.read_bytes()
    assert [*written.parent.glob("files/media/images/samples*.png")]


def test_16_mlflow_that_is_not_installed_is_refused_before_step_1(write_generation, tmp_path, monkeypatch, capsys):
    """With it: tests/engine/test_trackers.py, which `make test-release` runs beside it."""
    monkeypatch.setitem(sys.modules, "mlflow", None)
    config = write_generation(log=dict(backends=["mlflow"]))
    assert main(["train", config, "--work-dir", str(tmp_path / "run")]) == 2
    assert 'pip install "aligntok[mlflow]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_17_a_page_without_gradio_says_what_installs_it(tokenizer_folder, monkeypatch, capsys):
    """With it: tests/app/test_page.py opens the page in a browser and finds no request outside."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", str(tokenizer_folder)]) == 2
    assert 'pip install "aligntok[app]"' in capsys.readouterr().err


def flat_folder(folder, names):
    """Write small pictures side by side."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(folder / name)
    return folder


def test_19_a_flat_folder_is_parted_by_name_and_files_that_are_added_move_none(write_config, tmp_path, caplog):
    caplog.set_level("INFO", "aligntok")
    folder = tmp_path / "photographs"
    both = []
    for names in ([f"{i:03}.png" for i in range(60)], [f"new_{i}.png" for i in range(30)]):
        flat_folder(folder, names)
        split = dict(train=dict(split=None), val=dict(fraction=0.1))
        assert main(["train", write_config(data_root=str(folder), data=split), "--dry-run"]) == 0
        there = {path.name for path in folder.iterdir()}
        held_out = {name for name in there if int.from_bytes(sha256(name.encode()).digest()[:8], "big") < 0.1 * 2**64}
        assert f"{len(there - held_out)} train, {len(held_out)} held out by name" in caplog.text
        both.append((there - held_out, held_out, ImageDataset(folder, 32, fraction=0.1)))
    train, _, found = both[1]
    assert {Path(found.source.key(i)).name for i in range(len(found.source))} == train
    assert both[0][0] <= both[1][0]
    assert both[0][1] <= both[1][1]


def test_20_a_data_check_names_what_is_passed_over_and_what_is_broken(tmp_path, capsys):
    folder = flat_folder(tmp_path / "photographs", [f"{i}.jpg" for i in range(20)])
    Image.new("RGB", (40, 40)).save(folder / "one.avif")  # which is read, too
    (folder / "old.jfif_").write_bytes(b"what nobody reads")
    (folder / "broken.jpg").write_bytes((folder / "3.jpg").read_bytes()[:100])
    assert main(["data", "check", str(folder)]) == 1
    told = "".join(capsys.readouterr())
    assert "20 JPEG, 1 AVIF" in told
    assert re.search(r"passed over +│ 1 \.jfif_ ", told)
    assert "cannot be read: broken.jpg" in told
