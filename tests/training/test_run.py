"""A whole tiny run: three stages end to end, interrupted, gone on with, and loaded again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from PIL import Image
from safetensors.torch import load_file

import aligntok
from aligntok import loading
from aligntok.cli import export, train
from aligntok.engine.checkpoints import finished_steps, list_checkpoints, read_checkpoint, read_frozen, read_parts
from aligntok.engine.checkpoints import same_content as same
from aligntok.engine.ema import WeightAverages
from aligntok.errors import CheckpointError, ConfigError, WeightsError
from aligntok.registry import HOOKS
from aligntok.training.alignment import expand_stages
from aligntok.training.config import load_config
from aligntok.training.plan import plan_stage
from aligntok.training.run import run

STEPS = 4
FOLDERS = ("1_latent_alignment", "2_perceptual_alignment", "3_decoder_refinement")
TRAIN_TOOL = Path(__file__).parents[2] / "tools" / "train.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config_source):
    """A finished run, made once and only looked at: (work folder, config file, what was printed and told)."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.py").write_text(config_source(steps=STEPS))
    command = [
        sys.executable,
        "-W",
        "error",
        str(TRAIN_TOOL),
        str(folder / "tiny.py"),
        "--work-dir",
        str(folder / "run"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / "run", str(folder / "tiny.py"), (done.stdout, done.stderr)


@pytest.fixture
def copy_of_finished(finished, tmp_path):
    """A copy of the finished run, to be spoilt: (work folder, config file)."""
    shutil.copytree(finished[0], tmp_path / "copy")
    return tmp_path / "copy", finished[1]


class Interruption(Hook):
    """Raises after a step, before that step's checkpoint; `at` is (stage's folder, step) or None."""

    priority = "HIGHEST"
    at = None

    def after_train_iter(self, runner, *args, **kwargs):
        if (runner.stage_dir.name, runner.iter + 1) == self.at:
            raise KeyboardInterrupt("pulled the plug")


@pytest.fixture
def interruption(monkeypatch):
    """The hook under the name 'interruption', to be armed."""
    list(HOOKS)  # loads the plugins first
    monkeypatch.setitem(HOOKS.module_dict, "interruption", Interruption)
    monkeypatch.setattr(Interruption, "at", None)
    return Interruption


def start(config, work_dir, *more):
    return train([str(config), "--work-dir", str(work_dir), *more])


def newest(folder):
    """What the newest checkpoint of a stage holds, but for the time it took."""
    content = read_checkpoint(list_checkpoints(folder)[-1][1])
    del content["seconds"]
    return content


def same_runs(a, b):
    return all(same(newest(a / folder), newest(b / folder)) for folder in FOLDERS)


def modified(folder):
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def tensors(tokenizer):
    return tokenizer.state_dict()


# What a finished run leaves


def test_a_run_ends_with_a_tokenizer_that_anyone_can_load(finished):
    work_dir, _, _ = finished
    shared, trained = aligntok.load_tokenizer(work_dir / "tokenizer"), aligntok.load_tokenizer(work_dir)
    assert same(tensors(shared), tensors(trained))
    assert not shared.training
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        assert torch.equal(shared.reconstruct(images), trained.reconstruct(images))
    assert shared.encode(images).shape == (2, 4, 4, 6)


def test_the_tokenizer_is_the_last_stages_averages_and_what_it_froze(finished):
    work_dir, _, _ = finished
    weights = tensors(aligntok.load_tokenizer(work_dir))
    averages = newest(work_dir / FOLDERS[2])["ema"]["averages"]["0.05"]["decoder"]
    frozen = read_frozen(work_dir / FOLDERS[2])
    for name, tensor in weights.items():
        part, key = name.split(".", 1)
        assert torch.equal(tensor, averages[key] if part == "decoder" else frozen[part][key]), name


def test_it_says_what_it_will_do_and_what_it_reached(finished):
    work_dir, _, (printed, told) = finished
    for words in (
        "What is going to be trained",
        "0.22 M trained",
        "4 = 1 process x 1 micro x 4",
        "= epochs",
        "disk a checkpoint",
    ):
        assert words in told
    for stage in ("latent_alignment", "perceptual_alignment", "decoder_refinement"):
        assert f"{stage}: step {STEPS}/{STEPS}" in told
    assert "ETA" in told
    assert "images/s" in told
    assert "ETA" not in printed  # results alone
    assert f"Tokenizer: {work_dir / 'tokenizer'}" in printed
    assert "PSNR (dB)" in printed


def test_each_stage_leaves_its_result(finished):
    for folder in FOLDERS:
        result = json.loads((finished[0] / folder / "result.json").read_text())
        assert result["step"] == STEPS
        assert result["seconds"] > 0
        assert 0 < result["metrics"]["reconstruction/psnr"] < 100
        assert result["metrics"]["reconstruction/images"] == 6


def test_the_result_is_that_of_the_tokenizer_that_is_shared(finished, photographs):
    from aligntok.data.images import ImageDataset
    from aligntok.evaluation.metrics.image_quality import psnr

    tokenizer = aligntok.load_tokenizer(finished[0])
    images = [item["images"] for item in ImageDataset(photographs, 32, train=False, split="val")]
    with torch.no_grad():
        values = [psnr(image, tokenizer.reconstruct(image[None])[0]) for image in images]
    result = json.loads((finished[0] / FOLDERS[2] / "result.json").read_text())
    assert result["metrics"]["reconstruction/psnr"] == pytest.approx(np.mean(values), abs=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own generated protobuf code
def test_tensorboard_has_every_loss_ratio_norm_and_rate(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    common = {"images_per_second", "skipped_steps", "lr/autoencoder", "lr/discriminator", "reconstruction/psnr"}
    gan = {"loss/l1", "loss/gan", "loss/discriminator", "logits/real", "logits/fake", "ratio/gan"}
    semantic = {"loss/semantic", "ratio/semantic", "grad_norm/encoder", "grad_norm/adapter"}
    expected = (gan | {"grad_norm/adapter"}, gan | semantic, gan)
    for folder, names in zip(FOLDERS, expected, strict=True):
        (file,) = (finished[0] / folder).rglob("events.out.tfevents.*")
        events = EventAccumulator(str(file)).Reload()
        found = events.Tags()
        assert common | names | {"grad_norm/decoder", "grad_norm/discriminator"} <= set(found["scalars"])
        assert [event.step for event in events.Scalars("loss/l1")] == list(range(1, STEPS + 1))
        assert found["images"] == ["reconstruction"]
    assert "ratio/semantic" not in set(found["scalars"])


def test_pictures_show_input_reconstruction_and_error(finished, photographs):
    from aligntok.data.images import ImageDataset

    first = ImageDataset(photographs, 32, train=False, split="val")[0]["images"]
    for folder in FOLDERS:
        (path,) = (finished[0] / folder / "pictures").glob("*.png")
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 127.5 - 1
        assert pixels.shape == (3, 4 * 32 + 3 * 4, 3 * 32 + 2 * 4)  # four rows of three, gaps of four
        given, shown, error = (pixels[:, :32, x : x + 32] for x in (0, 36, 72))
        torch.testing.assert_close(given, first, rtol=0, atol=0.005)
        torch.testing.assert_close(error, ((given - shown).abs() * 2 - 1).clamp(max=1), rtol=0, atol=0.03)


def test_checkpoints_hold_what_changes_and_nothing_else(finished):
    trained = ({"adapter", "decoder"}, {"encoder", "adapter", "decoder"}, {"decoder"})
    for folder, parts in zip(FOLDERS, trained, strict=True):
        content = newest(finished[0] / folder)
        assert set(content["parts"]) == parts | {"discriminator"}
        assert set(content["ema"]["averages"]) == {"0.05", "0.1"}
        assert set(content["ema"]["averages"]["0.1"]) == parts
        frozen = set(read_frozen(finished[0] / folder))
        assert frozen == {"encoder", "adapter", "decoder"} - parts | (
            {"teacher_encoder", "teacher_adapter"} if len(parts) == 3 else set()
        )


def test_checkpoints_take_the_disk_that_was_announced(finished, tool):
    work_dir, config, _ = finished
    for stage in expand_stages(load_config(config, {"work_dir": str(work_dir)})):
        plan = plan_stage(stage, processes=1)
        checkpoint, frozen = list_checkpoints(stage.folder)[-1][1], stage.folder / "frozen.safetensors"
        assert tool.bytes_of(checkpoint) == pytest.approx(plan.checkpoint_bytes, rel=0.05)
        assert frozen.stat().st_size == pytest.approx(plan.frozen_bytes, rel=0.05)


def test_only_so_many_checkpoints_stay(finished):
    for folder in FOLDERS:
        assert [step for step, _ in list_checkpoints(finished[0] / folder)] == [2, 4]


# From stage to stage


def test_the_discriminator_goes_on_from_stage_to_stage(finished, tmp_path):
    """The least learning rate leaves what a stage began with in its own checkpoint."""
    work_dir, config, _ = finished
    for i, (before, after) in enumerate(pairwise(FOLDERS)):
        old = newest(work_dir / before)["parts"]["discriminator"]
        shutil.copytree(work_dir / before, tmp_path / before)
        still = ["--cfg-options", f"stages.{i + 1}.steps=1", "discriminator_optimizer.lr=1e-12"]
        assert start(config, tmp_path, "--stage", after[2:], *still) == 0
        new = newest(tmp_path / after)["parts"]["discriminator"]
        shutil.rmtree(tmp_path / after)
        weights = [name for name in old if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
        assert all(torch.allclose(old[name], new[name], rtol=0, atol=1e-11) for name in weights)
        assert all(new[n] > old[n] for n in old if n.endswith("num_batches_tracked"))


def test_stage_two_starts_from_raw_weights_and_its_teacher_is_that_start(finished):
    raw = read_parts(finished[0] / FOLDERS[0], "raw")
    frozen = read_frozen(finished[0] / FOLDERS[1])
    assert same(frozen["teacher_encoder"], raw["encoder"])
    assert same(frozen["teacher_adapter"], raw["adapter"])
    assert not same(read_parts(finished[0] / FOLDERS[0], "ema")["adapter"], raw["adapter"])


def test_stage_three_freezes_the_averaged_encoder_and_adapter_of_stage_two(finished):
    averaged = read_parts(finished[0] / FOLDERS[1], "ema")
    for part in ("encoder", "adapter"):
        assert same(read_parts(finished[0] / FOLDERS[2], "raw")[part], averaged[part])
        assert same(read_parts(finished[0] / FOLDERS[2], "ema")[part], averaged[part])
        assert not same(newest(finished[0] / FOLDERS[1])["parts"][part], averaged[part])


# Again, interrupted, damaged


def test_a_second_run_skips_finished_stages_and_writes_nothing_in_them(copy_of_finished, capsys):
    work_dir, config = copy_of_finished
    before = {folder: modified(work_dir / folder) for folder in FOLDERS}
    weights = tensors(aligntok.load_tokenizer(work_dir / "tokenizer"))
    assert start(config, work_dir) == 0
    assert capsys.readouterr().err.count("finished already, skipped") == 3
    assert {folder: modified(work_dir / folder) for folder in FOLDERS} == before
    assert same(weights, tensors(aligntok.load_tokenizer(work_dir / "tokenizer")))


@pytest.mark.parametrize("at", [(FOLDERS[0], 1), (FOLDERS[1], 3), (FOLDERS[2], 4)], ids=lambda at: f"{at[0]}-{at[1]}")
def test_an_interrupted_run_ends_bit_identical(finished, write_config, tmp_path, interruption, at):
    config = write_config(steps=STEPS, hooks=[dict(type="interruption")])
    interruption.at = at
    assert start(config, tmp_path / "run") == 130
    assert finished_steps(tmp_path / "run" / at[0]) < at[1]
    assert not (tmp_path / "run" / "tokenizer").exists()
    interruption.at = None
    assert start(config, tmp_path / "run") == 0
    assert same_runs(tmp_path / "run", finished[0])
    assert same(
        load_file(tmp_path / "run/tokenizer/model.safetensors"), load_file(finished[0] / "tokenizer/model.safetensors")
    )


def test_a_run_interrupted_twice_in_one_stage_ends_bit_identical(finished, write_config, tmp_path, interruption):
    config = write_config(steps=STEPS, hooks=[dict(type="interruption")], checkpoint=dict(every=1, keep=1))
    for step in (2, 4):
        interruption.at = (FOLDERS[1], step)
        assert start(config, tmp_path / "run") == 130
        assert finished_steps(tmp_path / "run" / FOLDERS[1]) == step - 1
    interruption.at = None
    assert start(config, tmp_path / "run") == 0
    assert same_runs(tmp_path / "run", finished[0])


def test_a_stage_stopped_before_its_validation_is_validated_and_not_trained_again(copy_of_finished):
    work_dir, config = copy_of_finished
    result = work_dir / FOLDERS[0] / "result.json"
    measured = json.loads(result.read_text())["metrics"]
    result.unlink()
    before = modified(work_dir / FOLDERS[0] / "checkpoints")
    assert start(config, work_dir) == 0
    assert json.loads(result.read_text())["metrics"] == measured
    assert modified(work_dir / FOLDERS[0] / "checkpoints") == before


def test_more_steps_go_on_where_fewer_ended(finished, tmp_path):
    config = finished[1]
    assert start(config, tmp_path / "run", "--stage", "latent_alignment", "--cfg-options", "stages.0.steps=3") == 0
    assert start(config, tmp_path / "run", "--stage", "latent_alignment") == 0
    assert same(newest(tmp_path / "run" / FOLDERS[0]), newest(finished[0] / FOLDERS[0]))


def test_a_schedule_goes_on_where_it_was(write_config, tmp_path):
    schedule = [dict(type="LinearLR", start_factor=0.1, begin=0, end=4)]
    config = write_config(steps=STEPS, schedule=schedule)
    one = ["--stage", "latent_alignment"]
    assert start(config, tmp_path / "whole", *one) == 0
    assert start(config, tmp_path / "parts", *one, "--cfg-options", "stages.0.steps=2") == 0
    assert start(config, tmp_path / "parts", *one) == 0
    whole, parts = (newest(tmp_path / name / FOLDERS[0]) for name in ("whole", "parts"))
    assert same(whole, parts)
    assert whole["optimizers"]["sides"]["autoencoder"]["param_groups"][0]["lr"] == pytest.approx(1e-3, rel=0.3)


@pytest.mark.parametrize("stage", [0, 2])
def test_a_truncated_newest_checkpoint_is_reported_and_the_one_before_used(finished, copy_of_finished, caplog, stage):
    work_dir, config = copy_of_finished
    damaged = list_checkpoints(work_dir / FOLDERS[stage])[-1][1]
    (shard,) = damaged.glob("*.safetensors")
    os.truncate(shard, shard.stat().st_size * 2 // 3)
    assert start(config, work_dir) == 0
    reports = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(str(damaged) in text and "damaged or incomplete" in text and "one before" in text for text in reports)
    assert same_runs(work_dir, finished[0])


def test_a_stage_of_which_every_checkpoint_is_damaged_is_not_overwritten(finished, copy_of_finished, capsys):
    work_dir, config = copy_of_finished
    for _, path in list_checkpoints(work_dir / FOLDERS[2]):
        (path / "state.json").write_bytes(b"")
    before = modified(work_dir / FOLDERS[2])
    assert start(config, work_dir) == 2
    assert "no checkpoint of 2 in" in (printed := capsys.readouterr().err)
    assert "Restore one, or remove the stage's folder to train it anew" in printed
    assert modified(work_dir / FOLDERS[2]) == before
    shutil.rmtree(work_dir / FOLDERS[2])
    assert start(config, work_dir) == 0
    assert same_runs(work_dir, finished[0])


def test_a_checkpoint_of_another_shape_is_one_clear_error(copy_of_finished, capsys):
    work_dir, config = copy_of_finished
    shutil.rmtree(work_dir / FOLDERS[2])
    assert start(config, work_dir, "--cfg-options", "model.latent_dim=8") == 2
    assert "what the stage starts from does not fit the config's" in capsys.readouterr().err


def test_workers_and_micro_batches_of_data_do_not_change_a_step(finished, tmp_path):
    options = ["--stage", "latent_alignment", "--cfg-options", "data.workers=2"]
    assert start(finished[1], tmp_path / "run", *options) == 0
    assert same(newest(tmp_path / "run" / FOLDERS[0]), newest(finished[0] / FOLDERS[0]))


def test_runs_of_one_name_in_one_process_and_second_do_not_share_files(finished, tmp_path, monkeypatch):
    """mmengine keeps loggers and visualizers by name, and its names change only every second."""
    monkeypatch.setattr("mmengine.runner.runner.time", SimpleNamespace(**{**vars(time), "time": lambda: 1e9}))
    options = ["--stage", "latent_alignment", "--cfg-options", "stages.0.steps=1"]
    for folder in ("a", "b"):
        assert start(finished[1], tmp_path / folder / "run", *options) == 0
    for folder in ("a", "b"):
        stage = tmp_path / folder / "run" / FOLDERS[0]
        assert len(list(stage.rglob("events.out.tfevents.*"))) == 1
        (log,) = stage.rglob("*.log")
        assert log.read_text().count("step 1 ") == 1
        assert "attention: encoders, convolutional blocks: torch's, as xformers runs on CUDA alone" in log.read_text()


# Planning, choosing, mistakes


def test_a_dry_run_needs_neither_data_nor_weights_and_prints_every_stage(
    write_config, tiny, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    model = {**tiny["model"], "encoder": {"type": "dinov2", "pretrained": True, "downsample_factor": 8}}
    losses = {**tiny["losses"], "lpips": dict(type="lpips")}
    config = write_config(
        data_root=None, model=model, losses=losses, data=dict(train=dict(image_size=32), nominal_images=1000)
    )
    assert start(config, tmp_path / "run", "--dry-run") == 0
    printed = "".join(capsys.readouterr().out.split())
    for words in ("What is going to be trained", "304.37 M", "14.72 M frozen", "= epochs", "│ disk a", "│ checkpoint"):
        assert "".join(words.split()) in printed
    assert not (tmp_path / "run").exists()


def test_a_dry_run_looks_at_the_data_that_it_is_given(write_config, photographs, tmp_path, capsys):
    sets = {split: dict(split=split, image_size=32) for split in ("train", "val")}
    config = write_config(steps=10, data=dict(**sets, nominal_images=7))
    assert start(config, tmp_path / "run", "--dry-run") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "= epochs" in line]
    images = len(list((photographs / "train").rglob("*.png")))
    assert f"{10 * 4 / images:.2f}" in line  # steps of four images
    for option, said in (
        (f"data_root={tmp_path}/nowhere", "no file or folder of images at"),
        ("data.train.split=trian", "has no split named 'trian'; did you mean 'train'?"),
        ("data.val.split=vla", "has no split named 'vla'; did you mean 'val'?"),
    ):
        assert start(config, tmp_path / "run", "--dry-run", "--cfg-options", option) == 2
        assert said in capsys.readouterr().err
    assert start(config, tmp_path / "run", "--dry-run", "--cfg-options", "data_root=None") == 0
    assert f"{10 * 4 / 7:.2f}" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


#: Layers of its decoder would be of no width.
NARROW = dict(
    encoder=dict(type="timm", model_name="test_vit", pretrained=False),
    decoder=dict(type="vit_cnn", width=16, depth=1, num_heads=2, mlp_ratio=1e-9, ch=32, ch_mult=(1, 1, 1, 1)),
)


class Written(float):
    """A number that a config's file writes as Python does."""

    def __repr__(self):
        return f"float('{float(self)}')"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(optimizer=dict(lr=-1)), "Invalid learning rate: -1"),
        (dict(optimizer=dict(lr=True)), "lr=True is bool"),
        (dict(optimizer=dict(lr=1e11)), "lr=100000000000.0; it must be at most 100"),
        (dict(optimizer=dict(lr=0)), "optimizer: optimiser 'Adam': lr=0 trains nothing; 1e-12 is the least"),
        (dict(optimizer=dict(lr=1e-15)), "lr=1e-15 trains nothing"),
        (dict(optimizer=dict(lr=1e-300)), "lr=1e-300; it must be 0 or at least 1e-37, int or float"),
        (dict(optimizer=dict(eps=1e-300)), "eps=1e-300; it must be 0 or at least 1e-37, int or float"),
        (dict(process_timeout=1e-300), "process_timeout=1e-300; it must be int or float above 0, at least 1e-09"),
        (
            dict(data=dict(train=dict(split="train", image_size=32, max_aspect_ratio=1e18))),
            "max_aspect_ratio=1e+18; it must be int or float of at least 1, at most 1,000,000",
        ),
        (dict(optimizer=dict(betas="1")), "betas='1' is str"),
        (dict(optimizer=dict(maximize=True)), "does not descend"),
        (dict(optimizer=dict(type="SparseAdam")), "cannot take a step (SparseAdam does not support dense gradients"),
        (dict(clip_grad_norm=Written("inf")), "clip_grad_norm=inf; it must be finite"),
        (dict(schedule=[dict(type="LinearLR", begin=Written("nan"))]), "begin=nan"),
        (
            dict(schedule=[dict(type="LinearLR", by_epoch=True)]),
            "by_epoch=True of LinearLR, but schedules are counted in",
        ),
        (dict(seed=10**11), "seed=100000000000; it must be int of at least 0, at most 2,147,483,647"),
        (dict(data=dict(train=dict(split="train", image_size=32), val=dict(split=-1))), "split=-1 is int"),
        (
            dict(data=dict(workers=99_999_999_999)),
            "data.workers=99999999999; it must be int of at least 0, at most 1,024",
        ),
        (dict(losses=dict(l1=dict(type="l1", weight=True))), "weight=True is bool"),
        (dict(losses=dict(l1=dict(type="l1", weight=-1.0))), "weight=-1.0; it must be int or float of at least 0"),
        (dict(model=dict(encoder=dict(type="timm"))), "encoder 'timm' needs model_name"),
        (dict(model=dict(latent_dim=4)), "model has no encoder"),
        (
            dict(teacher=dict(type="timm", model_name="test_vit", model_args=dict(num_heads=True))),
            "timm model 'test_vit': model_args: num_heads=True is bool; it must be int",
        ),
        pytest.param(
            dict(model=dict(NARROW, adapter=dict(type="mlp"), latent_dim=4, downsample_factor=8)),
            "stage 'latent_alignment': decoder.blocks.0.fc1.weight [0, 16], decoder.blocks.0.fc1.bias [0], ",
            marks=pytest.mark.filterwarnings("ignore:Initializing zero-element tensors"),
        ),
        (dict(work_dir="a" * 300), "work_dir='aaaa"),
        (dict(validation=dict(perceptual=dict(type="kl"))), "the loss 'kl' takes"),
        (dict(validation=dict(extractor="timm:resnet5000")), "no timm model named 'resnet5000'"),
        (dict(validation=dict(extractor="inception_v3:/no/such.pth")), "no weights at /no/such.pth"),
        (dict(hooks=[dict(type="IterTimerHook", x=1)]), "no keyword named 'x'"),
        (dict(compile=dict(mode="x")), "torch.compile takes no compile={'mode': 'x'}"),
    ],
)
def test_nonsense_is_found_by_a_dry_run(write_config, capsys, changes, said):
    assert train([write_config(**changes), "--dry-run"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            dict(teacher=dict(type="timm", model_name="test_vit", pretrained="./missing.pth")),
            "no weights at missing.pth",
        ),
        (
            dict(validation=dict(perceptual=dict(type="lpips", pretrained="no_file.safetensors"))),
            "no weights at no_file.safetensors; place the file there",
        ),
    ],
)
def test_missing_weights_are_told_by_a_dry_run_and_refused_before_any_training(
    write_config, tmp_path, capsys, changes, said
):
    """A plan needs no weights, which may be fetched after it."""
    config = write_config(**changes)
    assert train([config, "--dry-run"]) == 0
    assert f"still missing, and refused by the run: stage 'latent_alignment': {said}" in capsys.readouterr().out
    assert start(config, tmp_path / "run") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_names_every_stage_in_full_on_a_narrow_terminal(write_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert start(write_config(), tmp_path / "run", "--dry-run") == 0
    assert "…" not in capsys.readouterr().out


def test_one_stage_can_be_run_alone(finished, tmp_path, capsys):
    config = finished[1]
    assert start(config, tmp_path / "run", "--stage", "latent_alignment") == 0
    assert {path.name for path in (tmp_path / "run").glob("[!.]*")} == {FOLDERS[0], "run.json"}
    noted = json.loads((tmp_path / "run" / "run.json").read_text())
    assert noted["config"] == os.path.relpath(config, tmp_path / "run")
    assert noted["options"]["work_dir"] == "."
    assert same(newest(tmp_path / "run" / FOLDERS[0]), newest(finished[0] / FOLDERS[0]))
    capsys.readouterr()
    assert start(config, tmp_path / "run", "--stage", "decoder_refinement") == 2
    assert f"starts from {tmp_path / 'run' / FOLDERS[1]}, which has no checkpoint; train that stage first" in (
        capsys.readouterr().err
    )
    assert start(config, tmp_path / "run", "--stage", "refinement") == 2
    assert (
        "no stage named 'refinement'; did you mean 'decoder_refinement'? known: latent_alignment, perceptual_"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("data_root=None", "data_root is not set"),
        ("data_root=/nowhere/photos", "/nowhere/photos"),
        ("global_bach_size=4", "did you mean 'global_batch_size'?"),
        ("global_batch_size=4 gradient_accumulation_steps=3", "is not divisible by 3"),
        ("steps", "--cfg-options takes key=value, not 'steps'"),
        ("stages.9.steps=1", "dots lead into dicts and lists that the config has"),
        ("process_timeout=0", "process_timeout=0; it must be int or float above 0"),
        ("seed=-1", "seed=-1; it must be int of at least 0"),
        ("clip_grad_norm=0", "clip_grad_norm=0; it must be int or float above 0 or None"),
        ("checkpoint.keep_every=3", "is no multiple of checkpoint.every=2, so nothing would be kept; 4 would work"),
        ("compile.mod=max-autotune", "did you mean 'mode'?"),
        ("compile.mode=max-autotune", "records CUDA graphs, of which one block's overwrite what another has given"),
        ("lora.rank=4", "lora trains the encoder, but this stage trains only adapter, decoder"),
        ("precision=fp8", "precision='fp8'; it must be 'fp32', 'tf32', 'bf16', 'fp16' or 'auto'"),
        ("discriminator.num_layers=6", "PatchGAN"),
        ("validation.perceptual.type=lpips", "vgg16"),
    ],
)
def test_a_mistake_is_one_message_and_exit_status_two(write_config, tmp_path, capsys, monkeypatch, option, said):
    config = write_config(validation=dict(perceptual={}))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    assert start(config, tmp_path / "run", "--cfg-options", *option.split()) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert len(re.findall("^(?:Config|Data|Weights)Error: ", printed, re.MULTILINE)) == 1
    assert "Traceback" not in printed


def test_the_tool_itself_exits_with_two_and_no_traceback(write_config, tool, tmp_path):
    process = tool.launch(write_config(data_root=None), tmp_path / "run")
    printed, _ = process.communicate()
    assert process.returncode == 2
    assert printed.startswith("ConfigError: data_root is not set")
    assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()


# Choosing weights of a run


def test_raw_weights_or_any_kept_width_can_be_asked_for(finished):
    work_dir, _, _ = finished
    content = newest(work_dir / FOLDERS[2])
    for chosen, decoder in (
        (dict(weights="raw"), content["parts"]["decoder"]),
        (dict(sigma_rel=0.1), content["ema"]["averages"]["0.1"]["decoder"]),
    ):
        assert same(tensors(aligntok.load_tokenizer(work_dir, **chosen).decoder), decoder)
    with pytest.raises(CheckpointError, match=r"keeps no EMA of width 0\.2; it keeps 0\.05, 0\.1"):
        aligntok.load_tokenizer(work_dir, sigma_rel=0.2)
    with pytest.raises(ConfigError, match="'raw' or 'ema'"):
        aligntok.load_tokenizer(work_dir, weights="average")


def test_a_stage_can_be_loaded_by_its_own_folder(finished):
    stage = finished[0] / FOLDERS[1]
    assert same(tensors(aligntok.load_tokenizer(stage).encoder), read_parts(stage, "ema")["encoder"])


def test_without_averages_the_raw_weights_are_the_tokenizer(write_config, tmp_path):
    config = write_config(steps=1, ema=None)
    assert start(config, tmp_path / "run", "--stage", "latent_alignment") == 0
    stage = tmp_path / "run" / FOLDERS[0]
    assert same(tensors(aligntok.load_tokenizer(stage).decoder), newest(stage)["parts"]["decoder"])
    with pytest.raises(CheckpointError, match="keeps no EMA"):
        aligntok.load_tokenizer(stage, weights="ema")


def test_averages_asked_for_while_going_on_begin_as_the_weights_are(write_config, tmp_path):
    stage = tmp_path / "run" / FOLDERS[0]
    only = ["--stage", "latent_alignment"]
    assert start(write_config(steps=1, ema=None), tmp_path / "run", *only) == 0
    before = newest(stage)["parts"]["decoder"]
    ema = dict(sigma_rel=[], decays=[0.9], inference=0.9)
    assert start(write_config(steps=2, ema=ema), tmp_path / "run", *only) == 0
    content = newest(stage)
    for name, average in content["ema"]["averages"]["0.9"]["decoder"].items():
        torch.testing.assert_close(average, torch.lerp(before[name], content["parts"]["decoder"][name], 0.1))


def test_an_average_of_another_width_is_made_from_snapshots(write_config, tmp_path, monkeypatch):
    """Post hoc, close to the same width tracked all along."""
    ema = dict(sigma_rel=[0.05, 0.10], inference=0.05, snapshot_every=2)
    config = write_config(steps=12, ema=ema, checkpoint=dict(every=100), validation=dict(perceptual=None, num_images=1))
    tracked = {}
    update = WeightAverages.update

    def update_both(self):
        if "ema" not in tracked:
            tracked["ema"] = WeightAverages(self.parts, [0.075])
        update(self)
        update(tracked["ema"])

    monkeypatch.setattr(WeightAverages, "update", update_both)
    assert start(config, tmp_path / "run", "--stage", "latent_alignment") == 0
    assert export([str(tmp_path / "run"), str(tmp_path / "out"), "--ema", "0.075"]) == 0
    made, raw = (aligntok.load_tokenizer(tmp_path / name).decoder for name in ("out", "run"))
    direct = tracked["ema"].state(0.075)["decoder"]
    error = sum(float((made.state_dict()[n] - t).square().sum()) for n, t in direct.items())
    distance = sum(float((raw.state_dict()[n] - t).square().sum()) for n, t in direct.items())
    assert 0 < error < 0.1 * distance


def test_a_width_without_snapshots_says_what_to_set(finished, tmp_path, capsys):
    assert export([str(finished[0]), str(tmp_path / "out"), "--ema", "0.07"]) == 2
    assert "set ema.snapshot_every" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_export_is_the_runs_tokenizer_and_overwrites_nothing_else(finished, tmp_path, capsys):
    assert export([str(finished[0]), str(tmp_path / "out")]) == 0
    assert same(load_file(tmp_path / "out/model.safetensors"), load_file(finished[0] / "tokenizer/model.safetensors"))
    assert export([str(finished[0]), str(tmp_path / "out"), "--weights", "raw"]) == 0
    assert export([str(finished[0]), str(tmp_path)]) == 2
    assert "is a folder with other things in it" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="choose among a work folder's weights"):
        loading.export_tokenizer(tmp_path / "out", tmp_path / "again", weights="raw")


def test_the_furthest_stage_is_the_tenth_not_the_ninth(finished, tmp_path):
    shutil.copytree(finished[0] / FOLDERS[0], tmp_path / "9_a")
    shutil.copytree(finished[0] / FOLDERS[2], tmp_path / "10_b")
    assert same(tensors(aligntok.load_tokenizer(tmp_path)), tensors(aligntok.load_tokenizer(tmp_path / "10_b")))


def test_a_folder_that_is_no_run_is_one_clear_error(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(WeightsError, match=r"neither a saved tokenizer .* it has: notes\.txt"):
        aligntok.load_tokenizer(tmp_path)
    with pytest.raises(WeightsError, match="no such file or folder"):
        aligntok.load_tokenizer(tmp_path / "nowhere.pt")
    with pytest.raises(WeightsError, match="is no checkpoint file"):
        aligntok.load_tokenizer(tmp_path / "notes.txt")


def test_run_returns_the_tokenizers_folder(copy_of_finished):
    work_dir, config = copy_of_finished
    loaded = load_config(config, {"work_dir": str(work_dir)})
    assert run(loaded) == work_dir / "tokenizer"
    assert run(loaded, dry_run=True) is None


def test_processes_compare_what_they_train_and_not_where_they_have_it(write_config, photographs, tmp_path, monkeypatch):
    """A process with other settings, or other images, would else train on without a word."""
    file, others = write_config(), tmp_path / "others"
    for copied in ("copy", "others"):
        shutil.copytree(photographs, tmp_path / copied)
    (others / "train/03.png").rename(others / "train/x.png")

    class Compared(Exception):
        pass

    def compare(settings, what):
        assert what == "other data for stage 'latent_alignment'"
        raise Compared(json.dumps(settings, sort_keys=True, default=str))

    monkeypatch.setattr("aligntok.training.run.must_agree", compare)

    def compared(**options):
        with pytest.raises(Compared) as caught:
            run(load_config(file, {"work_dir": str(tmp_path / "run"), **options}), only_stage="latent_alignment")
        return str(caught.value)

    here = compared()
    assert compared(data_root=str(tmp_path / "copy"), **{"data.workers": 3, "data.timeout": 60}) == here
    for options in (
        {"data_root": str(others)},
        {"data.val.split": "train", "data.train.split": "val"},
        {"seed": 7},
        {"losses.l1.weight": 5.0},
        {"checkpoint.every": 3},
    ):
        assert compared(**options) != here
