"""Encoding a data set into a latent cache: what is in it, and that no process, signal or kill changes a bit of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from aligntok import distributed
from aligntok.caching import cache as caching
from aligntok.caching import cache_latents, encoder
from aligntok.caching.settings import CacheRequest, CacheSettings
from aligntok.cli.training import cache_latents as command
from aligntok.data import latent_shards
from aligntok.data.images import ImageDataset
from aligntok.data.latent_shards import read_manifest
from aligntok.data.latents import LatentDataset
from aligntok.errors import ConfigError, DataError, Preempted, WeightsError, WriteError
from aligntok.io import files
from aligntok.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
PART = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), resolution=8)
TINY = dict(image_size=(8, 12), shard_size=5)  # f2: latents (4, 4, 6); 17 images in four shards
IMAGES, SPOILT = 17, (3, 15)


def make_tokenizer(variational=False, seed=0):
    torch.manual_seed(seed)
    encoder = {**PART, "pretrained": False, "double_z": variational}
    return Tokenizer(encoder, dict(type="identity") if variational else None, PART, 4, 2, variational).eval()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The folder of a saved tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Seventeen images of several shapes in three class folders."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(IMAGES):
        path = root / ("ant", "bee", "zebra")[number // 6] / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        size = ((20, 14), (9, 13), (8, 12))[number % 3]
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def spoilt(photos, tmp_path_factory):
    """The same, two of them damaged."""
    root = tmp_path_factory.mktemp("spoilt") / "photos"
    shutil.copytree(photos, root)
    for number, path in enumerate(sorted(root.glob("*/*"))):
        if number in SPOILT:
            path.write_bytes(path.read_bytes()[:60])
    return root


@pytest.fixture(scope="module")
def whole(tokenizer, spoilt, tmp_path_factory):
    """The cache of the damaged photographs, made without interruption."""
    return cache_latents(
        CacheRequest(
            tokenizer=tokenizer,
            data=spoilt,
            out=tmp_path_factory.mktemp("whole") / "cache",
            **TINY,
            batch_size=2,
            workers=0,
            max_unreadable=2,
        )
    )


def shards_and_checksums(number):
    return [f"shard_{i:05d}.safetensors{suffix}" for i in range(number) for suffix in ("", ".sha256")]


def contents(folder):
    """What a cache is: its files, but for the lock and the listing of the images that it was made of."""
    beside = (".lock", "listing.npz", "listing.npz.sha256")
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name not in beside}


# What is in it


def test_a_cache_holds_what_the_tokenizer_gives_for_each_image_and_its_mirror(tokenizer, photos, tmp_path):
    cache_latents(
        CacheRequest(tokenizer=tokenizer, data=photos, out=tmp_path / "cache", **TINY, batch_size=3, workers=0)
    )
    images = ImageDataset(photos, image_size=(8, 12), train=False)
    latents = LatentDataset(tmp_path / "cache", normalise=False)
    assert (len(latents), latents.latent_shape, latents.class_names) == (17, (4, 4, 6), ("ant", "bee", "zebra"))
    model, shards = Tokenizer.from_pretrained(tokenizer), sorted((tmp_path / "cache").glob("*.safetensors"))
    stored = torch.cat([load_file(shard)["latents"] for shard in shards])
    assert [len(load_file(shard)["labels"]) for shard in shards] == [5, 5, 5, 2]
    for i, item in enumerate(images):
        if i == len(images):
            break
        views = torch.stack([item["images"], item["images"].flip(-1)])
        with torch.no_grad():
            torch.testing.assert_close(stored[i], model.encode(views), rtol=1e-4, atol=1e-5)
        assert (latents[i]["label"], int(latents.source_index[i])) == (item["label"], i)
    values = stored.double().transpose(0, 2).flatten(1)
    assert latents.statistics.mean == pytest.approx(values.mean(1).tolist(), rel=1e-12)
    assert latents.statistics.std == pytest.approx(values.std(1, correction=0).tolist(), rel=1e-12)


def test_images_that_cannot_be_read_are_left_out_and_named(whole, spoilt, photos, tokenizer, tmp_path):
    manifest = read_manifest(whole)
    names = [str(path.relative_to(spoilt)) for path in sorted(spoilt.glob("*/*"))]
    assert [(s.place, s.name) for s in manifest.skipped] == [(i, names[i]) for i in SPOILT]
    assert (manifest.images, [shard["images"] for shard in manifest.shards]) == (15, [4, 5, 5, 1])
    left, every = LatentDataset(whole, train=False, normalise=False), tmp_path / "every"
    cache_latents(CacheRequest(tokenizer=tokenizer, data=photos, out=every, **TINY, batch_size=2, workers=0))
    good = LatentDataset(every, train=False, normalise=False)
    assert left.source_index.tolist() == [i for i in range(IMAGES) if i not in SPOILT]
    for i, place in enumerate(left.source_index):
        assert left[i]["label"] == good[int(place)]["label"]
        torch.testing.assert_close(left[i]["latents"], good[int(place)]["latents"], rtol=1e-4, atol=1e-5)


def test_too_many_of_them_are_an_error_that_a_higher_limit_takes_back(tokenizer, spoilt, tmp_path, whole, caplog):
    out = tmp_path / "cache"
    with pytest.raises(DataError, match=r"2 of 17 images cannot be read.* 1 may be left out: repair or .*unreadable"):
        cache_latents(CacheRequest(tokenizer=tokenizer, data=spoilt, out=out, **TINY, batch_size=2, workers=0))
    assert "zebra/15.png" in caplog.text
    assert not (out / "manifest.json").exists()
    cache_latents(
        CacheRequest(tokenizer=tokenizer, data=spoilt, out=out, **TINY, batch_size=2, workers=0, max_unreadable=2)
    )
    assert contents(out) == contents(whole)


def test_a_data_set_without_one_good_image_is_an_error(tokenizer, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="not one of 1 images can be read"):
        cache_latents(
            CacheRequest(tokenizer=tokenizer, data=tmp_path / "photos", out=tmp_path / "cache", **TINY, workers=0)
        )


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_of_the_room_holds_the_latents_rounded_once(tokenizer, photos, tmp_path, dtype):
    for kind in (dtype, "fp32"):
        encoding = dict(image_size=8, dtype=kind, hflip=False)
        cache_latents(CacheRequest(tokenizer=tokenizer, data=photos, out=tmp_path / kind, **encoding, workers=0))
    half, full = (LatentDataset(tmp_path / kind, normalise=False) for kind in (dtype, "fp32"))
    rounded = full.batch(range(IMAGES))["latents"].to(latent_shards.DTYPES[dtype]).float()
    assert torch.equal(half.batch(range(IMAGES))["latents"], rounded)
    sizes = [(tmp_path / kind / "shard_00000.safetensors").stat().st_size for kind in (dtype, "fp32")]
    assert sizes[1] - sizes[0] == pytest.approx(IMAGES * 4 * 4 * 4 * 2, abs=8)


def test_of_a_variational_tokenizer_the_mean_is_kept(photos, tmp_path):
    model = make_tokenizer(variational=True)
    model.save_pretrained(tmp_path / "tokenizer")
    cache_latents(
        CacheRequest(tokenizer=tmp_path / "tokenizer", data=photos, out=tmp_path / "cache", image_size=8, workers=0)
    )
    image = ImageDataset(photos, image_size=8, train=False)[4]["images"][None]
    with torch.no_grad():
        mean = model.moments(image).chunk(2, dim=1)[0]
    cached = LatentDataset(tmp_path / "cache", train=False, normalise=False)[4]["latents"]
    torch.testing.assert_close(cached, mean[0], rtol=1e-4, atol=1e-5)


def test_latents_that_are_not_finite_are_an_error_that_names_the_image(tokenizer, photos, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tokenizer, broken)
    weights = load_file(broken / "model.safetensors")
    scaled = {name: tensor * (1e9 if name.startswith("adapter") else 1) for name, tensor in weights.items()}
    save_file(scaled, broken / "model.safetensors", {"format": "pt"})
    (broken / "checksums.json").unlink()
    with pytest.raises(DataError, match=r"the latents of ant/00\.png are not finite, computed in fp32 .* as fp16"):
        cache_latents(
            CacheRequest(tokenizer=broken, data=photos, out=tmp_path / "cache", image_size=8, dtype="fp16", workers=0)
        )


# Whose latents they are


def test_latents_of_which_a_channel_is_constant_make_no_cache(tokenizer, photos, tmp_path):
    broken = Tokenizer.from_pretrained(tokenizer)
    with torch.no_grad():
        broken.adapter.fc2.weight[1] = 0
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(DataError, match="latents of 17 images are not finite, or a channel of them is constant"):
        cache_latents(CacheRequest(tokenizer=tmp_path / "broken", data=photos, out=tmp_path / "c", **TINY, workers=0))
    assert not (tmp_path / "c/manifest.json").exists()


def test_a_tokenizers_identity_is_that_of_what_encodes(tokenizer):
    loaded = Tokenizer.from_pretrained(tokenizer)
    identity = loaded.identity
    assert len(identity) == 64
    assert identity == make_tokenizer().identity
    with torch.no_grad():
        loaded.decoder.conv_out.weight += 1
    assert loaded.identity == identity
    with torch.no_grad():
        next(loaded.adapter.parameters()).view(-1)[0] += 1e-6
    assert loaded.identity != identity
    assert make_tokenizer(seed=1).identity != identity


def test_a_cache_knows_its_tokenizer(whole, tokenizer):
    own, other = Tokenizer.from_pretrained(tokenizer).identity, make_tokenizer(seed=1).identity
    assert len(LatentDataset(whole, tokenizer_identity=own)) == 15
    with pytest.raises(DataError, match="of another tokenizer"):
        LatentDataset(whole, tokenizer_identity=other)


def test_weights_are_chosen_of_a_work_folder_only(tokenizer, photos, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"--weights and --ema choose among a work folder's weights"):
        cache_latents(CacheRequest(tokenizer=tokenizer, data=photos, out=tmp_path / "cache", weights="raw"))
    with pytest.raises(WeightsError, match="neither a saved tokenizer"):
        cache_latents(CacheRequest(tokenizer=photos, data=photos, out=tmp_path / "cache", weights="raw"))
    asked = []
    monkeypatch.setattr(caching, "load_tokenizer", lambda *a, **k: asked.append((a, k)) or make_tokenizer())
    cache_latents(
        CacheRequest(tokenizer=photos, data=photos, out=tmp_path / "cache", image_size=8, weights="raw", workers=0)
    )
    assert asked == [((photos,), {"weights": "raw"})]


# Interruptions


def test_sigterm_leaves_whole_shards_and_the_same_command_goes_on(tokenizer, spoilt, whole, tmp_path, monkeypatch):
    written, out = [], tmp_path / "cache"

    def write_and_be_told_to_stop(path, *tensors):
        latent_shards.write_shard(path, *tensors)
        written.append(path.name)
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(encoder, "write_shard", write_and_be_told_to_stop)
    options = dict(batch_size=2, max_unreadable=2)
    with pytest.raises(Preempted, match="the shards that are there are whole, and the same command goes on"):
        cache_latents(CacheRequest(tokenizer=tokenizer, data=spoilt, out=out, **TINY, **options, workers=2))
    assert set(contents(out)) == {"encoding.json", *shards_and_checksums(2)}
    with pytest.raises(DataError, match=r"is not finished \(2 shards are there"):
        LatentDataset(out)
    cache_latents(CacheRequest(tokenizer=tokenizer, data=spoilt, out=out, **TINY, **options, workers=0))
    assert written == [f"shard_{number:05d}.safetensors" for number in range(4)]
    assert contents(out) == contents(whole)


KILLED_WHILE_WRITING = """
import os, signal, sys
from aligntok.io import files
from aligntok.cli import cache_latents
flush, calls = files._flush, []
def kill_before_the_rename(path):
    calls.append(path)
    if "shard_00002" in path.name:
        path.write_bytes(path.read_bytes()[:200])
        os.kill(os.getpid(), signal.SIGKILL)
    flush(path)
