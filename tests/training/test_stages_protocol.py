"""What a run asks of whatever trains: a kind of training that no room knows of is planned, trained and gone on with."""

from __future__ import annotations

import ast
import copy
import json
import os
import signal
import time
from dataclasses import dataclass, replace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn

from aligntok.cli import train as command
from aligntok.distributed import dcp
from aligntok.distributed.job import catching_sigterm
from aligntok.engine.checkpoints import finished_steps, list_checkpoints, read_checkpoint
from aligntok.errors import Preempted, WeightsError, WriteError
from aligntok.loading import STAGE_FILE, load_latent_diffusion, load_tokenizer
from aligntok.registry import HOOKS
from aligntok.training import run as run_module
from aligntok.training.alignment import expand_stages
from aligntok.training.builder import train
from aligntok.training.generator_settings import GeneratorSettings
from aligntok.training.plan import plan_stage
from aligntok.training.settings import CheckpointSettings
from aligntok.training.stages import RandomItems, Stage, StageData


class Line(BaseModel):
    """y = w x, fitted to y = 2 x."""

    dtype = None
    precision = "fp32"

    def __init__(self, device="cpu"):
        super().__init__()
        self.generator = nn.Linear(1, 1, bias=False, device=device)

    def trained_parts(self):
        return {"generator": self.generator}

    parts = averaged_parts = trained_parts

    def frozen_parts(self):
        return {}

    def forward(self, inputs, data_samples=None, mode="tensor"):
        return self.generator(inputs)

    def load_start(self, states):
        with torch.no_grad():
            self.generator.weight.fill_(0.0)

    def train_step(self, data, optim_wrapper):
        (batch,) = data.micro_batches
        loss = (self.generator(batch["x"]) - 2 * batch["x"]).square().mean()
        loss.backward()
        return {"loss/fit": loss.detach(), **optim_wrapper.step_parts(self.trained_parts(), [loss.detach()])}


@dataclass(frozen=True)
class LineStage(Stage):
    """Fits the line."""

    validates = reads_data = False

    @property
    def optimizers(self):
        return {"generator": self.settings.optimizer}

    def build_model(self, data=None):
        return Line("cpu" if data else "meta")

    def build_data(self):
        return StageData(RandomItems({"x": torch.ones(1)}, 8))

    def check(self, model):
        assert next(model.parameters()).is_meta

    def validation(self, data):
        return {}

    def hooks(self, data):
        return []

    def describe(self, model):
        return {"line": True}

    def export(self):
        weight = read_checkpoint(self.folder / f"checkpoints/step_{self.settings.steps:08d}")["parts"]["generator"][
            "weight"
        ]
        (self.folder.parent / "line.txt").write_text(str(float(weight)))
        return self.folder.parent

    def without_pretrained(self):
        return self

    data_to_measure = build_data

    def an_item(self):
        return {}

    def rehearse(self, model):
        model.generator(torch.ones(1, 1, device="meta"))


def line(folder, steps):
    given = dict(
        steps=steps,
        generator=dict(type="lightning_dit"),
        data=dict(train=dict(type="latents", root="here")),
        global_batch_size=4,
        optimizer=dict(type="SGD", lr=0.25),
        ema=None,
        log=dict(every=1),
        checkpoint=dict(every=1),
    )
    return LineStage(0, "line", folder / "1_line", 0, GeneratorSettings(**given))


def test_a_kind_of_training_that_no_room_knows_of_is_planned_trained_gone_on_with_and_exported(tmp_path, monkeypatch):
    plan = plan_stage(line(tmp_path, 2), processes=1)
    assert (plan.parameters, plan.steps, plan.images_seen) == ({"generator": (1, 0)}, 2, 8)
    train(line(tmp_path, 1), line(tmp_path, 1).build_data())
    assert json.loads((tmp_path / "1_line" / STAGE_FILE).read_text())["line"] is True
    monkeypatch.setattr(run_module, "expand", lambda config: [line(tmp_path, 3)])
    config = dict(stages=[], generation={}, work_dir=str(tmp_path), process_timeout=60)
    assert run_module.run(config) == tmp_path
    # by hand: w' = w - 0.25 * 2 (w - 2) halves the distance to 2 at each step, from 0
    assert float((tmp_path / "line.txt").read_text()) == pytest.approx(1.75)
    assert run_module.run(config) == tmp_path  # finished: nothing to train


def test_no_room_asks_which_kind_of_training_it_has(trees):
    kinds = {"AlignmentStage", "GeneratorStage"}
    for file, tree in trees.items():
        for node in ast.walk(tree):
            name = getattr(node, "id", getattr(node, "attr", ""))
            assert name != "singledispatch", file
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass", "type"):
                asked = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
                assert not asked & kinds, f"{file}:{node.lineno}"


