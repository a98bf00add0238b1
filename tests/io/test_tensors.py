"""Tensors are written by one function: whole or absent, as readable as other files, with a checksum that is checked."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from aligntok.data.latent_shards import shard_path, write_shard
from aligntok.engine.checkpoints import read_frozen, write_frozen
from aligntok.engine.snapshots import read_snapshots, write_snapshot
from aligntok.errors import CheckpointError, DataError, WeightsError, WriteError
from aligntok.io import files
from aligntok.io.files import check_file, load_tensors, save_tensors
from aligntok.tokenizer import Tokenizer

TINY = dict(ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4)


@pytest.fixture
def tokenizer():
    return Tokenizer(
        dict(type="ldm_cnn", pretrained=False, **TINY), dict(type="mlp"), dict(type="ldm_cnn", **TINY), 4, 2
    )


def test_safetensors_files_are_written_in_one_place(trees):
    writers = {
        file
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom | ast.Attribute | ast.Name)
        and {"save_file", "save_model"} & {getattr(node, "attr", None), getattr(node, "id", None), *imported(node)}
    }
    assert writers == {"io/files.py"}


def imported(node):
    return [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []


def write_frozen_part(folder, _):
    write_frozen(folder, {"encoder": nn.Linear(2, 2)}, {})
    return folder / "frozen.safetensors"


def write_averages(folder, _):
    write_snapshot(folder, 3, {"0.05": {"encoder": {"weight": torch.ones(2, 2)}}})
    return folder / "ema_snapshots/step_00000003.safetensors"


def write_latents(folder, _):
    write_shard(shard_path(folder, 0), torch.zeros(2, 1, 3, 4, 4), torch.zeros(2), torch.arange(2), [])
    return shard_path(folder, 0)


def write_tokenizer(folder, tokenizer):
    tokenizer.save_pretrained(folder)
    return folder / "model.safetensors"


@pytest.mark.parametrize("write", [write_frozen_part, write_averages, write_latents, write_tokenizer])
def test_every_writer_keeps_the_umask_and_writes_the_checksum(tmp_path, tokenizer, write):
    before = os.umask(0o027)
    try:
        path = write(tmp_path, tokenizer)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    assert check_file(path, DataError, "")
    own = path.with_name(f"{path.name}.sha256")
    listed = path.with_name("checksums.json")
    if listed.is_file():  # a folder that is written as a whole
        own.write_text("".join(f"{sha}  {name}\n" for name, sha in json.loads(listed.read_text())["sha256"].items()))
    subprocess.run(["sha256sum", "--check", "--quiet", own.name], cwd=path.parent, check=True)


def flip(path):
    """Change one bit of the last tensor: nothing that the format itself would notice."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "read", "kind"),
    [
        (write_frozen_part, read_frozen, CheckpointError),
        (write_averages, lambda folder: read_snapshots(folder, 99), CheckpointError),
        (write_tokenizer, Tokenizer.from_pretrained, WeightsError),
    ],
)
def test_a_changed_bit_is_found_when_the_file_is_read(tmp_path, tokenizer, write, read, kind):
    path = write(tmp_path, tokenizer)
    read(tmp_path)
    flip(path)
    with pytest.raises(kind, match=rf"{path.name} cannot be read \(its SHA-256 is not the one in .*; "):
        read(tmp_path)
    for checksum in (path.with_name(path.name + ".sha256"), path.with_name("checksums.json")):
        checksum.unlink(missing_ok=True)  # as of an earlier version
    read(tmp_path)


def test_any_layout_is_written_and_comes_back(tmp_path):
    given = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))}
    save_tensors(tmp_path / "t.safetensors", given, {"said": "so"})
    found = load_tensors(tmp_path / "t.safetensors", DataError, "")
    assert all(torch.equal(found[name], given[name]) and found[name].dtype == given[name].dtype for name in given)


@pytest.mark.parametrize("at", ["t.safetensors", "t.safetensors.sha256"])
def test_a_kill_between_file_and_checksum_leaves_no_false_alarm(tmp_path, monkeypatch, at):
    """Wherever the writing ends, what is there is the old or the new file, and passes its check."""
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.zeros(2)})
    rename = os.replace

    def stop(source, target):
        if Path(target).name == at:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(files.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        save_tensors(path, {"a": torch.ones(2)})
    found = load_tensors(path, DataError, "")
    assert torch.equal(found["a"], torch.zeros(2) if at == path.name else torch.ones(2))
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_error_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.zeros(2)})
    code = f"""
import resource, torch
from pathlib import Path
from aligntok.io.files import save_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save_tensors(Path({str(path)!r}), {{"a": torch.ones(100_000)}}, cure="buy a disk")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert f"{WriteError.__name__}: {path} could not be written (" in done.stderr
    assert "; buy a disk" in done.stderr
    assert torch.equal(load_file(path)["a"], torch.zeros(2))
    assert [file.name for file in sorted(tmp_path.iterdir())] == [path.name, f"{path.name}.sha256"]


def test_a_tensor_of_two_names_is_exported_once(tmp_path, tokenizer):
    tokenizer.decoder.conv_in.bias = tokenizer.decoder.get_parameter("mid.block_1.norm1.bias")
    tokenizer.save_pretrained(tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert len(found) == len(tokenizer.state_dict()) - 1
    assert load_tensors(tmp_path / "model.safetensors", DataError, "").keys() == tokenizer.state_dict().keys()
    again = Tokenizer.from_pretrained(shutil.copytree(tmp_path, tmp_path / "again"), strict=False)
    assert torch.equal(again.encoder.state_dict().popitem()[1], tokenizer.encoder.state_dict().popitem()[1])
