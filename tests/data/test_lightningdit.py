"""Latents in LightningDiT's layout: ours, as its own data set reads them, and its own, as generators here do."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aligntok.caching import cache_latents
from aligntok.caching.settings import CacheRequest
from aligntok.check import CheckRequest, check_folder
from aligntok.cli import cache_latents as command
from aligntok.data.latents import LatentDataset
from aligntok.errors import ConfigError, DataError
from aligntok.tokenizer import Tokenizer

CNN = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), resolution=8)
IMAGES = 7


class SlowReader:
    """What LightningDiT's data set gives, read as plainly as can be: files by name, each image normalised."""

    def __init__(self, folder):
        self.places = []
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                self.places += [(file, row) for row in range(opened.get_slice("labels").get_shape()[0])]
        found = torch.load(Path(folder) / "latents_stats.pt", weights_only=True)
        self.mean, self.std = found["mean"], found["std"]

    def __getitem__(self, number, mirrored=False):
        file, row = self.places[number]
        tensors = load_file(file)
        latent = tensors["latents_flip" if mirrored else "latents"][row : row + 1]
        return ((latent - self.mean) / self.std)[0], tensors["labels"][row]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    torch.manual_seed(0)
    made = Tokenizer({**CNN, "double_z": False}, None, CNN, 4, downsample_factor=2).eval()
    made.save_pretrained(folder := tmp_path_factory.mktemp("tokenizer"))
    return folder, made


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(IMAGES):
        (place := root / ("ant", "bee")[number % 2]).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(256, size=(8, 12, 3), dtype=np.uint8)).save(place / f"{number}.png")
    return root


def asked(tokenizer, photos, out, **changes):
    how = dict(image_size=(8, 12), batch_size=3, workers=0, shard_size=4, layout="lightningdit")
    return CacheRequest(tokenizer=tokenizer[0], data=photos, out=out, **{**how, **changes})


@pytest.fixture(scope="module")
def ours(tokenizer, photos, tmp_path_factory):
    """A cache in the layout, and the same in our own."""
    root = tmp_path_factory.mktemp("caches")
    return [cache_latents(asked(tokenizer, photos, root / name, layout=name)) for name in ("lightningdit", "aligntok")]


def test_a_cache_in_its_layout_is_read_by_its_names_shapes_and_types(ours, tokenizer, photos):
    files = sorted(path.name for path in ours[0].glob("*.safetensors"))
    assert files == ["latents_rank00_shard000.safetensors", "latents_rank00_shard001.safetensors"]
    tensors = load_file(ours[0] / files[0])
    assert {
        name: (tensors[name].dtype, tuple(tensors[name].shape)) for name in ("latents", "latents_flip", "labels")
    } == {
        "latents": (torch.float32, (4, 4, 4, 6)),
        "latents_flip": (torch.float32, (4, 4, 4, 6)),
        "labels": (torch.int64, (4,)),
    }
    reader, plain = SlowReader(ours[0]), LatentDataset(ours[1], train=False)
    assert (tuple(reader.mean.shape), reader.mean.dtype) == ((1, 4, 1, 1), torch.float32)
    for number in range(IMAGES):
        latent, label = reader[number]
        torch.testing.assert_close(latent, plain[number]["latents"], rtol=0, atol=1e-6)
        assert int(label) == plain[number]["label"]
    image = torch.from_numpy(np.array(Image.open(sorted((photos / "ant").iterdir())[0]))).permute(2, 0, 1)
    with torch.no_grad():
        mirrored = tokenizer[1].encode((image / 127.5 - 1)[None].flip(-1))
    found = reader.__getitem__(0, mirrored=True)[0] * reader.std[0] + reader.mean[0]
    torch.testing.assert_close(found, mirrored[0], rtol=0, atol=1e-5)


def test_both_layouts_give_a_generator_the_same_batches(ours):
    first, second = (LatentDataset(folder, seed=3) for folder in ours)
    assert first.identity == second.identity
    assert first.class_names == second.class_names == ("ant", "bee")
    numbers = [5, 0, 6, 2, 2, 3]
    batches = [data.batch(numbers) for data in (first, second)]
    assert batches[0].keys() == batches[1].keys()
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])


def test_a_cache_in_its_layout_goes_on_where_it_stopped_and_is_checked(ours, tokenizer, photos, tmp_path, capsys):
    out = cache_latents(asked(tokenizer, photos, tmp_path / "cache"))
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "latents_rank00_shard001.safetensors").unlink()
    (out / "manifest.json").unlink()
    assert check_folder(CheckRequest(folder=out))
    cache_latents(asked(tokenizer, photos, out))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept
    assert not check_folder(CheckRequest(folder=out))
    with pytest.raises(ConfigError, match="layout"):
        cache_latents(asked(tokenizer, photos, out, layout="aligntok"))
    assert command([str(tokenizer[0]), str(photos), str(tmp_path / "b"), "--layout", "lightningdit", "--no-hflip"]) == 2
    assert "leave --no-hflip out" in capsys.readouterr().err


