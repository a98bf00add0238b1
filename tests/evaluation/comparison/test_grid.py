"""A grid is alike for every tokenizer, its best options are those of the main trainings: the documentation's config."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from aligntok.cli import compare
from aligntok.device import precision_taken
from aligntok.errors import ConfigError, DataError
from aligntok.evaluation.comparison import budget
from aligntok.evaluation.comparison.grid import choose, grid_table
from aligntok.evaluation.comparison.plan import read_comparison
from aligntok.evaluation.comparison.records import DEFAULT, Made, Record, made_with, read_record
from aligntok.evaluation.results import read_result

PAGE = Path(__file__).parents[3] / "docs" / "comparisons.md"
TITLE = "EfficientNetLite2-96px"
#: What of the page's config is of another size here.
CHANGED = {
    'dict(type="efficientnet_lite2", size=96)': '"tiny_extractor.TinyExtractor"',
    TITLE: "Tiny",
    'dict(type="efficientnet_lite0", stride=8)': "dict(type='timm', model_name='vit_tiny_patch16_224', "
    "pretrained=False, model_args=dict(depth=1, embed_dim=48, num_heads=3))",
    "image_size = 64": "image_size = 32",
    "num_samples=2500": "num_samples=12",
    "every=1000": "every=2",
    "seeds = [0, 1]": "seeds = [0]",
    '{"stages.0.steps": 600}': '{"stages.0.steps": 3}',
    '{"stages.0.steps": 200, "stages.1.steps": 400}': '{"stages.0.steps": 1, "stages.1.steps": 2}',
    ', {"optimizer.lr": 3e-4}]': "]",
    'generator={"steps": 500}': 'generator={"steps": 2}',
}
SPLITS = dict(
    train=dict(type="images", split="train", image_size=32),
    val=dict(type="images", split="val", image_size=32),
    workers=0,
)


@pytest.fixture(scope="module")
def config(config_source, generation_source, labelled, extractors, tmp_path_factory):
    """The config of the documentation, of small things, with the trainings that it names."""
    folder = tmp_path_factory.mktemp("grid")
    (text,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for old, new in CHANGED.items():
        assert old in text, old
        text = text.replace(old, new)
    text += f"data_root = {str(labelled)!r}\nprobe = dict(epochs=1)\nworkers = 0\nnum_val = 22\n"
    (folder / "comparison.py").write_text(text)
    kl = dict(l1=dict(type="l1"), kl=dict(type="l1", weight=1e-3))
    semantic = dict(l1=dict(type="l1"), semantic=dict(type="l1", weight=0.2))
    one, two = dict(name="all", steps=6), [dict(name="first", steps=2), dict(name="rest", steps=4)]
    two[1]["losses"] = dict(semantic=dict(weight=0.1))
    same = dict(data=SPLITS, ema=None, log=dict(every=1, pictures=0), discriminator=None)
    (folder / "vae.py").write_text(config_source(stages=[one], losses=kl, **same))
    for name in ("aligned", "random_encoder"):
        (folder / f"{name}.py").write_text(config_source(stages=two, losses=semantic, **same))
    generator = generation_source(steps=4, sampling=dict(steps=2), precision="auto")
    (folder / "generator.py").write_text(generator.replace("'num_classes': 3", "'num_classes': 2"))
    return folder / "comparison.py"


@pytest.fixture
def plan(config):
    return read_comparison(config, {"grid.tokenizers": GRID, "grid.shared": SHARED})


SHARED = [{"optimizer.lr": 1e-3}, {"optimizer.lr": 3e-4}]
GRID = dict(
    vae=dict(options=[{"losses.kl.weight": 1.0}, {"losses.kl.weight": 2.0}], shorter={"stages.0.steps": 3}),
    aligned=dict(
        options=[{"losses.semantic.weight": 0.3}, {"losses.semantic.weight": 0.4}],
        shorter={"stages.0.steps": 1, "stages.1.steps": 2},
    ),
    control=dict(like="aligned"),
)


def of(value):
    return Record("any", Made({}), {"psnr": 20.0}, 2, {"unguided/FD-Tiny": {1: 0.0, 2: value}})


def test_every_set_of_own_options_is_tried_with_every_shared_one(plan):
    arms = plan.grid_arms()
    assert [arm.title for arm in arms] == [f"grid_{name}_{i}" for name in ("vae", "aligned") for i in range(4)]
    tried = [(arm.options["losses.kl.weight"], arm.options["optimizer.lr"]) for arm in arms[:4]]
    assert tried == [(1.0, 1e-3), (1.0, 3e-4), (2.0, 1e-3), (2.0, 3e-4)]
    assert {arm.seed for arm in arms} == {2}
    assert [plan.tokenizer_budget(arm).steps for arm in (arms[0], arms[4])] == [(3,), (1, 2)]
    short = plan.generator_config(arms[0], [])
    assert (short["steps"], short["validation"]["every"], list(short["validation"]["variants"])) == (
        2,
        None,
        ["unguided"],
    )
    assert plan.generator_config(plan.arms[0], [])["steps"] == 4


def test_what_is_measured_before_the_last_step_is_nothing_to_a_set_of_the_grid(config, plan):
    assert plan.settings.samples.between is not None
    validation = plan.generator_config(plan.grid_arms()[0], [])["validation"]
    assert (validation["every"], validation["between"]) == (None, None)
    all_of_it = read_comparison(config, {"grid.tokenizers": GRID, "grid.shared": SHARED, "samples.between": None})
    assert made_with(plan, plan.grid_arms()[0]) == made_with(all_of_it, all_of_it.grid_arms()[0])
    changes = made_with(plan, plan.arms[0]).differences(made_with(all_of_it, all_of_it.arms[0]))
    assert changes == {"measuring.samples.between.variants": (["unguided"], DEFAULT)}


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (dict(between=dict(variants=["unguided"])), "samples.between says what is measured before the last step, but"),
        (dict(every=2, between=dict(variants=["uncond"])), "samples.between.variants: no variant named 'uncond'"),
        (dict(every=2, between=dict(extractors=["lite2"])), "samples.between.extractors: no extractor named 'lite2'"),
        (dict(every=2, between=dict(extractors=[])), "samples.between.extractors=[]; it must be"),
    ],
)
def test_what_cannot_be_measured_on_the_way_is_refused(config, samples, message):
    changes = {"every": None, **samples}
    with pytest.raises(ConfigError) as caught:
        read_comparison(config, {f"samples.{key}": value for key, value in changes.items()})
    assert message in str(caught.value)


def test_the_lowest_is_taken_and_a_control_takes_what_is_shared_of_another(plan):
    values = [4, 3, 2, 3, 9, 1, 5, 5]
    found = choose(plan, {arm: of(value) for arm, value in zip(plan.grid_arms(), values, strict=True)})
    assert found == {
        "vae": {"optimizer.lr": 1e-3, "losses.kl.weight": 2.0},
        "aligned": {"optimizer.lr": 3e-4, "losses.semantic.weight": 0.3},
        "control": {"optimizer.lr": 3e-4},
    }
    (control,) = [arm for arm in plan.with_options(found).arms if arm.name == "control"]
    config = plan.tokenizer_config(control)
    assert config["optimizer"]["lr"] == 3e-4
    assert config["losses"]["semantic"]["weight"] == 0.2


def test_a_set_that_diverged_or_has_no_number_is_never_chosen(plan):
    sets = [of(math.nan), replace(of(0.0), diverged=True, curves={}), of(7.0), of(8.0), *map(of, (1, 1, 1, 1))]
    tried = dict(zip(plan.grid_arms(), sets, strict=True))
    assert choose(plan, tried)["vae"] == {"optimizer.lr": 1e-3, "losses.kl.weight": 2.0}
    rows = grid_table(plan, tried)
    assert [rows[1][column] for column in ("PSNR", plan.settings.grid.metric, "chosen")] == ["diverged", "diverged", ""]
    with pytest.raises(DataError, match="the grid found nothing for 'vae': all of its 4 sets diverged"):
        choose(plan, {**tried, **dict.fromkeys(plan.grid_arms()[:4], sets[1])})


def test_a_control_takes_all_of_another_where_it_says_so(config):
    whole = {**GRID, "control": dict(like="aligned", whole=True)}
    plan = read_comparison(config, {"grid.tokenizers": whole, "grid.shared": SHARED})
    found = choose(
        plan, {arm: of(value) for arm, value in zip(plan.grid_arms(), [4, 3, 2, 3, 9, 1, 5, 5], strict=True)}
    )
    assert found["control"] == found["aligned"] == {"optimizer.lr": 3e-4, "losses.semantic.weight": 0.3}


def test_nothing_is_chosen_before_all_sets_of_a_tokenizer_are_measured(plan):
    some = plan.grid_arms()[:7]
    assert choose(plan, {arm: of(1.0) for arm in some}).keys() == {"vae"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid.tokenizers.vae.options": [{}]}, "sets of options are not as many for each (vae 1, aligned 2)"),
        ({"grid.tokenizers.vae": {"options": [], "shorter": {}}}, "not as many for each (vae 0, aligned 2)"),
        ({"grid.seed": 0}, "seed 0 is one of seeds=[0], which are reported"),
        ({"grid.metric": "guided/FD-Tinny"}, "grid.metric: no metric named 'guided/FD-Tinny'; did you mean"),
        ({"grid.tokenizers.control.like": "alined"}, "no tokenizer named 'alined'; did you mean 'aligned'?"),
        ({"grid.tokenizers.control.options": [{}]}, "'control' has options or a shorter training and like='aligned'"),
        ({"grid.tokenizers.other": {"like": "vae"}}, "no tokenizer named 'other'"),
        ({"grid.tokenizers.vae.whole": True}, "'vae' takes the whole of no other; give like='...' beside whole=True"),
        ({"grid.tokenizers": {"vae": GRID["vae"], "_delete_": True}}, "nothing is tried of aligned, control"),
        (
            {"grid.tokenizers.vae.shorter": {"stages.0.steps": 2}},
            "comparison.py, grid: the tokenizers see different numbers of images (vae 0 8",
        ),
        ({"grid.shared": [{"optimiser.lr": 1e-3}]}, "no key named 'optimiser'; did you mean 'optimizer'?"),
        ({"grid.generator": {"step": 2}}, "no key named 'step'; did you mean 'steps'?"),
        ({"grid.shared": []}, "grid.shared=[]; it must be list of"),
        ({"grid.shared": [{"stages.0.steps": 9}]}, "stages.0.steps of 'vae' is in two of shorter, options and shared"),
        ({"grid.shared": [{"losses.kl.weight": 9.0}]}, "losses.kl.weight of 'vae' is in two of shorter, options and"),
    ],
)
def test_a_grid_that_is_not_alike_or_names_nothing_is_refused(config, change, message):
    with pytest.raises(ConfigError) as caught:
        read_comparison(config, {"grid.tokenizers": GRID, **change})
    assert message in str(caught.value)


@pytest.mark.slow
def test_the_documented_config_runs_on_tiny_data(config, capsys, monkeypatch):
    monkeypatch.setattr(budget, "TIMED_STEPS", 1)
    command = [str(config), "--work-dir", str(config.parent / "out")]
    assert compare([*command, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "Grid: 4 trainings before, of 12 images a tokenizer and 16 a generator" in told
    assert compare(command) == 0
    result = read_result(config.parent / "out" / "comparison.json")
    grid = result.tables["The grid"]
    assert len(grid) == 4
    assert [row["tokenizer"] for row in grid if row["chosen"]] == ["vae", "aligned"]
    for name in ("vae", "aligned"):
        records = [read_record(config.parent / "results" / f"grid_{name}_{number}.json") for number in range(2)]
        best = min(range(2), key=lambda number: records[number].value("unguided/FD-Tiny"))
        main = read_record(config.parent / "results" / f"{name}_seed_0.json")
        assert main.options.items() <= records[best].options.items()
        assert set(records[0].curves) >= {"unguided/FD-Tiny"}
        assert not any(metric.startswith("guided/") for metric in records[0].curves)
        assert main.made.precision == precision_taken("auto")
    assert result.settings["verdict"]
    capsys.readouterr()
    assert compare(["--work-dir", str(config.parent / "elsewhere"), *command[:1]]) == 0
    assert capsys.readouterr().err.count("skipped") == 4 + 3
    assert read_result(config.parent / "elsewhere" / "comparison.json").tables == result.tables
