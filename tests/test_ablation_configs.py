"""Each ablation differs from its base in exactly what it says, has the paper's row beside it, and trains.

What holds for every config, such as the epochs in its docstring, is in tests/test_configs.py.
"""

from __future__ import annotations

import ast
import copy
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from aligntok import load_tokenizer
from aligntok.engine.checkpoints import list_checkpoints, read_checkpoint, read_parts
from aligntok.registry import DECODERS
from aligntok.training.alignment import expand_stages
from aligntok.training.config import load_config
from aligntok.training.plan import make_plan
from aligntok.training.run import run
from aligntok.training.settings import RunSettings
from aligntok.weights.lora import TARGETS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs" / "ablations"
FULL, BASE = "aligntok_dinov2_f16d32", "ablations/stages_1_and_2"
FIRST, SECOND, THIRD = "latent_alignment", "perceptual_alignment", "decoder_refinement"
SEMANTIC = f"{SECOND}.losses.semantic"
EMA = dict(sigma_rel=[0.05, 0.10], decays=[], inference=0.05, snapshot_every=None)
ABSENT = "(absent)"
LARGER = {
    "type": ("ldm_cnn", "vit_cnn"),
    "width": (ABSENT, 1024),
    "depth": (ABSENT, 24),
    "num_heads": (ABSENT, 16),
    "mlp_ratio": (ABSENT, 4.0),
}

#: name -> its base, and every setting in which the two differ: dotted key -> (the base's, its own).
DIFFERENCES = {
    BASE: (FULL, {THIRD: ("a stage", ABSENT)}),
    "ablations/stage_1_only": (FULL, {SECOND: ("a stage", ABSENT), THIRD: ("a stage", ABSENT)}),
    "ablations/semantic_weight_0": (BASE, {f"{SEMANTIC}.weight": (1.0, 0.0)}),
    "ablations/semantic_weight_5": (BASE, {f"{SEMANTIC}.weight": (1.0, 5.0)}),
    "ablations/semantic_weight_10": (BASE, {f"{SEMANTIC}.weight": (1.0, 10.0)}),
    "ablations/semantic_pre_adapter": (BASE, {f"{SEMANTIC}.on": ("latents", "features")}),
    "ablations/semantic_cosine": (BASE, {f"{SEMANTIC}.distance": ("l2", "cosine")}),
    "ablations/lora": (BASE, {f"{SECOND}.lora": (None, dict(rank=16, alpha=32, dropout=0.1, targets=TARGETS))}),
    "ablations/without_ema": (BASE, {f"{SECOND}.ema": (EMA, None)}),
    "ablations/larger_decoder": (
        BASE,
        {f"{stage}.model.decoder.{key}": change for stage in (FIRST, SECOND) for key, change in LARGER.items()},
    ),
    "aligntok_mae_f16d32": (BASE, {f"{stage}.model.encoder.type": ("dinov2", "mae") for stage in (FIRST, SECOND)}),
    "aligntok_siglip2_f16d32": (
        BASE,
        {f"{stage}.model.encoder.type": ("dinov2", "siglip2") for stage in (FIRST, SECOND)},
    ),
}
#: The paper's Table 1 (of other encoders, Table 9): rFID, PSNR, LPIPS, linear probe, gFID, IS, precision, recall.
ROWS = {
    "ablations/semantic_weight_0": "0.33 26.29 0.110 9.50 3.05 215.1 0.832 0.550",
    "ablations/semantic_weight_5": "0.49 23.70 0.163 40.55 2.48 244.4 0.836 0.566",
    "ablations/semantic_weight_10": "0.59 22.63 0.189 40.89 2.59 243.5 0.839 0.562",
    "ablations/semantic_pre_adapter": "0.34 25.78 0.118 15.61 2.83 226.9 0.835 0.553",
    "ablations/semantic_cosine": "0.37 25.23 0.129 37.99 2.23 248.6 0.819 0.585",
    "ablations/lora": "1.35 26.18 0.121 18.56 2.97 243.3 0.815 0.557",
    "ablations/without_ema": "0.33 25.70 0.122 35.04 2.24 246.0 0.809 0.587",
    "ablations/larger_decoder": "0.36 26.27 0.121 27.24 2.52 248.3 0.808 0.571",
    "ablations/stage_1_only": "1.63 17.34 0.323 41.53 3.00 246.4 0.843 0.529",
    BASE: "0.36 25.62 0.121 35.09 2.19 248.6 0.811 0.591",
    FULL: "0.26 25.83 0.117 35.09 2.17 249.3 0.811 0.599",
    "aligntok_mae_f16d32": "0.29 26.12 0.113 - 3.12 216.5 0.834 0.543",
    "aligntok_siglip2_f16d32": "0.35 25.29 0.129 - 2.22 246.1 0.816 0.576",
}
ABLATIONS = [name for name in DIFFERENCES if name.startswith("ablations/")]


