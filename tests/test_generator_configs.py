"""The shipped generator configs hold the paper's numbers, go with their tokenizers, and train.

What holds for every config, such as the epochs in its docstring, is in tests/test_configs.py.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aligntok.caching import cache_latents
from aligntok.caching.settings import CacheRequest
from aligntok.diffusion.settings import TransportSettings
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.tokenizer import Tokenizer
from aligntok.training.config import load_config
from aligntok.training.generation import expand_generation
from aligntok.training.plan import plan_stage
from aligntok.training.run import run

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs" / "generator"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
DEMO = ROOT / "configs/demo/tiny_imagenet_generator.py"
IN_SMALL = [ROOT / "configs/small/generator.py", ROOT / "configs/small/gpu_generator.py"]
EVERY = [*(FOLDER / f"{name}.py" for name in NAMES), DEMO, *IN_SMALL]
ALIGNTOK = [name for name in NAMES if "aligntok" in name]
OF_THE_PAPER = [name for name in NAMES if "rae" not in name]  # RAE's manner is in tests/test_baseline_configs.py

BASE, LONG = "lightningdit_xl_aligntok_f16d32_64ep", "lightningdit_xl_aligntok_f16d32_800ep"
UNCONDITIONAL = "lightningdit_xl_aligntok_f16d32_unconditional"
#: Parameters, steps, guidance scale and where the guided interval begins; VA-VAE's are the same.
RECIPES = {
    BASE: (674_961_824, 80_000, 10.0, 0.10),
    LONG: (674_961_824 + 28 * 2 * 72, 1_000_000, 6.7, 0.125),  # QKNorm: a weight a channel of a head, twice a block
    UNCONDITIONAL: (674_961_824 - 1000 * 1152, 80_000, 1.0, None),
    "lightningdit_xl_aligntok_f16d64_64ep": (674_961_824 + 32 * (2 * 1152 + 1), 80_000, 10.0, 0.10),
    "lightningdit_b_aligntok_f16d32_100k": (130_359_584, 100_000, 10.0, 0.10),
}
#: gFID of the paper's Table 4 (without, with guidance; 250 steps) and of its Table 3 (30 steps).
RESULTS = {
    "xl_aligntok_f16d32_64ep": ("3.71", "1.90", "4.05", "2.17"),
    "xl_aligntok_f16d32_800ep": ("2.04", "1.37"),
    "xl_aligntok_f16d32_unconditional": ("11.80",),
    "xl_aligntok_f16d64_64ep": ("5.24", "2.34"),
    "xl_vavae_f16d32_64ep": ("5.14", "2.11", "7.79", "3.13"),
    "xl_vavae_f16d32_800ep": ("2.50", "1.52", "2.17", "1.35"),
    "xl_vavae_f16d32_unconditional": ("19.12",),
    "xl_vavae_f16d64_64ep": ("12.23", "3.20"),
}


def generation_of(name):
    generation = expand_generation(load_config(FOLDER / f"{name}.py"))
    assert generation is not None
    return generation


def docstring(path):
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def commands(path):
    """The command lines of a docstring, as words, from the tool on."""
    source = path.read_text().split('"""')[1].replace("\\\n", " ")
    lines = (line for line in source.splitlines() if re.match(r" +(python|torchrun) ", line))
    words = [shlex.split(line) for line in lines]
    return [line[next(i for i, word in enumerate(line) if word.startswith("tools/")) :] for line in words]


def channels(path):
    return load_config(path)["generator"]["in_channels"]


def ids(paths):
    return [path.stem for path in paths]


# What they say


def test_every_config_that_trains_a_generator_alone_is_looked_at_here():
    paths = [p for p in (ROOT / "configs").rglob("*.py") if "_base_" not in p.relative_to(ROOT).parts]
    paths = [p for p in paths if "\ntokenizers = dict(" not in p.read_text()]  # a comparison trains those of others
    paths = [p for p in paths if p.parent.name != "text_to_image"]  # tests/test_text_to_image_configs.py
    assert sorted(p for p in paths if not load_config(p)["stages"]) == sorted(EVERY)


