"""`deterministic=True`: on a CPU nothing changes, and what a GPU could not repeat is named before it is trained."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from aligntok.cli import train
from aligntok.engine.checkpoints import finished_steps
from aligntok.errors import ConfigError
from aligntok.evaluation import cost
from aligntok.evaluation.cost_settings import CostRequest
from aligntok.losses import Loss
from aligntok.registry import LOSSES
from aligntok.training import run as run_module
from aligntok.training.alignment.model import AlignmentModel
from aligntok.training.config import load_config
from aligntok.training.rehearsal import check_repeatable, watch
from aligntok.training.run import expand

CONFIGS = Path(__file__).parents[2] / "configs"


class Reflecting(Loss):
    """A loss of what is reflected at the edges, whose gradient no GPU adds up in one order."""

    at = "reconstruction"
    inputs = ("reconstruction",)

    def forward(self, reconstruction):
        return F.pad(reconstruction.flatten(2), (1, 1), mode="reflect").square().mean()


@pytest.fixture
def reflecting(monkeypatch):
    list(LOSSES)  # loads the plugins first
    monkeypatch.setitem(LOSSES.module_dict, "reflecting", Reflecting)
    return dict(l1=dict(type="l1"), own=dict(type="reflecting"))


def test_a_training_is_the_same_with_and_without_on_a_cpu_and_undone(tool, write_config, tmp_path, monkeypatch):
    seen, before, step = [], dict(os.environ), AlignmentModel.train_step

    def looked_at(self, *given, **named):
        seen.append((torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
        return step(self, *given, **named)

    monkeypatch.setattr(AlignmentModel, "train_step", looked_at)
    config = write_config(steps=2)
    found = []
    for word in (False, True):
        options = ["--stage", "latent_alignment", "--cfg-options", f"deterministic={word}"]
        assert train([config, "--work-dir", str(tmp_path / str(word)), *options]) == 0
        found.append(tool.newest(tmp_path / str(word) / "1_latent_alignment"))
    assert seen == [(False, before.get("CUBLAS_WORKSPACE_CONFIG"))] * 2 + [(True, ":4096:8")] * 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert dict(os.environ) == before
    assert tool.same(*found)
    scalars = [[*(tmp_path / word).rglob("scalars.json")] for word in ("False", "True")]
    steps = [[json.loads(line) for line in file.read_text().splitlines()] for (file,) in scalars]
    losses = [[{key: value for key, value in each.items() if key.startswith("loss/")} for each in own] for own in steps]
    assert losses[0] == losses[1]


@pytest.mark.nightly
def test_four_replicas_that_are_stopped_and_go_on_end_as_others_do(tool, write_config, slow_steps, tmp_path):
    """With all losses, ratios and a discriminator; without the word they differ by rounding: see test_machines."""
    losses = dict(semantic=dict(type="semantic_preservation", adaptive_weight=dict(at="encoder", eps=0.1)))
    stage = dict(name="only", teacher="start", steps=8, losses={**losses, "gan": dict(start_step=2)})
    config, (slow, slowly) = write_config(stages=[stage], seed=1, global_batch_size=8), slow_steps
    options = ["--cfg-options", "deterministic=True", "checkpoint.every=1", slow]
    four = dict(torchrun=("--standalone", "--nproc_per_node=4"))
    whole, run = tmp_path / "whole", tmp_path / "run"
    undisturbed = tool.launch(config, whole, *options, env={**slowly, "SLOW": "0"}, **four)
    assert "step 8/8" in undisturbed.communicate(timeout=300)[0]
    stopped = tool.launch(config, run, *options, env=slowly, **four)
    stopped.until("step 3/")
    stopped.signal(signal.SIGTERM)
    stopped.communicate(timeout=300)
    assert 3 <= finished_steps(run / "1_only") < 8
    printed = tool.launch(config, run, *options, env={**slowly, "SLOW": "0"}, **four).communicate(timeout=300)[0]
    assert "step 8/8" in printed
    assert tool.same(tool.newest(run / "1_only"), tool.newest(whole / "1_only"))


def test_an_operation_that_varies_ends_the_step_by_its_name(write_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(AlignmentModel, "backward", lambda *_: torch.zeros(2).put_(torch.tensor([1]), torch.ones(1)))
    options = ["--work-dir", str(tmp_path / "run"), "--cfg-options", "deterministic=True"]
    assert train([write_config(), *options]) == 2
    said = "ConfigError: deterministic=True, but 'put_' has no deterministic form on a GPU; take a component without it"
    assert said in capsys.readouterr().err


def test_a_dry_run_tells_what_a_gpu_refuses_and_a_gpu_does(write_config, tmp_path, monkeypatch, capsys, reflecting):
    config, run = write_config(losses=reflecting, stages=[dict(name="only", steps=1)]), str(tmp_path / "run")
    said = "stage 'only': deterministic=True, but 'reflection_pad1d_backward' has no deterministic form on a GPU; take"
    assert train([config, "--dry-run"]) == 0
    assert "deterministic" not in capsys.readouterr().out
    assert train([config, "--dry-run", "--cfg-options", "deterministic=True"]) == 0
    assert f"refused where there is a GPU: {said}" in capsys.readouterr().out
    monkeypatch.setattr(run_module, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(run_module, "train", lambda *_: pytest.fail("trained"))
    assert train([config, "--work-dir", run, "--cfg-options", "deterministic=True"]) == 2
    assert f"ConfigError: {said}" in capsys.readouterr().err


def test_several_processes_rehearse_each_for_itself(write_config, monkeypatch, reflecting):
    reflecting["gan"] = dict(type="gan", weight=0.1, adaptive_weight=dict(at="decoder"))
    (stage,) = expand(load_config(write_config(losses=reflecting, stages=[dict(name="only", steps=2)])))
    for name, found in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda *_, found=found: found)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: 1 / 0)
    with pytest.raises(ConfigError, match="reflection_pad1d_backward"):
        check_repeatable(stage)
    course, why = watch(stage, stage.build_model())
    assert course is not None, why
    assert torch.distributed.is_initialized()


def test_of_a_component_that_cannot_be_rehearsed_nothing_is_known(write_config, monkeypatch, reflecting):
    (stage,) = expand(load_config(write_config(losses=reflecting, stages=[dict(name="only", steps=1)])))
    with pytest.raises(ConfigError, match="reflection_pad1d_backward"):
        check_repeatable(stage)
    monkeypatch.setattr(Reflecting, "forward", lambda self, reconstruction: float(reconstruction.sum()))
    check_repeatable(stage)


@pytest.mark.parametrize(
    "name",
    [
        "demo/tiny_imagenet_f8d16",
        *(
            pytest.param(str(path.relative_to(CONFIGS))[:-3], marks=pytest.mark.nightly)
            for folder in (".", "baselines", "demo", "generator")
            for path in sorted((CONFIGS / folder).glob("*.py"))
            if path.stem != "tiny_imagenet_f8d16"
        ),
    ],
)
def test_the_recipes_have_no_operation_that_varies(name):
    config = load_config(CONFIGS / f"{name}.py", dict(data_root="nowhere"))
    for stage in expand(config):
        check_repeatable(stage)


def test_a_measured_step_is_the_configs(write_config, tmp_path, monkeypatch):
    measured = []

    def measure(*_):
        measured.append(torch.are_deterministic_algorithms_enabled())
        return dict(config="", stage="", left_out=""), []

    monkeypatch.setattr(cost, "measure_step", measure)
    monkeypatch.setattr(cost, "_metrics", lambda *_: {})
    monkeypatch.setattr(cost, "print_tables", lambda *_: None)
    stages = dict(stages=[dict(name="only", steps=1)])
    configs = [write_config(str(word), deterministic=word, **stages) for word in (True, False)]
    cost.measure_cost(CostRequest(configs=configs, inference=False, out=str(tmp_path / "out")))
    assert measured == [True, False]
