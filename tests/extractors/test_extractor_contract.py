"""Every registered extractor keeps the contract; what they share does what it says."""

from __future__ import annotations

import pytest
import torch
from open_clip import factory
from torch import nn

from aligntok.extractors import EncoderFeatures, resized
from aligntok.extractors.libraries import LibraryExtractor
from aligntok.plugins.testing import check_extractor
from aligntok.registry import EXTRACTORS

#: Small models for those that have no size of their own.
OPTIONS = {"timm": {"model": "test_resnet"}, "open_clip": {"model": "tiny-extractor"}}
VISION = {"image_size": 64, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2}
TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}


@pytest.mark.parametrize("name", sorted(EXTRACTORS))
def test_every_extractor_keeps_its_contract(name, monkeypatch):
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny-extractor", config)
    check_extractor(name, image_size=(40, 64), **OPTIONS.get(name, {}))


def pixels(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(17, 30), (64, 96)])
def test_an_image_is_resized_to_the_very_same_values_in_any_batch_and_memory_layout(mode, size):
    images = pixels(5, 3, 40, 50)
    together = resized(images, size, mode)
    assert together.shape == (5, 3, *size)
    for i in range(5):
        assert torch.equal(together[i], resized(images[i : i + 1], size, mode)[0])
    assert torch.equal(together, resized(images.to(memory_format=torch.channels_last), size, mode))


def test_resizing_filters_keeps_the_range_and_leaves_the_right_size_alone():
    images = pixels(2, 3, 64, 64)
    assert torch.equal(resized(images, (64, 64)), images.float() / 255)
    stripes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    inner = resized(stripes, (16, 16))[..., 2:-2]
    assert ((inner - 0.5).abs() < 0.02).all()  # without a filter it would be black, or white
    edges = resized(pixels(1, 3, 8, 8).gt(127).byte() * 255, (32, 32), "bicubic")
    assert edges.min() == 0
    assert edges.max() == 1
    extractor = LibraryExtractor()
    extractor.finish((2, 3), "bicubic", (0.5,) * 3, (0.25,) * 3)
    assert extractor.resize == "bicubic antialiased to 2 x 3, mean (0.5, 0.5, 0.5), std (0.25, 0.25, 0.25)"


class Patches(nn.Module):
    """As encoders are: f16, channels that are means over the patch."""

    downsample_factor = stride = 16

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, images):
        assert not [side for side in images.shape[-2:] if side % 16]
        return nn.functional.avg_pool2d(images, 16) * self.gain


def test_an_encoders_features_are_averaged_over_its_grid():
    extractor = EncoderFeatures(Patches(), title="patches")
    images = pixels(3, 3, 32, 48)
    found = extractor(images)
    assert found.spatial is None
    assert found.logits is None
    torch.testing.assert_close(found.pooled, (images.float() / 127.5 - 1).mean(dim=(2, 3)))
    assert extractor.title == "patches"
    assert not extractor.encoder.gain.requires_grad
    assert not extractor.encoder.training


@pytest.mark.parametrize("size", [(7, 30), (40, 41), (64, 16)])
def test_images_off_an_encoders_grid_are_brought_to_it(size):
    assert EncoderFeatures(Patches(), title="patches")(pixels(2, 3, *size)).pooled.shape == (2, 3)


def test_the_identity_follows_from_title_resizing_and_weights():
    one, other = EncoderFeatures(Patches(), "a"), EncoderFeatures(Patches(), "a")
    assert one.identity == other.identity
    assert len(one.identity) == 64
    assert EncoderFeatures(Patches(), "b").identity != one.identity
    other.resize += "!"
    assert other.identity != one.identity
    third = EncoderFeatures(Patches(), "a")
    third.encoder.gain.data += 1e-7
    assert third.identity != one.identity
