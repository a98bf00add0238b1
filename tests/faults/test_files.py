"""Every writer and reader under every fault of a disk: one sentence that names the file, and nothing half written."""

from __future__ import annotations

import ast
import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from aligntok.caching.text_cache import TextCache, cache_texts
from aligntok.configs import CopyRequest, copy
from aligntok.data.buckets import AspectBuckets
from aligntok.data.index import Index
from aligntok.data.index.format import FIXED
from aligntok.data.index.write import Shard, write_index
from aligntok.data.latent_shards import LatentStatistics, shard_path, write_shard
from aligntok.data.latent_shards import Shard as LatentShard
from aligntok.data.settings import Wanted
from aligntok.data.stream.selection import _make, _read, _Rules
from aligntok.diffusers.export import write_autoencoder, write_pipeline
from aligntok.engine.checkpoints import (
    read_checkpoint,
    read_frozen,
    read_newest,
    write_frozen,
)
from aligntok.engine.saving import write_checkpoint
from aligntok.engine.snapshots import read_snapshots, write_snapshot
from aligntok.errors import AlignTokError, WriteError
from aligntok.evaluation.comparison.records import Made, Record, read_record
from aligntok.evaluation.comparison.summary import write_markdown
from aligntok.evaluation.results import Result, read_result
from aligntok.generators.flux_dit import FluxDiT
from aligntok.io import files
from aligntok.io.files import write_json
from aligntok.io.pictures import save_picture
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.sampling.folder import write_npz
from aligntok.text_encoders import TextEncoder
from aligntok.tokenizer import Tokenizer
from aligntok.training.run_info import read_result as read_stage_result
from aligntok.training.run_info import write_run_info

PACKAGE = Path(__file__).parents[2] / "aligntok"
TINY = dict(ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4)


def picture(folder):
    save_picture(folder / "a.png", Image.effect_noise((64, 64), 50))


def figure(folder):
    save_picture(folder / "a.png", Figure())


def tokenizer(folder):
    parts = dict(type="ldm_cnn", pretrained=False, **TINY), dict(type="mlp"), dict(type="ldm_cnn", **TINY)
    Tokenizer(*parts, 4, 2).save_pretrained(folder)


def frozen(folder):
    write_frozen(folder, {"encoder": nn.Linear(2, 2)}, {})


def snapshot(folder):
    write_snapshot(folder, 3, {"0.05": {"encoder": {"weight": torch.ones(2, 2)}}})


def checkpoint(folder):
    write_checkpoint(folder, 1, {"parts": {"encoder": {"weight": torch.ones(64, 64)}}, "ema": None}, keep=1)


def file_of_before(folder):
    shutil.copytree(PACKAGE.parent / "tests/engine/format_2", folder, dirs_exist_ok=True)


def latents(folder):
    write_shard(shard_path(folder, 0), torch.zeros(2, 1, 3, 4, 4), torch.zeros(2), torch.arange(2), [])


def archive(folder):
    pixels = (torch.zeros(4, 4, 3, dtype=torch.uint8).numpy() for _ in range(2))
    list(write_npz(folder / "samples.npz", pixels, (2, 4, 4, 3), [0, 1]))


def result(folder):
    Result("reconstruction", "it", {"psnr": 20.0}, {"of": "it"}).write(folder)


class Letters(TextEncoder):
    """A text encoder of nothing."""

    dim, max_tokens, identity = 2, 8, "letters"

    def tokenize(self, texts, full=False):
        return {"input_ids": torch.ones(len(texts), 3), "attention_mask": torch.ones(len(texts), 3)}

    def forward(self, input_ids, attention_mask):
        return {"text": input_ids[..., None].expand(-1, -1, 2), "mask": attention_mask.bool()}


def texts(folder):
    cache_texts(folder / "texts", ["a", "b"], Letters())


def for_diffusers(folder):
    shape = dict(hidden_size=32, num_heads=2, depth=1, depth_single_blocks=1, in_channels=4)
    FluxDiT(**shape, context_in_dim=8, vec_in_dim=4).export_diffusers(folder)


CNN = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=())
TINY_VAE = dict(encoder=CNN, adapter=dict(type="identity"), decoder=CNN, latent_dim=2, downsample_factor=2)


def autoencoder(folder):
    write_autoencoder(folder, Tokenizer(**TINY_VAE, variational=True))


def pipeline(folder):
    shape = dict(hidden_size=32, depth=1, num_heads=2, input_size=2, in_channels=2, num_classes=2)
    statistics = LatentStatistics((0.0,) * 2, (1.0,) * 2)
    vae = Tokenizer(**{**TINY_VAE, "decoder": dict(CNN, linear_path=True)}, variational=True)
    write_pipeline(folder, LatentDiffusion(dict(type="lightning_dit", **shape), vae, statistics, (2, 2, 2)))


