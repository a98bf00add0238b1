"""Checkpoints are whole or absent, plain, and few."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import nn

from aligntok.engine.checkpoints import (
    checkpoint_path,
    finished_steps,
    list_checkpoints,
    load_parts,
    open_newest,
    part_states,
    read_checkpoint,
    read_frozen,
    read_newest,
    read_parts,
    same_content,
    write_frozen,
)
from aligntok.engine.saving import write_checkpoint
from aligntok.engine.snapshots import read_snapshots, write_snapshot
from aligntok.errors import CheckpointError, WriteError
from aligntok.io import checksums
from aligntok.io.folders import SPARE_BYTES, remove_leftovers


class Bomb:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def content(value=0.0, **more):
    return {"parts": {"decoder": {"weight": torch.full((4,), value)}}, "ema": None, **more}


def steps(folder):
    return [step for step, _ in list_checkpoints(folder)]


def test_what_is_written_is_read_without_pickled_code(tmp_path):
    given = content(1.5, optimizers={"lr": 1e-4, "betas": (0.5, 0.9), "state": {0: {"step": torch.tensor(3.0)}}})
    path = write_checkpoint(tmp_path, 7, given, keep=2)
    assert path == checkpoint_path(tmp_path, 7)
    found = read_checkpoint(path)
    assert found["step"] == 7
    assert found["optimizers"] == given["optimizers"]
    assert torch.equal(found["parts"]["decoder"]["weight"], given["parts"]["decoder"]["weight"])


def test_only_the_newest_stay(tmp_path):
    for step in (10, 20, 30, 100000000):
        write_checkpoint(tmp_path, step, content(), keep=2)
    assert steps(tmp_path) == [30, 100000000]
    write_checkpoint(tmp_path, 100000001, content(), keep=1)
    assert steps(tmp_path) == [100000001]


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1, content(1.0), keep=1)
    save = safetensors.torch.save_file

    def fail_half_way(tensors, path, metadata):
        save(tensors, path, metadata)
        os.truncate(path, 100)
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail_half_way)
    for step in (1, 2):
        said = rf"{checkpoint_path(tmp_path, step)}.* could not be written \(no space left.*before it are whole"
        with pytest.raises(WriteError, match=said):
            write_checkpoint(tmp_path, step, content(2.0), keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    assert float(read_newest(tmp_path)["parts"]["decoder"]["weight"][0]) == 1.0


def shard(path):
    (file,) = path.glob("*.safetensors")
    return file


DAMAGES = {
    "a shard cut off": lambda path, stage: os.truncate(shard(path), shard(path).stat().st_size // 2),
    "a shard missing": lambda path, stage: shard(path).unlink(),
    "a shard of another step": lambda path, stage: shutil.copy(shard(checkpoint_path(stage, 1)), shard(path)),
    "a pipe in a shard's place": lambda path, stage: os.mkfifo(remove(shard(path))),
    "state.json cut off": lambda path, stage: os.truncate(path / "state.json", 50),
    "state.json missing": lambda path, stage: remove(path / "state.json"),
    "checksums.json cut off": lambda path, stage: os.truncate(path / "checksums.json", 50),
    "checksums.json missing": lambda path, stage: remove(path / "checksums.json"),
    "checksums.json empty": lambda path, stage: (path / "checksums.json").write_text('{"sha256": {}}'),
    "an empty folder": lambda path, stage: [remove(file) for file in path.iterdir()],
    "a file": lambda path, stage: (shutil.rmtree(path), path.write_text("")),
}


def remove(path):
    path.unlink()
    return path


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_reported_and_the_one_before_used(tmp_path, caplog, damage):
    for step in (1, 2):
        path = write_checkpoint(tmp_path, step, content(step), keep=2)
    DAMAGES[damage](path, tmp_path)
    assert read_newest(tmp_path)["step"] == 1
    assert finished_steps(tmp_path) == 1
    assert re.search(
        rf"(?m){path}\S* (cannot be read|names '\S+', which is no file) .*; the one before it is used$", caplog.text
    )
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 2  # a sentence each time
    shutil.rmtree(checkpoint_path(tmp_path, 1))
    with pytest.raises(CheckpointError, match=rf"no checkpoint of 1 in .*{path}.*damaged.*Restore one"):
        read_newest(tmp_path)


@pytest.mark.parametrize("file", ["*.safetensors", "state.json", "checksums.json"])
@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_a_changed_bit_is_as_good_as_a_damaged_file(tmp_path, caplog, place, file):
    """Of weights, of an optimiser's moments, of averages: whatever lies there, nothing else would notice."""
    moments = {"sides": {"autoencoder": {"state": {0: {"exp_avg": torch.randn(4000)}}}}}
    for step in (1, 2):
        ema = {"step": step, "averages": {"0.05": {"decoder": {"weight": torch.randn(4000)}}}}
        given = {"parts": {"decoder": {"weight": torch.randn(4000)}}, "optimizers": moments, "ema": ema}
        path = write_checkpoint(tmp_path, step, given, keep=2)
    (found,) = path.glob(file)
    changed = bytearray(found.read_bytes())
    changed[int(place * len(changed))] ^= 16
    found.write_bytes(changed)
    assert read_newest(tmp_path)["step"] == 1
    if file != "checksums.json":
        assert f"{found} cannot be read (its SHA-256 is not the one in checksums.json" in caplog.text