def path_of(name):
    return ROOT / "configs" / f"{name}.py"


def docstring(name):
    return " ".join((ast.get_docstring(ast.parse(path_of(name).read_text())) or "").split())


def everything(config):
    """All settings of a run, those of a stage under its name."""
    kept = {key: config[key] for key in asdict(RunSettings()) if key not in ("stages", "work_dir")}
    return kept | {stage.name: asdict(stage.settings) | {"seed": stage.seed} for stage in expand_stages(config)}


def differences(base, own, prefix=""):
    """Return, by dotted key, (the base's, its own) wherever two nested dicts differ."""
    found = {}
    for key in dict.fromkeys([*base, *own]):
        before, after = base.get(key, ABSENT), own.get(key, ABSENT)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found[f"{prefix}{key}"] = (before, after)
    return found


# What they say


def test_every_ablation_is_looked_at_here():
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == sorted(Path(name).stem for name in ABLATIONS)
    assert set(ROWS) == {*DIFFERENCES, FULL}


def test_a_difference_is_found_wherever_it_is():
    base = {"a": {"b": 1, "c": {"d": None}}, "e": [1]}
    assert differences(base, copy.deepcopy(base)) == {}
    own = {"a": {"b": 2, "c": None, "f": 3}}
    assert differences(base, own) == {"a.b": (1, 2), "a.c": ({"d": None}, None), "a.f": (ABSENT, 3), "e": ([1], ABSENT)}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_it_differs_from_its_base_in_exactly_what_it_says(name):
    base, expected = DIFFERENCES[name]
    one_place = {"work_dir": "work_dirs/any"}
    found = differences(*(everything(load_config(path_of(each), one_place)) for each in (base, name)))
    for stage in (SECOND, THIRD):
        if stage in found:
            assert found[stage][0]["steps"] > 0
            found[stage] = ("a stage", found[stage][1])
    assert found == expected


@pytest.mark.parametrize("name", ABLATIONS)
def test_it_is_a_few_lines_over_that_base(name):
    module = ast.parse(path_of(name).read_text())
    _, inherited, *changes = module.body  # a docstring, _base_, and what changes
    (base,) = ast.literal_eval(inherited.value)
    assert (FOLDER / base).resolve() == path_of(DIFFERENCES[name][0])
    assert 1 <= len(changes) <= 2


@pytest.mark.parametrize("name", ABLATIONS)
def test_its_docstring_has_the_papers_row(name):
    said = docstring(name).partition("Expected (paper, Table 1): ")[2]
    rfid, psnr, lpips, probe, gfid, score, precision, recall = ROWS[name].split()
    assert said == (
        f"rFID {rfid}, PSNR {psnr}, LPIPS {lpips}, linear probe {probe} %; of a generator of 64 epochs, 30 "
        f"sampling steps, guided: gFID {gfid}, IS {score}, precision {precision}, recall {recall}. "
        "Not yet run here at this size."
    )


