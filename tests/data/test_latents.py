"""The latent cache, read: any batch at once, normalised, flips by the sample number, errors for what is amiss."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import pickle
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, default_collate

from aligntok.data.latent_shards import (
    DTYPES,
    LatentStatistics,
    Manifest,
    Moments,
    Shard,
    Skipped,
    read_manifest,
    shard_path,
    write_shard,
)
from aligntok.data.latents import LatentDataset
from aligntok.data.sampler import GlobalBatchSampler, SampleIndex
from aligntok.errors import ConfigError, DataError
from aligntok.io.arrays import MappedRows
from aligntok.registry import DATASETS

SHAPE = (3, 4, 6)
LENGTHS = (5, 0, 1, 7)  # one shard of which nothing could be read


def make_cache(folder, lengths=LENGTHS, dtype="fp32", hflip=True, **changes):
    """Write a cache of random latents without a tokenizer; return them as (images, copies, C, h, w)."""
    folder.mkdir(parents=True, exist_ok=True)
    copies, images = 1 + hflip, sum(lengths)
    scale = torch.tensor([0.5, 1.0, 4.0])[:, None, None]
    latents = torch.randn(images, copies, *SHAPE, generator=torch.Generator().manual_seed(0)) * scale + scale
    latents = latents.to(DTYPES[dtype])
    shards, begin = [], 0
    for number, length in enumerate(lengths):
        rows = slice(begin, begin + length)
        index = torch.arange(begin, begin + length) * 2
        write_shard(shard_path(folder, number), latents[rows], index // 2 % 3, index, [])
        shards.append(Shard(shard_path(folder, number)))
        begin += length
    settings = {"format": 1, "hflip": hflip, "dtype": dtype, "tokenizer": {"identity": "a1" * 32, "source": "some/run"}}
    manifest = Manifest(
        encoding=settings,
        images=images,
        latent_shape=SHAPE,
        statistics=LatentStatistics.of(Moments.merged([shard.moments for shard in shards])),
        class_names=("ant", "bee", "zebra"),
        shards=[{"file": s.path.name, "images": s.images, "bytes": s.bytes} for s in shards],
        skipped=[Skipped(1, "ant/01.png", "UnidentifiedImageError")],
    ).as_json()
    (folder / "encoding.json").write_text(json.dumps(settings))
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))
    return latents


@pytest.fixture
def cache(tmp_path):
    """(folder, latents in it)"""
    return tmp_path / "cache", make_cache(tmp_path / "cache")


# What is read


def test_an_item_is_normalised_over_all_latents_of_the_cache(cache):
    folder, latents = cache
    dataset = LatentDataset(folder, train=False)
    values = latents.double().transpose(0, 2).flatten(1)
    mean, std = values.mean(1), values.std(1, correction=0)
    assert dataset.statistics.mean == pytest.approx(mean.tolist(), rel=1e-14)
    assert dataset.statistics.std == pytest.approx(std.tolist(), rel=1e-14)
    item = dataset[8]
    expected = (latents[8, 0].double() - mean[:, None, None]) / std[:, None, None]
    assert item["latents"].dtype == torch.float32
    assert item["latents"].shape == dataset.latent_shape == SHAPE
    torch.testing.assert_close(item["latents"].double(), expected, rtol=1e-5, atol=1e-6)
    assert (item["label"], item["index"], len(dataset)) == (8 % 3, 8, 13)
    assert dataset.source_index[8] == 16
    assert dataset.class_names == ("ant", "bee", "zebra")


def test_normalised_latents_of_the_whole_cache_have_mean_0_and_deviation_1(cache):
    dataset = LatentDataset(cache[0])
    everything = dataset.statistics.normalise(cache[1]).transpose(0, 2).flatten(1)
    torch.testing.assert_close(everything.mean(1), torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(everything.std(1, correction=0), torch.ones(3))


def test_denormalising_gives_back_what_the_tokenizer_decodes(cache):
    raw, normalised = (LatentDataset(cache[0], train=False, normalise=n) for n in (False, True))
    for i in range(len(raw)):
        assert torch.equal(raw[i]["latents"], cache[1][i, 0])
        torch.testing.assert_close(normalised.denormalise(normalised[i]["latents"]), raw[i]["latents"])
    batch = normalised.batch(range(13))["latents"]
    assert torch.equal(normalised.statistics.normalise(cache[1][:, 0]), batch)
    assert LatentStatistics(**json.loads((cache[0] / "manifest.json").read_text())["statistics"]) == raw.statistics


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_type_is_read_back_as_it_was_stored(tmp_path, dtype):
    latents = make_cache(tmp_path, dtype=dtype)
    dataset = LatentDataset(tmp_path, train=False, normalise=False)
    batch = dataset.batch([12, 0, 5])["latents"]
    assert batch.dtype == torch.float32
    assert torch.equal(batch, latents[[12, 0, 5], 0].float())
    assert dataset.statistics.std == pytest.approx(
        latents.double().transpose(0, 2).flatten(1).std(1, correction=0).tolist(), rel=1e-14
    )


def test_a_batch_is_its_items_in_the_order_asked_for(cache):
    dataset = LatentDataset(cache[0], seed=3)
    requests = [SampleIndex(i, n) for n, i in enumerate([12, 0, 5, 5, 4, 6, 11])]
    batch = dataset.batch(requests)
    one_by_one = default_collate([dataset[request] for request in requests])
    assert batch.keys() == one_by_one.keys()
    assert all(torch.equal(batch[key], one_by_one[key]) for key in batch)
    assert dataset.collate([dataset[request] for request in requests])["latents"].equal(batch["latents"])
    assert batch["index"].tolist() == [12, 0, 5, 5, 4, 6, 11]
    assert dataset[-1]["index"] == 12
    with pytest.raises(IndexError):
        dataset[13]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gets_the_same_batches_with_and_without_workers(cache, workers):
    dataset = LatentDataset(cache[0], seed=1)
    dataset.batch([0])  # mapped already, when the workers start
    sampler = GlobalBatchSampler(len(dataset), 5, seed=1, num_steps=4)
    for collate in (default_collate, dataset.collate):
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate)
        for batch, requests in zip(loader, sampler, strict=True):
            expected = dataset.batch(requests)
            assert batch.keys() == expected.keys()
            assert all(torch.equal(batch[key], expected[key]) for key in expected)


def test_a_data_set_travels_without_its_latents(tmp_path):
    latents = make_cache(tmp_path, lengths=(100, 100))
    dataset = LatentDataset(tmp_path)
    dataset.batch(range(200))
    sent = pickle.dumps(dataset)
    assert len(sent) < latents.numel() * 4 / 5
    assert torch.equal(pickle.loads(sent)[3]["latents"], dataset[3]["latents"])


def test_a_cache_may_have_more_shards_than_a_process_may_have_files(cache, monkeypatch):
    monkeypatch.setattr("aligntok.data.latents._MOST_MAPPED", 1)
    batch = LatentDataset(cache[0], train=False, normalise=False).batch([12, 0, 5, 11, 1])["latents"]
    assert torch.equal(batch, cache[1][[12, 0, 5, 11, 1], 0])


def test_a_config_names_it_by_its_type(cache):
    dataset = DATASETS.build(dict(type="latents", root=str(cache[0]), train=True, seed=2))
    assert len(dataset) == 13
    assert dataset.identity == "a1" * 32


# Flips


def mirrored(dataset, latents, requests):
    """Which of the requests gave the mirrored image."""
    given, places = dataset.batch(requests)["latents"], [r.index for r in requests]
    copies = [(given == latents[places, copy]).flatten(1).all(1) for copy in (0, 1)]
    assert (copies[0] ^ copies[1]).all()
    return copies[1].tolist()


def test_the_flip_of_a_sample_follows_from_its_number_and_the_seed(cache):
    dataset = LatentDataset(cache[0], normalise=False, seed=5)
    requests = [SampleIndex(n * 7 % 13, n) for n in range(4000, 4400)]  # across the end of a random stream
    flips = mirrored(dataset, cache[1], requests)
    assert 150 < sum(flips) < 250
    fresh = LatentDataset(cache[0], normalise=False, seed=5)
    shuffled = np.random.default_rng(0).permutation(400)
    assert mirrored(fresh, cache[1], [requests[i] for i in shuffled]) == [flips[i] for i in shuffled]
    other_image = [SampleIndex((r.index + 1) % 13, r.sample_number) for r in requests]
    assert mirrored(fresh, cache[1], other_image) == flips
    assert mirrored(LatentDataset(cache[0], normalise=False, seed=6), cache[1], requests) != flips
    assert not any(mirrored(LatentDataset(cache[0], normalise=False, hflip=False), cache[1], requests))
    assert not any(mirrored(LatentDataset(cache[0], normalise=False, train=False), cache[1], requests))


def test_a_cache_without_mirrored_images_gives_none_and_says_so_when_asked(tmp_path):
    latents = make_cache(tmp_path, hflip=False)
    dataset = LatentDataset(tmp_path, normalise=False)
    assert not dataset.hflip
    assert torch.equal(dataset.batch(range(13))["latents"], latents[:, 0])
    with pytest.raises(ConfigError, match="no mirrored images; leave hflip out, or encode it without --no-hflip"):
        LatentDataset(tmp_path, hflip=True)


# Statistics


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=6), offset=st.sampled_from([0.0, 1e3]), seed=st.integers(0, 99))
def test_statistics_do_not_depend_on_how_the_latents_are_split(cuts, offset, seed):
    latents = torch.randn(40, 2, 3, 3, generator=torch.Generator().manual_seed(seed)) + offset
    parts = latents.tensor_split(sorted(cuts))
    merged = Moments.merged([Moments.of(part) for part in parts if len(part)])
    values = latents.double().transpose(0, 1).flatten(1).numpy()
    assert merged.count == values.shape[1]
    np.testing.assert_allclose(merged.mean, values.mean(1), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(merged.m2, values.var(1) * values.shape[1], rtol=1e-12)


def test_the_order_of_shards_changes_no_bit_of_the_statistics(cache):
    moments = [Shard(shard_path(cache[0], number)).moments for number in range(4)]
    there, back = (Moments.merged(parts) for parts in (moments, moments[::-1]))
    assert np.array_equal(there.mean, back.mean)
    assert np.array_equal(there.m2, back.m2)


# What is amiss


def rewrite(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut_off(folder):
    path = shard_path(folder, 3)
    path.write_bytes(path.read_bytes()[:-100])


def swap(folder):
    shard_path(folder, 0).rename(folder / "other")
    shard_path(folder, 3).rename(shard_path(folder, 0))
    (folder / "other").rename(shard_path(folder, 3))


def encoded(folder, **changes):
    content = json.loads((folder / "manifest.json").read_text())
    rewrite(folder, encoding={**content["encoding"], **changes})


def redeclare(folder, name, end=0, **changes):
    """Let the header of a shard say something else of a tensor, in as many bytes as before."""
    path = shard_path(folder, 3)
    data = path.read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])
    header[name] |= changes
    header[name]["data_offsets"][1] += end
    told = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(len(told).to_bytes(8, "little") + told + data[length:])
    rows = [
        {"file": p.name, "images": n, "bytes": p.stat().st_size}
        for p, n in zip(shards_of(folder), LENGTHS, strict=True)
    ]
    rewrite(folder, shards=rows)


def shards_of(folder):
    return sorted(folder.glob("shard_*.safetensors"))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)


NUMBERS = dict(mean=[0.0] * 3, std=[1.0] * 3)
AMISS = {
    "another folder": (
        lambda f: [p.unlink() for p in f.iterdir()],
        r"no latent cache in .*cache_latents\.py TOKENIZER",
    ),
    "unfinished": (lambda f: (f / "manifest.json").unlink(), r"not finished \(4 shards .*start the command"),
    "no JSON": (lambda f: (f / "manifest.json").write_text('{"images"'), r"manifest\.json cannot be read"),
    "a later format": (lambda f: rewrite(f, encoding={"format": 2}), "its format is 2, this version reads 1"),
    "no statistics": (lambda f: rewrite(f, statistics=None), "no mean and standard deviation of the 3 latent channels"),
    "part of them": (lambda f: rewrite(f, statistics={**NUMBERS, "std": [1.0]}), "no mean and standard deviation"),
    "deviation 0": (lambda f: rewrite(f, statistics={**NUMBERS, "std": [1.0, 0.0, 1.0]}), "deviations above 0"),
    "not a number": (lambda f: rewrite(f, statistics={**NUMBERS, "mean": [0.0, float("nan"), 0.0]}), "normalised"),
    "missing shard": (
        lambda f: shard_path(f, 2).unlink(),
        r"shard_00002.* cannot be read .*; copy the cache again",
    ),
    "truncated shard": (cut_off, r"shard_00003.* cannot be read \(\d+ bytes of \d+\); copy"),
    "no shard at all": (lambda f: shard_path(f, 2).write_bytes(b"x" * 9), "its header is cut off"),
    "garbage": (
        lambda f: shard_path(f, 2).write_bytes(bytes([2] + [0] * 7) + b"ab"),
        "shard_00002.* cannot be read .*; copy the cache again",
    ),
    "shards of elsewhere": (
        lambda f: rewrite(f, shards=[{"file": "../../x.png", "images": 1, "bytes": 1}]),
        r"names '\.\./\.\./x\.png', which is no file in that folder; copy the cache again",
    ),
    "shards without a length": (lambda f: rewrite(f, shards=[{"file": "x"}]), "cannot be read .it has no 'images'"),
    "no identity": (lambda f: encoded(f, tokenizer={"identity": 1, "source": "x"}), "its encoding names no tokenizer"),
    "no type of numbers": (lambda f: encoded(f, dtype="fp8"), "or no type of numbers"),
    "no source": (lambda f: encoded(f, tokenizer={"identity": "a1"}), "cannot be read .it has no 'source'"),
    "infinite deviation": (
        lambda f: rewrite(f, statistics={**NUMBERS, "std": [1.0, float("inf"), 1.0]}),
        "deviations above 0",
    ),
    "too many": (lambda f: rewrite(f, statistics=dict(mean=[0.0] * 4, std=[1.0] * 4)), "they are not 3 numbers each"),
    "one mean more": (lambda f: rewrite(f, statistics={**NUMBERS, "mean": [0.0] * 4}), "they are not 3 numbers each"),
    "fewer labels": (lambda f: redeclare(f, "labels", shape=[6]), "labels declares"),
    "places of less": (lambda f: redeclare(f, "index", shape=[6], end=-8), "it has not 7 labels and places"),
    "a tensor from before": (lambda f: redeclare(f, "index", data_offsets=[-8, 48]), "index declares"),
    "a tensor backwards": (lambda f: redeclare(f, "labels", shape=[-7], data_offsets=[28, 0]), "labels declares"),
    "half an image": (lambda f: redeclare(f, "mean", shape=[1.5, 2]), "mean declares"),
    "a changed bit": (lambda f: flip(shard_path(f, 3)), r"shard_00003.*its SHA-256 is not the one in"),
    "another type": (
        lambda f: encoded(f, dtype="fp16"),
        r"latents \(3, 4, 6\) of fp32, 2 of each image, not .* of fp16",
    ),
    "another shape": (
        lambda f: rewrite(f, latent_shape=[3, 6, 4]),
        r"latents \(3, 4, 6\) of fp32.* not \(3, 6, 4\) of",
    ),
    "copies that it has not": (lambda f: encoded(f, hflip=False), "2 of each image, not .* 1 of each image"),
    "more images": (lambda f: rewrite(f, images=14), "says 14 images, and 13 of its shards"),
    "fewer classes": (lambda f: rewrite(f, class_names=["ant", "bee"]), "labels reach to 2, .* names of 2 classes"),
    "shards swapped": (swap, "is not the shard of the manifest: 7 images .* not 5"),
}


@pytest.mark.parametrize("case", AMISS)
def test_a_cache_that_cannot_be_used_is_one_clear_error(cache, case):
    spoil, message = AMISS[case]
    spoil(cache[0])
    with pytest.raises(DataError, match=message):
        LatentDataset(cache[0])


def test_the_cache_of_another_tokenizer_is_refused(cache):
    assert LatentDataset(cache[0], tokenizer_identity="a1" * 32)
    with pytest.raises(
        DataError, match=r"of another tokenizer \(some/run, identity a1a1a1a1a1a1\), not .*b2b2b2b2b2b2"
    ):
        LatentDataset(cache[0], tokenizer_identity="b2" * 32)


def test_a_folder_that_is_not_there_is_no_cache(tmp_path):
    with pytest.raises(DataError, match="no latent cache in"):
        LatentDataset(tmp_path / "none")


def test_a_negative_seed_is_refused(cache):
    with pytest.raises(ConfigError, match="seed is -1; it must be 0 or more"):
        LatentDataset(cache[0], seed=-1)


def test_the_manifest_names_what_was_left_out(cache):
    assert read_manifest(cache[0]).skipped == [Skipped(1, "ant/01.png", "UnidentifiedImageError")]


def test_shards_are_checked_by_one_process_of_each_machine(cache, as_processes, monkeypatch):
    flip(shard_path(cache[0], 3))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert as_processes(lambda rank: len(LatentDataset(cache[0]))) == [13, 13]
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(DataError, match="its SHA-256 is not the one in"):
        as_processes(lambda rank: LatentDataset(cache[0]))


def test_a_manifest_is_all_that_says_how_a_finished_cache_was_made(cache, monkeypatch):
    (cache[0] / "encoding.json").unlink()
    monkeypatch.setenv("HOME", str(cache[0].parent))
    assert len(LatentDataset("~/cache")) == 13


def test_flips_are_drawn_4096_at_a_time(cache):
    """Another number would mirror other samples of a run that goes on."""
    dataset = LatentDataset(cache[0], normalise=False, seed=5)
    numbers = [0, 1, 4095, 4096, 4097, 8191, 8192, 20_000, *range(30, 60)]
    blocks = [np.random.default_rng((1, 5, n // 4096)).integers(2, size=4096, dtype=np.uint8) for n in numbers]
    expected = [bool(block[n % 4096]) for block, n in zip(blocks, numbers, strict=True)]
    assert mirrored(dataset, cache[1], [SampleIndex(n % 13, n) for n in numbers]) == expected
    assert mirrored(dataset, cache[1], [SampleIndex(n % 13, n) for n in numbers[::-1]]) == expected[::-1]
    assert torch.equal(dataset[7]["latents"], dataset[SampleIndex(7, 7)]["latents"])


def test_a_listing_is_of_the_shards_with_something_in_them(cache):
    listing = LatentDataset(cache[0]).listing
    kept = [shard_path(cache[0], number) for number in (0, 2, 3)]
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in kept]
    assert listing.marks.tolist() == [int(digest[:15], 16) for digest in sums]
    assert listing.sizes.tolist() == [path.stat().st_size for path in kept]
    labels = [np.arange(first, first + number, dtype=np.int32) % 3 for first, number in ((0, 5), (5, 1), (6, 7))]
    assert listing.labels.tolist() == [zlib.crc32(each.tobytes()) for each in labels]
    assert (listing.class_names, listing.by_content, listing.unit) == (("ant", "bee", "zebra"), True, "shards")


def test_rows_that_will_be_needed_are_asked_for_by_whole_pages(tmp_path):
    (tmp_path / "numbers").write_bytes(np.arange(10_000, dtype=np.float32).tobytes())
    rows = MappedRows(tmp_path / "numbers", np.dtype("<f4"), 400, 16, 600)
    assert rows.array[3].tolist() == [*range(1900, 2500)]
    asked = []
    rows._map = SimpleNamespace(madvise=lambda *given: asked.append(given))
    for row in (0, 3, 15):
        rows.will_need(row)
    page = mmap.PAGESIZE
    wanted = [(400 + 2400 * row, 400 + 2400 * (row + 1)) for row in (0, 3, 15)]
    assert asked == [(mmap.MADV_WILLNEED, a // page * page, b - a // page * page) for a, b in wanted]


def test_every_row_of_a_batch_is_asked_for_before_the_first_is_read(cache, monkeypatch):
    asked, plain = [], MappedRows.will_need
    monkeypatch.setattr(
        MappedRows, "will_need", lambda rows, row: asked.append((len(rows.array), row)) or plain(rows, row)
    )
    LatentDataset(cache[0], train=False).batch([12, 0, 5])
    assert asked == [(14, 12), (10, 0), (2, 0)]  # shard 3, shard 0 and shard 2, two copies an image


def test_statistics_are_numbers_whatever_a_file_had():
    found = LatentStatistics([1, "2.5"], [3, 4])
    assert (found.mean, found.std) == ((1.0, 2.5), (3.0, 4.0))
    assert {type(number) for number in (*found.mean, *found.std)} == {float}
    assert hash(found) == hash(LatentStatistics((1.0, 2.5), (3.0, 4.0)))


def test_a_pipe_in_the_place_of_a_shard_is_no_shard(cache):
    shard_path(cache[0], 2).unlink()
    os.mkfifo(shard_path(cache[0], 2))
    with pytest.raises(DataError, match=r"shard_00002.* cannot be read"):
        Shard(shard_path(cache[0], 2))


def test_moments_of_nothing_and_of_two_values_are_those_by_hand():
    two = Moments.of(torch.tensor([[[[1.0, 3.0]], [[5.0, 5.0]]]]))
    assert (two.count, two.mean.tolist(), two.m2.tolist()) == (2, [2.0, 5.0], [2.0, 0.0])
    none = Moments.of(torch.empty(0, 2, 1, 2))
    assert (none.count, none.mean.tolist(), none.m2.tolist()) == (0, [0.0, 0.0], [0.0, 0.0])
    assert Moments.merged([none]) is Moments.merged([none, Moments.of(torch.empty(0, 2, 3, 3))]) is none
    both = Moments.merged([two, none, Moments.of(torch.tensor([[[[8.0]], [[2.0]]]]))])
    assert (both.count, both.mean.tolist(), both.m2.tolist()) == (3, [4.0, 4.0], [26.0, 6.0])
    found = LatentStatistics.of(both)
    assert found.std == pytest.approx([(26 / 3) ** 0.5, 2**0.5])
    assert found.normalise(torch.tensor([[[[4.0]], [[6.0]]]])).flatten().tolist() == pytest.approx([0.0, 2**0.5])
    assert found.denormalise(torch.tensor([[[[0.0]], [[2**0.5]]]])).flatten().tolist() == pytest.approx([4.0, 6.0])


def test_a_batch_of_nothing_has_its_shapes_and_types(cache):
    batch = LatentDataset(cache[0]).batch([])
    assert {name: (tuple(each.shape), each.dtype) for name, each in batch.items()} == {
        "latents": ((0, *SHAPE), torch.float32),
        "label": ((0,), torch.int64),
        "index": ((0,), torch.int64),
    }
