"""Every JSON file of ours is read by `read_json`: whatever is wrong with it is one sentence with its cure."""

from __future__ import annotations

import ast
import json

import pytest

from aligntok.data.index import Index
from aligntok.data.latent_shards import read_manifest
from aligntok.engine.saving import write_checkpoint
from aligntok.errors import AlignTokError, CheckpointError, DataError, WeightsError
from aligntok.evaluation.images import read_description
from aligntok.evaluation.results import read_result
from aligntok.io.files import DAMAGE as DAMAGE_OF_A_FILE
from aligntok.io.files import read_json, write_json
from aligntok.latent_diffusion import LatentDiffusion, described_fields
from aligntok.loading import load_latent_diffusion, load_stage_tokenizer
from aligntok.tokenizer import Tokenizer
from aligntok.training import run_info

#: JSON that is no file of ours, by file and function, and why.
OTHERS = {
    ("io/files.py", "read_json"): "the one place",
    ("io/files.py", "load_tensors"): "in the header of a .safetensors file",
    ("io/checksums.py", "read_checksums"): "what JSON files are checked by",
    ("engine/saving.py", "_of_all_processes"): "what another process of the run has just said",
    ("engine/trackers.py", "__init__"): "what the run has just said of itself; mmengine hands texts on",
    ("check.py", "_look_at_json"): "any file, to see whether it can be read",
    ("check.py", "_look_at_tensors"): "the header of a .safetensors file",
    ("data/sources/classes.py", "labels_in"): "a stranger's labels beside images: what is none is passed over",
    ("data/sources/captions.py", "json_object"): "a stranger's captions: a wrong one is told by file and line",
    ("sampling/prompt_files.py", "_parsed"): "a user's prompts: a wrong one is told by file and line",
    ("data/listing.py", "read"): "in the listing's archive, under its checksum",
    ("data/latent_shards.py", "skipped"): "in the header of a .safetensors file, which is checked when it is opened",
    ("data/latent_shards.py", "__init__"): "the header of a .safetensors file",
    ("evaluation/references.py", "_read_own"): "in the header of a .safetensors file, under its checksum",
    ("evaluation/report/collect.py", "_read_records"): "lines of mmengine's log, the damaged ones counted",
    ("environment.py", "_xformers_built_for"): "xformers' file, which may be there or not",
    ("weights/diffusers.py", "find_autoencoder"): "diffusers' file, which may be there or not",
}


def readers(tree):
    """The names of functions that parse JSON, but for what they have just written as JSON themselves."""
    for function in ast.walk(tree):
        for call in ast.walk(function) if isinstance(function, ast.FunctionDef) else ():
            if (
                isinstance(call, ast.Call)
                and ast.unparse(call.func) in ("json.loads", "json.load", "loads", "json.JSONDecoder")
                and not ast.unparse(call.args[0] if call.args else call).startswith("json.dumps(")
            ):
                yield function.name


def test_our_json_is_read_in_one_place(trees):
    assert {(file, function) for file, tree in trees.items() for function in readers(tree)} == set(OTHERS)


def test_a_new_reader_is_found():
    assert [*readers(ast.parse("def f():\n    return json.loads(path.read_text())"))] == ["f"]
    assert not [*readers(ast.parse("def f():\n    return json.loads(json.dumps(x))"))]


DAMAGE = {
    "missing": None,
    "cut off": b'{"a": [1, 2',
    "empty": b"",
    "not UTF-8": b'{"a": "\xff"}',
    "no JSON": b"a: 1",
    "a list": b"[1]",
    "a number": b"1",
    "nested without end": b"[" * 100_000,
}


def spoil(path, damage):
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if DAMAGE[damage] is not None:
        path.write_bytes(DAMAGE[damage])


@pytest.mark.parametrize("damage", DAMAGE)
def test_whatever_is_wrong_is_one_sentence(tmp_path, damage):
    spoil(tmp_path / "a.json", damage)
    with pytest.raises(CheckpointError, match=r"a\.json cannot be read \(.+\); buy another$"):
        read_json(tmp_path / "a.json", CheckpointError, "buy another")


def test_what_is_missing_inside_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json", DataError, "") == {"a": 1}
    with pytest.raises(DataError, match=r"\(it has no 'b'\); copy it"):
        read_json(tmp_path / "a.json", DataError, "copy it", lambda content: content["b"])


