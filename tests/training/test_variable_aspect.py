"""Images of several aspect ratios, through all three stages of a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import aligntok
from aligntok.cli import train
from aligntok.data import images
from aligntok.engine.checkpoints import finished_steps, read_parts
from aligntok.training.alignment.model import AlignmentModel

SIZES = [(32, 32), (32, 48), (48, 32)]
FOLDERS = ("1_latent_alignment", "2_perceptual_alignment", "3_decoder_refinement")
STEPS = 6
TRAIN_TOOL = Path(__file__).parents[2] / "tools" / "train.py"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Eight square images, eight wide ones and eight tall ones to train on, two of each held out."""
    root = tmp_path_factory.mktemp("mixed")
    for split, count in (("train", 8), ("val", 2)):
        (root / split).mkdir()
        for shape, (height, width) in enumerate([(40, 40), (40, 58), (58, 40)]):
            for i in range(count):
                pixels = np.random.default_rng((count, shape, i)).integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / f"{i}_{shape}.png")
    return root


@pytest.fixture
def mixed_config(mixed, write_config):
    """Write the config of a tiny run on them; further keywords replace its keys."""

    def write(**changes):
        data = {split: dict(split=split, image_size=SIZES) for split in ("train", "val")}
        options = dict(
            data_root=str(mixed), data={**data, "workers": 0}, validation=dict(perceptual=None, batch_size=4)
        )
        return write_config(**{**options, "steps": STEPS, **changes})

    return write


@pytest.fixture
def shown(monkeypatch):
    """The (H, W) of what every optimiser step sees, as a list of lists: one of micro-batches a step."""
    steps = []
    inner = AlignmentModel.train_step

    def train_step(self, data, optim_wrapper):
        steps.append([tuple(micro["images"].shape[2:]) for micro in data.micro_batches])
        return inner(self, data, optim_wrapper)

    monkeypatch.setattr(AlignmentModel, "train_step", train_step)
    return steps