def index(folder):
    columns = dict.fromkeys(("offset", "size", "height", "width"), np.ones(99))
    write_index(folder / "index", "tar", None, FIXED["tar"], [Shard(f"{folder}/0.tar", 99, "", 99)], lambda _: columns)


class Few:
    """An index of 99 samples, which is in memory."""

    folder, digest, caption, columns = "few", "", None, ()
    shards = SimpleNamespace(first=np.array([0, 99]))

    def __len__(self):
        return 99

    def column(self, name):
        return np.ones(99)


def selection(folder):
    _make(Few(), _Rules(Few(), Wanted(), AspectBuckets(32)), folder / "selection", "0" * 64)


def read_selection(folder):
    _read(Few(), folder / "selection", "0" * 64)


def record(folder):
    Record("arm", Made({"seed": 0}), {"psnr": 20.0}, 0, {"FID": {2: 1.5}}).write(folder / "arm_seed_0.json")


WRITERS = {
    "json": lambda folder: write_json(folder / "a.json", {"a": list(range(99))}),
    "run.json": lambda folder: write_run_info(folder, {"config": "a" * 99}),
    "result": result,
    "table": lambda folder: write_markdown(folder / "a.md", {"A table": [{"arm": "a" * 99}]}),
    **dict(picture=picture, figure=figure, tokenizer=tokenizer, frozen=frozen, snapshot=snapshot),
    **dict(checkpoint=checkpoint, latents=latents, archive=archive, texts=texts, for_diffusers=for_diffusers),
    "configs": lambda folder: copy(CopyRequest(name="demo/photographs_f8d16", out=folder)),
    **dict(autoencoder=autoencoder, pipeline=pipeline, index=index, selection=selection, record=record),
}


@contextmanager
def full_disk(folder):
    """A file may have 16 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def no_permission(folder):
    """The folder is another's."""
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def whole_files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's, told elsewhere
@pytest.mark.parametrize("fault", [full_disk, no_permission])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_writer_that_cannot_write_names_the_file_and_leaves_nothing_half_written(tmp_path, writer, fault):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(WriteError, match=f"{folder}.* could not be written \\(.+\\); "), fault(folder):
        WRITERS[writer](folder)
    assert not [path for path in whole_files(folder) if not path.name.startswith("events.")]  # TensorBoard's go on


