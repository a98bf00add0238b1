"""However a run is interrupted: killed, told to stop, bereft of its data; and what is left when the disk is full."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from aligntok.cli import train
from aligntok.data.loader import explaining_loader_errors
from aligntok.distributed import dcp
from aligntok.engine.checkpoints import finished_steps, list_checkpoints, read_newest
from aligntok.errors import DataError
from aligntok.io.folders import SPARE_BYTES
from aligntok.training import run

STEPS = 6
STAGES = ("latent_alignment", "perceptual_alignment", "decoder_refinement")
FIRST = "1_latent_alignment"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, config_source, tool):
    """A run that nothing interrupted: (work folder, config file)."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.py").write_text(config_source(steps=STEPS))
    process = tool.launch(folder / "tiny.py", folder / "run")
    printed = until_end(process)
    assert process.returncode == 0, printed
    return folder / "run", folder / "tiny.py"


def until_end(process, seconds=120):
    printed, _ = process.communicate(timeout=seconds)
    return printed


def children(process):
    """The processes that a process has started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.slow
def test_a_run_killed_at_random_steps_ends_bit_identical(whole, tool, tmp_path):
    """SIGKILL milliseconds after a random step of each stage: in a step, between two, or while a file is written."""
    rng = random.Random(20)
    for stage in STAGES:
        process = tool.launch(whole[1], tmp_path / "run")
        process.until(f"{stage}: step {rng.randint(1, STEPS - 1)}/{STEPS}")
        time.sleep(rng.uniform(0, 0.06))
        process.kill()
        process.communicate()
    process = tool.launch(whole[1], tmp_path / "run")
    printed = until_end(process)
    assert process.returncode == 0, printed
    assert printed.count("finished already, skipped") >= 2
    assert tool.same_ends(tmp_path / "run", whole[0])
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.slow
def test_sigterm_finishes_the_step_writes_a_checkpoint_and_exits_with_75(whole, tool, tmp_path, slow_steps):
    """It comes from the scheduler to every process of the job, those that load data too; twice in one run here."""
    options, (slow, env) = ["--cfg-options", "checkpoint.every=1000", "data.workers=2"], slow_steps
    for stage in (0, 1):
        process = tool.launch(whole[1], tmp_path / "run", *options, slow, env=env)
        printed = process.until(f"{STAGES[stage]}: step 2/{STEPS}").output
        os.killpg(process.pid, signal.SIGTERM)
        printed += until_end(process)
        assert process.returncode == 75, printed
        (step,) = re.findall(rf"Preempted: stopped by SIGTERM after step (\d) of {STEPS}", printed)
        assert finished_steps(tmp_path / "run" / tool.folders[stage]) == int(step) < STEPS
        assert "Traceback" not in printed
    process = tool.launch(whole[1], tmp_path / "run", *options)
    printed = until_end(process)
    assert process.returncode == 0, printed
    assert tool.same_ends(tmp_path / "run", whole[0])


@pytest.mark.slow
def test_a_data_loading_process_that_dies_ends_the_run_with_the_reason(whole, tool, tmp_path):
    options = ["--cfg-options", "data.workers=1", "stages.0.steps=100000", "checkpoint.every=1"]
    process = tool.launch(whole[1], tmp_path / "run", *options)
    printed = process.until(f"{STAGES[0]}: step 3/").output
    (worker,) = children(process)
    os.kill(worker, signal.SIGKILL)
    printed += until_end(process, seconds=30)
    assert process.returncode == 2, printed
    assert "DataError: a data-loading process ended or got stuck (" in printed  # Python may say more itself
    assert read_newest(tmp_path / "run" / FIRST)["step"] >= 3
    assert "DataError: a data-loading process" in logged(tmp_path / "run" / FIRST)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_data_loading_process_that_dies_while_handing_over_is_explained_too(error):
    with pytest.raises(DataError, match="a data-loading process ended or got stuck"), explaining_loader_errors():
        raise error


def logged(stage):
    return "".join(file.read_text() for file in stage.rglob("*.log"))


@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_vanish_are_counted_and_too_many_end_the_run(
    write_config, photographs, tmp_path, capsys, monkeypatch, workers
):
    """They are there when the run lists them, and gone when it reads them."""
    shutil.copytree(photographs, tmp_path / "photographs")
    files = sorted((tmp_path / "photographs" / "train").iterdir())
    data = dict(train=dict(split="train", image_size=32, max_unreadable=2), val=None, workers=workers)
    config = write_config(data_root=str(tmp_path / "photographs"), data=data, steps=STEPS)
    vanishing = iter([files[:2], files[2:3]])
    monkeypatch.setattr(run, "print_plan", lambda *plans: [file.unlink() for file in next(vanishing)])
    assert train([config, "--work-dir", str(tmp_path / "run"), "--stage", STAGES[0]]) == 0
    assert "images that could not be read and were replaced: 2 (named above)" in capsys.readouterr().err
    vanishing = iter([files[2:5]])
    assert train([config, "--work-dir", str(tmp_path / "other"), "--stage", STAGES[0]]) == 2
    printed = capsys.readouterr().err
    assert re.search(r"DataError: .*: 3 of 18 images cannot be read", printed)
    assert "Traceback" not in printed


FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit then fails, as it does on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_checkpoint_before_whole(whole, tool, warm, tmp_path):
    one = ["--stage", STAGES[0], "--cfg-options"]
    assert train([str(whole[1]), "--work-dir", str(tmp_path / "run"), *one, "stages.0.steps=2"]) == 0
    (_, path) = list_checkpoints(tmp_path / "run" / FIRST)[-1]
    assert max(file.stat().st_size for file in path.iterdir()) > 1_000_000
    words = (tool.program, whole[1], "--work-dir", tmp_path / "run", *one, "seed=0")
    process = warm.start(*words, setup=FULL_DISK)
    printed, _ = process.communicate()
    assert process.returncode == 2, printed
    assert re.search(r"checkpoints/step_00000004/\S+ could not be written", printed), printed
    assert "the checkpoints before it are whole" in printed
    assert [step for step, _ in list_checkpoints(tmp_path / "run" / FIRST)] == [2]
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert train([str(whole[1]), "--work-dir", str(tmp_path / "run"), "--stage", STAGES[0]]) == 0
    assert tool.same(tool.newest(tmp_path / "run" / FIRST), tool.newest(whole[0] / FIRST))


@pytest.fixture
def small_disk(tmp_path):
    """A folder that is a disk of its own, of 100 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this process may not mount a disk")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_disk_that_fills_up_behind_the_training_ends_it_and_leaves_what_was_there(
    whole, tool, small_disk, capsys, monkeypatch
):
    """Something else fills it once the checkpoint of step 4 has begun to be written, aside."""
    write, other, one = dcp.write, small_disk / "other", [str(whole[1]), "--work-dir", str(small_disk / "run")]

    def filled(folder, *more):
        if folder.name.startswith(".step_00000004"):
            with suppress(OSError), open(other, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 20))
        return write(folder, *more)

    monkeypatch.setattr(dcp, "write", filled)
    assert train([*one, "--stage", STAGES[0], "--cfg-options", "stages.0.steps=100000"]) == 2
    printed = capsys.readouterr().err
    assert re.search(r"WriteError: .* could not be written \(.*No space left on device.*\); ", printed), printed
    assert "Traceback" not in printed
    assert [step for step, _ in list_checkpoints(small_disk / "run" / FIRST)] == [2]
    other.unlink()
    monkeypatch.setattr(dcp, "write", write)
    assert train([*one, "--stage", STAGES[0]]) == 0
    assert not list((small_disk / "run").rglob("*.tmp"))
    assert tool.same(tool.newest(small_disk / "run" / FIRST), tool.newest(whole[0] / FIRST))


