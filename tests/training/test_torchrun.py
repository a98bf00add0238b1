"""Any number of processes is one: the same run under torchrun, on CPU with gloo, on one node and on two."""

from __future__ import annotations

import json
import socket

import pytest
import torch

import aligntok
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


# A leaky ReLU whose input is 0 but for rounding has one of two slopes, and a GAN with large steps makes much of it. So
# the steps are small, and the seed is one whose first steps have no such input. Adam's eps does the same for gradients
# that are 0 but for rounding (biases before a norm).
ADAM = dict(type="Adam", lr=1e-4, betas=(0.5, 0.9), eps=1e-4)
SETTINGS = dict(steps=3, seed=1, optimizer=ADAM, discriminator_optimizer=ADAM)


@pytest.fixture(scope="module")
def one(tmp_path_factory, config_source, tool):
    """The run in one process: (work folder, config file)."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "tiny.py").write_text(config_source(**SETTINGS))
    finish(tool.launch(folder / "tiny.py", folder / "run"))
    return folder / "run", folder / "tiny.py"


def assert_one_curve(one, many):
    """The scalars of every step and stage, validation included, and the weights at the end are those of one process."""
    for folder in FOLDERS:
        first, other = (scalars(run / folder) for run in (one, many))
        assert [line["step"] for line in first] == [line["step"] for line in other]
        for a, b in zip(first, other, strict=True):
            assert a.keys() == b.keys()
            # A teacher that the student still equals leaves a gradient of rounding errors, and a ratio to it.
            unknown = {"ratio/semantic"} if a.get("loss/semantic") == 0 else set()
            for name in a.keys() - NOT_OF_THE_MODEL - unknown:
                loss = name.startswith(("loss/", "logits/"))
                assert b[name] == pytest.approx(a[name], rel=1e-5 if loss else 1e-4, abs=1e-5), f"{folder} {name} {a}"
        assert any("ratio/gan" in line for line in other)
    assert any("ratio/semantic" in line for line in scalars(many / FOLDERS[1]))
    first, second = (newest(run / FOLDERS[2]) for run in (one, many))
    assert_close(first["parts"], second["parts"])
    assert_close(first["ema"]["averages"], second["ema"]["averages"])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_logs_the_losses_of_one_and_ends_at_its_weights(one, tool, tmp_path, processes):
    """Adaptive weights on, a GAN that begins in the middle of stage 1, a batch norm over all processes."""
    torchrun = ("--standalone", f"--nproc_per_node={processes}")
    printed = finish(tool.launch(one[1], tmp_path / "many", torchrun=torchrun))
    assert f"4 = {processes} processes x 1 micro x {4 // processes}" in " ".join(printed.replace("│", " ").split())
    assert printed.count("Tokenizer: ") == 1
    assert_one_curve(one[0], tmp_path / "many")
    # The GAN begins at the third step: an Adam that had counted the first two would correct its bias otherwise.
    adam = newest(tmp_path / "many" / FOLDERS[0])["optimizers"]["sides"]["discriminator"]["state"]
    assert {float(entry["step"]) for entry in adam.values()} == {1.0}
    assert aligntok.load_tokenizer(tmp_path / "many").latent_dim == 4


@pytest.mark.slow
def test_two_nodes_that_meet_on_the_network_are_one_process(one, tool, tmp_path):
    """torchrun's rendezvous, over loopback: two agents with one process each."""
    meeting = ("--nnodes=2", "--nproc_per_node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}")
    finish(*(tool.launch(one[1], tmp_path / "nodes", torchrun=meeting) for _ in range(2)))
    assert_one_curve(one[0], tmp_path / "nodes")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def newest(stage):
    return read_checkpoint(list_checkpoints(stage)[-1][1])


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_mistake_ends_every_process_with_the_message_once_each(write_config, tool, tmp_path):
    torchrun = ("--standalone", "--nproc_per_node=2")
    process = tool.launch(write_config(global_batch_size=3), tmp_path / "run", torchrun=torchrun)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "global_batch_size 3 is not divisible by 2 (2 processes x 1 accumulation steps)" in printed
    assert not (tmp_path / "run").exists()
