"""The commands as functions of the package: they do what the commands do, and refuse what these refuse."""

from __future__ import annotations

import inspect

import pytest

import aligntok
from aligntok import notebook
from aligntok.cli import evaluate
from aligntok.errors import ConfigError


def test_a_trainings_keys_are_keywords(write_config, monkeypatch, tmp_path):
    config, asked = write_config(work_dir=str(tmp_path / "run")), []
    with monkeypatch.context() as patch:
        patch.setattr("aligntok.training.run.run", lambda config, **how: asked.append((config, how)))
        aligntok.train(config, stage="a", optimizer=dict(weight_decay=0.1), seed=3, **{"stages.0.steps": 7})
    ((given, how),) = asked
    assert (given["seed"], given["stages"][0]["steps"], given["stages"][1]["steps"]) == (3, 7, 4)
    assert given["optimizer"] == dict(lr=1e-3, weight_decay=0.1)
    assert (how["only_stage"], how["dry_run"], how["run_info"]["options"]["seed"]) == ("a", False, 3)
    for options, said in [(dict(sede=1), "no key named 'sede'; did you mean 'seed'"), (dict(seed="a"), "seed")]:
        with pytest.raises(ConfigError, match=said):
            aligntok.train(config, dry_run=True, **options)
    with pytest.raises(ConfigError, match="no stage named 'first'"):
        aligntok.train(config, stage="first", dry_run=True)


def test_samples_and_evaluations_are_asked_for_by_the_commands_options(monkeypatch):
    asked = []
    monkeypatch.setattr("aligntok.sampling.samples.sample_images", asked.append)
    monkeypatch.setattr("aligntok.sampling.guidance_sweep.sweep_guidance", asked.append)
    monkeypatch.setattr("aligntok.evaluation.generation.evaluate_generation", asked.append)
    aligntok.sample("run", num_samples=3, sampling=dict(steps=4))
    aligntok.sample("run", guidance_sweep=(1.0, 2.0))
    aligntok.evaluate("generation", samples="drawn", reference="real.safetensors")
    assert [type(each).__name__ for each in asked] == ["SampleRequest", "SampleRequest", "GenerationSettings"]
    assert (asked[0].run, asked[0].num_samples, asked[0].sampling) == ("run", 3, {"steps": 4})
    assert (asked[1].guidance_sweep, asked[2].samples) == ((1.0, 2.0), "drawn")
    with pytest.raises(ConfigError, match="no key named 'num_sample'; did you mean 'num_samples'"):
        aligntok.sample("run", num_sample=3)
    with pytest.raises(ConfigError, match="what='reconstructions'; did you mean 'reconstruction'"):
        aligntok.evaluate("reconstructions")


def test_an_evaluation_gives_its_numbers(tiny_tokenizer, photographs, tmp_path):
    how = dict(tokenizer=tiny_tokenizer, data=photographs, split="val", image_size=32, workers=0, out=tmp_path)
    result = aligntok.evaluate("reconstruction", **how, extractor=None, perceptual=None)
    assert 0 < result.metrics["psnr"] < 30


def test_every_evaluation_of_the_command_is_one_of_these(capsys):
    assert evaluate(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in notebook._EVALUATIONS)
    for module, function, told in notebook._EVALUATIONS.values():
        assert hasattr(notebook.importlib.import_module("aligntok.evaluation.settings"), told)
        called = getattr(notebook.importlib.import_module(f"aligntok.evaluation.{module}"), function)
        (parameter,) = inspect.signature(called).parameters.values()
        assert parameter.annotation == told