def test_a_file_is_hashed_once_a_start(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path, 1, content(), keep=1)
    hashed = []
    counting = SimpleNamespace(sha256=lambda: hashed.append(1) or hashlib.sha256())
    monkeypatch.setattr(checksums, "hashlib", counting)
    monkeypatch.setattr(checksums, "_known", {})  # as a process that starts
    for _ in range(3):
        read_newest(tmp_path)
    assert len(hashed) == 2  # the shard and state.json
    os.utime(shard(path))
    read_newest(tmp_path)
    assert len(hashed) == 3


def old(folder, step=3):
    """A checkpoint as version 0.x of before folders wrote it: a file of that version, by its own code."""
    (folder / "checkpoints").mkdir(exist_ok=True)
    for file in (Path(__file__).parent / "format_2/checkpoints").iterdir():
        shutil.copy(file, folder / "checkpoints" / file.name.replace("3", str(step)))
    return folder / f"checkpoints/step_0000000{step}.pt"


def test_a_checkpoint_of_the_format_before_is_read_and_gone_on_from(tmp_path):
    path = old(tmp_path)
    assert finished_steps(tmp_path) == 3
    found, weight = read_newest(tmp_path), torch.arange(6.0).reshape(2, 3)
    assert found["parts"]["decoder"]["weight"].equal(weight)
    side = found["optimizers"]["sides"]["autoencoder"]
    assert side["state"][0]["exp_avg"].equal(weight / 8)
    assert side["param_groups"][0]["betas"] == (0.5, 0.9)
    assert found["optimizers"]["guard"]["norms"] == {"decoder": [0.1, 0.30000000000000004]}
    write_frozen(tmp_path, {}, {})
    assert read_parts(tmp_path, "ema")["decoder"]["tied"].equal(weight / 2)

    del found["format"], found["step"]
    write_checkpoint(tmp_path, 4, found, keep=2)
    assert steps(tmp_path) == [3, 4]
    assert same_content(
        {**read_newest(tmp_path), "versions": None}, {**found, "format": 3, "step": 4, "versions": None}
    )
    write_checkpoint(tmp_path, 5, found, keep=1)
    assert [file.name for file in path.parent.iterdir()] == ["step_00000005"]  # its checksum went with it


def test_a_checkpoint_of_the_format_before_is_gone_on_from_in_shares(tmp_path, shares):
    old(tmp_path)
    found, weight = open_newest(tmp_path), torch.arange(6.0).reshape(2, 3)
    mine = shares(nn.Linear(3, 2, bias=False)).weight
    content = found.load(found.content, {"parts/decoder/weight": mine, "optimizers/sides/autoencoder/state/0": mine})
    assert content["parts"]["decoder"]["weight"].full_tensor().equal(weight)
    assert content["optimizers"]["sides"]["autoencoder"]["state"][0]["exp_avg"].full_tensor().equal(weight / 8)
    assert type(content["optimizers"]["sides"]["autoencoder"]["state"][0]["step"]) is torch.Tensor
    assert content["optimizers"]["guard"] == read_newest(tmp_path)["optimizers"]["guard"]


