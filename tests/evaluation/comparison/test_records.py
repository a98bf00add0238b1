"""What is kept of an arm has what determines its numbers, no place of a machine, and comes back as it was written."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from aligntok.errors import ConfigError, DataError
from aligntok.evaluation.comparison.plan import Arm, read_comparison
from aligntok.evaluation.comparison.records import DEFAULT, Made, Record, made_with, read_record, references_made_with
from aligntok.evaluation.comparison.running import NOTE, begin, spoiled

RECORD = Record("ours", Made({"seed": 0, "steps": 3}), {"psnr": 20.0}, 0, {"FID": {2: 9.0, 10: 5.0}}, {"lr": 0.1})


@pytest.fixture
def changed(config_source, generation_source, extractors, tmp_path):
    """What determines the numbers of the first arm of a comparison, with options, and others of its tokenizer's."""

    def comparison(options=(), **tokenizer):
        stages = [dict(name="all", steps=3)]
        (tmp_path / "one.py").write_text(config_source(stages=stages, **{"log": dict(every=1), **tokenizer}))
        (tmp_path / "generator.py").write_text(generation_source())
        settings = dict(
            tokenizers=dict(one="one.py"),
            generator="generator.py",
            extractors=["tiny_extractor.TinyExtractor"],
            reference_encoder="ldm_cnn",
        )
        lines = "".join(f"{key} = {value!r}\n" for key, value in settings.items())
        (tmp_path / "comparison.py").write_text(lines)
        return read_comparison(tmp_path / "comparison.py", dict(options))

    def of_first(options=(), **tokenizer):
        found = comparison(options, **tokenizer)
        return made_with(found, found.arms[0])

    of_first.comparison = comparison
    return of_first


@pytest.mark.parametrize(
    "change",
    [
        {"data_root": "/elsewhere/images"},
        {"work_dir": "/elsewhere/work"},
        {"workers": 7, "samples.batch_size": 3},
        {"results": "results"},
        {"seeds": [0, 5]},
    ],
)
def test_places_machines_and_what_changes_no_number_leave_the_hash(change, changed):
    assert changed(change).hash == changed().hash


def test_of_a_training_neither_log_nor_checkpoints_nor_what_is_at_its_default_enters_it(changed):
    one = changed(checkpoint=dict(every=5), log=dict(every=3), spike_factor=30.0, precision="fp32")
    assert one.hash == changed().hash
    assert "tokenizer.all.spike_factor" not in one.settings


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"samples.num_samples": 7}, "measuring.samples.num_samples"),
        (
            {"samples.variants": {"unconditional": {"cfg_scale": 0}}},
            "measuring.samples.variants.unconditional.cfg_scale",
        ),
        ({"probe.epochs": 2}, "measuring.probe.epochs"),
        ({"precision": "bf16"}, "measuring.precision"),
        ({"seeds": [3]}, "seed"),
    ],
)
def test_what_is_measured_otherwise_is_named(change, key, changed):
    assert key in changed().differences(changed(change))


def test_what_is_trained_otherwise_is_named_with_both_values(changed):
    differs = changed().differences(changed(optimizer=dict(lr=2e-3), spike_factor=20.0))
    assert differs == {"tokenizer.all.optimizer.lr": (1e-3, 2e-3), "tokenizer.all.spike_factor": (DEFAULT, 20.0)}


@pytest.mark.parametrize("key", ["discriminator", "spike_factor", "ema"])
def test_what_is_set_to_none_is_not_what_is_left_out(key, changed):
    """None says that there is none, and the default that there is one."""
    differs = changed(**{key: None}).differences(changed(**{"spike_factor": 20.0} if key != "spike_factor" else {}))
    assert any(name.startswith(f"tokenizer.all.{key}") for name in differs)


def test_an_extractor_by_a_word_with_a_file_is_its_config(changed, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"one")
    made = changed({"extractors": [f"inception_v3:{tmp_path / 'w.pth'}"]})
    assert made.settings["measuring.extractors"] == [{"type": "inception_v3", "pretrained": "w.pth"}]
    assert list(made.files) == ["w.pth"]


def test_no_text_of_it_is_a_place(changed, tmp_path):
    made = changed(
        {"data_root": str(tmp_path), "reference_encoder": {"type": "ldm_cnn", "pretrained": "~/weights/a.pt"}}
    )
    assert made.settings["measuring.reference_encoder.pretrained"] == "a.pt"
    assert str(tmp_path) not in json.dumps(made.settings)


def test_weights_in_a_file_count_by_their_bytes_where_they_are_at_hand(changed, tmp_path):
    weights = tmp_path / "weights.safetensors"
    option = {"reference_encoder": {"type": "ldm_cnn", "pretrained": str(weights)}}
    without = changed(option)
    weights.write_bytes(b"one")
    one = changed(option)
    weights.write_bytes(b"other, longer")
    other = changed(option)
    assert one.differences(without) == {}
    assert list(one.differences(other)) == ["the file weights.safetensors"]


