"""Any number of processes is one: the same run under torchrun, on CPU with gloo, on one node and on two."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch

import aligntok
from aligntok.cli import train
from aligntok.engine.checkpoints import list_checkpoints, read_checkpoint

FOLDERS = ("1_latent_alignment", "2_perceptual_alignment", "3_decoder_refinement")
NOT_OF_THE_MODEL = {"step", "images_per_second"}


def finish(*processes):
    """Wait for processes to end well; return what the first printed."""
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(printed)
    return printed[0]


def scalars(stage):
    """What a stage logged at each step, validation included: one dict a line of its file."""
    (file,) = stage.rglob("scalars.json")
    return [json.loads(line) for line in file.read_text().splitlines()]


# What is 0 but for rounding must not be made much of: by Adam, which divides by it (its eps), by the ratio of a student
# that still equals its teacher (the balance's eps), or by a GAN with large steps (leaky ReLUs whose input is nearly 0).
ADAM = dict(type="Adam", lr=1e-4, betas=(0.5, 0.9), eps=1e-2)
SETTINGS = dict(seed=1, global_batch_size=8, optimizer=ADAM, discriminator_optimizer={**ADAM, "lr": 1e-5})
SEMANTIC = dict(type="semantic_preservation", adaptive_weight=dict(at="encoder", eps=0.1))
STAGES = [
    dict(name="latent_alignment", trainable=["adapter", "decoder"], losses=dict(gan=dict(start_step=2))),
    dict(
        name="perceptual_alignment",
        init_from=dict(stage="latent_alignment"),
        teacher="start",
        losses=dict(semantic=SEMANTIC, vf=dict(type="vf", latent_dim=4, feature_dim=48, weight=0.1)),
    ),
    dict(name="decoder_refinement", trainable=["decoder"], init_from=dict(stage="perceptual_alignment", weights="ema")),
]


@pytest.fixture(scope="module")
def one(tmp_path_factory, config_source, tool):
    """The run in one process: (work folder, config file)."""
    folder = tmp_path_factory.mktemp("one")
    stages = [{**stage, "steps": 3} for stage in STAGES]
    (folder / "tiny.py").write_text(config_source(**SETTINGS, stages=stages))
    finish(tool.launch(folder / "tiny.py", folder / "run"))
    return folder / "run", folder / "tiny.py"


def assert_one_curve(one, many, ratios=("ratio/gan", "ratio/semantic")):
    """The scalars of every step and stage, validation included, and the weights at the end are those of one process."""
    for folder in FOLDERS:
        first, other = (scalars(run / folder) for run in (one, many))
        assert [line["step"] for line in first] == [line["step"] for line in other]
        for a, b in zip(first, other, strict=True):
            assert a.keys() == b.keys()
            for name in a.keys() - NOT_OF_THE_MODEL:
                loss = name.startswith(("loss/", "logits/"))
                assert b[name] == pytest.approx(a[name], rel=1e-5 if loss else 1e-2, abs=1e-5), f"{folder} {name} {a}"
    logged = {name for line in scalars(many / FOLDERS[1]) for name in line if name.startswith("ratio/")}
    assert logged == set(ratios)
    first, second = (newest(run / FOLDERS[2]) for run in (one, many))
    assert_close(first["parts"], second["parts"])
    assert_close(first["ema"]["averages"], second["ema"]["averages"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "by_torchrun"),
    [(2, False), *(pytest.param(number, True, marks=pytest.mark.nightly) for number in (2, 4))],
)
def test_any_number_of_processes_logs_the_losses_of_one_and_ends_at_its_weights(
    one, tool, warm, tmp_path, processes, by_torchrun, monkeypatch
):
    """Adaptive weights on, a GAN that begins in the middle of stage 1, a batch norm over all processes."""
    monkeypatch.setenv("COLUMNS", "160")  # a cell of the plan in one line
    torchrun = ("--standalone", f"--nproc_per_node={processes}")
    if by_torchrun:
        printed = finish(tool.launch(one[1], tmp_path / "many", torchrun=torchrun))
    else:
        printed = "".join(warm.together(processes, tool.program, one[1], "--work-dir", tmp_path / "many"))
    assert f"8 = {processes} processes x 1 micro x {8 // processes}" in " ".join(printed.replace("│", " ").split())
    assert printed.count("Tokenizer: ") == 1
    assert_one_curve(one[0], tmp_path / "many")
    # The GAN begins at the third step: an Adam that had counted the first two would correct its bias otherwise.
    adam = newest(tmp_path / "many" / FOLDERS[0])["optimizers"]["sides"]["discriminator"]["state"]
    assert {float(entry["step"]) for entry in adam.values()} == {1.0}
    assert any("grad_norm/loss_vf" in line for line in scalars(tmp_path / "many" / FOLDERS[1]))
    assert aligntok.load_tokenizer(tmp_path / "many").latent_dim == 4
    assert not Path(".dist_test").exists()  # where mmengine would gather results by files


TWO, FOUR = (("--standalone", f"--nproc_per_node={processes}") for processes in (2, 4))


@pytest.mark.nightly  # of the steps tests/distributed/test_parallel.py asks in each run
def test_processes_that_share_out_the_model_are_one(one, tool, tmp_path):
    """Weights, moments and averages in shares: three stages, with pictures and validations."""
    finish(tool.launch(one[1], tmp_path / "many", "--cfg-options", "parallel=shard", torchrun=TWO))
    assert_one_curve(one[0], tmp_path / "many")
    assert [*(tmp_path / "many" / FOLDERS[0] / "pictures").iterdir()]


@pytest.fixture(scope="module")
def gone_on(one, tool, tmp_path_factory):
    """The newest checkpoint of the last stage after two steps more of it in one process."""
    run = shutil.copytree(one[0], tmp_path_factory.mktemp("gone_on") / "run")
    finish(tool.launch(one[1], run, "--cfg-options", "stages.2.steps=5"))
    return newest(run / FOLDERS[2])


@pytest.mark.nightly
@pytest.mark.parametrize("before", ["parallel=shard", "parallel=replicate"])
def test_a_training_goes_on_with_another_number_of_processes_and_held_otherwise(one, gone_on, tool, tmp_path, before):
    """Two steps more of the last stage: the same weights, whoever made the first three and makes these."""
    finish(tool.launch(one[1], tmp_path / "run", "--cfg-options", before, torchrun=TWO))
    for now, torchrun in (("replicate", ()), ("shard", TWO), ("replicate", TWO), ("shard", FOUR)):
        run = shutil.copytree(tmp_path / "run", tmp_path / f"{now}_{torchrun[-1:]}")
        finish(tool.launch(one[1], run, "--cfg-options", f"parallel={now}", "stages.2.steps=5", torchrun=torchrun))
        found = newest(run / FOLDERS[2])
        assert found["step"] == 5
        assert_close(found["parts"], gone_on["parts"])
        assert_close(found["ema"]["averages"], gone_on["ema"]["averages"])


@pytest.mark.nightly  # shares in files: tests/distributed/test_sharded_checkpoints.py in each run
def test_a_training_in_shares_goes_on_with_shares(one, tool, tmp_path):
    """A step more of the first stage, the shortest; weights, moments and averages are read back into shares."""
    stage = ("--stage", "latent_alignment", "--cfg-options", "parallel=shard")
    for steps in (2, 3):
        finish(tool.launch(one[1], tmp_path / "run", *stage, f"stages.0.steps={steps}", torchrun=TWO))
    found, expected = (newest(run / FOLDERS[0]) for run in (tmp_path / "run", one[0]))
    assert found["step"] == 3
    assert_close(found["parts"], expected["parts"])
    assert_close(found["ema"]["averages"], expected["ema"]["averages"])


@pytest.mark.nightly
def test_two_nodes_that_meet_on_the_network_are_one_process(one, tool, tmp_path):
    """torchrun's rendezvous, over loopback: two agents with one process each."""
    meeting = ("--nnodes=2", "--nproc_per_node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}")
    finish(*(tool.launch(one[1], tmp_path / "nodes", torchrun=meeting) for _ in range(2)))
    assert_one_curve(one[0], tmp_path / "nodes")


