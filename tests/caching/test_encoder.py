"""From images to shards of latents: what is encoded, what is left out, and how processes share it."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch

from aligntok.caching.encoder import ImagesToEncode, LatentEncoder, ShardJob, encode_shards
from aligntok.caching.settings import CacheSettings
from aligntok.data.latent_shards import Shard
from aligntok.data.sources import open_source
from aligntok.data.transforms import center_crop, open_image, resize_to_cover, to_tensor
from aligntok.errors import ConfigError, DataError
from aligntok.tokenizer import Tokenizer

SIZE = (24, 32)


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    cnn = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=32)
    return Tokenizer(cnn, dict(type="identity"), cnn, latent_dim=4, downsample_factor=8, variational=True).eval()


def cropped(path):
    return to_tensor(center_crop(resize_to_cover(open_image(path.read_bytes()), SIZE), SIZE))


@pytest.fixture
def some(classes, tmp_path):
    """Fifteen images of three classes, the third of which cannot be read: the source, and the files."""
    folder = tmp_path / "some"
    shutil.copytree(classes / "train", folder)
    paths = sorted(folder.glob("*/*.png"))
    paths[2].write_bytes(b"no image")
    return open_source(folder), paths


@pytest.mark.parametrize(("hflip", "dtype"), [(True, "fp32"), (False, "bf16"), (True, "fp16")])
def test_latents_are_encoded_at_their_size_in_eval_mode_and_stored_in_their_type(tokenizer, hflip, dtype):
    encoder = LatentEncoder(copy.deepcopy(tokenizer).train(), CacheSettings(image_size=SIZE, hflip=hflip, dtype=dtype))
    encoder.to_device()
    assert not encoder.tokenizer.training
    assert encoder.latent_shape == (4, 3, 4)
    images = torch.rand(2, 3, *SIZE) * 2 - 1
    with torch.no_grad():
        views = [tokenizer.encode(view) for view in [images, images.flip(-1)][: 1 + hflip]]
    stored = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    found = encoder(images)
    assert (found.dtype, encoder.copies) == (stored, 1 + hflip)
    torch.testing.assert_close(found, torch.stack([view.to(stored) for view in views], dim=1))
    assert not found.requires_grad
    with pytest.raises(ConfigError, match="image_size"):
        LatentEncoder(tokenizer, CacheSettings(image_size=(24, 36)))


def test_what_cannot_be_read_comes_apart_with_its_reason(some):
    source, paths = some
    images = ImagesToEncode(source, SIZE)
    found = images.collate([images[i] for i in (7, 2, 0)])
    torch.testing.assert_close(found.images, torch.stack([cropped(paths[i]) for i in (7, 0)]))
    assert (found.indices.tolist(), found.labels.tolist()) == ([7, 0], [1, 0])
    assert (found.indices.dtype, found.labels.dtype) == (torch.int64, torch.int32)
    assert found.skipped == [(2, source.names[2], "UnidentifiedImageError")]
    assert found.reasons[0].startswith("neither JPEG nor")
    nothing = images.collate([images[2]])
    assert (tuple(nothing.images.shape), nothing.labels.tolist()) == ((0, 3, *SIZE), [])
    assert (nothing.indices.dtype, nothing.labels.dtype) == (torch.int64, torch.int32)


@pytest.mark.parametrize("batch_size", [3, 16])
def test_two_processes_share_whole_shards_and_count_what_both_could_not_read(
    some, tokenizer, tmp_path, as_processes, batch_size
):
    (source, paths), counted = some, {0: [], 1: []}
    jobs = [ShardJob(tmp_path / f"{first}", range(first, min(first + 4, 15))) for first in (0, 4, 8, 12)]
    own = [copy.deepcopy(tokenizer) for _ in range(2)]

    def encode(rank):
        encoder = LatentEncoder(own[rank], CacheSettings(image_size=SIZE))
        encode_shards(jobs, source, encoder, batch_size, 0, counted[rank].append, 60.0)

    as_processes(encode)
    assert counted[0] == counted[1]
    assert (counted[0][0], counted[0][-1]) == (1, 1)
    for job in jobs:
        shard, kept = Shard(job.path), [i for i in job.indices if i != 2]
        assert shard.index.tolist() == kept
        assert shard.labels.tolist() == [i // 5 for i in kept]
        assert shard.skipped == ([(2, source.names[2], "UnidentifiedImageError")] if 2 in job.indices else [])
        images = torch.stack([cropped(paths[i]) for i in kept])
        with torch.no_grad():
            views = torch.stack([tokenizer.encode(images), tokenizer.encode(images.flip(-1))], dim=1)
        stored = torch.from_numpy(shard.map_latents().array.copy()).view(views.shape)
        torch.testing.assert_close(stored, views, rtol=1e-4, atol=1e-5)


def test_one_process_may_have_no_shard(some, tokenizer, tmp_path, as_processes):
    jobs, counted = [ShardJob(tmp_path / "only", range(1, 4))], []
    own = [copy.deepcopy(tokenizer) for _ in range(2)]
    settings = CacheSettings(image_size=SIZE, hflip=False)
    as_processes(
        lambda rank: encode_shards(jobs, some[0], LatentEncoder(own[rank], settings), 2, 0, counted.append, 60.0)
    )
    assert Shard(tmp_path / "only").index.tolist() == [1, 3]
    assert sorted(counted) == [1, 1, 1, 1]


def test_latents_that_are_not_finite_are_told_with_the_image(some, tokenizer, tmp_path):
    broken = copy.deepcopy(tokenizer)
    broken.moments = lambda images: torch.where(images[:, :1, ::8, ::8] < 9, torch.nan, 0).expand(-1, 4, -1, -1)
    encoder = LatentEncoder(broken, CacheSettings(image_size=SIZE))
    with pytest.raises(
        DataError, match=r"the latents of ant/.*\.png are not finite, computed in fp32 and stored as fp32"
    ):
        encode_shards([ShardJob(tmp_path / "x", range(3))], some[0], encoder, 4, 0, lambda count: None, 60.0)
