"""A training reads a stream as it reads images: the same steps whatever interrupts it, or whoever reads."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from aligntok.cli import train
from aligntok.data.index.format import CAPTIONED, FIXED
from aligntok.data.index.write import Shard, write_index
from aligntok.engine.checkpoints import finished_steps, list_checkpoints
from aligntok.registry import DATASETS
from aligntok.training.alignment import expand_stages
from aligntok.training.alignment.model import AlignmentModel
from aligntok.training.config import load_config
from aligntok.training.generation import expand_generation
from aligntok.training.generation.model import GenerationModel

CONFIGS = Path(__file__).parents[2] / "configs"

SIZES = [(32, 32), (32, 40), (40, 32)]
FIRST = "1_latent_alignment"
STAGE = ("--stage", "latent_alignment")
SOON = dict(pause=0.05, timeout=1.0)


@pytest.fixture
def far(tmp_path, serve, build_index):
    """An index of 190 samples at an address of this machine, and the server there."""
    (tmp_path / "far/shards").mkdir(parents=True)
    served = serve(tmp_path / "far/shards")
    (tmp_path / "far/shards").rmdir()
    build_index(tmp_path / "far", (64, 64, 62), at=served.url)
    return tmp_path / "far/index", served


@pytest.fixture
def config(write_config, tmp_path):
    """A function that writes the config of a tiny run on a stream; further keywords are the stream's."""

    def write(index, steps=6, val=None, workers=0, **more):
        train = dict(type="stream", index=str(index), where="score >= 1", image_size=[*SIZES], remote=SOON, window=2)
        data = dict(train={**train, "cache": str(tmp_path / "cache"), **more}, val=val, workers=workers)
        return write_config(steps=steps, data_root=None, data=data, checkpoint=dict(every=100))

    return write


@pytest.fixture
def shown(monkeypatch):
    """The numbers of the samples that each optimiser step sees, in order."""
    steps = []
    inner = AlignmentModel.train_step

    def train_step(self, data, optim_wrapper):
        steps.append([micro["index"].tolist() for micro in data.micro_batches])
        return inner(self, data, optim_wrapper)

    monkeypatch.setattr(AlignmentModel, "train_step", train_step)
    return steps


def test_a_stage_over_http_that_was_stopped_goes_on_as_the_same(far, config, shown, tmp_path, capsys, caplog, tool):
    place, served = far
    file = config(place)
    assert train([file, "--work-dir", str(tmp_path / "whole"), *STAGE]) == 0
    assert "152 of 190 samples are taken" in caplog.text
    assert re.search(r"= epochs .* 0\.16", capsys.readouterr().err)  # 24 of 152
    whole = shown.copy()
    shown.clear()
    served.fail("503", 3)
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    for options in (["--cfg-options", "stages.0.steps=2"], ["--cfg-options", "data.workers=2"]):
        assert train([file, "--work-dir", str(tmp_path / "halved"), *STAGE, *options]) == 0
    assert shown == whole
    assert tool.newest(tmp_path / "whole" / FIRST).keys() == tool.newest(tmp_path / "halved" / FIRST).keys()
    assert tool.same(tool.newest(tmp_path / "whole" / FIRST), tool.newest(tmp_path / "halved" / FIRST))


def test_another_filter_is_told_when_a_stage_goes_on(far, config, tmp_path, caplog):
    place, _ = far
    run = ["--work-dir", str(tmp_path / "run"), *STAGE, "--cfg-options"]
    assert train([config(place), *run, "stages.0.steps=1"]) == 0
    described = json.loads((tmp_path / "run" / FIRST / "stage.json").read_text())
    assert described["source"]["shards and filters"] == 4
    caplog.clear()
    assert train([config(place), *run, "stages.0.steps=2", "data.train.on_missing=skip", "data.train.threads=2"]) == 0
    assert "trained" not in caplog.text  # how it is read is free
    assert train([config(place), *run, "stages.0.steps=3", "data.train.where='score >= 2'"]) == 0
    assert "was trained on other shards and filters so far (1 changed)" in caplog.text
    assert "data.train.where: 'score >= 1' -> 'score >= 2'" in caplog.text


def test_a_shard_that_stays_away_ends_it_with_its_name_and_a_checkpoint(far, config, tmp_path, capsys, monkeypatch):
    place, served = far
    inner, steps = AlignmentModel.train_step, []

    def train_step(self, data, optim_wrapper):
        steps.append(data.step)
        if data.step == 2:
            served.fail("503", 1)
        return inner(self, data, optim_wrapper)

    monkeypatch.setattr(AlignmentModel, "train_step", train_step)
    file = config(place, steps=60, cache="/proc/none", remote=dict(attempts=2, **SOON))
    assert train([file, "--work-dir", str(tmp_path / "run"), *STAGE]) == 2
    assert re.search(r"ShardError: .*/0000\d\.tar stays away: 2 attempts", capsys.readouterr().err)
    reached = finished_steps(tmp_path / "run" / FIRST)
    assert reached == steps[-1] + 1 >= 3
    served.fail()
    more = ["--cfg-options", f"stages.0.steps={reached + 2}"]
    assert train([file, "--work-dir", str(tmp_path / "run"), *STAGE, *more]) == 0
    assert steps[-2:] == [reached, reached + 1]


