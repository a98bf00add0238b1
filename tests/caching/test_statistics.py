"""Statistics of latents that are encoded on the fly: of the images and crops that the words promise, by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from aligntok.caching import encoder as module
from aligntok.caching.encoder import latent_statistics
from aligntok.errors import DataError
from aligntok.tokenizer import Tokenizer

SIZE = (24, 32)


@pytest.fixture(scope="module")
def tokenizer():
    """A tiny variational tokenizer of another factor than its patch, whose posterior has some width."""
    torch.manual_seed(0)
    cnn = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=32)
    return Tokenizer(cnn, dict(type="identity"), cnn, latent_dim=4, downsample_factor=8, variational=True).eval()


def cropped(path):
    """An image resized to cover SIZE and cut out of its middle, in [-1, 1], step by step."""
    with Image.open(path) as opened:
        width, height = opened.size
        scaled = max(SIZE[1], width * SIZE[0] // height), max(SIZE[0], height * SIZE[1] // width)
        pixels = np.asarray(opened.resize(scaled, Image.Resampling.BICUBIC), dtype=np.float64)
    top, left = (round((have - want) / 2) for have, want in zip(pixels.shape, SIZE, strict=False))
    pixels = pixels[top : top + SIZE[0], left : left + SIZE[1]]
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1).float()


def by_hand(classes, tokenizer, places, seed=None):
    """Mean and deviation of each channel of the latents of those images of a folder; noise by seed and place."""
    paths = sorted((classes / "train").glob("*/*.png"))
    with torch.no_grad():
        mean, logvar = tokenizer.moments(torch.stack([cropped(paths[i]) for i in places])).chunk(2, dim=1)
    latents = mean.double().numpy()
    if seed is not None:
        noise = [np.random.default_rng((seed, i, 0)).standard_normal((4, 3, 4), dtype=np.float32) for i in places]
        latents = latents + (0.5 * logvar).exp().double().numpy() * np.stack(noise)
    return latents.mean(axis=(0, 2, 3)), latents.std(axis=(0, 2, 3))


def data(classes, **more):
    return dict(type="images", root=str(classes), split="train", image_size=SIZE, **more)


@pytest.mark.parametrize("batch", [16, 3])
@pytest.mark.parametrize(
    ("images", "places"), [(None, range(15)), (15, range(15)), (99, range(15)), (4, [0, 3, 7, 11]), (1, [0])]
)
def test_they_are_of_evenly_spaced_images_cut_in_the_middle_and_not_mirrored(
    classes, tokenizer, monkeypatch, batch, images, places
):
    monkeypatch.setattr(module, "BATCH", batch)
    found = latent_statistics(tokenizer, data(classes, train=True, hflip=True, seed=3), images, "fp32", 0)
    mean, std = by_hand(classes, tokenizer, places)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.std, std, rtol=1e-4)


@pytest.mark.parametrize("seed", [0, 5])
def test_a_samples_noise_follows_from_the_seed_and_the_images_place(classes, tokenizer, monkeypatch, seed):
    monkeypatch.setattr(module, "BATCH", 3)
    options = {} if seed == 0 else dict(seed=seed)
    found = latent_statistics(tokenizer, data(classes), 4, "fp32", 0, "sample", **options)
    mean, std = by_hand(classes, tokenizer, [0, 3, 7, 11], seed)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.std, std, rtol=1e-4)


@pytest.mark.parametrize("images", [None, 4, 1])
def test_two_processes_share_the_images_and_find_the_same(classes, tokenizer, monkeypatch, as_processes, images):
    monkeypatch.setattr(module, "BATCH", 2)
    places = {None: range(15), 4: [0, 3, 7, 11], 1: [0]}[images]
    mean, std = by_hand(classes, tokenizer, places, 0)
    own = [copy.deepcopy(tokenizer) for _ in range(2)]
    for found in as_processes(lambda rank: latent_statistics(own[rank], data(classes), images, "fp32", 0, "sample")):
        np.testing.assert_allclose(found.mean, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.std, std, rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_latents_that_do_not_vary_or_are_not_finite_are_refused(classes, tokenizer, value):
    broken = copy.deepcopy(tokenizer)
    last = [module for module in broken.encoder.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight[1] = value  # one channel of the mean
    with pytest.raises(DataError, match="the latents of 2 images are not finite, or a channel of them is constant"):
        latent_statistics(broken, data(classes), 2, "fp32", 0)
