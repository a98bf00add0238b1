"""Captions reach the steps of a generator's training, out of images and out of a cache that it makes."""

from __future__ import annotations

import shutil

import pytest
import torch

from aligntok.cli import train
from aligntok.loading import load_latent_diffusion
from aligntok.training import generation
from aligntok.training.generation.model import GenerationModel


@pytest.fixture(scope="module")
def captioned(classes, tmp_path_factory):
    """The photographs of the classes, each with a caption beside it that names its file."""
    root = tmp_path_factory.mktemp("captioned") / "set"
    shutil.copytree(classes, root)
    for path in root.rglob("*.png"):
        path.with_suffix(".txt").write_text(f"photograph {path.stem}")
    return root


@pytest.fixture
def seen(monkeypatch):
    """The captions of each micro-batch, and its labels."""
    batches = []
    inner = GenerationModel.backward

    def backward(self, batch, place):
        batches.append((batch["caption"], batch["label"].tolist()))
        return inner(self, batch, place)

    monkeypatch.setattr(GenerationModel, "backward", backward)
    return batches


def config_of(write_generation, captioned, tokenizer, cache, **data):
    log = dict(every=1, pictures=0)
    shared = dict(data_root=str(captioned), tokenizer=str(tokenizer), log=log, steps=3, global_batch_size=5)
    made = {} if cache is None else dict(latent_cache=dict(image_size=32, split="train", workers=0, **cache))
    return write_generation(**shared, **made, data=dict(train=data, workers=0))


@pytest.mark.parametrize("kept", [True, False])
def test_every_image_brings_its_own_caption(write_generation, captioned, tiny_tokenizer, seen, tmp_path, kept):
    images = dict(type="images", split="train", image_size=32)
    data = dict(type="latents") if kept else images
    cache = dict(caption="auto") if kept else None
    config = config_of(write_generation, captioned, tiny_tokenizer, cache, **data, caption="auto")
    assert train([config, "--work-dir", str(tmp_path / "run")]) == 0
    assert sorted(caption for batch, _ in seen for caption in batch) == [f"photograph {i:02d}" for i in range(15)]
    for captions, labels in seen:
        assert [int(caption[-2:]) % 3 for caption in captions] == labels
    (captioned / "train" / "ant" / "00.txt").write_text("another")
    try:
        longer = train([config, "--work-dir", str(tmp_path / "run"), "--cfg-options", "steps=4"])
    finally:
        (captioned / "train" / "ant" / "00.txt").write_text("photograph 00")
    assert longer == (2 if kept else 0)  # a cache would mix old and new


def test_captions_that_a_cache_would_not_keep_are_missed_before_it_is_made(
    write_generation, captioned, tiny_tokenizer, tmp_path, capsys
):
    config = config_of(write_generation, captioned, tiny_tokenizer, {}, type="latents", caption="auto")
    for more in (["--dry-run"], ["--work-dir", str(tmp_path / "run")]):
        assert train([config, *more]) == 2
        said = "data.train.caption='auto', but latent_cache keeps no captions; set latent_cache.caption='auto', too"
        assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "latents").exists()


def test_a_cache_of_prompts_keeps_captions_from_where_it_is_told(monkeypatch):
    monkeypatch.setattr(generation, "asked_of_data", lambda generator: {"caption": "auto"})
    shared = dict(generator=dict(type="lightning_dit"), steps=1, stages=[], data_root="x", work_dir="w", seed=0)
    for given, kept in [({}, "auto"), (dict(caption="captions.csv"), "captions.csv")]:
        stage = generation.expand_generation({**shared, "latent_cache": given})
        assert (stage.settings.latent_cache.caption, stage.settings.data.train["caption"]) == (kept, "auto")


def test_a_tokenizer_that_lies_elsewhere_is_told_of_no_export(
    monkeypatch, write_generation, captioned, tiny_tokenizer, text_model, tmp_path
):
    bert, encoder, run = text_model("bert"), tmp_path / "encoder", tmp_path / "run"
    apart = tmp_path / "apart"
    shutil.copytree(bert, encoder)
    apart.mkdir()
    for path in encoder.glob("*token*"):
        shutil.move(path, apart / path.name)
    tokens = dict(type="hf_text", path=str(encoder), tokenizer=str(apart), max_tokens=32)
    config = write_generation(
        steps=1,
        data_root=str(captioned),
        tokenizer=str(tiny_tokenizer),
        generator=dict(
            **dict(type="flux_dit", in_channels=4, hidden_size=32, num_heads=2, depth=1, depth_single_blocks=1),
            **dict(context_in_dim=32, vec_in_dim=0, text=dict(tokens=tokens)),
        ),
        data=dict(train=dict(type="images", split="train", image_size=32)),
        log=dict(every=1, pictures=0),
    )
    assert train([config, "--work-dir", str(run)]) == 0
    assert str(tmp_path) not in (run / "latent_diffusion/latent_diffusion.json").read_text()
    model = load_latent_diffusion(run)
    drawn = model("a cat")
    model.save_pretrained(tmp_path / "whole", include_text_encoders=True)
    monkeypatch.chdir(tmp_path)  # a relative path is a place of this machine, too
    assert "path" not in load_latent_diffusion("whole").config["text"]["tokens"]
    given = dict(tokens=dict(path=encoder, tokenizer=apart))
    for other in (
        load_latent_diffusion(tmp_path / "whole"),
        load_latent_diffusion(run / "latent_diffusion", text_encoders=given),
        load_latent_diffusion(run / "latent_diffusion", text_encoders=dict(tokens=bert)),
    ):
        assert torch.equal(other("a cat"), drawn)
