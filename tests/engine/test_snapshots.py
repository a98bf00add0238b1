"""Snapshots of another attempt, or of other weights, are no part of a width that is made later."""

from __future__ import annotations

import pytest
import torch

from aligntok.engine.snapshots import forget_later, read_snapshots, write_snapshot
from aligntok.errors import CheckpointError
from aligntok.io.files import write_json


def write(folder, *steps, size=2):
    for step in steps:
        write_snapshot(folder, step, {"0.05": {"decoder": {"a.b": torch.full((size,), float(step))}}})


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_those_after_the_newest_checkpoint_are_left_out(tmp_path):
    write(tmp_path, 5, 10, 15)
    assert [step for step, *_ in read_snapshots(tmp_path, 10)] == [5, 10]
    assert read_snapshots(tmp_path, 0) == []


@pytest.mark.parametrize("size", [1, 3])
def test_those_of_other_shapes_are_told_with_their_file(tmp_path, size):
    write(tmp_path, 5)
    write(tmp_path, 10, size=size)
    with pytest.raises(CheckpointError, match=r"step_00000010\.safetensors cannot be read \(its weights have other .*"):
        read_snapshots(tmp_path, 10)


def test_one_whose_tensors_are_not_named_so_is_told(tmp_path):
    write_snapshot(tmp_path, 5, {"wide": {"decoder": {"a": torch.ones(1)}}})
    with pytest.raises(CheckpointError, match=r"step_00000005\.safetensors cannot be read \(.*; copy that file again"):
        read_snapshots(tmp_path, 10)


def test_what_an_attempt_left_that_is_not_gone_on_with_goes(tmp_path):
    write(tmp_path, 4, 900)
    write_json(tmp_path / "result.json", {"step": 4, "seconds": 1.0, "metrics": {}})
    forget_later(tmp_path, 4)
    kept = ["result.json", "step_00000004.safetensors", "step_00000004.safetensors.sha256"]
    assert files(tmp_path) == kept
    forget_later(tmp_path, 3)
    assert files(tmp_path) == []


@pytest.mark.parametrize("step", ["x", None, True, 5])
def test_a_result_of_a_later_step_or_of_none_goes(tmp_path, step):
    write_json(tmp_path / "result.json", {"step": step, "seconds": 1.0, "metrics": {}})
    forget_later(tmp_path, 4)
    assert files(tmp_path) == []