def table(page):
    """Cells of the rows that begin with a config's name, by that name."""
    lines = (line.strip("| \n").split(" | ") for line in (ROOT / page).read_text().splitlines() if line.startswith("|"))
    named = ((re.match(r"\[?`?([\w/]+)`?\]?", cells[0]), cells) for cells in lines)
    return {match[1]: [cell.strip() for cell in cells[1:]] for match, cells in named if match}


@pytest.mark.parametrize("name", ROWS)
def test_the_tables_of_readme_and_docs_have_the_papers_numbers(name):
    row = ROWS[name].split()
    assert table("docs/ablations.md")[name][-8:] == row
    if name in ABLATIONS:
        assert table("README.md")[name][-5:] == row[:5]


def planned(stage):
    """Its plan, but for what test_configs.py asks of each config: that its images pass through."""
    return make_plan(stage, stage.build_model(), processes=1)


# What they train


def test_the_larger_decoder_has_the_papers_351_million():
    stages = expand_stages(load_config(path_of("ablations/larger_decoder")))
    for stage in stages:
        assert sum(planned(stage).parameters["decoder"]) == 350_956_419


TRAINABLE = {
    "semantic_weight_0": 348.62,
    "semantic_pre_adapter": 348.62,
    "without_ema": 348.62,
    "lora": 6.29 + 44.25,
    "larger_decoder": 348.62 - 41.42 + 350.96,
}


@pytest.mark.parametrize("name", TRAINABLE)
def test_stage_2_trains_so_many_parameters(name):
    stage = expand_stages(load_config(FOLDER / f"{name}.py"))[1]
    assert planned(stage).trainable / 1e6 == pytest.approx(TRAINABLE[name], abs=0.015)


# That they train

SMALL_ENCODER = dict(
    type="timm",
    model_name="vit_tiny_patch16_224",
    pretrained=False,
    model_args=dict(depth=2, embed_dim=48, num_heads=3),
)
SMALL_CNN = dict(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=32)
SMALL_VIT = dict(width=48, depth=1, num_heads=3)


def small(config):
    """Return a config with the sizes, and only those, of a tiny run: two steps a stage on 32-pixel images."""
    config = copy.deepcopy(config)
    model = config["model"]
    model.update(encoder=dict(SMALL_ENCODER), latent_dim=4, downsample_factor=8)
    model["decoder"] |= SMALL_CNN | {key: value for key, value in SMALL_VIT.items() if key in model["decoder"]}
    config["discriminator"] |= dict(base_channels=16, num_layers=2, group_images=2)
    own = [stage.get("losses", {}) for stage in config["stages"]]
    for weight in (loss.get("adaptive_weight") for losses in (config["losses"], *own) for loss in losses.values()):
        if weight:
            weight["images"] = 2
    config["losses"]["lpips"] = None  # VGG-16 has no small copy
    config["data"].update(nominal_images=None, workers=0)
    for split in ("train", "val"):
        config["data"][split]["image_size"] = 32
    config.update(global_batch_size=2, validation=dict(perceptual=None, batch_size=4), log=dict(every=1, pictures=2))
    for stage in config["stages"]:
        stage["steps"] = 2
    config["stages"][0]["losses"]["gan"]["start_step"] = 1
    return config


def train(name, work_dir, photographs):
    return run(small(load_config(path_of(name), {"work_dir": str(work_dir), "data_root": str(photographs)})))


@pytest.fixture(scope="module")
def trained(photographs, tmp_path_factory):
    """Train a small copy of a config, once, and return its work folder."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("ablation") / "run"
            assert train(name, made[name], photographs) == made[name] / "tokenizer"
        return made[name]

    return of


def folders(work_dir):
    return sorted(path for path in work_dir.glob("[0-9]_*") if path.is_dir())


def content(folder):
    return read_checkpoint(list_checkpoints(folder)[-1][1])


def described(work_dir):
    """What a run's own files say it trained, but for where."""
    stages = {folder.name[2:]: json.loads((folder / "stage.json").read_text()) for folder in folders(work_dir)}
    return stages