def test_a_folder_that_has_become_read_only_is_told_before_anything_is_trained(
    whole, tool, small_disk, tmp_path, capsys
):
    """The same folder at another place, where it may only be read."""
    one = [str(whole[1]), "--stage", STAGES[0], "--work-dir"]
    assert train([*one, str(small_disk / "run"), "--cfg-options", "stages.0.steps=2"]) == 0
    (closed := tmp_path / "closed").mkdir()
    subprocess.run(["mount", "--bind", small_disk, closed], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", closed], check=True)
        assert train([*one, str(closed / "run")]) == 2
        assert (
            f"ConfigError: cannot write in {closed}/run ([Errno 30] Read-only file system: " in capsys.readouterr().err
        )
    finally:
        subprocess.run(["umount", "--lazy", closed], check=True)
    assert train([*one, str(small_disk / "run")]) == 0
    assert tool.same(tool.newest(small_disk / "run" / FIRST), tool.newest(whole[0] / FIRST))


def test_a_disk_without_room_is_found_before_training(whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=50_000_000))
    assert train([str(whole[1]), "--work-dir", str(tmp_path / "run")]) == 2
    assert "what these stages write: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_room_is_asked_for_what_is_not_there_yet(whole, tool, tmp_path, monkeypatch):
    """A run that goes on where it stopped needs no second place for the checkpoints that it keeps."""
    one = ["--work-dir", str(tmp_path / "run"), "--stage", STAGES[0], "--cfg-options"]
    assert train([str(whole[1]), *one, "stages.0.steps=4"]) == 0
    free = SPARE_BYTES + int(1.5 * tool.bytes_of(list_checkpoints(tmp_path / "run" / FIRST)[-1][1]))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    assert train([str(whole[1]), *one, "seed=0"]) == 0


def test_a_file_in_the_place_of_the_work_folder_is_one_clear_error(whole, tmp_path, capsys):
    (tmp_path / "run").write_text("")
    assert train([str(whole[1]), "--work-dir", str(tmp_path / "run")]) == 2
    assert "ConfigError: " in capsys.readouterr().err


def test_a_second_run_in_one_folder_is_refused(whole, tool, tmp_path, capsys):
    process = tool.launch(
        whole[1], tmp_path / "run", "--cfg-options", "stages.0.steps=100000", "checkpoint.every=50000"
    )
    process.until("step 1/")
    try:
        assert train([str(whole[1]), "--work-dir", str(tmp_path / "run")]) == 2
        assert f"is in use by another run (process {process.pid}); " in capsys.readouterr().err
    finally:
        process.kill()
        process.communicate()
    short = ["--stage", STAGES[0], "--cfg-options", "stages.0.steps=1"]
    assert train([str(whole[1]), "--work-dir", str(tmp_path / "run"), *short]) == 0  # the claim ended with its process