@pytest.mark.parametrize("writer", WRITERS)
def test_a_kill_between_writing_and_renaming_leaves_what_was_there(tmp_path, writer, monkeypatch):
    WRITERS[writer](tmp_path)
    before = whole_files(tmp_path)

    def stop(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        WRITERS[writer](tmp_path)
    after = whole_files(tmp_path)
    lost = before.keys() - after.keys()
    assert {path: after[path] for path in after.keys() & before.keys()}.items() <= before.items()
    assert all(path.name.endswith((".sha256", "checksums.json")) for path in lost)  # written last, so none is false


def stage_result(folder):
    write_json(folder / "result.json", {"step": 3, "seconds": 1.0, "metrics": {"psnr": 20.0}})


#: (what writes, what reads, the file).
READERS = {
    "record": (record, lambda folder: read_record(folder / "arm_seed_0.json"), "*.json"),
    "checkpoint": (checkpoint, read_newest, "shard-*.safetensors"),
    "checkpoint's state": (checkpoint, read_newest, "state.json"),
    "checkpoint's checksums": (checkpoint, read_newest, "checkpoints/*/checksums.json"),
    "file of before": (file_of_before, lambda folder: read_checkpoint(folder / "checkpoints/step_00000003.pt"), "*.pt"),
    "frozen": (frozen, read_frozen, "frozen.safetensors"),
    "snapshot": (snapshot, lambda folder: read_snapshots(folder, 3), "*.safetensors"),
    "latents": (latents, lambda folder: LatentShard(shard_path(folder, 0)), "*.safetensors"),
    "texts": (texts, lambda folder: TextCache.open(folder / "texts"), "shard_00000.safetensors"),
    "texts' manifest": (texts, lambda folder: TextCache.open(folder / "texts"), "manifest.json"),
    "index": (index, lambda folder: Index.open(folder / "index"), "index.json"),
    "index's shards": (index, lambda folder: Index.open(folder / "index"), "shards.json"),
    "index's column": (index, lambda folder: Index.open(folder / "index"), "size.npy"),
    "selection": (selection, read_selection, "selection.json"),
    "selection's buckets": (selection, read_selection, "buckets.npy"),
    "selection's counts": (selection, read_selection, "counts.npy"),
    "tokenizer": (tokenizer, Tokenizer.from_pretrained, "model.safetensors"),
    "tokenizer's config": (tokenizer, Tokenizer.from_pretrained, "config.json"),
    "result": (result, lambda folder: read_result(folder / "reconstruction.json"), "reconstruction.json"),
    "stage's result": (stage_result, lambda folder: read_stage_result(folder / "result.json"), "result.json"),
}
TENTHS = {f"cut off at {tenth} tenths": tenth for tenth in range(10)}


def spoil(path, damage):
    content = path.read_bytes()
    if damage in TENTHS:
        path.write_bytes(content[: len(content) * TENTHS[damage] // 10])
    elif damage == "not UTF-8":
        path.write_bytes(b"\xff\xfe" + content)
    elif damage == "another type":
        path.write_bytes(b"[1, 2]")
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.unlink()


DAMAGES = [*TENTHS, "not UTF-8", "another type", "a folder", "missing"]
DAMAGED = [(reader, damage) for reader in READERS for damage in DAMAGES]
DAMAGED.remove(("snapshot", "missing"))  # one of any number


@pytest.mark.parametrize(("reader", "damage"), DAMAGED)
def test_a_reader_of_a_damaged_file_says_which(tmp_path, reader, damage):
    write, read, pattern = READERS[reader]
    write(tmp_path)
    read(tmp_path)
    (path,) = tmp_path.rglob(pattern)
    spoil(path, damage)
    with pytest.raises(AlignTokError) as caught:
        read(tmp_path)
    assert str(tmp_path if damage in ("missing", "a folder") else path) in str(caught.value)


#: Where files are written and read, all by way of the functions that are tried here: see test_writers, test_json_reade
KNOWN = {
    "caching/cache.py",
    "cards.py",  # of what WRITERS write
    "check.py",
    "configs.py",
    "data/images.py",
    "data/index/format.py",
    "data/index/check.py",
    "data/index/parts.py",
    "data/index/sampled.py",
    "data/index/tables.py",
    "data/index/tars.py",
    "data/index/write.py",
    "data/latent_shards.py",
    "data/lightningdit.py",  # a stranger's: see its own test
    "data/listing.py",
    "data/filters.py",  # a list of a user's: see its own test
    "data/remote.py",  # a stranger's: see its own test
    "data/sources/captions.py",  # a stranger's: see its own test
    "data/sources/tables.py",  # its labels: tests/data/sources/test_tables.py
    "data/stream/selection.py",
    "data/stream/tables.py",
    "diffusers/export.py",
    "distributed/dcp.py",
    "distributed/output_folder.py",
    "engine/checkpoints.py",
    "engine/hooks.py",
    "engine/runner.py",
    "engine/snapshots.py",
    "engine/trackers.py",  # what fails is told, and a training goes on: see its own test
    "evaluation/comparison/budget.py",  # a note, as of an arm
    "evaluation/comparison/kept.py",  # as samples are
    "evaluation/comparison/records.py",
    "evaluation/comparison/running.py",
    "evaluation/comparison/summary.py",
    "evaluation/cost/__init__.py",
    "evaluation/generation.py",
    "evaluation/images.py",
    "evaluation/latent_analysis.py",
    "evaluation/own_pictures.py",
    "evaluation/reconstruction.py",
    "evaluation/references.py",
    "evaluation/report/__init__.py",
    "caching/text_cache.py",
    "evaluation/report/blocks.py",
    "evaluation/report/collect.py",
    "evaluation/report/evaluations.py",
    "evaluation/results.py",
    "evaluation/text_image/run.py",
    "io/files.py",
    "io/folders.py",  # of an export, which WRITERS write
    "io/pictures.py",
    "latent_diffusion.py",
    "loading.py",
    "onnx.py",  # a test of its own: what it writes takes seconds to make
    "published.py",  # a stranger's: see its own test
    "sampling/folder.py",
    "sampling/guidance_sweep.py",
    "sampling/samples.py",
    "text_encoders/pretrained.py",
    "tokenizer.py",
    "training/builder.py",
    "training/run_info.py",
    "weights/diffusers.py",
    "weights/load.py",
    "weights/transformers.py",
}


def test_a_new_place_that_writes_or_reads_files_is_noticed(trees):
    calls = {"replacing", "writing_text", "save_picture", "write_json", "save_tensors"}
    calls |= {"read_json", "load_tensors", "reading"}
    found = {
        file
        for file, tree in trees.items()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "attr", getattr(call.func, "id", "")) in calls
    }
    assert found == KNOWN, "add what it writes and reads to WRITERS and READERS"
