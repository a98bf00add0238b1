"""`aligntok check`: what is damaged or missing in a folder of ours is a line with its cure, and status 2."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from aligntok import cli
from aligntok.engine.checkpoints import write_frozen
from aligntok.engine.saving import write_checkpoint
from aligntok.engine.snapshots import write_snapshot
from aligntok.io.files import save_tensors, write_json
from aligntok.sampling.folder import SampleFolder, write_npz

NEWEST, SHARD = "run/1_align/checkpoints/step_00000004", "shard-00001-model-00001-of-00001.safetensors"
PARTS = {"decoder": {"weight": torch.arange(400.0)}}


@pytest.fixture
def place(tmp_path, tiny_cache, tiny_tokenizer):
    """A folder with one of everything: a stage, a cache, an export, samples, references."""
    stage = tmp_path / "run/1_align"
    for step in (2, 4):
        write_checkpoint(stage, step, {"parts": PARTS, "ema": None}, keep=2)
    write_frozen(stage, {"encoder": torch.nn.Linear(4, 4)}, {})
    write_snapshot(stage, 4, {"0.05": PARTS})
    write_json(stage / "stage.json", {"format": 2, "lr": 0.001}, checksum=True)
    (stage / "vis_data").mkdir()
    (stage / "vis_data/scalars.json").write_text('{"loss": 1.0}\n{"loss": 0.5}\n')
    (stage / "run.log").write_text("going on\n")
    shutil.copytree(tiny_cache, tmp_path / "latents")
    shutil.copytree(tiny_tokenizer, tmp_path / "tokenizer")
    samples = SampleFolder(tmp_path / "samples", 3, (8, 8), None, {})
    (tmp_path / "samples/images").mkdir(parents=True)
    for i in range(3):
        Image.effect_noise((8, 8), 90).convert("RGB").save(samples.picture(i))
    [*write_npz(tmp_path / "samples/samples.npz", samples.pixels(), (3, 8, 8, 3), None)]
    write_json(tmp_path / "samples/samples.json", {"num": 3, "finished": True})
    save_tensors(tmp_path / "references/dino.safetensors", {"mean": torch.zeros(8)})
    return tmp_path


def check(folder, capsys):
    capsys.readouterr()
    status = cli.main(["check", str(folder)])
    return status, capsys.readouterr().out.splitlines()


def test_a_whole_folder_is_one_line_which_names_what_has_no_checksum(place, capsys):
    status, lines = check(place, capsys)
    assert status == 0, lines
    (line,) = lines
    assert line.startswith(f"{place}: ")
    assert "4 have no checksum and are unchecked" in line or "5 have no checksum and are unchecked" in line
    for name in ("run/1_align/run.log", "run/1_align/vis_data/scalars.json", "samples/samples.json"):
        assert name in line


FLIPPED = {
    f"{NEWEST}/{SHARD}": "remove its folder",
    f"{NEWEST}/state.json": "remove its folder: the training goes on from the checkpoint",
    "run/1_align/frozen.safetensors": "copy the stage's folder again",
    "run/1_align/ema_snapshots/step_00000004.safetensors": "widths are then made of the other snapshots",
    "run/1_align/stage.json": "if you changed it, remove what has its checksum",
    "latents/shard_00001.safetensors": "it encodes that shard anew",
    "latents/manifest.json": "it writes that file anew",
    "latents/encoding.json": "copy it again",
    "latents/listing.npz": "copy it again",
    "tokenizer/model.safetensors": "copy it again",
    "tokenizer/config.json": "copy it again",
    "samples/images/000001.png": "which draws what is missing",
    "samples/samples.npz": "which writes it from the pictures",
    "references/dino.safetensors": "copy it again, or make it anew",
}


@pytest.mark.parametrize("name", FLIPPED)
def test_a_changed_bit_is_found_in_every_kind_of_file(place, capsys, name):
    content = bytearray((place / name).read_bytes())
    content[len(content) // 2] ^= 1
    (place / name).write_bytes(content)
    status, lines = check(place, capsys)
    assert status == 2
    assert lines[0].startswith(f"{name}: is damaged (")
    assert FLIPPED[name] in lines[0]
    assert lines[1].startswith(f"{place}: 1 problem, ")
    assert len(lines) == 2
    assert cli.main(["check", str(place / name)]) == 2  # alone, too


def half(path):
    os.truncate(path, path.stat().st_size // 2)


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "name", "said"),
    [
        (half, "samples/images/000001.png", "is damaged (it is cut off)"),
        (half, "samples/samples.json", "is damaged ("),
        (remove, "samples/images/000002.png", "1 of 3 samples are not there"),
        (remove, "latents/shard_00000.safetensors", "is gone, and"),
        (remove, "latents/manifest.json", "this cache is not finished"),
        (remove, "tokenizer/model.safetensors", "is gone, and checksums.json names it"),
        (remove, "run/1_align/frozen.safetensors", "is gone"),
        (
            remove,
            f"{NEWEST}/{SHARD}",
            "names it; remove its folder",
        ),
        (remove, f"{NEWEST}/state.json", "names it; remove its folder"),
        (remove, f"{NEWEST}/checksums.json", "is gone; remove its folder"),
        (half, f"{NEWEST}/checksums.json", "is damaged ("),
        (remove, "references/dino.safetensors", "is gone, and its checksum is there"),
    ],
)
def test_what_is_cut_off_or_missing_is_told(place, capsys, spoil, name, said):
    spoil(place / name)
    status, lines = check(place, capsys)
    assert status == 2
    assert any(said in line for line in lines[:-1]), lines


@pytest.mark.parametrize("name", ["latents/shard_00001.safetensors", "references/dino.safetensors"])
def test_without_a_checksum_the_header_still_tells_the_length(place, capsys, name):
    (place / f"{name}.sha256").unlink()
    status, (line,) = check(place, capsys)
    assert status == 0
    assert name in line
    os.truncate(place / name, (place / name).stat().st_size - 8)
    status, lines = check(place, capsys)
    assert status == 2
    assert "bytes of" in lines[0]


def test_a_checkpoint_of_the_format_before_without_its_checksum_is_named(place, capsys):
    torch.save(PARTS, place / "run/1_align/checkpoints/step_00000001.pt")
    status, (line,) = check(place, capsys)
    assert status == 0
    assert "run/1_align/checkpoints/step_00000001.pt" in line


def test_a_checkpoint_that_is_being_written_is_passed_over(place, capsys):
    kept = check(place, capsys)
    folder = place / "run/1_align/checkpoints"
    shutil.copytree(folder / "step_00000004", folder / ".step_00000006.00000006.tmp")
    (folder / ".step_00000006.00000006.tmp/checksums.json").unlink()
    assert check(place, capsys) == kept


def test_links_and_pipes_are_left_alone(place, capsys):
    os.mkfifo(place / "pipe.json")
    (place / "link.safetensors").symlink_to("/dev/zero")
    (place / "around").symlink_to(place)
    status, (line,) = check(place, capsys)
    assert status == 0
    assert "pipe.json" in line


def deflated(path):
    np.savez_compressed(path, arr_0=np.arange(3000))
    content = bytearray(path.read_bytes())
    content[200] ^= 255
    path.write_bytes(content)


def changed(place, value):
    def change(path):
        content = bytearray(path.read_bytes())
        content[content.rindex(b"PK\1\2") + place] ^= value
        path.write_bytes(content)

    return change


@pytest.mark.parametrize(
    "spoil",
    [deflated, changed(6, 100), changed(8, 1), changed(10, 1), half, lambda path: path.write_bytes(b"PK")],
    ids=["packed numbers", "version", "encrypted", "method", "half", "nothing"],
)
def test_any_damage_of_an_archive_is_a_line(place, capsys, spoil):
    spoil(place / "samples/samples.npz")
    status, lines = check(place, capsys)
    assert status == 2
    assert any("samples.npz: is damaged" in line for line in lines), lines


@pytest.mark.parametrize("number", ["Infinity", "1e400", "10000000000000", "[]", '"x"'])
def test_a_number_of_samples_that_cannot_be_is_a_line(place, capsys, number):
    (place / "samples/samples.json").write_text(f'{{"num": {number}, "finished": true}}')
    status, lines = check(place, capsys)
    assert status == 2
    assert any("samples" in line for line in lines[:-1]), lines


def test_a_picture_by_another_name_is_no_sample(place, capsys):
    (place / "samples/images/000001.png").rename(place / "samples/images/1.png")
    status, lines = check(place, capsys)
    assert status == 2
    assert any("1 of 3 samples are not there" in line for line in lines), lines


def test_a_header_without_offsets_is_a_line(place, capsys):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": []}}).encode()
    (place / "references/dino.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (place / "references/dino.safetensors.sha256").unlink()
    status, lines = check(place, capsys)
    assert status == 2
    assert any("dino.safetensors: is damaged" in line for line in lines), lines


def test_nothing_to_check_is_told(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert cli.main(["check", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "has no files to check" in said
    assert "there is no" in said


def test_lists_that_lead_out_of_their_folder_name_nothing(place, capsys):
    manifest = json.loads((place / "latents/manifest.json").read_text())
    manifest["shards"][0]["file"] = "../tokenizer/model.safetensors"
    (place / "latents/checksums.json").unlink()
    (place / "latents/manifest.json").write_text(json.dumps(manifest))
    status, lines = check(place, capsys)
    assert status == 2
    assert "latents/encoding.json: is no list of what the folder has (a file in" in lines[0]