files._flush = kill_before_the_rename
cache_latents(sys.argv[1:])
"""


def words(tokenizer, photos, out):
    options = "--image-size 8 12 --shard-size 5 --batch-size 2 --workers 0 --max-unreadable 2"
    return [str(tokenizer), str(photos), str(out), *options.split()]


TOOL = ROOT / "tools/cache_latents.py"


def test_replaced_images_are_refused_and_a_lost_or_damaged_shard_is_of_the_same_ones(tokenizer, tmp_path, caplog):
    data, out = tmp_path / "data", tmp_path / "cache"
    asked = CacheRequest(tokenizer=tokenizer, data=data, out=out, image_size=32, shard_size=4, batch_size=4, workers=0)

    def images(colour):
        data.mkdir(exist_ok=True)
        for i in range(8):
            Image.new("RGB", (32, 32), colour).save(data / f"{i}.bmp")  # of the same size, whatever the colour

    images("red")
    cache_latents(asked)
    red = contents(out)
    shard = out / "shard_00000.safetensors"
    flipped = bytearray(shard.read_bytes())
    flipped[-1] ^= 1
    shard.write_bytes(flipped)
    (out / "shard_00001.safetensors").unlink()
    cache_latents(asked)
    assert f"{shard} is encoded again: it is damaged (its SHA-256" in caplog.text
    assert contents(out) == red
    images("blue")
    for _ in range(2):
        with pytest.raises(DataError, match=r"begun with other images than .* \(8 changed, 0\.bmp among them\)"):
            cache_latents(asked)
        (out / "shard_00001.safetensors").unlink(missing_ok=True)


@pytest.mark.nightly
def test_a_kill_in_the_midst_of_writing_leaves_whole_shards_only(warm, tokenizer, spoilt, whole, tmp_path, capsys):
    out = tmp_path / "cache"
    (tmp_path / "killed.py").write_text(KILLED_WHILE_WRITING)
    killed = warm.start(tmp_path / "killed.py", *words(tokenizer, spoilt, out))
    assert killed.end()[0] == -signal.SIGKILL, killed.output
    assert len([name for name in contents(out) if name.endswith(".tmp")]) == 1
    assert {name for name in contents(out) if not name.startswith(".")} == {
        "encoding.json",
        *shards_and_checksums(2),
    }
    assert command(words(tokenizer, spoilt, out)) == 0
    assert "15 images, mirrored too, 4 x 4 x 6; 2 left out" in capsys.readouterr().out
    assert contents(out) == contents(whole)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_any_number_of_processes_writes_the_same_files(warm, tokenizer, spoilt, whole, tmp_path, processes):
    printed = "".join(warm.together(processes, TOOL, *words(tokenizer, spoilt, tmp_path / "cache")))
    assert printed.count("Latents: ") == 1
    assert contents(tmp_path / "cache") == contents(whole)


@pytest.mark.nightly
def test_an_error_of_one_process_is_that_of_all(warm, tokenizer, spoilt, tmp_path):
    few = [*words(tokenizer, spoilt, tmp_path / "cache")[:-1], "1"]
    both = warm.several(2, TOOL, *few)
    assert all(process.end()[0] for process in both)
    assert any("2 of 17 images cannot be read" in process.output for process in both)


def test_a_shard_with_a_changed_bit_is_encoded_again(tokenizer, spoilt, whole, tmp_path, caplog):
    shutil.copytree(whole, tmp_path / "cache")
    (tmp_path / "cache/manifest.json").unlink()  # as long as the cache is not finished
    path = tmp_path / "cache/shard_00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert command(words(tokenizer, spoilt, tmp_path / "cache")) == 0
    assert "is encoded again: it is damaged (its SHA-256" in caplog.text
    assert contents(tmp_path / "cache") == contents(whole)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_shard_that_is_lost_or_cut_off_is_encoded_again(tokenizer, spoilt, whole, tmp_path, spoil):
    shutil.copytree(whole, tmp_path / "cache")
    spoil(tmp_path / "cache/shard_00001.safetensors")
    with pytest.raises(DataError, match="start the command that made it"):
        LatentDataset(tmp_path / "cache")
    assert command(words(tokenizer, spoilt, tmp_path / "cache")) == 0
    assert contents(tmp_path / "cache") == contents(whole)


def test_a_cache_that_lost_a_shard_is_not_finished_until_it_has_it_again(
    tokenizer, spoilt, whole, tmp_path, monkeypatch
):
    shutil.copytree(whole, tmp_path / "cache")
    (tmp_path / "cache/shard_00001.safetensors").unlink()

    def stop(*_):
        raise Preempted

    monkeypatch.setattr(caching, "encode_shards", stop)
    assert command(words(tokenizer, spoilt, tmp_path / "cache")) == 75
    with pytest.raises(DataError, match="is not finished"):
        LatentDataset(tmp_path / "cache")


def test_a_finished_cache_is_left_as_it_is(tokenizer, spoilt, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "cache")
    monkeypatch.setattr(caching, "encode_shards", None)
    (tmp_path / "cache/manifest.json").unlink()
    assert command(words(tokenizer, spoilt, tmp_path / "cache")) == 0
    assert contents(tmp_path / "cache") == contents(whole)


# What cannot be done


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--dtype", "bf16"], "dtype fp32, now bf16"),
        (["--no-hflip"], "hflip True, now False"),
        (["--image-size", "8"], r"image_size \[8, 12\], now \[8, 8\]"),
    ],
)
def test_a_cache_that_was_begun_otherwise_is_not_gone_on_with(tokenizer, spoilt, whole, tmp_path, change, message):
    shutil.copytree(whole, tmp_path / "cache")
    with pytest.raises(ConfigError, match=rf"was begun otherwise \({message}\); give what it was begun with"):
        command.__wrapped__([*words(tokenizer, spoilt, tmp_path / "cache"), *change])
    assert contents(tmp_path / "cache") == contents(whole)


def test_nor_with_another_tokenizer_or_other_images(tokenizer, spoilt, whole, tmp_path):
    make_tokenizer(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="begun otherwise .tokenizer "):
        cache_latents(CacheRequest(tokenizer=tmp_path / "other", data=spoilt, out=whole, **TINY, workers=0))
    with pytest.raises(ConfigError, match="begun otherwise .data of 17 images .* now of 6 images"):
        cache_latents(CacheRequest(tokenizer=tokenizer, data=spoilt / "ant", out=whole, **TINY, workers=0))


def test_data_and_tokenizer_may_have_moved(tokenizer, spoilt, whole, tmp_path):
    for folder in (tokenizer, spoilt):
        shutil.copytree(folder, tmp_path / folder.name)
    shutil.copytree(whole, tmp_path / "cache")
    (tmp_path / "cache/shard_00003.safetensors").unlink()
    moved = words(tmp_path / tokenizer.name, tmp_path / spoilt.name, tmp_path / "cache")
    assert command(moved) == 0
    assert LatentDataset(tmp_path / "cache").statistics == LatentDataset(whole).statistics


def test_other_peoples_folders_are_not_written_into(tokenizer, photos, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"has other things in it, and no encoding\.json; give a new folder"):
        cache_latents(CacheRequest(tokenizer=tokenizer, data=photos, out=tmp_path, **TINY, workers=0))
    with pytest.raises(ConfigError, match="give a new folder"):
        cache_latents(CacheRequest(tokenizer=tokenizer, data=photos, out=tmp_path / "thesis.tex", **TINY, workers=0))
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/encoding.json").write_text("{")
    with pytest.raises(DataError, match="so how the files beside it were made is unknown"):
        cache_latents(CacheRequest(tokenizer=tokenizer, data=photos, out=tmp_path / "begun", **TINY, workers=0))


def test_a_full_disk_is_known_before_anything_is_encoded(tokenizer, photos, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 2**26 + 100))
    message = (
        r"latents of 17 images: 1\.33e-05 GB are needed, and 0\.067 GB should stay free, .*--dtype bf16 or --no-hflip"
    )
    with pytest.raises(DataError, match=message):
        cache_latents(CacheRequest(tokenizer=tokenizer, data=photos, out=tmp_path / "cache", **TINY, workers=0))
    assert contents(tmp_path / "cache") == {}
    monkeypatch.undo()
    cache_latents(CacheRequest(tokenizer=tokenizer, data=photos, out=tmp_path / "cache", **TINY, workers=0))


def test_a_disk_that_fills_up_leaves_whole_shards(tokenizer, photos, tmp_path, monkeypatch):
    flush = files._flush

    def full(path):
        if "shard_00002" in path.name:
            raise OSError(28, "No space left on device")
        flush(path)

    monkeypatch.setattr(files, "_flush", full)
    with pytest.raises(WriteError, match=r"shard_00002\S* could not be written .*No space left.*shards that are there"):
        cache_latents(CacheRequest(tokenizer=tokenizer, data=photos, out=tmp_path / "cache", **TINY, workers=0))
    assert sorted(contents(tmp_path / "cache"))[1:] == shards_and_checksums(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(dtype="int8"), "CacheSettings: dtype='int8'; it must be 'fp32', 'bf16' or 'fp16'"),
        (
            dict(precision="fp8"),
            "CacheSettings: precision='fp8'; .*it must be 'fp32', 'tf32', 'bf16', 'fp16' or 'auto'",
        ),
        (dict(shard_size=0), "CacheSettings: shard_size=0; it must be int of at least 1 or None"),
        (
            dict(image_size=(8, 0)),
            r"CacheSettings: image_size=\(8, 0\); it must be int of at least 1 or \(int",
        ),
    ],
)
def test_an_encoding_that_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        CacheSettings(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(batch_size=0), "CacheRequest: batch_size=0; it must be int of at least 1"),
        (dict(workers=-1), "CacheRequest: workers=-1; it must be int of at least 0"),
        (dict(max_unreadable=-1), "CacheRequest: max_unreadable=-1; it must be int of at least 0 or None"),
        (
            dict(image_size=(8, 13)),
            r"image_size \(8, 13\); its sides .* f = 2, such as \(8, 12\)",
        ),
    ],
)
def test_options_out_of_range_are_refused(tokenizer, photos, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        cache_latents(
            CacheRequest(tokenizer=tokenizer, data=photos, out=tmp_path / "cache", **{"workers": 0, **options})
        )


def test_processes_that_see_different_things_are_told(monkeypatch):
    def share_another(tensors):
        tensors[0].fill_(7)

    monkeypatch.setattr(distributed, "broadcast", share_another)
    settings = dict(tokenizer=dict(identity="a" * 64), data=dict(images=3, names="b" * 64))
    with pytest.raises(DataError, match="this process sees another tokenizer, other images, or other options"):
        distributed.must_agree(settings, "another tokenizer, other images")


def test_the_manifest_is_plain_json_that_says_what_it_is(whole, tokenizer, spoilt):
    manifest = json.loads((whole / "manifest.json").read_text())
    encoding = manifest["encoding"]
    assert encoding == json.loads((whole / "encoding.json").read_text())
    assert encoding["tokenizer"]["source"] == f"../../{tokenizer.name}"
    assert encoding["data"]["where"] == f"../../{spoilt.parent.name}/{spoilt.name}"
    assert {key: encoding[key] for key in ("format", "image_size", "hflip", "dtype", "precision", "shard_size")} == {
        "format": 1,
        "image_size": [8, 12],
        "hflip": True,
        "dtype": "fp32",
        "precision": "fp32",
        "shard_size": 5,
    }
    assert [len(manifest["statistics"][name]) for name in ("mean", "std")] == [4, 4]
