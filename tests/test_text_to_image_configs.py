"""The configs of text to image hold the paper's numbers and minFM's recipe, and train in small on captioned pictures.

What holds for every config, such as the epochs in its docstring, is in tests/test_configs.py.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

import aligntok
from aligntok.diffusion.times import shift_of
from aligntok.training.config import load_config
from aligntok.training.generation import expand_generation
from aligntok.training.run import run

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs" / "text_to_image"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
TOKENIZERS = {"aligntok": (32, 1), "flux_vae": (16, 2), "vavae": (32, 1)}
TOKENS = {"256": (11, 247, 264), "512": (23, 1008, 1040)}


def stage_of(name):
    return expand_generation(load_config(FOLDER / f"{name}.py"))


def test_there_is_each_tokenizer_at_both_sizes_and_two_of_our_own():
    of_the_paper = {f"flux_2b_{tokenizer}_{side}" for tokenizer in TOKENIZERS for side in TOKENS}
    assert {*NAMES} == of_the_paper | {"flux_600m_aligntok_256", "flux_small_aligntok_256"}


@pytest.mark.parametrize("side", TOKENS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_the_papers_generator_has_its_size_batch_and_recipe(tokenizer, side):
    stage = stage_of(f"flux_2b_{tokenizer}_{side}")
    settings, model = stage.settings, stage.build_model()
    generator, (channels, patch) = model.generator, TOKENIZERS[tokenizer]
    assert (generator.in_channels, generator.patch_size) == (channels, patch)
    own = sum(parameter.numel() for parameter in generator.parameters())
    packed = channels * patch**2  # in img_in and final_layer: of the published count, that of 32 channels
    assert own - 2 * 2048 * packed - packed == 1_965_931_552 - 2 * 2048 * 32 - 32
    assert (settings.steps, settings.global_batch_size) == {"256": (200_000, 2048), "512": (90_000, 512)}[side]
    assert (settings.optimizer["lr"], settings.optimizer["weight_decay"]) == (1e-4, 0.01)
    assert (settings.clip_grad_norm, settings.skip_norm, settings.skip_after) == (1.0, 2.0, 1000)
    assert settings.ema.decays == [0.999, 0.9999]
    assert settings.transport.direction_weight == 0
    sampling = settings.sampling
    assert (sampling.sampler, sampling.steps, sampling.cfg_scale, sampling.preserve_energy) == ("ddim", 50, 5.0, True)
    assert model.diffusion.condition.dropout == 0.1
    if side == "512":
        assert settings.init_from.folder == f"work_dirs/flux_2b_{tokenizer}_256"
        assert {*settings.init_from.take} == {"weights", "averages", "optimizer"}
    else:
        assert settings.init_from is None


@pytest.mark.parametrize("name", NAMES)
def test_every_shape_has_about_as_many_tokens_and_the_shift_is_theirs(name):
    from aligntok.data.buckets import AspectBuckets

    stage = stage_of(name)
    sizes = AspectBuckets(stage.settings.data.train["image_size"]).sizes
    number, least, most = TOKENS[name.rpartition("_")[2]]
    tokens = [height // 16 * (width // 16) for height, width in sizes]
    assert (len(sizes), min(tokens), max(tokens)) == (number, least, most)
    shift = shift_of(stage.settings.transport.shift, (16, 16), stage.build_model().generator)
    assert shift == pytest.approx(0.6065 if stage.build_model().generator.patch_size == 1 else 0.6266, abs=1e-4)


@pytest.mark.parametrize("name", ["flux_small_aligntok_256"])
def test_a_small_copy_trains_on_captioned_pictures(name, classes, tiny_tokenizer, text_model, tmp_path):
    shutil.copytree(classes / "train", tmp_path / "photos")
    files = sorted(path.relative_to(tmp_path / "photos").as_posix() for path in (tmp_path / "photos").rglob("*.png"))
    with (tmp_path / "photos/captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "caption"], *([each, each.partition("/")[0]] for each in files)])
    text = dict(type="clip_text", path=str(text_model("clip")))
    small = {
        "work_dir": str(tmp_path / "run"),
        "data_root": str(tmp_path / "photos"),
        "tokenizer": str(tiny_tokenizer),
        "generator.in_channels": 4,
        "generator.hidden_size": 32,
        "generator.num_heads": 2,
        "generator.depth": 1,
        "generator.depth_single_blocks": 1,
        "generator.context_in_dim": 32,
        "generator.vec_in_dim": 32,
        "generator.text.tokens": text,
        "generator.text.pooled": text,
        "data.train.image_size": dict(side=32, multiple_of=8),
        "data.workers": 0,
        "global_batch_size": 4,
        "steps": 2,
        "precision": "fp32",
        "sampling.steps": 2,
        "log.pictures_every": None,
    }
    run(load_config(FOLDER / f"{name}.py", small))
    assert list((tmp_path / "run/generation/pictures").glob("*.png"))
    assert aligntok.load_latent_diffusion(tmp_path / "run")("a bee").shape == (1, 3, 32, 32)
