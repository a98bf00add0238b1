"""Stages are data: what a config's stages become, and what is said about each mistake in them."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aligntok.errors import AlignTokError, ConfigError
from aligntok.training.alignment import expand_stages
from aligntok.training.config import check_config, load_config
from aligntok.training.generator_settings import GeneratorSettings
from aligntok.training.plan import plan_stage
from aligntok.training.settings import EMASettings, StageSettings
from aligntok.training.stages import merge


@pytest.fixture
def config(tiny):
    """A checked config of the tiny three-stage run, without data."""
    return dict(
        work_dir="runs/x",
        seed=7,
        data_root="photos",
        model=tiny["model"],
        discriminator=tiny["discriminator"],
        losses=tiny["losses"],
        data=dict(train=dict(image_size=32), val=None),
        global_batch_size=4,
        stages=[{**stage, "steps": 3 + i} for i, stage in enumerate(tiny["stages"])],
    )


def plan_run(config):
    check_config(config, "a.py")
    return [plan_stage(stage, processes=1) for stage in expand_stages(config)]


def mistake(config, **changes):
    """The message of the error that a changed config meets before anything is trained."""
    with pytest.raises(AlignTokError) as caught:
        plan_run({**config, **changes})
    return f"{type(caught.value).__name__}: {caught.value}"


def one_stage(**changes):
    return [{"name": "only", "steps": 1, **changes}]


def test_a_stage_is_the_top_of_the_config_with_its_own_dicts_merged_in(config):
    first, second, third = expand_stages(config)
    assert [stage.name for stage in (first, second, third)] == [stage["name"] for stage in config["stages"]]
    assert [stage.settings.steps for stage in (first, second, third)] == [3, 4, 5]
    assert first.settings.losses["gan"] == {**config["losses"]["gan"], "start_step": 2}
    assert "start_step" not in second.settings.losses["gan"]
    assert list(second.settings.losses) == ["l1", "gan", "semantic"]
    assert first.settings.trainable == ["adapter", "decoder"]
    assert second.settings.trainable == ["encoder", "adapter", "decoder"]
    assert [stage.seed for stage in (first, second, third)] == [7, 8, 9]
    assert [str(stage.folder) for stage in (first, third)] == [
        "runs/x/1_latent_alignment",
        "runs/x/3_decoder_refinement",
    ]
    assert first.settings.data.train == {"type": "images", "root": "photos", "image_size": 32}


def test_every_key_has_its_default_in_every_stage(config):
    (stage,) = expand_stages({**config, "stages": one_stage(optimizer=dict(lr=3.0), ema=dict(inference=0.1))})
    assert stage.settings.optimizer == {"type": "Adam", "lr": 3.0, "betas": (0.5, 0.9)}
    assert stage.settings.ema == EMASettings(sigma_rel=[0.05, 0.10], decays=[], inference=0.1, snapshot_every=None)
    assert (stage.settings.gradient_accumulation_steps, stage.settings.log.every) == (1, 50)


def test_default_keywords_belong_to_the_default_type_only():
    losses = {"l1": {"type": "l1"}}
    stage = StageSettings(steps=1, losses=losses, optimizer={"type": "SGD", "lr": 1.0}, ema=None)
    assert (stage.optimizer, stage.ema) == ({"type": "SGD", "lr": 1.0}, None)
    generator = GeneratorSettings(steps=1, generator={"type": "lightning_dit"}, ema={"sigma_rel": [0.1]})
    assert (generator.ema.decays, generator.ema.sigma_rel, generator.data.workers) == ([0.9999], [0.1], 0)


def test_expanding_changes_nothing_and_gives_the_same_again(config):
    before = copy.deepcopy(config)
    first = expand_stages(config)
    first[0].settings.losses["l1"]["weight"] = 9
    first[0].settings.model["encoder"]["pretrained"] = "changed"
    assert config == before
    assert expand_stages(config)[1:] == first[1:]


def test_delete_replaces_and_none_removes(config):
    config["stages"][0]["losses"] = dict(gan=None)
    config["stages"][1]["losses"] = dict(_delete_=True, l1=dict(type="l1", weight=3))
    first, second, third = expand_stages(config)
    assert list(first.settings.losses) == ["l1"]
    assert second.settings.losses == {"l1": {"type": "l1", "weight": 3}}
    assert list(third.settings.losses) == ["l1", "gan"]


def test_a_start_is_the_folder_of_the_stage_it_names(config):
    first, second, third = expand_stages(config)
    assert first.start_folder is None
    assert (second.start_folder, third.start_folder) == (first.folder, second.folder)
    assert third.settings.init_from.weights == "ema"


def test_weights_come_from_the_earlier_stage_and_not_from_a_hub(config):
    config["model"]["encoder"]["pretrained"] = True
    pretrained = [stage.settings.model["encoder"]["pretrained"] for stage in expand_stages(config)]
    assert pretrained == [True, False, False]


def test_a_stage_can_begin_from_another_run(config, tmp_path):
    for name in ("1_alignment", "2_latent_alignment"):
        (tmp_path / name).mkdir()
    start = dict(stage="alignment", work_dir=str(tmp_path))
    (stage,) = expand_stages({**config, "stages": one_stage(init_from=start)})
    assert stage.start_folder == tmp_path / "1_alignment"
    start["stage"] = "refinement"
    assert f"those in {tmp_path}: alignment, latent_alignment" in mistake(config, stages=one_stage(init_from=start))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(global_bach_size=4), ["a.py: no key named 'global_bach_size'", "did you mean 'global_batch_size'?"]),
        (
            dict(ema=dict(sigma=0.1)),
            ["a.py, ema: no key named 'sigma'", "known: decays, inference, sigma_rel"],
        ),
        (dict(checkpoint=dict(evry=1)), ["a.py, checkpoint", "did you mean 'every'?"]),
        (dict(data=dict(worker=1)), ["a.py, data", "did you mean 'workers'?"]),
        (dict(model=dict(latent_dims=4)), ["no key named 'latent_dims'", "did you mean 'latent_dim'?"]),
        (dict(optimizer=dict(leaning_rate=1)), ["optimiser 'Adam' takes no keyword named 'leaning_rate'", "lr"]),
        (dict(optimizer=dict(type="Adm", lr=1)), ["no optimiser named 'Adm'", "did you mean 'Adam'?"]),
        (dict(discriminator=dict(type="patchgn")), ["no discriminator named 'patchgn'", "did you mean 'patchgan'?"]),
        (
            dict(losses=dict(l1=dict(type="l1", wieght=1))),
            ["loss 'l1' takes no keyword named 'wieght'", "did you mean 'weight'?"],
        ),
        (dict(data=dict(train=dict(image_sise=32))), ["data.train", "did you mean 'image_size'?"]),
        (dict(losses=dict(l1=dict(type="l1"), gan=dict(type="gn"))), ["no loss named 'gn'", "did you mean 'gan'?"]),
        (dict(hooks=[dict(type="nohook")]), ["no hook named 'nohook'"]),
    ],
)
def test_a_typo_names_the_nearest_right_key(config, changes, said):
    message = mistake(config, **changes)
    for words in said:
        assert words in message


def test_a_typo_inside_a_stage_says_which_stage(config):
    config["stages"][1]["step"] = 3
    assert "a.py, stages[1]: no key named 'step'" in mistake(config)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(stages=[]), "a.py has nothing to train: give stages=[dict(name=..., steps=..., ...)]"),
        (dict(stages=["latent"]), "stages[0] is 'latent'; it must be dict(name=..., steps=..., ...)"),
        (dict(stages=[dict(steps=1)]), "stages[0] has no name"),
        (dict(stages=[dict(name="a/b", steps=1)]), "stages[0] has no name that a folder could have"),
        (dict(stages=2 * one_stage()), "stages need different names, not ['only', 'only']"),
        (dict(stages=[dict(name="only")]), "stage 'only': steps is not given; it must be int of at least 1"),
        (dict(stages=one_stage(steps=0)), "stages[0]: steps=0; it must be int of at least 1"),
        (dict(stages=one_stage(steps=1.5)), "steps=1.5 is float; it must be int"),
        (dict(stages=one_stage(losses=dict(l1=None, gan=None, semantic=None))), "stage 'only': it has no losses"),
        (
            dict(stages=one_stage(init_from=dict(stage="later"))),
            "begins from stage 'later'; the stages before it: none",
        ),
        (dict(stages=one_stage(trainable=["decodr"])), "trainable=['decodr']; it must be list of 'encoder', 'adapter'"),
        (dict(stages=one_stage(trainable="decoder")), "trainable='decoder' is str; it must be list of"),
        (
            dict(trainable=["adapter"]),
            "has an adaptive_weight at the decoder's last layer, but this stage trains only adapter",
        ),
        (
            dict(losses=dict(gan=dict(type="gan", adaptive_weight=dict(at="encoder")))),
            "pulls on the image, so its adaptive_weight is at='decoder', not",
        ),
        (
            dict(losses=dict(gan=dict(type="gan", adaptive_weight=dict(at="image")))),
            "loss 'gan': adaptive_weight.at='image'; it must be 'decoder' or 'encoder'",
        ),
        (
            dict(losses=dict(gan=dict(type="gan", adaptive_weight="decoder"))),
            "loss 'gan': adaptive_weight='decoder' is str; it must be dict or None",
        ),
        (
            dict(losses=dict(gan=dict(type="gan", balance=dict(at="decoder")))),
            "loss 'gan': no key named 'balance'; it is called 'adaptive_weight' now",
        ),
        (
            dict(losses=dict(gan=dict(type="gan", adaptive_weight=dict(at="decoder", max_ratio=1)))),
            "loss 'gan', adaptive_weight: no key named 'max_ratio'; it is called 'max' now",
        ),
        (dict(accumulation=2), "a.py: no key named 'accumulation'; it is called 'gradient_accumulation_steps' now"),
        (dict(stages=one_stage(trains=[])), "stages[0]: no key named 'trains'; it is called 'trainable' now"),
        (dict(stages=one_stage(start=None)), "stages[0]: no key named 'start'; it is called 'init_from' now"),
        (dict(data=dict(num_images=1)), "a.py, data: no key named 'num_images'; it is called 'nominal_images' now"),
        (dict(losses=dict(l1="l1")), "loss 'l1' must be dict(type=..., ...), not 'l1'"),
        (dict(losses=dict(l1=dict(type="l1", weight="1"))), "loss 'l1': weight='1' is str; it must be int or float"),
        (dict(discriminator=None), "a loss takes the discriminator's logits, but discriminator is None"),
        (dict(teacher=None), "a loss compares with a teacher's latents, but teacher is None"),
        (dict(teacher="begin"), "teacher='begin'; it must be 'start' or dict or None"),
        (dict(precision="fp8"), "precision='fp8'; it must be 'fp32', 'tf32', 'bf16', 'fp16' or 'auto'"),
        (dict(global_batch_size=0), "global_batch_size=0; it must be int of at least 1"),
        (dict(gradient_accumulation_steps=0), "gradient_accumulation_steps=0; it must be int of at least 1"),
        (dict(gradient_accumulation_steps=3), "global_batch_size 4 is not divisible by 3"),
        (dict(checkpoint=dict(keep=0)), "checkpoint.keep=0; it must be int of at least 1"),
        (dict(log=dict(pictures_every=0)), "log.pictures_every=0; it must be int of at least 1 or None"),
        (dict(clip_grad_norm=-1.0), "clip_grad_norm=-1.0; it must be int or float above 0 or None"),
        (dict(ema=dict(sigma_rel=[0.1])), "ema.inference=0.05 is not among the averages kept, sigma_rel=[0.1]"),
        (dict(ema=dict(sigma_rel=[0.4], inference=0.4)), "EMA width sigma_rel=0.4; it must lie in (0, 0.28]"),
        (dict(data=dict(train=dict(image_size=36), val=None)), "its sides must be multiples of f = 8"),
        (dict(hooks=["progress"]), "hooks holds 'progress'; each must be dict(type=..., ...)"),
    ],
)
def test_each_mistake_is_one_clear_error_before_training(config, changes, said):
    config["stages"] = one_stage()
    config["losses"]["semantic"] = dict(type="semantic_preservation", adaptive_weight=dict(at="encoder"))
    assert said in mistake(config, **{"teacher": "start", **changes})


def test_weights_of_a_start_are_raw_or_ema(config):
    config["stages"][1]["init_from"]["weights"] = "emma"
    assert "init_from.weights='emma'; did you mean 'ema'? it must be 'raw' or 'ema'" in mistake(config)


def test_factors_that_do_not_fit_are_an_error(config):
    config["model"]["downsample_factor"] = 16
    assert "decoder LDMDecoder scales by 8, but the tokenizer's downsample_factor is 16" in mistake(config)


def test_options_of_the_command_line_are_checked_like_the_file(write_config):
    path = write_config()
    loaded = load_config(path, {"stages.1.steps": 9, "optimizer.lr": 0.5, "work_dir": "there"})
    assert (loaded["stages"][1]["steps"], loaded["optimizer"]["lr"], loaded["work_dir"]) == (9, 0.5, "there")
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        load_config(path, {"sed": 1})
    with pytest.raises(ConfigError, match="no config file nowhere.py"):
        load_config("nowhere.py")


def test_a_run_is_named_after_its_config_unless_told(write_config):
    assert load_config(write_config("my_recipe"))["work_dir"] == "work_dirs/my_recipe"


trees = st.recursive(
    st.integers(0, 3), lambda below: st.dictionaries(st.sampled_from("abc"), below, max_size=3), max_leaves=6
)
dicts = st.dictionaries(st.sampled_from("abc"), trees, max_size=3)


@settings(max_examples=60, deadline=None)
@given(base=dicts, over=dicts)
def test_merging_keeps_what_is_not_overridden_and_changes_neither(base, over):
    copies = copy.deepcopy((base, over))
    merged = merge(base, over)
    assert (base, over) == copies
    assert merge(merged, over) == merged
    assert set(merged) == set(base) | set(over)
    for key, value in over.items():
        if not isinstance(value, dict):
            assert merged[key] == value
    for key in set(base) - set(over):
        assert merged[key] == base[key]
    assert merge(base, {**over, "a": {"_delete_": True, "b": 1}})["a"] == {"b": 1}


def test_a_stage_folder_says_its_place_and_name(config):
    folders = [str(stage.folder) for stage in expand_stages(config)]
    assert folders == [f"runs/x/{i}_{stage['name']}" for i, stage in enumerate(config["stages"], 1)]


def test_held_out_images_are_taken_from_all_of_a_sorted_data_set():
    from aligntok.data.sampler import evenly_spaced

    assert evenly_spaced(10, 5) == [0, 2, 4, 6, 8]
    assert evenly_spaced(7, 3) == [0, 2, 4]
    assert evenly_spaced(3, 8) == [0, 1, 2]


# What is found on the meta device, before anything is loaded


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            dict(schedule=[dict(type="LinearLR", start_facto=0.1)]),
            "schedule: LinearLR takes no keyword named 'start_facto'; did you mean 'start_factor'",
        ),
        (
            dict(schedule=[dict(type="OneCycleLR", eta_max=1e-3, total_steps=9)]),
            "OneCycleLR cannot be saved with a chec",
        ),
        (dict(schedule=[dict(type="LinearMomentum", end=9)]), "LinearMomentum cannot be saved with a checkpoint"),
        (dict(schedule=[dict(type="WarmLR")]), "schedule: .*WarmLR.* is no scheduler of mmengine"),
        (dict(compile=dict(backnd="eager")), "compile takes no keyword named 'backnd'; did you mean 'backend'"),
        (
            dict(losses=dict(lpips=dict(type="lpips", pretrained=False)), size=8),
            "LPIPSLoss needs images of at least 16 pixels",
        ),
    ],
)
def test_what_would_fail_at_the_first_step_fails_before_it(tiny, change, said):
    size = change.pop("size", 32)
    data = dict(train=dict(type="images", root="nowhere", image_size=size))
    base = dict(model=tiny["model"], losses=dict(l1=dict(type="l1")), data=data, discriminator=None)
    config = {"work_dir": "w", "seed": 0, "stages": [dict(name="one", steps=2)], **base, **change}
    with pytest.raises(ConfigError, match=said):
        plan_stage(expand_stages(config)[0], processes=1)


def test_a_config_that_python_cannot_read_is_one_clear_error(tmp_path):
    for text in ("steps = (", "_base_ = ['nowhere.py']", "raise RuntimeError('x')"):
        (tmp_path / "broken.py").write_text(text)
        with pytest.raises(ConfigError, match=r"broken\.py cannot be read: \w+"):
            load_config(tmp_path / "broken.py")