def test_what_is_held_out_of_a_stream_is_measured_and_not_trained_on(far, config, shown, tmp_path, capsys):
    place, _ = far
    val = dict(type="stream", fraction=0.2, image_size=32)
    assert train([config(place, val=val, steps=40), "--work-dir", str(tmp_path / "run"), *STAGE]) == 0
    result = json.loads((tmp_path / "run" / FIRST / "result.json").read_text())
    held = int(result["metrics"]["reconstruction/images"])
    trained = {number for step in shown for micro in step for number in micro}
    assert 10 < held < 50
    assert len(trained) == 152 - held  # an epoch and a bit
    assert train([config(place, val=dict(type="stream", index=str(place), image_size=32)), "--dry-run", *STAGE]) == 2
    assert "data.val.fraction=0.05, name others with data.val.where or data.val.index" in capsys.readouterr().err


def test_it_is_planned_before_anything_is_paid_for(far, config, write_generation, tmp_path, capsys):
    place, served = far
    served.fail("503", 1)  # nothing is read of the shards
    assert train([config(place), "--dry-run", *STAGE]) == 0
    assert re.search(r"= epochs .* 0\.16", capsys.readouterr().out)
    assert train([config(place, where="scor > 1"), "--dry-run", *STAGE]) == 2
    assert "did you mean 'score'" in capsys.readouterr().err
    assert train([config(place, where="score > 100"), "--dry-run", *STAGE]) == 2
    assert "not one of 190 samples passes" in capsys.readouterr().err
    assert train([config(tmp_path / "nothing"), "--dry-run", *STAGE]) == 2
    assert "index.json cannot be read" in capsys.readouterr().err


def test_a_generator_of_classes_is_refused_a_stream(far, write_generation, tiny_tokenizer, capsys):
    stream = dict(type="stream", index=str(far[0]), image_size=32)
    options = dict(data_root=None, tokenizer=str(tiny_tokenizer), data=dict(train=stream))
    small = dict(type="lightning_dit", depth=1, hidden_size=16, num_heads=2, in_channels=4, input_size=4)
    assert train([write_generation(**options, generator=dict(**small, num_classes=3)), "--dry-run"]) == 2
    assert "whose samples have no classes, and the generator has 3" in capsys.readouterr().err
    assert train([write_generation(**options, generator=small), "--dry-run"]) == 2
    assert "and the generator has 1000" in capsys.readouterr().err
    assert train([write_generation(**options, generator=dict(**small, num_classes=1)), "--dry-run"]) == 0


def test_without_an_index_it_says_how_one_is_given(write_config, capsys):
    file = write_config(data_root=None, data=dict(train=dict(type="stream", image_size=32), val=None))
    assert train([file, *STAGE]) == 2
    assert "add --cfg-options data.train.index=/path/to/index" in capsys.readouterr().err


def test_data_root_is_the_index_of_a_stream(far, write_config, tmp_path):
    train_on = dict(type="stream", image_size=32, cache=str(tmp_path / "cache"))
    file = write_config(data_root=str(far[0]), data=dict(train=train_on, val=None, workers=0))
    assert train([file, "--work-dir", str(tmp_path / "run"), *STAGE, "--cfg-options", "stages.0.steps=1"]) == 0


def test_a_generator_of_prompts_is_given_the_captions_of_the_samples(
    far, write_generation, tiny_tokenizer, text_model, tmp_path, monkeypatch, capsys
):
    seen, inner = [], GenerationModel.backward

    def backward(self, batch, place):
        seen.append((batch["caption"], [f"picture {number}" for number in batch["index"].tolist()]))
        assert len(batch["tokens"]) == 1
        return inner(self, batch, place)

    monkeypatch.setattr(GenerationModel, "backward", backward)
    tokens = dict(type="hf_text", path=str(text_model("bert")), max_tokens=32)
    generator = dict(type="flux_dit", in_channels=4, hidden_size=32, num_heads=2, depth=1, depth_single_blocks=1)
    generator |= dict(context_in_dim=32, vec_in_dim=0)
    stream = dict(type="stream", index=str(far[0]), where="score >= 1", image_size=[*SIZES], hflip=False)

    def write(**text):
        return write_generation(
            **dict(steps=3, data_root=None, tokenizer=str(tiny_tokenizer), log=dict(every=1, pictures=2)),
            generator=dict(**generator, text=dict(tokens=tokens, **text)),
            data=dict(train={**stream, "cache": str(tmp_path / "cache")}, statistics_images=20),
        )

    assert train([write(), "--work-dir", str(tmp_path / "run")]) == 0
    assert len(seen) == 3
    assert all(captions == own for captions, own in seen)
    assert train([write(cache=True), "--dry-run"]) == 2
    assert "generator.text.cache encodes every caption before the first step" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["aligntok_dinov2reg_laion_f16d32", "text_to_image/flux_2b_aligntok_256"])