def test_images_without_a_class_are_refused_before_any_is_encoded(tokenizer, photos, tmp_path):
    (tmp_path / "flat").mkdir()
    for path in photos.rglob("*.png"):
        (tmp_path / "flat" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="7 of 7 images have no class, which --layout lightningdit needs"):
        cache_latents(asked(tokenizer, tmp_path / "flat", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_shard_has_ten_thousand_images_unless_it_is_told_otherwise(tokenizer, photos, tmp_path):
    assert asked(tokenizer, photos, tmp_path, shard_size=None).images_a_shard == 10_000
    assert asked(tokenizer, photos, tmp_path, shard_size=None, layout="aligntok").images_a_shard == 4096


# Its own folders, which have nothing of ours


def write_theirs(folder, sizes=(3, 2), dtype=torch.float32):
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for number, size in enumerate(sizes):
        halves = {n: torch.randn(size, 4, 2, 3, generator=generator).to(dtype) for n in ("latents", "latents_flip")}
        tensors = {**halves, "labels": torch.arange(size) + number}
        # Of a process's shards; the metadata is what its own program writes.
        name = f"latents_rank{number:02d}_shard000.safetensors"
        save_file(tensors, folder / name, {"total_size": str(size), "dtype": str(dtype), "device": "cpu"})
    statistics = {"mean": torch.full((1, 4, 1, 1), 0.5), "std": torch.full((1, 4, 1, 1), 2.0)}
    torch.save(statistics, folder / "latents_stats.pt")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_own_folder_is_a_data_set_here(tmp_path, dtype, caplog):
    folder = write_theirs(tmp_path / "theirs", dtype=dtype)
    data, reader = LatentDataset(folder, train=False, tokenizer_identity="mine"), SlowReader(folder)
    assert "does not say which tokenizer made its latents" in caplog.text
    assert (len(data), data.latent_shape, data.labels.tolist()) == (5, (4, 2, 3), [0, 1, 2, 1, 2])
    for number in range(5):
        latent, label = reader[number]
        torch.testing.assert_close(
            data[number]["latents"], latent.float(), rtol=0, atol=1e-2 if dtype.itemsize == 2 else 0
        )
        assert data[number]["label"] == int(label)
    drawn = {tuple(LatentDataset(folder, seed=seed)[1]["latents"].flatten().tolist()) for seed in range(8)}
    assert len(drawn) == 2  # as it is, and mirrored


def damage(folder, what):
    shard, statistics = folder / "latents_rank00_shard000.safetensors", folder / "latents_stats.pt"
    tensors = load_file(shard)
    if what == "cut off":
        shard.write_bytes(shard.read_bytes()[:-5])
    elif what == "a header that lies":
        content = shard.read_bytes()
        shard.write_bytes((1 << 40).to_bytes(8, "little") + content[8:])
    elif what == "no labels":
        save_file({name: tensors[name] for name in ("latents", "latents_flip")}, shard)
    elif what == "fewer labels":
        save_file({**tensors, "labels": tensors["labels"][:2]}, shard)
    elif what == "halves that differ":
        save_file({**tensors, "latents_flip": tensors["latents_flip"][:, :2].clone()}, shard)
    elif what == "another shape":
        save_file({**tensors, **{n: torch.zeros(3, 4, 9, 9) for n in ("latents", "latents_flip")}}, shard)
    elif what == "whole numbers":
        save_file({**tensors, **{n: tensors[n].long() for n in ("latents", "latents_flip")}}, shard)
    elif what == "no statistics":
        statistics.unlink()
    elif what == "statistics that run code":
        statistics.write_bytes(pickle.dumps(print))
    elif what == "statistics of fewer channels":
        torch.save({"mean": torch.zeros(1, 2, 1, 1), "std": torch.ones(1, 2, 1, 1)}, statistics)
    elif what == "a deviation of zero":
        torch.save({"mean": torch.zeros(1, 4, 1, 1), "std": torch.zeros(1, 4, 1, 1)}, statistics)
    elif what == "large statistics":
        torch.save({"mean": torch.zeros(1, 4, 1, 1), "std": torch.ones(1 << 19)}, statistics)
    else:
        torch.save([1, 2], statistics)


DAMAGES = {
    "cut off": "shard000.* cannot be read",
    "a header that lies": "its header is cut off",
    "no labels": "it has no 'labels'",
    "fewer labels": "it has not 3 labels",
    "halves that differ": "its latents are",
    "another shape": r"latents must be of one shape.* \(4, 9, 9\)",
    "whole numbers": "latents must be of one shape, and of one type, F32",
    "no statistics": r"latents_stats\.pt cannot be read .*LightningDiT writes it at its first start",
    "statistics that run code": r"latents_stats\.pt cannot be read",
    "statistics of fewer channels": "not 4 numbers each",
    "a deviation of zero": "deviations above 0",
    "large statistics": r"latents_stats\.pt cannot be read .*bytes",
    "statistics of another kind": "it holds no tensors mean and std",
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_strangers_damaged_folder_is_one_clear_error(tmp_path, what):
    folder = write_theirs(tmp_path / "theirs")
    damage(folder, what)
    with pytest.raises(DataError, match=DAMAGES[what]):
        LatentDataset(folder)


def test_the_manifest_of_ours_names_the_layout(ours):
    said = json.loads((ours[0] / "manifest.json").read_text())["encoding"]
    assert (said["layout"], said["shard_size"]) == ("lightningdit", 4)
    assert "layout" not in json.loads((ours[1] / "manifest.json").read_text())["encoding"]
