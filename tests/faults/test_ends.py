"""Whatever ends a command, its process is gone soon after its last line, with its status and without its workers."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

import aligntok
from aligntok.data.latent_shards import LatentStatistics
from aligntok.latent_diffusion import LatentDiffusion

SECONDS = 10  # that any process may take from its last line to its end
TOOLS = Path(__file__).parents[2] / "tools"
STEP = "latent_alignment: step 3/"
HOOKS = """
import contextlib, time
from mmengine.hooks import Hook


class Slow(Hook):
    def after_train_iter(self, *args, **kwargs):
        time.sleep(0.05)


class Fails(Hook):
    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 2:
            raise RuntimeError("a defect of a hook")


class Fills(Hook):
    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 2:
            with contextlib.suppress(OSError), open(runner.work_dir + "/filler", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            runner.logger.info("." * 5000)  # more than its log's last page takes
"""
SMALL_DISK = """
import ctypes
libc = ctypes.CDLL(None)
assert libc.unshare(0x20000) == 0  # a mount namespace of its own, private
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0
assert libc.mount(b"tmpfs", b"{place}", b"tmpfs", 0, b"size={size}k") == 0
"""
FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, -1))"
#: A data-loading process hangs once there is a file HANG.
HANGING = """
import os, time
import torch.utils.data as data
import aligntok.data.images as images, aligntok.caching.encoder as encoder, aligntok.evaluation.images as measured
for kind in (images.ImageDataset, encoder.ImagesToEncode, measured.Samples):
    def hang(self, index, read=kind.__getitem__):
        if data.get_worker_info() is not None and os.path.exists(os.environ["HANG"]):
            time.sleep(1000)
        return read(self, index)
    kind.__getitem__ = hang
"""
as_root = pytest.mark.skipif(os.getuid() != 0, reason="mounts a small disk")


@pytest.fixture
def train(start, write_config, tmp_path):
    """Start an endless training with two data-loading processes."""
    (tmp_path / "faulty_hooks.py").write_text(HOOKS)

    def begin(*options, hook="Slow", setup="", env=(), run="run", several=0, **changes):
        config = write_config(**{"steps": 100000, "checkpoint": dict(every=100000), **changes})
        words = [config, "--work-dir", tmp_path / run, "--stage", "latent_alignment"]
        options = ["--cfg-options", "data.workers=2", f"hooks=[{{'type': 'faulty_hooks.{hook}'}}]", *options]
        env = {"PYTHONPATH": str(tmp_path), **dict(env)}
        return start("train", *words, *options, several=several, setup=setup, env=env)

    return begin


def is_living(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends(process, status, text, workers=()):
    """The process ends in time, as it should, saying so; returns what it printed."""
    found, seconds = process.end(40)
    assert found == status, process.output
    assert seconds < SECONDS, process.output
    assert text in process.output
    assert ("Traceback" in process.output) == (status == 1), process.output
    assert not [pid for pid in workers if is_living(pid)]
    return process.output


def test_an_error_in_a_hook(train):
    ends(train(hook="Fails"), 1, "RuntimeError: a defect of a hook")


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGINT, 130, "stopped by Ctrl-C; what is written stays"),
        (signal.SIGTERM, 75, "Preempted: stopped by SIGTERM after step "),
    ],
)
@pytest.mark.parametrize("group", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_a_signal_to_the_process_and_to_all_of_its_group(train, number, status, said, group):
    process = train().until(STEP)
    workers = process.children()
    assert len(workers) == 2
    process.signal(number, group)
    ends(process, status, said, workers)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSEGV, marks=pytest.mark.nightly)])
def test_a_data_loading_process_that_dies(train, number):
    process = train().until(STEP)
    workers = process.children()
    os.kill(workers[0], number)
    ends(process, 2, "DataError: a data-loading process ended or got stuck (", workers)


@pytest.mark.parametrize(
    ("stop", "status", "said"),
    [
        pytest.param(None, 2, "DataError: a data-loading process ended or got stuck (", marks=pytest.mark.nightly),
        (signal.SIGINT, 130, "stopped by Ctrl-C"),
    ],
)
def test_data_loading_processes_that_hang(train, tmp_path, stop, status, said):
    process = train("data.timeout=5", setup=HANGING, env={"HANG": str(tmp_path / "hang")}).until(STEP)
    workers = process.children()
    (tmp_path / "hang").touch()
    if stop:
        process.signal(stop)
    ends(process, status, said, workers)


@as_root
@pytest.mark.parametrize("size", [16, pytest.param(150, marks=pytest.mark.nightly)])  # KB: no lock; no batch
def test_a_small_dev_shm(train, size):
    setup = SMALL_DISK.format(place="/dev/shm", size=size)
    ends(train(setup=setup), 2, "DataError: a data-loading process ended or got stuck (")


def test_a_disk_that_fills_up_in_a_snapshot(train):
    ema = dict(sigma_rel=[0.05, 0.10], inference=0.05, snapshot_every=2)
    printed = ends(train(setup=FULL_DISK, ema=ema), 2, "WriteError: ")
    assert "ema_snapshots/step_00000002.safetensors could not be written (" in printed


@as_root
def test_a_disk_that_is_full_for_scalars_and_log(train, tmp_path):
    (tmp_path / "run").mkdir()
    setup = SMALL_DISK.format(place=tmp_path / "run", size=150_000)
    printed = ends(train(hook="Fills", setup=setup), 2, "WriteError: ")
    assert "/vis_data could not be written (No space left on device); the checkpoints before it are whole" in printed
    assert printed.count("cannot be written; what it misses is not kept") == 1


def test_images_of_which_too_many_are_damaged_under_names_that_are_no_text(train, photographs, tmp_path):
    folder = tmp_path / os.fsdecode(b"photo\xffgraphs")
    shutil.copytree(photographs, folder)
    for name in (b"a\xfe.png", b"b\xfd.png"):  # one in twenty
        (folder / "train" / os.fsdecode(name)).write_bytes(b"no picture")
    assert "\\udcff" in ends(train(f"data_root={folder}"), 2, "of 22 images cannot be read")
    (log,) = (tmp_path / "run").rglob("*.log")
    assert all(rf"cannot read {name}.png (" in log.read_text() for name in (r"a\udcfe", r"b\udcfd"))


def test_a_work_folder_whose_name_is_no_text(train, tmp_path):
    ends(train(run=os.fsdecode(b"r\xffn")), 2, r"ConfigError: work_dir ")
    assert not os.path.exists(os.path.join(os.fsencode(tmp_path), b"r\xffn"))


def test_images_that_are_deleted_meanwhile(train, photographs, tmp_path):
    shutil.copytree(photographs, tmp_path / "photographs")
    process = train(f"data_root={tmp_path / 'photographs'}").until(STEP)
    shutil.rmtree(tmp_path / "photographs")
    ends(process, 2, "images cannot be read")


def test_two_processes_that_both_fail(train):
    for process in train(hook="Fails", several=2):
        assert process.end(60)[0] in (1, 2), process.output
        assert process.end()[1] < SECONDS
        assert "a defect of a hook" in process.output


@pytest.mark.nightly
@pytest.mark.parametrize("stopped", [0, 1])
def test_one_of_two_processes_that_is_stopped(train, stopped):
    processes = train("process_timeout=6", several=2)
    processes[0].until(STEP)
    workers = processes[1 - stopped].children()
    processes[stopped].signal(signal.SIGSTOP)
    ends(processes[1 - stopped], 2, "ProcessError: ", workers)


@pytest.mark.nightly
def test_processes_under_torchrun_that_both_fail(write_config, tool, tmp_path):
    (tmp_path / "faulty_hooks.py").write_text(HOOKS)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    options = [
        "--stage",
        "latent_alignment",
        "--cfg-options",
        "data.workers=2",
        "hooks=[{'type':'faulty_hooks.Fails'}]",
    ]
    torchrun = ("--standalone", "--nproc_per_node=2")
    process = tool.launch(write_config(), tmp_path / "run", *options, torchrun=torchrun, env={"PYTHONPATH": path})
    process.until("RuntimeError: a defect of a hook")
    began = time.monotonic()
    process.communicate(timeout=60)
    assert time.monotonic() - began < 2 * SECONDS  # torchrun's own end is in it
    assert process.returncode == 1


SLOW_DRAWING = """
import time
from aligntok.sampling.pipeline import SamplePipeline
draw = SamplePipeline.draw
def slow(*args, **kwargs):
    print("drawing", flush=True)
    time.sleep(1)
    return draw(*args, **kwargs)
SamplePipeline.draw = slow
"""
GENERATOR = dict(type="lightning_dit", hidden_size=32, depth=1, num_heads=2, input_size=4, in_channels=4, num_classes=3)
#: Commands that read images in processes of their own: (tool, words), with the places of what they are given.
READING = {
    "cache": ("cache_latents", "{tokenizer} {classes} {out} --split train --image-size 32 --batch-size 2"),
    "reconstruction": (
        "evaluate",
        "reconstruction {tokenizer} {classes} --out {out} --split train --image-size 32 --batch-size 2 "
        "--extractor None --perceptual l1",
    ),
    "linear probe": ("evaluate", "linear-probe {tokenizer} {halves} --out {out} --image-size 32"),
    "latents": (
        "analyze_latents",
        "{tokenizer} {photographs} --out {out} --split train --image-size 32 --topk 5 "
        "--encoder timm:test_vit --encoder-options pretrained=False",
    ),
}


@pytest.mark.parametrize(
    ("stop", "status", "said"),
    [
        (signal.SIGINT, 130, "stopped by Ctrl-C"),
        pytest.param(signal.SIGKILL, 2, "DataError: a data-loading process ended or got stuck (", id="a dead reader"),
    ],
)
@pytest.mark.parametrize("command", READING)
def test_another_command_ends_with_its_data_loading_processes(
    start, classes, photographs, tiny_tokenizer, tmp_path, command, stop, status, said
):
    """They hang in the midst of it, and Ctrl-C comes, or one of them is killed."""
    tool, words = READING[command]
    places = dict(tokenizer=tiny_tokenizer, classes=classes, photographs=photographs)
    places |= dict(halves=tmp_path / "halves", out=tmp_path / "out")
    for half in ("train", "val"):
        shutil.copytree(classes / "train", tmp_path / "halves" / half)
    (tmp_path / "hang").touch()
    env = {"HANG": str(tmp_path / "hang")}
    words = [word.format(**places) for word in words.split()]
    process = start(tool, *words, "--workers", 1, setup=HANGING, env=env)
    until = time.monotonic() + 60
    while process.status(0.2) is None and not process.children() and time.monotonic() < until:
        pass
    workers = process.children()
    assert workers, process.output
    time.sleep(0.5)
    if stop == signal.SIGKILL:
        os.kill(workers[0], stop)
    else:
        process.signal(stop)
    ends(process, status, said, workers)


@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGINT, 130, "stopped by Ctrl-C"), (signal.SIGTERM, 75, "Preempted: ")]
)
def test_sampling_ends(start, generator, tmp_path, number, status, said):
    words = ("--out", tmp_path / "out", "--num-samples", 400, "--batch-size", 2)
    process = start("sample", generator, *words, setup=SLOW_DRAWING).until("drawing")
    process.signal(number)
    ends(process, status, said)


@pytest.fixture
def generator(tiny_tokenizer, tmp_path):
    """The folder of a saved generator."""
    tokenizer, statistics = aligntok.load_tokenizer(tiny_tokenizer), LatentStatistics((0.0,) * 4, (1.0,) * 4)
    model = LatentDiffusion(dict(GENERATOR), tokenizer, statistics, (4, 4, 4), ("ant", "bee", "zebra"), dict(steps=2))
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


#: Every image takes half a second to read, and says so.
SLOW_READING = HANGING.replace(
    "            time.sleep(1000)", "            print('reading', flush=True), time.sleep(0.5)"
)
#: What stands before a tool under torchrun.
PROGRAM = """{setup}
import runpy, sys
sys.argv[0] = {tool!r}
runpy.run_path({tool!r}, run_name="__main__")
"""


@pytest.mark.nightly
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("command", ["cache", "reconstruction", "sample"])
def test_one_of_two_processes_under_torchrun_is_killed(
    generator, classes, tiny_tokenizer, warm, tmp_path, command, killed
):
    """The other one has living data-loading processes, or is in the midst of a batch; torchrun's end is in the time."""
    name, words = READING.get(command, ("sample", "{generator} --out {out} --num-samples 400 --batch-size 2"))
    words += " --workers 1" * (command in READING)
    setup, sign = (SLOW_READING, "reading") if command in READING else (SLOW_DRAWING, "drawing")
    (tmp_path / "hang").touch()
    places = dict(tokenizer=tiny_tokenizer, classes=classes, generator=generator, out=tmp_path / "out")
    (tmp_path / "program.py").write_text(PROGRAM.format(setup=setup, tool=str(TOOLS / f"{name}.py")))
    command = [tmp_path / "program.py", *(word.format(**places) for word in words.split())]
    process = warm.torchrun("--standalone", "--nproc_per_node=2", *command, env={"HANG": str(tmp_path / "hang")})
    both = process.until(sign).children()
    assert len(both) == 2, process.output
    readers = [reader for each in both for reader in children(each)]
    began = time.monotonic()
    os.kill(both[killed], signal.SIGKILL)
    assert process.end(60)[0] == 1, process.output
    assert time.monotonic() - began < 2 * SECONDS, process.output
    assert not [pid for pid in (*both, *readers) if is_living(pid)], process.output


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
