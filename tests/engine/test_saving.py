"""A checkpoint that is written aside holds what there was when it was asked for, and is seen once it is whole."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import torch

from aligntok.distributed import dcp
from aligntok.engine import saving
from aligntok.engine.checkpoints import checkpoint_path, finished_steps, list_checkpoints, read_checkpoint, read_newest
from aligntok.engine.saving import CheckpointWriter, write_checkpoint
from aligntok.errors import CheckpointError, WriteError
from aligntok.io.files import unseen
from aligntok.io.folders import remove_leftovers


@pytest.fixture
def gate(monkeypatch):
    """Lets a checkpoint be written only once it is set."""
    write, opened = dcp.write, threading.Event()

    def held(*args):
        opened.wait()
        return write(*args)

    monkeypatch.setattr(dcp, "write", held)
    yield opened
    opened.set()


def content(weight):
    return {"parts": {"decoder": {"weight": weight, "steps": torch.tensor(7)}}, "ema": None, "seconds": 1.5}


def steps(folder):
    return [step for step, _ in list_checkpoints(folder)]


def test_training_goes_on_while_the_disk_works(tmp_path, gate):
    weight, writer = torch.full((4,), 1.0), CheckpointWriter(tmp_path, keep=1, asynchronous=True)
    writer.write(1, content(weight))
    weight += 1
    assert (writer.saved, writer.begun, steps(tmp_path), finished_steps(tmp_path)) == (None, 1, [], 0)
    writer.check()
    gate.set()
    writer.finish()
    assert (writer.saved, steps(tmp_path)) == (1, [1])
    assert read_newest(tmp_path)["parts"]["decoder"]["weight"].tolist() == [1.0] * 4


def test_what_a_killed_process_left_of_the_same_step_is_no_part_of_it(tmp_path):
    begun = unseen(checkpoint_path(tmp_path, 1), f"{1:08x}")
    begun.mkdir(parents=True)
    (begun / "old.safetensors").write_bytes(b"half")
    CheckpointWriter(tmp_path, keep=1).write(1, content(torch.ones(4)))
    assert not begun.exists()
    assert "old.safetensors" not in os.listdir(checkpoint_path(tmp_path, 1))
    assert read_newest(tmp_path)["step"] == 1


def test_a_second_checkpoint_waits_for_the_first_and_takes_its_memory(tmp_path, gate):
    weight, writer = torch.full((4,), 1.0), CheckpointWriter(tmp_path, keep=2, asynchronous=True)
    writer.write(1, content(weight))
    threading.Timer(0.3, gate.set).start()
    began = time.monotonic()
    weight += 1
    writer.write(2, content(weight))
    assert time.monotonic() - began > 0.2
    assert 1 in steps(tmp_path)
    writer.finish()
    assert [
        read_checkpoint(path)["parts"]["decoder"]["weight"][0].item() for _, path in list_checkpoints(tmp_path)
    ] == [
        1.0,
        2.0,
    ]


def test_what_the_writing_meets_is_raised_once_at_the_next_step(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1, content(torch.ones(4)), keep=1)

    def full(*args):
        raise WriteError(f"{args[0]}/x could not be written (No space left on device); make room")

    monkeypatch.setattr(dcp, "write", full)
    writer = CheckpointWriter(tmp_path, keep=1, asynchronous=True)
    for ask in (writer.check, writer.wait, writer.finish, lambda: writer.write(3, content(torch.ones(4)))):
        writer.write(2, content(torch.ones(4)))
        writer._thread.join()
        with pytest.raises(WriteError, match=f"^{checkpoint_path(tmp_path, 2)}/x could not be written"):
            ask()
        writer.check()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    assert writer.saved is None


def test_after_a_failure_what_the_writing_meets_is_logged(tmp_path, monkeypatch, caplog):
    def full(*args):
        raise WriteError("it could not be written")

    monkeypatch.setattr(dcp, "write", full)
    writer = CheckpointWriter(tmp_path, keep=1, asynchronous=True)
    writer.give_up()
    writer.write(2, content(torch.ones(4)))
    writer.give_up()
    assert "the checkpoint of step 2 was not written either: it could not be written" in caplog.text


def killed_at(moment):
    """os.replace, and the end of the process in the place of one of its calls."""
    replace, calls = os.replace, iter(range(99))

    def counted(*args):
        if next(calls) == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*args)

    return counted


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_kill_while_it_is_written_leaves_the_one_before(tmp_path, monkeypatch, asynchronous):
    """At each of its moments: before, between and after its files, before it is renamed."""
    for moment in range(6):
        folder = tmp_path / str(moment)
        write_checkpoint(folder, 1, content(torch.ones(4)), keep=1)
        pid = os.fork()
        if not pid:
            os.replace = killed_at(moment)
            writer = CheckpointWriter(folder, keep=1, asynchronous=asynchronous)
            writer.write(2, content(torch.full((4,), 2.0)))
            writer.finish()
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        # three files and the folder, each renamed once, and the folder that goes
        assert (killed, finished_steps(folder)) == ((True, 1) if moment < 4 else (moment < 5, 2)), moment
        remove_leftovers(folder)
        assert not list(folder.rglob("*.tmp"))
        assert read_newest(folder)["parts"]["decoder"]["weight"].tolist() == [float(finished_steps(folder))] * 4


KINDS = torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.int64, torch.bool


def test_everything_that_json_says_otherwise_comes_back_as_it_was(tmp_path):
    given = {
        "parts": {},
        "numbers": {0: 1, 1: 2.0, -3: 0.1, "0": "x", 2.5: None},
        "floats": [0.1 + 0.2, 1e-320, 5e-324, -0.0, 1.7976931348623157e308, float("inf"), float("-inf")],
        "whole": [2**70, -1, True, None, "", "ü\udcff\n"],
        "tuples": (1, (2, [3, ()])),
        "marks": {"$tensor": "x", "$items": [1], "$": 2},
        "mark": {"$tensor": 1},
        "tensors": [
            {1: torch.tensor(1.0), "1": torch.tensor(2.0)},
            {"a/b": torch.ones(0, 3), "a": {"b": torch.ones(1)}},
        ],
        "kinds": [torch.ones(2).to(kind) for kind in KINDS],
        "strided": [torch.arange(6).reshape(2, 3).T, torch.arange(8)[::2], torch.ones(1).expand(3)],
    }
    found = read_checkpoint(write_checkpoint(tmp_path, 1, given, keep=1))
    nan = read_checkpoint(write_checkpoint(tmp_path, 2, {"nan": float("nan")}, keep=1))["nan"]
    assert nan != nan

    def same(a, b):
        if isinstance(a, torch.Tensor):
            return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        if isinstance(a, dict):
            return type(b) is dict and [*map(repr, a)] == [*map(repr, b)] and all(same(a[key], b[key]) for key in a)
        if isinstance(a, list | tuple):
            return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
        return type(a) is type(b) and repr(a) == repr(b)

    for name, value in given.items():
        assert same(value, found[name]), (name, found[name])


@pytest.mark.parametrize("value", [{1, 2}, b"x", object(), torch.float32, {(1, 2): 3}, 1j])
def test_what_json_cannot_hold_is_an_error_that_names_its_key(tmp_path, value):
    with pytest.raises(
        CheckpointError, match=f"a checkpoint cannot hold schedulers/0/kept, a {type(value).__name__}; "
    ):
        write_checkpoint(tmp_path, 1, {"schedulers": [{"kept": value}]}, keep=1)
    assert not steps(tmp_path)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_folder_is_one_that_torch_reads(tmp_path):
    """With its own reader of such folders, into tensors that are there."""
    weight = torch.arange(6.0).reshape(2, 3)
    path = write_checkpoint(tmp_path, 1, content(weight), keep=1)
    target = {"parts/decoder/weight": torch.zeros(2, 3)}
    reader = torch.distributed.checkpoint.HuggingFaceStorageReader(str(path))
    torch.distributed.checkpoint.load(target, storage_reader=reader, no_dist=True)
    assert target["parts/decoder/weight"].equal(weight)


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    """Counted by the tensors that are taken out of the files."""
    from aligntok.engine.checkpoints import read_parts, write_frozen

    averages = {width: {"decoder": {"weight": torch.ones(3)}} for width in ("0.05", "0.1")}
    moments = {"sides": {"autoencoder": {"state": {0: {"exp_avg": torch.ones(4)}}}}}
    given = {**content(torch.ones(4)), "ema": {"averages": averages}, "ema_inference": 0.05, "optimizers": moments}
    write_checkpoint(tmp_path, 1, given, keep=1)
    write_frozen(tmp_path, {}, {})
    taken, read = [], dcp.read_tensors

    def counted(folder, files, names, like):
        taken.extend(names)
        return read(folder, files, names, like)

    monkeypatch.setattr(dcp, "read_tensors", counted)
    assert finished_steps(tmp_path) == 1
    assert not taken
    read_parts(tmp_path)
    assert taken == ["parts/decoder/weight", "parts/decoder/steps"]
    read_parts(tmp_path, "ema", 0.1)
    assert sorted(taken[2:]) == ["ema/averages/0.1/decoder/weight", "parts/decoder/steps"]  # no raw weight of it


def test_a_shard_that_another_machine_wrote_elsewhere_is_told(tmp_path, monkeypatch):
    """Each machine has a disk of its own under the same name."""
    write_checkpoint(tmp_path, 1, content(torch.ones(4)), keep=1)
    monkeypatch.setattr(saving, "_of_all_processes", lambda sums, key: {**sums, "shard-00009.safetensors": "0"})
    with pytest.raises(
        WriteError, match=r"step_00000002 could not be written \(No such .*give all machines one work_dir"
    ):
        write_checkpoint(tmp_path, 2, content(torch.ones(4)), keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