def test_the_recipes_on_laion_train_on_an_index_of_it_by_an_option(name, tmp_path):
    columns = {**FIXED["tar"], **CAPTIONED["tar"], "AESTHETIC_SCORE": "f4", "pwatermark": "f4", "punsafe": "f4"}
    about = {name: np.full(20, 5) for name in columns} | {"pwatermark": np.full(20, 0.1), "punsafe": np.full(20, 0.1)}
    about |= {"height": np.arange(300, 500, 10), "width": np.full(20, 400), "AESTHETIC_SCORE": np.arange(20) / 2}
    write_index(tmp_path / "index", "tar", "txt", columns, [Shard("/no/0.tar", 9999, "", 20)], lambda shard: about)
    options = {"type": "stream", "index": str(tmp_path / "index"), "where": "laion"}
    config = load_config(CONFIGS / f"{name}.py", {f"data.train.{key}": value for key, value in options.items()})
    for stage in expand_stages(config) or [expand_generation(config)]:
        data = DATASETS.build(dict(stage.settings.data.train))
        assert len(data) == 10
        assert data.captioned == ("text_to_image" in name)


SEEN = """
import json, os
from mmengine.hooks import Hook


class Seen(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        shown = [number for micro in data_batch.micro_batches for number in micro["index"].tolist()]
        with open(os.environ["SEEN"], "a") as file:
            file.write(json.dumps([data_batch.step, os.environ.get("RANK", "0"), shown]) + "\\n")
"""


@pytest.fixture
def shown_to(tmp_path, tool):
    """Two functions: one starts a training, alone or under torchrun, one tells what each process saw of each step."""
    (tmp_path / "seen_hook.py").write_text(SEEN)

    def start(file, run, *more, **how):
        places = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
        environment = {"PYTHONPATH": places, "SEEN": str(tmp_path / f"{run}.txt")}
        hooks = ("--cfg-options", "hooks=[{'type': 'seen_hook.Seen'}]", *more)
        return tool.launch(file, tmp_path / run, *STAGE, *hooks, env=environment, **how)

    def told(run):
        lines = [json.loads(line) for line in (tmp_path / f"{run}.txt").read_text().splitlines()]
        return {step: {(rank, *shown) for other, rank, shown in lines if other == step} for step, *_ in lines}

    return start, told


@pytest.mark.nightly
def test_two_processes_that_are_killed_go_on_as_one(far, config, tool, tmp_path, shown_to):
    """SIGKILL in the middle, every seventh answer a 503; then one process, with the same images a step."""
    place, served = far
    (start, told), file = shown_to, config(place, steps=12, workers=2)
    whole = start(file, "whole")
    printed = whole.communicate(timeout=300)[0]
    assert whole.returncode == 0, printed
    served.fail("503", 7)
    more = "checkpoint.every=2"
    halved = start(file, "run", more, torchrun=("--standalone", "--nproc_per_node=2"))
    halved.until("step 7/12")
    halved.kill()
    halved.communicate(timeout=60)  # until those that it started end, too, as they miss it
    assert 2 <= finished_steps(tmp_path / "run" / FIRST) < 12
    rest = start(file, "run", more)
    printed = rest.communicate(timeout=300)[0]
    assert rest.returncode == 0, printed
    assert list_checkpoints(tmp_path / "run" / FIRST)[-1][0] == 12
    expected, seen = told("whole"), told("run")
    assert [*sorted(seen)] == [*range(12)]
    for step, parts in seen.items():
        ((_, *all_of_it),) = expected[step]
        by_rank = [shown for _, *shown in sorted(part for part in parts if len(part) == 3)]
        assert all([*shown] == all_of_it for _, *shown in parts if len(shown) == 4)
        assert not by_rank or [*by_rank[0], *by_rank[1]] == all_of_it
    assert any(len(parts) == 2 for parts in seen.values())


@pytest.mark.nightly
def test_two_processes_of_which_one_loses_its_data_end_together_after_a_checkpoint(far, config, tool, tmp_path):
    place, served = far
    file = config(place, steps=300, cache="/proc/none", remote=dict(attempts=2, **SOON))
    run = tool.launch(file, tmp_path / "run", *STAGE, torchrun=("--standalone", "--nproc_per_node=2"))
    printed = run.until("step 4/300").output
    served.fail("503", 2)  # some of the requests, of one process or the other
    printed += run.communicate(timeout=120)[0]
    assert run.returncode != 0
    assert re.search(r"ShardError: .*/0000\d\.tar stays away: 2 attempts", printed)
    reached = finished_steps(tmp_path / "run" / FIRST)
    assert reached >= 4
    assert reached % 100  # which no checkpoint was due at