def trained(read, file):
    """A reader of a training's folder, which has a checkpoint."""

    def call(folder):
        write_checkpoint(folder, 1, {"parts": {}, "ema": None}, keep=1)
        return read(folder)

    return call, file


def of_samples(folder):
    if (folder / "samples.json").is_file():  # a folder without one holds any pictures
        return read_description(folder)
    raise DataError("cannot be read")


READERS = {
    "tokenizer": (Tokenizer.from_pretrained, "config.json", WeightsError),
    "generator": (LatentDiffusion.from_pretrained, "latent_diffusion.json", WeightsError),
    "stage": (*trained(load_stage_tokenizer, "stage.json"), CheckpointError),
    "generation": (*trained(load_latent_diffusion, "stage.json"), AlignTokError),
    "stage's result": (lambda folder: run_info.read_result(folder / "result.json"), "result.json", CheckpointError),
    "samples": (of_samples, "samples.json", DataError),
    "index": (Index.open, "index.json", DataError),
    "cache": (read_manifest, "manifest.json", DataError),
    "result": (lambda folder: read_result(folder / "cost.json"), "cost.json", DataError),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_says_so(tmp_path, reader, damage):
    read, file, kind = READERS[reader]
    spoil(tmp_path / file, damage)
    with pytest.raises(kind) as caught:
        read(tmp_path)
    assert str(tmp_path) in str(caught.value) or damage == "missing"
    assert damage == "missing" or f"{file} cannot be read (" in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_an_object_of_something_else_is_refused(tmp_path, reader):
    read, file, _ = READERS[reader]
    (tmp_path / file).write_text(json.dumps({"encoder": 1, "other": "thing"}))
    with pytest.raises(AlignTokError):
        read(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"step": "x"}, {"step": True}, {"step": -1}, {"seconds": "a"}, {"metrics": 5}, {"metrics": {"psnr": "x"}}]
)
def test_a_stages_result_of_other_types_is_told(tmp_path, wrong):
    right = {"step": 3, "seconds": 1, "metrics": {"psnr": 20, "ssim": float("nan")}}
    write_json(tmp_path / "result.json", right)
    assert run_info.read_result(tmp_path / "result.json")["metrics"]["psnr"] == 20
    write_json(tmp_path / "result.json", {**right, **wrong})
    with pytest.raises(CheckpointError, match=r"result\.json cannot be read \(.*\); remove that file and start"):
        run_info.read_result(tmp_path / "result.json")


@pytest.mark.parametrize(
    "wrong",
    [
        *({"generator": each} for each in ("x", 5, None, [], {"type": "lightning_dit", "num_classes": "x"})),
        *({"latent_shape": each} for each in (5, None, [4, 2], [4, 2, "x"], [4, 0, 2], [5, 2, 2], [True, 2, 2])),
        *({"statistics": each} for each in (5, {}, {"mean": "x", "std": [1] * 4}, {"mean": [0] * 4, "std": [1]})),
        *({"text": each} for each in (5, "x", {"tokens": 5})),
    ],
)
def test_a_generator_is_described_in_the_types_that_everyone_reads(wrong):
    right = {"generator": {"type": "lightning_dit"}, "latent_shape": [4, 2, 2], "sampling": {}, "class_names": []}
    right["statistics"] = {"mean": [0] * 4, "std": [1] * 4}
    assert described_fields(right)["latent_shape"] == [4, 2, 2]
    with pytest.raises(DAMAGE_OF_A_FILE):
        described_fields({**right, **wrong})


def test_a_value_that_changed_since_is_told_once_and_read(tmp_path, caplog):
    path = tmp_path / "said.json"
    write_json(path, {"mean": 0.25}, checksum=True)
    assert read_json(path, DataError, "") == {"mean": 0.25}
    path.write_text(path.read_text().replace("0.25", "0.35"))
    assert [read_json(path, DataError, "") for _ in range(2)] == [{"mean": 0.35}] * 2
    assert (
        caplog.text.count(f"{path} was changed after it was written (its SHA-256 is not the one in said.json.sha256")
        == 1
    )
    write_json(path, {"mean": 0.35})  # by whoever writes none
    assert [file.name for file in tmp_path.iterdir()] == ["said.json"]