def test_the_newest_of_both_formats_is_the_later_one(tmp_path):
    old(tmp_path)
    write_checkpoint(tmp_path, 2, content(), keep=9)  # the file is of a later step, which could not be read
    assert steps(tmp_path) == [2]
    old(tmp_path, 1)
    assert read_newest(tmp_path)["step"] == 2
    old(tmp_path)
    assert read_newest(tmp_path)["step"] == 3


def test_a_file_without_a_checksum_is_read_and_said_so_once(tmp_path, caplog):
    path = old(tmp_path)
    path.with_name(f"{path.name}.sha256").unlink()
    assert [read_newest(tmp_path)["step"] for _ in range(2)] == [3, 3]
    assert caplog.text.count(f"{path} has no checksum beside it") == 1


def test_checkpoints_that_go_leave_nothing(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, content(), keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]


def test_going_on_from_before_a_damaged_one_keeps_what_is_written_now(tmp_path):
    """With one checkpoint kept, the damaged later one must not push out the new one."""
    for step in (2, 4):
        path = write_checkpoint(tmp_path, step, content(step), keep=2)
    os.truncate(shard(path), 200)
    write_checkpoint(tmp_path, 3, content(3), keep=1)
    assert steps(tmp_path) == [3]


@pytest.mark.parametrize("damage", ["empty", "text", "half", "other", "format 1", "a list"])
def test_a_damaged_file_of_the_format_before_is_one_clear_error(tmp_path, damage):
    path = old(tmp_path)
    if damage == "half":
        os.truncate(path, path.stat().st_size // 2)
    elif damage in (others := {"other": {"state_dict": {}}, "format 1": {"format": 1, "step": 1}, "a list": [2]}):
        torch.save(others[damage], path)
    else:
        path.write_text("" if damage == "empty" else "nothing of the kind")
    with pytest.raises(CheckpointError, match=r"step_00000003\.pt (cannot be read|is no checkpoint of this version)"):
        read_checkpoint(path)


def test_pickled_code_is_refused_and_not_run(tmp_path):
    for saved in (torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))):
        path = tmp_path / "checkpoints/step_00000001.pt"
        path.parent.mkdir(exist_ok=True)
        saved({"format": 1, "step": 1, "bomb": Bomb(tmp_path / "ran")}, path)
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_checkpoint(path)
        assert not (tmp_path / "ran").exists()


def test_without_checkpoints_nothing_is_finished(tmp_path):
    assert read_newest(tmp_path) is None
    assert finished_steps(tmp_path) == 0
    with pytest.raises(CheckpointError, match="no checkpoint that can be read; train that stage first"):
        read_parts(tmp_path)


def test_frozen_parts_and_changing_ones_together_are_the_whole(tmp_path):
    frozen = {"encoder": nn.Linear(2, 3), "teacher_encoder": nn.BatchNorm1d(3)}
    write_frozen(tmp_path, frozen, {})
    average = {"decoder": {"weight": torch.full((4,), 9.0)}}
    averages = {"0.05": average, "0.1": {"decoder": {"weight": torch.full((4,), 8.0)}}}
    ema = {"step": 1, "averages": averages}
    write_checkpoint(tmp_path, 1, {**content(5.0), "ema": ema, "ema_inference": 0.05}, keep=1)
    raw = read_parts(tmp_path)
    assert set(raw) == {"encoder", "teacher_encoder", "decoder"}
    assert torch.equal(raw["encoder"]["weight"], frozen["encoder"].weight)
    assert raw["teacher_encoder"].keys() == frozen["teacher_encoder"].state_dict().keys()
    values = [float(read_parts(tmp_path, "ema", width)["decoder"]["weight"][0]) for width in (None, 0.1)]
    assert [float(raw["decoder"]["weight"][0]), *values] == [5.0, 9.0, 8.0]