def weights(state):
    return {f"{part}.{name}": tensor for part, tensors in state.items() for name, tensor in tensors.items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_small_copy_trains_all_its_stages(name, trained):
    work_dir = trained(name)
    assert [folder.name[2:] for folder in folders(work_dir)] == [
        stage.name for stage in expand_stages(load_config(path_of(name)))
    ]
    assert all(json.loads((folder / "result.json").read_text())["step"] == 2 for folder in folders(work_dir))
    tokenizer = load_tokenizer(work_dir / "tokenizer")
    assert all(parameter.isfinite().all() for parameter in tokenizer.parameters())
    assert tokenizer.decode(tokenizer.encode(torch.zeros(1, 3, 32, 32))).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("name", [name for name in ABLATIONS if name != BASE])
def test_what_a_small_copy_says_it_trained_differs_as_it_should(name, trained):
    expected = DIFFERENCES[name][1]
    if DIFFERENCES[name][0] == FULL:  # compared with stages 1 and 2, of which it leaves out one
        expected = {key: change for key, change in expected.items() if key != THIRD}
    found = differences(described(trained(BASE)), described(trained(name)))
    keys = {key.replace(".tokenizer.", ".model.") for key in found}
    assert keys - {f"{stage}.model.aligntok_version" for stage in (FIRST, SECOND)} == set(expected)


@pytest.mark.parametrize("name", [name for name in ABLATIONS if name not in (BASE, "ablations/larger_decoder")])
def test_all_with_the_default_decoder_share_one_stage_1(name, trained):
    first, base = (weights(read_parts(folders(trained(each))[0])) for each in (name, BASE))
    assert equal(first, base)


CHANGES = [name for name in ABLATIONS if "semantic" in name or name.endswith(("lora", "larger_decoder"))]


@pytest.mark.parametrize("name", CHANGES)
def test_what_it_changes_changes_what_is_learned(name, trained):
    learned = {each: weights(read_parts(folders(trained(each))[1])) for each in (BASE, *CHANGES)}
    assert not any(equal(learned[name], learned[other]) for other in learned if other != name)


def test_without_ema_the_same_is_learned_and_its_last_weights_are_the_result(trained):
    without, base = trained("ablations/without_ema"), trained(BASE)
    assert content(folders(without)[1])["ema"] is None
    assert content(folders(without)[0])["ema"] is not None
    raw = [read_parts(folders(run)[1])["decoder"] for run in (without, base)]
    assert equal(*raw)
    exported = [load_tokenizer(run / "tokenizer").decoder.state_dict() for run in (without, base)]
    assert equal(exported[0], raw[0])
    assert not equal(exported[1], raw[1])


def test_lora_trains_updates_of_the_encoder_alone(trained):
    parts = content(folders(trained("ablations/lora"))[1])["parts"]
    assert parts["encoder"]
    assert all("lora_" in key for key in parts["encoder"])
    assert not any("lora_" in key for part in ("adapter", "decoder") for key in parts[part])


def test_the_larger_decoder_is_the_one_that_is_trained(trained):
    for folder in (*folders(trained("ablations/larger_decoder")), trained("ablations/larger_decoder")):
        assert type(load_tokenizer(folder).decoder) is DECODERS.get("vit_cnn")


def test_a_finished_stage_1_can_be_copied_from_one_ablation_to_the_next(trained, photographs, tmp_path, capsys):
    name = "ablations/semantic_weight_5"
    shutil.copytree(folders(trained(BASE))[0], tmp_path / "run" / folders(trained(BASE))[0].name)
    train(name, tmp_path / "run", photographs)
    assert "latent_alignment: finished already, skipped" in capsys.readouterr().err
    copied, whole = (weights(read_parts(folders(run)[1])) for run in (tmp_path / "run", trained(name)))
    assert equal(copied, whole)