def test_micro_batches_are_one_batch_when_weights_are_fixed(config_source, tmp_path):
    """A gradient ratio is of its micro-batch, so the weights are constants here, and the norm is one of each image."""
    losses = dict(l1=dict(type="l1"), gan=dict(type="gan", weight=0.1))
    stages = [{**stage, "steps": 3} for stage in STAGES]
    stages[1] = {**stages[1], "losses": dict(semantic=dict(type="semantic_preservation", weight=0.5))}
    discriminator = dict(type="patchgan", base_channels=32, num_layers=2, norm="group")
    changes = dict(losses=losses, discriminator=discriminator, stages=stages)
    (tmp_path / "fixed.py").write_text(config_source(**{**SETTINGS, **changes}))
    for accumulation in (1, 2):
        folder = tmp_path / str(accumulation)
        options = ["--cfg-options", f"gradient_accumulation_steps={accumulation}"]
        assert train([str(tmp_path / "fixed.py"), "--work-dir", str(folder), *options]) == 0
    assert_one_curve(tmp_path / "1", tmp_path / "2", ratios=())


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def newest(stage):
    return read_checkpoint(list_checkpoints(stage)[-1][1])


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_mistake_ends_every_process_with_the_message_once_each(write_config, warm, tool, tmp_path):
    said = "global_batch_size 3 is not divisible by 2 (2 processes x 1 accumulation steps)"
    for process in warm.several(2, tool.program, write_config(global_batch_size=3), "--work-dir", tmp_path / "run"):
        assert process.end()[0] == 2
        assert process.output.count(said) == 1
    assert not (tmp_path / "run").exists()