def test_a_missing_frozen_file_is_one_clear_error(tmp_path):
    write_checkpoint(tmp_path, 1, content(), keep=1)
    with pytest.raises(CheckpointError, match=r"frozen\.safetensors cannot be read"):
        read_frozen(tmp_path)


def test_tied_tensors_are_written_once_and_come_back_under_all_names(tmp_path):
    """Of frozen parts, of frozen weights in trained ones, of averages; parts of one tensor are tensors of their own."""
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    write_frozen(tmp_path, {"encoder": tied}, {})
    found = read_frozen(tmp_path)["encoder"]
    assert found.keys() == tied.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in tied.state_dict().items())
    assert (tmp_path / "frozen.safetensors").stat().st_size < 2 * 4 * (4 * 4 + 4 + 4) + 500

    tied[0].weight.requires_grad_(False)
    assert part_states({"d": tied}, frozen=True)["d"].keys() == {"0.weight", "1.weight"}
    assert part_states({"d": tied}, frozen=False)["d"].keys() == {"0.bias", "1.bias"}

    whole = torch.arange(8.0)
    state = {"a": whole[:4], "b": whole[4:], "c": whole[:4], "d": whole}
    write_snapshot(tmp_path, 3, {"0.05": {"decoder": state}})
    ((_, _, parts),) = read_snapshots(tmp_path, 10)
    assert all(torch.equal(parts["decoder"][name], value) for name, value in state.items())


def test_a_stage_without_frozen_parts_can_be_read(tmp_path):
    write_frozen(tmp_path, {}, {})
    assert read_frozen(tmp_path) == {}


def test_parts_that_are_missing_or_of_another_shape_are_named():
    states = part_states({"decoder": nn.Linear(2, 3)})
    with pytest.raises(CheckpointError, match="here has no encoder; it has decoder"):
        load_parts({"encoder": nn.Linear(2, 3)}, states, "here")
    with pytest.raises(CheckpointError, match="the decoder in here does not fit the config's"):
        load_parts({"decoder": nn.Linear(2, 4)}, states, "here")


def test_snapshots_are_read_back_with_their_step_and_width(tmp_path):
    for step in (5, 10):
        write_snapshot(tmp_path, step, {"0.05": {"decoder": {"a.b": torch.full((2,), float(step))}}, "0.1": {}})
    found = read_snapshots(tmp_path, 10)
    assert [(step, width) for step, width, _ in found] == [(5, 0.05), (10, 0.05)]
    assert float(found[1][2]["decoder"]["a.b"][0]) == 10


def test_every_nth_checkpoint_stays_for_good(tmp_path):
    for step in range(10, 80, 10):
        write_checkpoint(tmp_path, step, content(), keep=2, keep_every=30)
    assert steps(tmp_path) == [30, 60, 70]
    write_checkpoint(tmp_path, 40, content(), keep=1, keep_every=30)  # it went on from before step 60
    assert steps(tmp_path) == [30, 40]