def test_tokenizers_and_generators_are_told_apart_by_what_their_stages_say(write_config, write_generation, tmp_path):
    assert command([write_config(steps=1, checkpoint=dict(every=1)), "--work-dir", str(tmp_path / "aligned")]) == 0
    assert command([write_generation(steps=1), "--work-dir", str(tmp_path / "drawn")]) == 0
    with pytest.raises(WeightsError, match="neither a saved tokenizer"):
        load_tokenizer(tmp_path / "drawn/generation")
    with pytest.raises(WeightsError, match="no trained generator"):
        load_latent_diffusion(tmp_path / "aligned/3_decoder_refinement")
    assert load_latent_diffusion(tmp_path / "drawn").condition.conditional
    assert load_tokenizer(tmp_path / "aligned").latent_dim == 4


def test_a_generators_folder_of_before_is_refused(write_generation, tmp_path, capsys):
    config = write_generation(steps=1)
    assert command([config, "--work-dir", str(tmp_path / "run")]) == 0
    (tmp_path / "run/generation" / STAGE_FILE).rename(tmp_path / "run/generation/generation.json")
    assert command([config, "--work-dir", str(tmp_path / "run")]) == 2
    assert "was begun before a generator's training was described in stage.json" in capsys.readouterr().err


def test_a_stage_is_complete_and_is_not_changed(tmp_path, tiny):
    config = dict(stages=[dict(name="a", steps=1)], work_dir=str(tmp_path), seed=0, losses=tiny["losses"])
    before = copy.deepcopy(config)
    (stage,) = expand_stages(config)
    assert config == before
    assert (stage.where, stage.description) == ("stage 'a'", tmp_path / "1_a/stage.json")
    assert not stage.validates
    assert not stage.reads_data


#: The step after which the trainings below end; checkpoints are written aside, and take their time.
AT = 3


class EndAt(Hook):
    """Ends the training in its own way after a step, once the step's checkpoint is begun."""

    priority = "LOWEST"

    def __init__(self, how):
        self.how = how

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == AT:
            if self.how == "stop":  # as mmengine's EarlyStoppingHook does
                runner.train_loop.stop_training = True
                return
            assert runner.checkpoints.begun == AT
            assert runner.checkpoints.saved == AT - 1
            if self.how == "error":
                raise ZeroDivisionError
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def slowly(monkeypatch):
    list(HOOKS)  # loads the plugins first
    monkeypatch.setitem(HOOKS.module_dict, "EndAt", EndAt)
    write = dcp.write

    def wait(*args):
        time.sleep(0.2)
        return write(*args)

    monkeypatch.setattr(dcp, "write", wait)


def begin(folder, steps, **hook):
    stage = line(folder, steps)
    stage.settings.hooks[:] = [hook] if hook else []
    return train(stage, stage.build_data())


def weights(folder):
    """By hand: each step halves the distance to 2, from 0."""
    return {
        step: read_checkpoint(path)["parts"]["generator"]["weight"].item() for step, path in list_checkpoints(folder)
    }


def test_at_the_end_of_a_stage_its_last_checkpoint_is_whole(tmp_path, slowly):
    runner = begin(tmp_path, 3)
    assert runner.checkpoints.saved == 3
    assert weights(tmp_path / "1_line") == {2: 1.5, 3: 1.75}


@pytest.mark.parametrize(("how", "raised"), [("error", ZeroDivisionError), ("SIGTERM", Preempted)])
def test_whatever_ends_a_training_waits_for_what_was_begun(tmp_path, slowly, how, raised):
    with catching_sigterm(), pytest.raises(raised):
        begin(tmp_path, 9, type="EndAt", how=how)
    assert weights(tmp_path / "1_line") == {2: 1.5, 3: 1.75}
    assert not list(tmp_path.rglob("*.tmp"))
    with catching_sigterm():
        begin(tmp_path, 4)
    assert weights(tmp_path / "1_line") == {3: 1.75, 4: 1.875}


def test_a_hook_that_stops_the_training_loses_no_step(tmp_path, slowly):
    stage = line(tmp_path, 9)
    stage.settings.hooks[:] = [dict(type="EndAt", how="stop")]
    stage = replace(stage, settings=replace(stage.settings, checkpoint=CheckpointSettings(every=100)))
    train(stage, stage.build_data())
    assert weights(tmp_path / "1_line") == {3: 1.75}


def test_a_disk_that_is_full_ends_the_training_at_its_next_step(tmp_path, monkeypatch):
    write = dcp.write

    def full(folder, *args):
        if "step_00000002" in str(folder):
            raise WriteError(f"{folder}/x could not be written (No space left on device); make room")
        return write(folder, *args)

    monkeypatch.setattr(dcp, "write", full)
    with pytest.raises(WriteError, match="step_00000002/x could not be written") as caught:
        begin(tmp_path, 9)
    assert caught.value.exit_status == 2
    assert finished_steps(tmp_path / "1_line") == 1
    assert not list(tmp_path.rglob("*.tmp"))