@pytest.mark.parametrize("path", EVERY, ids=ids(EVERY))
def test_the_commands_make_a_cache_of_the_configs_latents_and_train_on_it(path):
    cache, train, *_ = commands(path)
    assert (cache[0], train[:2]) == ("tools/cache_latents.py", ["tools/train.py", str(path.relative_to(ROOT))])
    tokenizer, _, latents = cache[1:4]
    assert train[2:] == ["--cfg-options", f"data_root={latents}"]
    assert cache[4:6] == ["--split", "train"], "the folder of ImageNet has val/ too"
    assert load_config(path).get("tokenizer") in (tokenizer, None), "None: the cache names its own"


def test_caches_of_different_tokenizers_have_different_names():
    caches = [commands(path)[0] for path in EVERY]
    tokenizer_of = {}
    for cache in caches:
        assert tokenizer_of.setdefault(cache[3], cache[1]) == cache[1]
    assert len(set(tokenizer_of.values())) == len(tokenizer_of)


@pytest.mark.parametrize("path", EVERY, ids=ids(EVERY))
def test_the_size_of_the_cache_in_its_docstring_is_right(path):
    config = load_config(path)
    generator = config["generator"]
    values = (
        2 * config["data"]["nominal_images"] * generator["in_channels"] * generator["input_size"] ** 2
    )  # and mirrored
    said = re.findall(r"(\d+) ([MG])B\b", docstring(path))
    sizes = [float(number) * {"M": 1e6, "G": 1e9}[unit] for number, unit in said]
    assert sizes
    assert sizes == pytest.approx([4 * values, 2 * values][: len(sizes)], rel=0.01)


@pytest.mark.parametrize("name", RESULTS)
def test_the_papers_results_are_in_the_docstring(name):
    expected = " ".join(docstring(FOLDER / f"lightningdit_{name}.py").split()).partition("Expected (paper): gFID")[2]
    assert re.findall(r"\d+\.\d\d", expected) == list(RESULTS[name])
    assert "Not yet run here" in expected
    assert ("250 sampling steps (Table 4)" in expected) == (name.endswith("800ep") or "f16d32_64ep" in name)
    assert ("(Table 3)" in expected) == (not name.endswith("800ep"))


# What they train


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_steps_and_guidance_are_the_papers(name):
    parameters, steps, scale, begin = RECIPES[name]
    generation = generation_of(name)
    plan = plan_stage(generation, processes=8)
    assert plan.parameters == {"generator": (parameters, 0)}
    assert (plan.steps, plan.images_seen) == (steps, steps * 1024)
    sampling = generation.settings.sampling
    assert (sampling.steps, sampling.sampler, sampling.shift) == (30, "euler", 0.3)
    assert (sampling.cfg_scale, sampling.preserve_energy) == (scale, False)
    guided = (None, None) if begin is None else ((begin, 1.0), 3)
    assert (sampling.cfg_interval, sampling.cfg_channels) == guided


def test_the_default_is_the_papers_xl_with_675_million():
    model = generation_of(BASE).build_model().generator
    assert sum(p.numel() for p in model.parameters()) == 674_961_824
    assert sum(p.numel() for p in (*model.parameters(), *model.buffers())) == 675_256_736


def test_64_epochs_are_80_thousand_steps_and_800_epochs_a_million():
    assert plan_stage(generation_of(BASE), processes=1).epochs == pytest.approx(63.94, abs=0.005)
    assert plan_stage(generation_of(LONG), processes=1).epochs == pytest.approx(799.27, abs=0.005)


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_optimiser_average_and_flow_are_the_published_ones(name):
    generation = generation_of(name)
    assert generation.settings.optimizer == dict(type="AdamW", lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0)
    assert (generation.settings.global_batch_size, generation.settings.precision) == (1024, "bf16")
    assert generation.settings.schedule is None
    assert generation.settings.clip_grad_norm is None
    ema = generation.settings.ema
    assert (ema.sigma_rel, ema.decays, ema.inference) == ([], [0.9999], 0.9999)
    assert generation.settings.transport == TransportSettings(
        times="logit_normal", mean=0.0, scale=1.0, shift=1.0, direction_weight=1.0
    )
    assert generation.settings.data.nominal_images == 1_281_167