def test_the_room_for_a_checkpoint_is_looked_at_before_it_is_written(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1, content(), keep=1)
    large = {"decoder": {"weight": torch.zeros(1000, 1000)}}
    for free, fits in ((SPARE_BYTES + 8_000_100, True), (SPARE_BYTES + 7_999_000, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        written = {"parts": large, "ema": {"averages": [torch.ones(1000, 1000)]}}
        if fits:
            write_checkpoint(tmp_path, 2, written, keep=1)
        else:
            with pytest.raises(WriteError, match=r"checkpoint of step 3: 0\.008 GB are needed, .* make room"):
                write_checkpoint(tmp_path, 3, written, keep=1)
    assert steps(tmp_path) == [2]


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    path = write_checkpoint(tmp_path, 1, content(), keep=1)
    leftover = path.with_name(f".{path.name}.0a1b2c3d.tmp")
    shutil.copytree(path, leftover)
    assert steps(tmp_path) == [1]
    remove_leftovers(tmp_path)
    assert not leftover.exists()
    assert steps(tmp_path) == [1]


def test_frozen_weights_of_a_trained_part_are_written_once_and_joined(tmp_path):
    part = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    part[0].weight.requires_grad_(False)
    write_frozen(tmp_path, {}, {"encoder": part})
    assert list(read_frozen(tmp_path)["encoder"]) == ["0.weight"]
    changing = part_states({"encoder": part}, frozen=False)
    assert "0.weight" not in changing["encoder"]
    assert "1.running_mean" in changing["encoder"]
    write_checkpoint(tmp_path, 1, {"parts": changing, "ema": None}, keep=1)
    load_parts({"encoder": part}, read_parts(tmp_path), "here")


def test_contents_are_the_same_bit_for_bit_or_they_are_not():
    """What the tests of interrupted runs compare with: it has to see a difference of every kind and at every depth."""

    def content(**changes):
        inner = {"w": torch.tensor([1.0, 2.0]), "step": 3, **changes}
        return {"parts": {"a": inner}, "rates": [0.1, (0.2, torch.ones(1))], "name": "x"}

    assert same_content(content(), content())
    nearly = torch.nextafter(torch.tensor([1.0, 2.0]), torch.tensor(9.0))
    other_type = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for change in (dict(w=nearly), dict(w=[1.0, 2.0]), dict(w=other_type), dict(step=4), dict(more=1)):
        assert not same_content(content(), content(**change)), change
        assert not same_content(content(**change), content()), change
    pairs = [([1, 2], [1, 3]), ([1, 2], [2, 2]), ([1], [1, 1]), ([1, 1], [1]), ("a", "b"), ({}, None), ([], {})]
    for a, b in [*pairs, (3, torch.tensor(3)), (torch.tensor(3), 3)]:
        assert not same_content(a, b)
        assert not same_content({"x": [a]}, {"x": [b]})
        assert same_content({"x": [a]}, {"x": [a]})


def test_a_stage_of_which_no_checkpoint_can_be_read_is_not_begun_anew(tmp_path, caplog):
    for step in (1, 2, 3):
        (write_checkpoint(tmp_path, step, content(), keep=3) / "state.json").write_bytes(b"")
    for look in (read_newest, finished_steps, read_parts):
        with pytest.raises(
            CheckpointError, match=r"no checkpoint of 3 in .* can be read: .*step_00000001/state\.json "
        ):
            look(tmp_path)
    assert caplog.text.count("step_00000003/state.json") == 3


def test_averages_that_there_are_not_are_named(tmp_path):
    write_frozen(tmp_path, {}, {})
    write_checkpoint(tmp_path, 1, content(5.0), keep=1)
    assert float(read_parts(tmp_path, "raw", 0.3)["decoder"]["weight"][0]) == 5.0
    with pytest.raises(CheckpointError, match="weights must be 'raw' or 'ema', not 'best'"):
        read_parts(tmp_path, "best")
    with pytest.raises(CheckpointError, match="keeps no EMA; start from its raw weights"):
        read_parts(tmp_path, "ema")
    ema = {"step": 1, "averages": {"0.05": content(9.0)["parts"]}}
    write_checkpoint(tmp_path, 2, {**content(5.0), "ema": ema, "ema_inference": 0.05}, keep=1)
    with pytest.raises(CheckpointError, match=r"keeps no EMA of width 0\.3; it keeps 0\.05$"):
        read_parts(tmp_path, "ema", 0.3)


def test_a_checkpoint_of_the_format_before_is_mapped_onto_the_cpu_and_runs_no_code_whatever_torch_does_by_itself(
    tmp_path, monkeypatch
):
    path, asked, load = old(tmp_path), [], torch.load
    monkeypatch.setattr(torch, "load", lambda *given, **named: asked.append(named) or load(*given, **named))
    read_checkpoint(path)
    assert asked == [dict(map_location="cpu", weights_only=True, mmap=True)]
