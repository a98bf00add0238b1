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
from aligntok.engine.checkpoints import read_parts

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


@pytest.mark.slow
def test_two_processes_log_the_losses_of_one_and_end_at_its_weights(write_config, tmp_path):
    # Six held-out images in two processes, and a batch norm over both: adaptive weights on, every stage.
    config = write_config(steps=4)
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
                assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-5), f"{folder} step {a['step']}: {name}"
        assert any("ratio/gan" in line for line in two)
    assert any("ratio/semantic" in line for line in scalars(tmp_path / "two" / FOLDERS[1]))
    first, second = (read_parts(tmp_path / run / FOLDERS[2], "ema") for run in ("one", "two"))
    for part in ("encoder", "adapter", "decoder"):
        for name, tensor in first[part].items():
            torch.testing.assert_close(second[part][name], tensor, rtol=0, atol=1e-4)
    assert aligntok.load_tokenizer(tmp_path / "two").latent_dim == 4


@pytest.mark.slow
def test_two_processes_go_on_with_what_one_began(write_config, tmp_path):
    config = write_config(steps=4)
    stage = ["--stage", "latent_alignment"]
    launch(1, config, tmp_path / "run", *stage, "--cfg-options", "stages.0.steps=2")
    launch(2, config, tmp_path / "run", *stage)
    launch(1, config, tmp_path / "one", *stage)
    found, expected = (read_parts(tmp_path / run / FOLDERS[0]) for run in ("run", "one"))
    for part, state in expected.items():
        for name, tensor in state.items():
            torch.testing.assert_close(found[part][name], tensor, rtol=0, atol=1e-4, check_dtype=True)


@pytest.mark.slow
def test_a_mistake_ends_every_process_with_the_message_once_each(write_config, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(TRAIN_TOOL)]
    command += [write_config(global_batch_size=3), "--work-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "global_batch_size 3 is not divisible by 2 (2 processes x 1 accumulation steps)" in done.stderr
    assert not (tmp_path / "run").exists()