def test_what_auto_was_enters_the_hash_where_anything_is_computed_in_it(changed, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    found = {}
    for fast in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast, raising=False)
        found[fast] = changed(precision="auto")
        assert changed().precision is None
    assert [found[fast].precision for fast in (True, False)] == ["bf16", "fp32"]
    assert found[True].hash != found[False].hash
    assert found[True].differences(found[False]) == {}  # tables may be made where "auto" is another


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (["measuring.probe.epochs", "measuring.num_val"], ["evaluation"]),
        (["generator.steps", "measuring.samples.every"], ["generator"]),
        (["measuring.samples.between.variants"], ["generator"]),
        (["measuring.probe.epochs", "generator.steps"], ["evaluation", "generator"]),
        (["measuring.samples.num_samples"], ["evaluation", "generator"]),
        (["measuring.precision"], ["evaluation", "generator", "latents"]),
        (["tokenizer.all.steps", "generator.steps"], [""]),
        (["the file weights.safetensors"], [""]),
    ],
)
def test_what_is_to_be_removed_is_what_the_changed_settings_made(changes, names, tmp_path):
    arm = Arm("one", 0, tmp_path / "one.py", tmp_path)
    assert spoiled(arm, changes) == [tmp_path / name for name in names]


def test_it_comes_back_as_it_was_written(tmp_path):
    RECORD.write(tmp_path / "a.json")
    assert read_record(tmp_path / "a.json") == RECORD
    assert RECORD.final == {"psnr": 20.0, "FID": 5.0}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("made", {"settings": {"seed": 0, "steps": 4}, "files": {}, "precision": None}, "not those of its hash"),
        ("curves", {"FID": {}}, "a curve of it is empty"),
        ("curves", {"FID": {"two": 1.0}}, "valid integer"),
        ("metrics", {"psnr": "high"}, "valid number"),
        ("format", 9, "it is not of format 1"),
    ],
)
def test_one_that_is_not_as_it_was_written_is_refused_and_says_what_to_do(key, value, says, tmp_path):
    path = tmp_path / "a.json"
    RECORD.write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(DataError, match=f"{path}.*{says}.*remove it to have the arm trained again"):
        read_record(path)


def test_a_metric_that_was_not_measured_is_asked_for_in_vain():
    with pytest.raises(DataError, match="KID was not measured of 'ours'; there is psnr, FID"):
        replace(RECORD, curves=RECORD.curves).value("KID")


def test_references_of_other_images_are_refused(changed, tmp_path):
    (tmp_path / "references").mkdir()
    comparison = changed.comparison({"work_dir": str(tmp_path), "num_reference": 5})
    folder, spoils = tmp_path / "references", lambda _: sorted((tmp_path / "references").glob("*.safetensors"))
    begin(folder, references_made_with(comparison), spoils)
    begin(folder, references_made_with(changed.comparison({"num_reference": 4})), spoils)  # nothing was made yet
    (folder / "a.safetensors").write_bytes(b"")
    begin(folder, references_made_with(changed.comparison({"num_reference": 4, "probe.epochs": 9})), spoils)
    with pytest.raises(
        ConfigError, match=r"num_reference: 4 -> its default\); set them back, or remove .*a.safetensors"
    ):
        begin(folder, references_made_with(changed.comparison({})), spoils)
    (folder / NOTE).unlink()
    with pytest.raises(ConfigError, match="nobody can tell with which settings .*a.safetensors was made; remove it"):
        begin(folder, references_made_with(comparison), spoils)


def test_the_probe_of_a_comparison_can_be_standardised_and_says_so(changed):
    differs = changed().differences(changed({"probe.standardize": True}))
    assert differs == {"measuring.probe.standardize": (DEFAULT, True)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 1, 0]}, "seeds=[0, 1, 0] has 0 twice; give each once"),
        ({"tokenizers": {"../../x": "one.py"}}, "tokenizers: '../../x' is no name of a folder"),
        ({"tokenizers": {"": "one.py"}}, "tokenizers: '' is no name of a folder"),
        ({"tokenizers": {"a/b": "one.py"}}, "tokenizers: 'a/b' is no name of a folder"),
        ({"tokenizers": {".one": "one.py"}}, "tokenizers: '.one' is no name of a folder"),
        ({"tokenizers": {"One": "one.py"}}, "tokenizers: 'One' is the folder of something else, or differs from it"),
        ({"tokenizers": {"grid": "one.py"}}, "tokenizers: 'grid' is the folder of something else"),
    ],
)
def test_seeds_given_twice_and_names_that_are_no_folders_of_their_own_are_refused(changes, message, changed):
    with pytest.raises(ConfigError) as caught:
        changed(changes)
    assert message in str(caught.value)
