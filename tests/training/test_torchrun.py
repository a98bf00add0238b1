"""Two processes are one: the same run under torchrun, on CPU with gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import aligntok
from aligntok.engine.checkpoints import list_checkpoints, read_checkpoint

TRAIN_TOOL = Path(__file__).parents[2] / "tools" / "train.py"
FOLDERS = ("1_latent_alignment", "2_perceptual_alignment", "3_decoder_refinement")
NOT_OF_THE_MODEL = {"step", "images_per_second"}


def launch(processes, config, work_dir, *more):
    """Run the tool as `processes` processes and return what was printed."""
    command = [sys.executable, "-W", "error"]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command += [str(TRAIN_TOOL), config, "--work-dir", str(work_dir), *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def scalars(stage):
    """What a stage logged at each step, validation included: one dict a line of its file."""
    (file,) = stage.rglob("scalars.json")
    return [json.loads(line) for line in file.read_text().splitlines()]


# A leaky ReLU whose input is 0 but for rounding has one of two slopes, and a GAN with large steps makes much of it. So
# the steps are small, and the seed is one whose first steps have no such input. Adam's eps does the same for gradients
# that are 0 but for rounding (biases before a norm).
ADAM = dict(type="Adam", lr=1e-4, betas=(0.5, 0.9), eps=1e-4)
SETTINGS = dict(steps=3, seed=1, optimizer=ADAM, discriminator_optimizer=ADAM)


@pytest.mark.slow
def test_two_processes_log_the_losses_of_one_and_end_at_its_weights(write_config, tmp_path):
    """Adaptive weights on, a GAN that begins in the middle of stage 1, a batch norm over both processes."""
    config = write_config(**SETTINGS)
    printed = launch(2, config, tmp_path / "two")
    launch(1, config, tmp_path / "one")
    assert "4 = 2 processes x 1 micro x 2" in " ".join(printed.replace("│", " ").split())
    assert printed.count("Tokenizer: ") == 1
    for folder in FOLDERS:
        one, two = (scalars(tmp_path / run / folder) for run in ("one", "two"))
        assert [line["step"] for line in one] == [line["step"] for line in two]
        for a, b in zip(one, two, strict=True):
            assert a.keys() == b.keys()
            for name in a.keys() - NOT_OF_THE_MODEL:
                loss = name.startswith(("loss/", "logits/"))
                assert b[name] == pytest.approx(a[name], rel=1e-5 if loss else 1e-4, abs=1e-5), f"{folder} {name} {a}"
        assert any("ratio/gan" in line for line in two)
    assert any("ratio/semantic" in line for line in scalars(tmp_path / "two" / FOLDERS[1]))
    first, second = (newest(tmp_path / run / FOLDERS[2]) for run in ("one", "two"))
    assert_close(first["parts"], second["parts"])
    assert_close(first["ema"]["averages"], second["ema"]["averages"])
    # The GAN begins at the third step: an Adam that had counted the first two would correct its bias otherwise.
    adam = newest(tmp_path / "two" / FOLDERS[0])["optimizers"]["sides"]["discriminator"]["state"]
    assert {float(entry["step"]) for entry in adam.values()} == {1.0}
    assert aligntok.load_tokenizer(tmp_path / "two").latent_dim == 4


def newest(stage):
    return read_checkpoint(list_checkpoints(stage)[-1][1])


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_mistake_ends_every_process_with_the_message_once_each(write_config, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(TRAIN_TOOL)]
    command += [write_config(global_batch_size=3), "--work-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "global_batch_size 3 is not divisible by 2 (2 processes x 1 accumulation steps)" in done.stderr
    assert not (tmp_path / "run").exists()