@pytest.mark.parametrize("path", EVERY, ids=ids(EVERY))
def test_runs_of_over_200_thousand_steps_have_qknorm_and_no_others(path):
    config = load_config(path)
    assert config["generator"].get("use_qknorm", False) == (config["steps"] > 200_000)


@pytest.mark.parametrize("name", ALIGNTOK)
def test_va_vae_is_compared_under_the_same_conditions(name):
    ours, other = generation_of(name), generation_of(name.replace("aligntok", "vavae"))
    assert ours.settings == replace(other.settings, tokenizer=ours.settings.tokenizer)
    assert "vavae" in other.settings.tokenizer != ours.settings.tokenizer
    assert re.search(r"f16d\d\d", other.settings.tokenizer)[0] == re.search(r"f16d\d\d", name)[0]


@pytest.mark.parametrize("name", ALIGNTOK)
def test_aligntoks_latents_are_those_of_its_config(name):
    tokenizer = ROOT / "configs" / f"{Path(generation_of(name).settings.tokenizer).name}.py"
    assert generation_of(name).settings.tokenizer == load_config(tokenizer)["work_dir"]
    assert load_config(tokenizer)["model"].get("latent_dim") == channels(FOLDER / f"{name}.py")


# That they train

CNN = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), resolution=8)
SMALL = {
    "generator.depth": 1,
    "generator.hidden_size": 32,
    "generator.num_heads": 2,
    "generator.input_size": 4,
    "global_batch_size": 2,
    "precision": "fp32",
    "log.pictures": 2,
    "log.every": 1,
    "sampling.steps": 4,
}


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """Make, once for each number of channels, a tiny tokenizer and the latents (d, 4, 4) of eight images in classes."""
    root, rng, made = tmp_path_factory.mktemp("latents"), np.random.default_rng(0), {}
    for number in range(8):
        path = root / "photos" / ("ant", "bee", "zebra")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)

    def of(latent_dim):
        if latent_dim not in made:
            torch.manual_seed(0)
            encoder = {**CNN, "pretrained": False, "double_z": False}
            Tokenizer(encoder, dict(type="mlp"), CNN, latent_dim, 2).save_pretrained(root / f"tokenizer{latent_dim}")
            sources = root / f"tokenizer{latent_dim}", root / "photos", root / f"latents{latent_dim}"
            made[latent_dim] = (
                sources[0],
                cache_latents(
                    CacheRequest(
                        tokenizer=sources[0], data=sources[1], out=sources[2], image_size=8, batch_size=4, workers=0
                    )
                ),
            )
        return made[latent_dim]

    return of


@pytest.mark.parametrize("path", EVERY, ids=ids(EVERY))
def test_a_small_copy_trains_and_draws_pictures(path, latents, tmp_path):
    tokenizer, cache = latents(channels(path))
    places = {"work_dir": str(tmp_path / "run"), "data_root": str(cache), "tokenizer": str(tokenizer)}
    folder = run(load_config(path, {**SMALL, **places, "steps": 2, "compile": False}))  # a test would wait for it
    described = json.loads((tmp_path / "run/generation/stage.json").read_text())
    whole = json.loads(json.dumps(asdict(expand_generation(load_config(path)).settings)))
    assert described["ema"] == whole["ema"]
    assert described["sampling"] == {**whole["sampling"], "steps": SMALL["sampling.steps"]}
    assert len(list((tmp_path / "run/generation/pictures").glob("*.png"))) == 1
    trained = LatentDiffusion.from_pretrained(folder)
    assert all(parameter.isfinite().all() for parameter in trained.generator.parameters())
    assert trained.condition.conditional == ("unconditional" not in path.stem)