def test_all_three_stages_train_on_every_shape_one_at_a_step(mixed_config, shown, tmp_path):
    assert train([mixed_config(gradient_accumulation_steps=2), "--work-dir", str(tmp_path / "run")]) == 0
    assert all(len(step) == 2 and len(set(step)) == 1 for step in shown)
    for i, folder in enumerate(FOLDERS):
        seen = [step[0] for step in shown[i * STEPS : (i + 1) * STEPS]]
        assert sorted(seen) == sorted(2 * SIZES), folder  # an epoch: 8 images of each, 4 a step
        assert finished_steps(tmp_path / "run" / folder) == STEPS
        result = json.loads((tmp_path / "run" / folder / "result.json").read_text())
        assert result["metrics"]["reconstruction/images"] == 6
        with Image.open(next((tmp_path / "run" / folder / "pictures").glob("*.png"))) as picture:
            assert picture.width > 3 * 48  # four held-out images, wide ones among them
    tokenizer = aligntok.load_tokenizer(tmp_path / "run")
    for height, width in SIZES:
        assert tokenizer.encode(torch.zeros(1, 3, height, width)).shape[2:] == (height // 8, width // 8)


def test_headers_are_read_once_a_run_and_not_again_on_a_restart(mixed_config, shown, tmp_path, monkeypatch):
    found = []
    inner = images.assign_buckets

    def assign(source, *args, **kwargs):
        found.append(source.where)
        return inner(source, *args, **kwargs)

    monkeypatch.setattr("aligntok.data.images.assign_buckets", assign)
    config = mixed_config(steps=1)
    assert train([config, "--work-dir", str(tmp_path / "run"), "--stage", "latent_alignment"]) == 0
    assert sorted(Path(where).name for where in found) == ["train", "val"]
    monkeypatch.setattr(
        "aligntok.data.images.assign_buckets", lambda *args, **kwargs: pytest.fail("headers were read again")
    )
    assert train([config, "--work-dir", str(tmp_path / "run")]) == 0
    assert len(shown) == 3


def test_a_stage_gone_on_with_sees_the_shapes_that_were_left(mixed_config, shown, tmp_path):
    stage = ["--stage", "latent_alignment"]
    assert train([mixed_config(), "--work-dir", str(tmp_path / "whole"), *stage]) == 0
    whole = shown.copy()
    shown.clear()
    for options in (["--cfg-options", "stages.0.steps=2"], []):
        assert train([mixed_config(), "--work-dir", str(tmp_path / "halved"), *stage, *options]) == 0
    assert shown == whole
    first, second = (read_parts(tmp_path / run / FOLDERS[0]) for run in ("whole", "halved"))
    for part, state in first.items():
        assert all(torch.equal(tensor, second[part][name]) for name, tensor in state.items()), part


@pytest.mark.nightly
def test_two_processes_take_the_same_buckets_as_one(mixed_config, tmp_path):
    config, losses = mixed_config(steps=3), []
    for processes in (1, 2):
        command = [sys.executable, "-W", "error", "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={processes}", str(TRAIN_TOOL), config, "--stage", "latent_alignment"]
        command += ["--work-dir", str(tmp_path / str(processes))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        (file,) = (tmp_path / str(processes) / FOLDERS[0]).rglob("scalars.json")
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        losses.append([line["loss/l1"] for line in lines if "loss/l1" in line])
        assert lines[-1]["reconstruction/images"] == 6
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (
            [(32, 32), (32, 44)],
            r"dataset 'images': image_size \(32, 44\); its sides must be multiples of f = 8, such as \(32, 48\)",
        ),
        ((30, 32), r"image_size \(30, 32\); its sides"),
        (36, r"image_size \(36, 36\); its sides"),
        ([(32, 32), 32], "it must be int of at least 1 or "),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_side_that_is_no_multiple_of_f_is_found_before_training(mixed_config, tmp_path, capsys, split, size, said):
    data = {other: dict(split=other, image_size=32) for other in ("train", "val")}
    data[split]["image_size"] = size
    assert train([mixed_config(data=data), "--work-dir", str(tmp_path / "run"), "--dry-run"]) == 2
    printed = capsys.readouterr().err
    assert re.search(said, printed), printed
    if "sides" in said:
        assert f"data.{split}" in printed


LAION = """
_base_ = ["{config}"]
model = dict(
    encoder=dict(_delete_=True, type="timm", model_name="vit_tiny_patch16_224", pretrained=False,
                 model_args=dict(depth=1, embed_dim=48, num_heads=3)),
    decoder=dict(ch=32, ch_mult=(1, 1, 1, 1, 1), num_res_blocks=1, attn_resolutions=()),
    latent_dim=4,
)
discriminator = dict(base_channels=8, group_images=2)
losses = dict(lpips=None, gan=dict(adaptive_weight=dict(images=2)))
global_batch_size = 2
data = dict(workers=0)
checkpoint = dict(every=3)
stages = _base_.stages
for stage in stages:
    stage["steps"] = 3
stages[0]["losses"]["gan"]["start_step"] = 1
stages[1]["losses"]["semantic"]["adaptive_weight"]["images"] = 2
del stage
"""


@pytest.mark.nightly  # its shapes, and a short training of several, are asked in each run
def test_the_laion_config_trains_images_that_are_not_square_in_all_three_stages(shown, tmp_path):
    """Its own sizes, stages, teacher and balance, with networks small enough for a test."""
    config = Path(__file__).parents[2] / "configs" / "aligntok_dinov2reg_laion_f16d32.py"
    (tmp_path / "laion.py").write_text(LAION.format(config=config))
    (tmp_path / "images").mkdir()
    for i in range(8):
        height, width = [(260, 380), (460, 260)][i % 2]
        pixels = np.random.default_rng(i).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(tmp_path / "images" / f"{i}.jpg")
    options = ["--cfg-options", f"data_root={tmp_path / 'images'}"]
    assert train([str(tmp_path / "laion.py"), "--work-dir", str(tmp_path / "run"), *options]) == 0
    assert len(shown) == 9
    assert {shape for step in shown for shape in step} == {(256, 384), (448, 256)}
    for folder in FOLDERS:
        assert finished_steps(tmp_path / "run" / folder) == 3
