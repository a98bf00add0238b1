"""A cache of latents keeps the captions of its images, where it is asked to, and gives those that the images would."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from aligntok.caching import cache_latents
from aligntok.caching.settings import CacheRequest
from aligntok.data.captions import KEPT, CaptionList
from aligntok.data.images import ImageDataset
from aligntok.data.latent_shards import Shard, shard_path, write_shard
from aligntok.data.latents import LatentDataset
from aligntok.data.sampler import SampleIndex
from aligntok.errors import ConfigError, DataError

DAMAGED = 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Nine images, one of them damaged, the first with three captions."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(9):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / f"{number}.png")
    (root / f"{DAMAGED}.png").write_bytes(b"no image")
    write_captions(root)
    return root


def write_captions(root, **changed):
    rows = [("0.png", "ein Käfer"), *((f"{number}.png", f"number {number}") for number in range(9)), ("0.png", "")]
    with (root / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "caption"), *((name, changed.get(text, text)) for name, text in rows)])


@pytest.fixture(scope="module")
def request_of(photos, tiny_tokenizer):
    def make(out, **options):
        how = dict(image_size=32, shard_size=4, workers=0, batch_size=3, max_unreadable=1)
        return CacheRequest(tokenizer=tiny_tokenizer, data=photos, out=out, **how, **options)

    return make


@pytest.fixture(scope="module")
def cache(request_of, tmp_path_factory):
    """A cache with captions."""
    return cache_latents(request_of(tmp_path_factory.mktemp("made") / "cache", caption="auto"))


@pytest.fixture(scope="module")
def plain(request_of, tmp_path_factory):
    """The same without."""
    return cache_latents(request_of(tmp_path_factory.mktemp("plain") / "cache"))


def test_latents_have_the_captions_of_their_images(cache, photos):
    latents = LatentDataset(cache, caption="auto", seed=5)
    images = ImageDataset(photos, 32, caption="auto", seed=5, max_unreadable=1)
    assert latents.source_index.tolist() == [number for number in range(9) if number != DAMAGED]
    assert [*latents.captions] == [images.source.captions[place] for place in latents.source_index]
    assert latents.captions[0] == ("ein Käfer", "number 0", "")
    for number in range(20):
        asked = [SampleIndex(0, number), SampleIndex(2, number), SampleIndex(4, number)]
        of_images = [images[SampleIndex(int(latents.source_index[i]), n)]["caption"] for i, n in asked]
        assert latents.batch(asked)["caption"] == of_images
    assert {latents.batch([SampleIndex(0, number)])["caption"][0] for number in range(20)} == {*latents.captions[0]}
    assert latents[0]["caption"] == "ein Käfer"  # of a plain integer the first
    held = LatentDataset(cache, train=False, caption="auto", seed=5)
    assert held.batch([SampleIndex(0, number) for number in range(20)])["caption"] == ["ein Käfer"] * 20


def test_batches_bring_captions_through_a_loader(cache):
    latents = LatentDataset(cache, train=False, caption="auto")
    expected = [each[0] for each in latents.captions]
    for workers, collate in [(0, None), (0, latents.collate), (1, latents.collate)]:
        batches = DataLoader(latents, batch_size=4, num_workers=workers, collate_fn=collate)
        assert [caption for batch in batches for caption in batch["caption"]] == expected
    assert [latents[i]["caption"] for i in range(len(latents))] == expected


def test_nothing_else_of_a_cache_is_another(cache, plain):
    assert Shard(shard_path(cache, 0)).captioned
    assert not Shard(shard_path(plain, 0)).captioned
    for number in range(3):
        with_captions, without = (load_file(shard_path(folder, number)) for folder in (cache, plain))
        assert with_captions.keys() - without.keys() == {*KEPT}
        assert all(torch.equal(with_captions[name], tensor) for name, tensor in without.items())
    assert "caption" not in LatentDataset(cache)[0]
    assert "caption" not in LatentDataset(plain)[0]
    assert json.loads((cache / "manifest.json").read_text())["encoding"]["data"]["caption"] == "auto"
    assert "caption" not in json.loads((plain / "manifest.json").read_text())["encoding"]["data"]


def test_a_cache_without_captions_says_what_makes_one_with_them(plain, cache, request_of):
    with pytest.raises(DataError, match=r"was made without captions; .* TOKENIZER DATA OUT --caption"):
        LatentDataset(plain, caption="auto")
    with pytest.raises(ConfigError, match=r"was begun otherwise .*caption"):
        cache_latents(request_of(plain, caption="auto"))
    with pytest.raises(ConfigError, match=r"was begun otherwise .*caption"):
        cache_latents(request_of(cache))


def test_a_cache_is_not_gone_on_with_for_other_captions(photos, cache, request_of):
    write_captions(photos, **{"number 7": "seven"})
    try:
        with pytest.raises(DataError, match=r"begun with other images .*\(1 of another caption, 7.png among them\)"):
            cache_latents(request_of(cache, caption="auto"))
    finally:
        write_captions(photos)
    assert cache_latents(request_of(cache, caption="auto")) == cache


def test_a_shard_made_anew_is_the_same_to_the_bit(cache, request_of):
    before = shard_path(cache, 1).read_bytes()
    for path in (shard_path(cache, 1), shard_path(cache, 1).with_name("shard_00001.safetensors.sha256")):
        path.unlink()
    cache_latents(request_of(cache, caption="auto"))
    assert shard_path(cache, 1).read_bytes() == before


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("captions", torch.tensor([0xFF] * 6, dtype=torch.uint8), "invalid start byte"),
        ("captions", torch.zeros(6), "its captions are float32"),
        ("captions", torch.zeros(5, dtype=torch.uint8), "do not end in order within 5 bytes"),
        ("caption_ends", torch.tensor([3, -1, 6]), "do not end in order"),
        ("caption_ends", torch.tensor([2**62, 3, 6]), "do not end in order"),
        ("caption_counts", torch.tensor([3, 0]), "are not those of 2 images"),
        ("caption_counts", torch.tensor([3]), "captions of 1 images, not of 2"),
        ("caption_counts", None, "it has no 'caption_counts'"),
    ],
)
def test_captions_of_a_stranger_are_as_large_as_they_are(tmp_path, name, value, why):
    captions = CaptionList(2)
    captions.add(0, ["ab", "c"])
    captions.add(1, "def")
    path = shard_path(tmp_path, 0)
    zeros = torch.zeros(2, 1, 4, 2, 2)
    write_shard(path, zeros, torch.zeros(2), torch.arange(2), [], captions.packed())
    assert [*Shard(path).captions] == [("ab", "c"), ("def",)]
    tensors = load_file(path)
    tensors = {key: tensor for key, tensor in {**tensors, name: value}.items() if tensor is not None}
    save_file(tensors, path, {"skipped": "[]"})
    with pytest.raises(DataError, match=rf"{path.name} cannot be read \({why}|{path.name} cannot be read \(.*{why}"):
        _ = Shard(path).captions
