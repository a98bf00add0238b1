"""Whatever a public function is called with, it answers, or says in a sentence of ours why it cannot."""

from __future__ import annotations

import inspect
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import aligntok
from aligntok import ImageProcessor, LatentDiffusion, Tokenizer
from aligntok.app import functions
from aligntok.data.latent_shards import LatentStatistics
from aligntok.errors import AlignTokError, ConfigError
from aligntok.training.config import load_config

F, D = 4, 4
CNN = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=())
GENERATOR = dict(type="lightning_dit", hidden_size=32, depth=1, num_heads=2, input_size=4, in_channels=D, num_classes=5)
PICTURE = Image.new("RGB", (24, 20), "red")


class BytesPath:
    def __fspath__(self):
        return b"work"


BAD = {
    **dict(none=None, int=3, negative=-1, huge=10**30, float=2.5, nan=math.nan, true=True, word="nonsense", empty=""),
    **dict(
        long="a" * 5000, long_part="x/" + "b" * 300, nul="a\0b", bytes=b"ab", bytes_path=BytesPath(), path=Path("x")
    ),
    **dict(
        list=[], nones=[None], lists=[[1]], nans=[math.nan], bools=[True], dict={}, set={1}, object=object(), type=int
    ),
    **dict(tiny=Image.new("RGB", (1, 1)), nothing=Image.new("RGB", (0, 5)), floats=Image.new("F", (8, 8))),
    **dict(array=np.zeros((8, 8, 5), np.uint8), number=np.array(3), objects=np.array([None], object)),
    **dict(
        scalar=torch.tensor(1.0),
        long_tensor=torch.zeros(1, 3, 8, 8, dtype=torch.long),
        channels=torch.zeros(1, 5, 8, 8),
    ),
    **dict(
        nan_tensor=torch.full((1, 3, 8, 8), math.nan), no_images=torch.zeros(0, 3, 8, 8), odd=torch.zeros(1, 3, 9, 7)
    ),
    **dict(sparse=torch.zeros(1, 3, 8, 8).to_sparse(), module=torch.nn.Identity(), device=torch.device("cpu")),
}
STATISTICS = LatentStatistics((0.0,) * D, (1.0,) * D)


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """Public functions by name, each with arguments that it takes."""
    root = tmp_path_factory.mktemp("calls")
    tok = Tokenizer(CNN, dict(type="identity"), CNN, D, F, variational=True).eval()
    model = LatentDiffusion(GENERATOR, tok, STATISTICS, (D, 4, 4), sampling=dict(steps=1)).eval()
    tok.save_pretrained(root / "tok")
    model.save_pretrained(root / "model")
    models = functions.Models({"tok": tok}, model)
    zeros, processor = torch.zeros(1, D, 4, 4), ImageProcessor(F)
    made = [
        (
            aligntok.load_tokenizer,
            dict(source=root / "tok", device="cpu", dtype="fp32", revision=None, resolution=None),
        ),
        (aligntok.load_latent_diffusion, dict(source=root / "model", device="cpu", average=None, components=None)),
        (aligntok.list_components, dict(kind="encoders")),
        (aligntok.train, dict(config=root / "none.py", stage=None, dry_run=True)),
        (aligntok.sample, dict(run=root / "none", num_samples=1)),
        (aligntok.evaluate, dict(what="reconstruction", tokenizer=root / "none", data=root / "none", out=root / "out")),
        (ImageProcessor, dict(multiple=F)),
        (processor.preprocess, dict(images=PICTURE, size=None, fit="crop")),
        (processor.sides, dict(size=8)),
        (processor.to_pil, dict(images=torch.zeros(1, 3, 8, 8))),
        (tok.encode, dict(images=PICTURE, noise=None)),
        (tok.decode, dict(latents=zeros)),
        (tok.reconstruct, dict(images=PICTURE)),
        (tok.save_pretrained, dict(save_directory=root / "again")),
        (Tokenizer, dict(encoder=CNN, adapter=dict(type="identity"), decoder=CNN, latent_dim=D, downsample_factor=F)),
        (Tokenizer.from_config, dict(config=tok.config, components=None)),
        (Tokenizer.from_pretrained, dict(pretrained_model_name_or_path=root / "tok")),
        (LatentDiffusion, dict(generator=GENERATOR, tokenizer=tok, statistics=STATISTICS, latent_shape=(D, 4, 4))),
        (LatentDiffusion.from_pretrained, dict(source=root / "model", components=None)),
        (model.save_pretrained, dict(folder=root / "again2", include_text_encoders=False)),
        (model.sample, dict(words=[0], seeds=[1], sampling=None, size=None, negative=None)),
        (model.sample_latents, dict(words=[0], seeds=[1], sampling=None, size=None, weak=None, negative=None)),
        (model.decode, dict(latents=zeros)),
        (functions.load, dict(tokenizers=[root / "tok"], generator=None, device="cpu")),
        (functions.compare, dict(models=models, picture=PICTURE)),
        (functions.sample, dict(models=models, word="1", seed=0, steps=1, guidance=1.0, number=1)),
        (functions.interpolate, dict(models=models, name="tok", first=PICTURE, last=PICTURE, steps=2)),
    ]
    return {function.__qualname__: (function, given) for function, given in made}


NAMES = [
    *("load_tokenizer", "load_latent_diffusion", "list_components", "train", "sample", "evaluate", "ImageProcessor"),
    *(f"ImageProcessor.{name}" for name in ("preprocess", "sides", "to_pil")),
    *(f"Tokenizer.{name}" for name in ("encode", "decode", "reconstruct", "save_pretrained", "from_config")),
    *("Tokenizer", "Tokenizer.from_pretrained", "LatentDiffusion", "load", "compare", "interpolate"),
    *(
        f"LatentDiffusion.{name}"
        for name in ("from_pretrained", "save_pretrained", "sample", "sample_latents", "decode")
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_cannot_be_is_answered_in_a_sentence(name, calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, good = calls[name]
    raw = []
    for argument, (kind, value) in product(good, BAD.items()):
        try:
            function(**{**good, argument: value})
        except Exception as error:
            if not isinstance(error, AlignTokError) or len(str(error)) < 20:
                raw.append(f"{argument}={kind}: {type(error).__name__}: {error}")
    assert raw == []


@pytest.mark.parametrize("name", ["load_tokenizer", "load_latent_diffusion", "list_components", "ImageProcessor"])
def test_a_function_without_what_it_needs_names_its_arguments(name, calls):
    function, _ = calls[name]
    first = next(iter(inspect.signature(function).parameters))
    with pytest.raises(ConfigError, match=f"^{name}: .*; its arguments are {first}|no keyword named 'nothing_such'"):
        function(nothing_such=1) if name == "ImageProcessor" else function()


def test_every_public_function_is_tried_here():
    public = {name for name in aligntok.__all__ if callable(getattr(aligntok, name)) and name != "hookimpl"}
    assert public <= set(NAMES)


def test_paths_are_taken_where_text_is(write_config, tmp_path):
    config = load_config(Path(write_config()), {"data_root": Path("a/b"), "work_dir": tmp_path, "hooks": [Path("c")]})
    assert (config["data_root"], config["work_dir"], config["hooks"]) == ("a/b", str(tmp_path), ["c"])
