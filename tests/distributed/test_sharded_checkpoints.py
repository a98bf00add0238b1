"""Checkpoints of several processes: each writes its shards, and any number of processes goes on from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from aligntok.engine.checkpoints import list_checkpoints, read_checkpoint, read_newest

# One of several processes: trains a network by FSDP2 (or, alike in all, without), from the newest checkpoint on.
WORKER = """
import hashlib, json, sys, torch
from types import SimpleNamespace
from torch import nn
from torch.distributed.fsdp import fully_shard
from aligntok.distributed import dcp, start_processes, world
from aligntok.distributed.dcp import sharded
from aligntok.engine.checkpoints import open_newest, read_frozen, share_hashing, write_frozen
from aligntok.engine.saving import CheckpointWriter
from aligntok.io import checksums
folder, kind, asynchronous = sys.argv[1], sys.argv[4], sys.argv[5] == "1"
first, last = map(int, sys.argv[2:4])
torch.set_num_threads(1)
start_processes()
rank, processes = world()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 33), nn.GELU(), nn.Linear(33, 3), nn.BatchNorm1d(3))
teacher = nn.Linear(3, 2)
if kind == "shard":
    from torch.distributed.device_mesh import init_device_mesh
    mesh = init_device_mesh("cpu", (processes,))
    for module in model:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    fully_shard(teacher, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
def content():
    sides = {"net": optimizer.state_dict()}
    return {"parts": {"net": model.state_dict()}, "optimizers": {"sides": sides}, "ema": None}
writer = CheckpointWriter(folder, keep=9, asynchronous=asynchronous)
hashed, hashes = [], checksums.hashlib.sha256
checksums.hashlib = SimpleNamespace(sha256=lambda: hashed.append(1) or hashes())
share_hashing(folder)
found = open_newest(folder)
if found is not None:
    assert read_frozen(folder)["teacher"]["weight"].shape == (2, 3)
    # Shards, state.json, checksums.json, what is frozen: each by one.
    assert len(hashed) <= -(-5 // processes) or "damaged" in folder, hashed
checksums.hashlib = hashlib
read = 0
if found is not None:
    if kind == "shard":
        assert processes == 1 or len(sharded(content())) == 6
    process, take = dcp._Reader._process_read_request, []
    def counted(self, file, request, planner):
        global read
        read += request.lengths.numel() * 4
        return process(self, file, request, planner)
    dcp._Reader._process_read_request = counted
    owners = {"sides": {"net": {"state": dict(enumerate(model.parameters()))}}}
    got = found.load(found.content, sharded({"parts": {"net": model.state_dict()}, "optimizers": owners}))
    model.load_state_dict(got["parts"]["net"])
    optimizer.load_state_dict(got["optimizers"]["sides"]["net"])
else:
    write_frozen(folder, {"teacher": teacher}, {})
assert (found.step if found else 0) == first
generator = torch.Generator().manual_seed(7)
for step in range(1, last + 1):
    x = torch.randn(12, 6, generator=generator)
    if step <= first:
        continue
    share = x if kind == "alike" else x.chunk(processes)[rank]
    model[3].eval()
    model(share).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
writer.write(last, content())
for parameter in model.parameters():
    with torch.no_grad():
        parameter.add_(1.0)  # what is written is what was there
writer.finish()
assert writer.saved == last
print("READ", rank, read, flush=True)
"""


@pytest.fixture(scope="module")
def run(warm, tmp_path_factory):
    """Train from one step to another in so many processes; return how many bytes each has read of tensors."""
    worker = tmp_path_factory.mktemp("workers") / "worker.py"
    worker.write_text(WORKER)

    def train(folder, processes, first, last, kind="shard", asynchronous=True):
        words = (worker, folder, first, last, kind, int(asynchronous))
        alone = processes == 1 and kind != "shard"
        printed = [warm.start(*words).communicate()[0]] if alone else warm.together(processes, *words)
        return [int(text.split("READ")[1].split()[1]) for text in printed]

    return train


def flat(nest, path=""):
    if isinstance(nest, torch.Tensor):
        return {path: nest}
    items = nest.items() if isinstance(nest, dict) else enumerate(nest) if isinstance(nest, list | tuple) else ()
    return {name: t for key, value in items for name, t in flat(value, f"{path}/{key}").items()}


def differences(a, b):
    one, other = (flat({key: value for key, value in read_newest(f).items() if key != "versions"}) for f in (a, b))
    assert one.keys() == other.keys()
    assert len(one) > 20
    return {name: float((one[name].double() - other[name].double()).abs().max()) for name in one}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, run):
    """Six steps of one process without sharding."""
    folder = tmp_path_factory.mktemp("alone")
    run(folder, 1, 0, 6, "alike", asynchronous=False)
    return folder


def test_two_processes_write_each_their_own_and_others_go_on_with_it(tmp_path, alone, run):
    """2 -> 1: each file has half of each tensor, and the whole is that of one process."""
    run(tmp_path, 2, 0, 4)
    ((_, path),) = list_checkpoints(tmp_path)
    names = [file.name for file in sorted(path.iterdir())]
    shards = [f"shard-0000{i}-model-00001-of-00001.safetensors" for i in (1, 2)]
    assert names == ["checksums.json", *shards, "state.json"]
    assert sorted(json.loads((path / "checksums.json").read_text())["sha256"]) == [*shards, "state.json"]
    sizes = [(path / shard).stat().st_size for shard in shards]
    assert max(sizes) < 1.5 * min(sizes)
    run(tmp_path, 1, 4, 6, "alike")
    worst = differences(tmp_path, alone)
    assert max(worst.values()) < 1e-6, worst


SECOND = "shard-00002-model-00001-of-00001.safetensors"


def flip_a_bit(shard):
    held = bytearray(shard.read_bytes())
    held[len(held) * 2 // 3] ^= 4
    shard.write_bytes(held)


@pytest.fixture(scope="module")
def twice(tmp_path_factory, run):
    """Two checkpoints of two processes, of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("twice") / "whole"
    for first in (0, 1):
        run(folder, 2, first, first + 1)
    return folder


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(Path.unlink, id="missing"),
        pytest.param(flip_a_bit, id="a flipped bit"),
        pytest.param(
            lambda shard: shutil.copy(shard.parents[1] / "step_00000001" / SECOND, shard),
            id="of another step",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_a_process_whose_file_is_damaged_is_told_and_all_go_on_from_the_checkpoint_before(
    tmp_path, twice, run, caplog, damage
):
    folder = shutil.copytree(twice, tmp_path / "damaged")
    damage(shard := folder / "checkpoints/step_00000002" / SECOND)
    assert read_newest(folder)["step"] == 1
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith(f"{shard} cannot be read (")
    assert said.endswith("; it is damaged or incomplete; the one before it is used")
    run(folder, 2, 1, 2)
    assert not any(differences(folder, twice).values())


@pytest.mark.nightly
def test_two_one_and_four_processes_in_turn_end_as_one(tmp_path, alone, run):
    for processes, first, last in ((2, 0, 2), (1, 2, 4), (4, 4, 6)):
        run(tmp_path, processes, first, last)
    worst = differences(tmp_path, alone)
    assert max(worst.values()) < 1e-6, worst


def test_a_process_that_goes_on_reads_only_its_own_shards(tmp_path, run):
    run(tmp_path, 2, 0, 1)
    once = read_newest(tmp_path)
    # weights, and both moments of each, but for what is alike in all processes: counts and running statistics
    whole = sum(4 * t.numel() for name, t in flat(once).items() if "running" not in name and t.dim())
    read = run(tmp_path, 2, 1, 2)
    assert sum(read) == whole
    assert max(read) < 0.6 * whole


def test_what_is_alike_in_all_processes_is_written_once_and_is_bit_identical(tmp_path, alone, run):
    run(tmp_path, 2, 0, 2, "alike")
    ((_, path),) = list_checkpoints(tmp_path)
    assert len([*path.glob("*.safetensors")]) == 1
    run(tmp_path, 2, 2, 4, "alike", asynchronous=False)
    run(tmp_path, 1, 4, 6, "alike")
    assert not any(differences(tmp_path, alone).values())
    assert [read_checkpoint(path)["step"] for _, path in list_checkpoints(tmp_path)] == [2, 4, 6]
